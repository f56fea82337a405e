"""Snapshots of one course are evaluated, and the one that the settings ask for is published."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from spirl_ray.envs import declared_scores
from spirl_ray.envs.metrics import EpisodeMetric, declare
from spirl_ray.errors import SpirlError
from spirl_ray.files.attempts import Attempt
from spirl_ray.pipeline import snapshots, training
from spirl_ray.pipeline.rollouts import EpisodeRow
from spirl_ray.pipeline.snapshots import SnapshotEvaluations
from spirl_ray.pipeline.training import is_trained

from training_runs import TOTALS, evaluated, run_in, steps_in  # isort: skip


def test_snapshots_from_after_the_restored_checkpoint_are_removed(tmp_path: Path) -> None:
    run = run_in(tmp_path)
    evaluated(run.out, {0: (0.0, 0.0), 400: (1.0, 1.0), 800: (2.0, 2.0)})
    evaluations = SnapshotEvaluations(run, 400)
    assert sorted(path.name[-3:] for path in (run.out / "snapshots").iterdir()) == ["000", "400"]
    assert sorted(evaluations.results) == [
        (0, "deterministic"),
        (0, "sampled"),
        (400, "deterministic"),
        (400, "sampled"),
    ]


def test_the_best_snapshot_has_the_best_mean_of_both_modes_and_is_the_later_of_equals(tmp_path: Path) -> None:
    scores = declared_scores("spirl/PointPads-v0")
    evaluated(tmp_path, {0: (4.0, 0.0), 100: (2.0, 3.0), 200: (3.0, 2.0), 300: (1.0, 1.0)})
    found = snapshots.best_and_last(snapshots.results_so_far(tmp_path), scores)
    assert (found["best"].env_steps, found["last"].env_steps) == (200, 300)
    assert found["best"].deterministic == {"episodes": 5, "return": -200, "subtasks": 3.0}
    (snapshots.snapshot_folder(tmp_path, 200) / "evaluation-sampled.json").unlink()  # evaluated in one mode only
    assert snapshots.best_and_last(snapshots.results_so_far(tmp_path), scores)["best"].env_steps == 100


def test_the_best_snapshot_has_the_least_of_a_score_of_which_less_is_better(tmp_path: Path) -> None:
    slow = EpisodeMetric(name="slowness", meaning="x", more_is_better=False, of=lambda outcome: 0.0)
    evaluated(tmp_path, {0: (9.0, 9.0), 100: (2.0, 2.0), 200: (5.0, 5.0)}, "slowness")
    found = snapshots.best_and_last(snapshots.results_so_far(tmp_path), declare([slow], "slowness"))
    assert found["best"].env_steps == 100


@pytest.mark.parametrize(("publish", "steps"), [("best", 200), ("last", 400)])
def test_the_settings_choose_which_snapshot_is_published(tmp_path: Path, publish: str, steps: int) -> None:
    run = run_in(tmp_path, publish=publish)
    evaluated(run.out, {200: (3.0, 3.0), 400: (1.0, 1.0)})
    attempt = Attempt.begin(run.out)
    training._publish_and_note(run, attempt, TOTALS)
    trained = json.loads((run.out / "trained.json").read_text())
    assert (trained["publish"], trained["published_env_steps"], trained["score"]) == (publish, steps, "subtasks")
    assert (trained["best"]["env_steps"], trained["last"]["env_steps"]) == (200, 400)
    assert (run.out / "policy.safetensors").read_text() == f"weights {steps}"
    assert not list(run.out.glob("evaluation-*"))


def test_another_choice_publishes_another_snapshot_without_a_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def train() -> None:
        raise AssertionError("there is nothing left to train")

    monkeypatch.setattr(training, "algorithm_config", lambda run: train())
    run = run_in(tmp_path)
    evaluated(run.out, {200: (3.0, 3.0), 400: (1.0, 1.0)})
    (run.out / "policy.json").touch()
    training._publish_and_note(run, Attempt.begin(run.out), TOTALS)
    assert is_trained(run)
    last = run_in(tmp_path, publish="last")
    assert last.config_hash == run.config_hash
    assert not is_trained(last)
    result = training.train_policy(last)
    assert (result.published_env_steps, result.updates) == (400, 7)
    assert (run.out / "policy.safetensors").read_text() == "weights 400"
    assert is_trained(last)
    assert training.train_policy(run).published_env_steps == 200


def test_another_score_chooses_among_the_snapshots_that_were_evaluated_by_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = run_in(tmp_path)
    evaluated(run.out, {200: (3.0, 3.0), 400: (1.0, 1.0)})
    (run.out / "policy.json").touch()
    training._publish_and_note(run, Attempt.begin(run.out), TOTALS)
    assert is_trained(run)
    new = EpisodeMetric(name="energy", meaning="x", more_is_better=True, of=lambda outcome: 0.0)
    monkeypatch.setattr(training, "experiment_scores", lambda _: declare([new], "energy"))
    assert is_trained(run)  # no snapshot has an energy, so the published one stays
    low = EpisodeMetric(name="subtasks", meaning="x", more_is_better=False, of=lambda outcome: 0.0)
    monkeypatch.setattr(training, "experiment_scores", lambda _: declare([low], "subtasks"))
    assert not is_trained(run)


def test_the_record_of_a_training_has_the_score_that_is_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = run_in(tmp_path)
    evaluated(run.out, {200: (3.0, 3.0)})
    (run.out / "policy.json").touch()
    training._publish_and_note(run, Attempt.begin(run.out), TOTALS)
    monkeypatch.setattr(training, "experiment_scores", lambda _: declare(["return"], "return"))
    assert not is_trained(run)
    assert training.train_policy(run).score == "return"


def test_a_longer_training_may_publish_a_later_snapshot(tmp_path: Path) -> None:
    run = run_in(tmp_path)
    evaluated(run.out, {200: (3.0, 3.0), 400: (1.0, 1.0)})
    assert training._publish_and_note(run, Attempt.begin(run.out), TOTALS).published_env_steps == 200
    evaluated(run.out, {600: (3.5, 3.0)})
    longer = {**TOTALS, "env_steps": 600}
    assert training._publish_and_note(run, Attempt.begin(run.out), longer).published_env_steps == 600


def test_an_attempt_that_was_overtaken_publishes_nothing(tmp_path: Path) -> None:
    run = run_in(tmp_path)
    evaluated(run.out, {400: (1.0, 1.0)})
    old = Attempt.begin(run.out)
    Attempt.begin(run.out)
    with pytest.raises(SpirlError, match="attempt 2"):
        training._publish_and_note(run, old, TOTALS)
    assert not (run.out / "trained.json").exists()
    assert not (run.out / "policy.safetensors").exists()


def test_a_snapshot_without_a_result_is_evaluated_when_a_run_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = run_in(tmp_path)
    folder = run.out / "snapshots" / "step-000000000400"
    folder.mkdir(parents=True)
    (folder / "policy.json").touch()
    started = []
    monkeypatch.setattr(snapshots, "read_policy_card", lambda folder: type("Card", (), {"env_steps": 400}))
    monkeypatch.setattr(snapshots, "start_rollouts", lambda plan, episodes: started.append((plan.mode, list(episodes))))
    monkeypatch.setattr(
        snapshots, "gather_rollouts", lambda refs: [EpisodeRow("m", 0, 0, {"return": 2.0, "subtasks": 2.0})]
    )
    evaluations = SnapshotEvaluations(run, 400)
    assert started == [("deterministic", [0]), ("sampled", [0])]
    evaluations.collect(7.0, wait=True)
    assert {mode: row["subtasks"] for mode, row in evaluations.newest.items()} == {"deterministic": 2.0, "sampled": 2.0}
    assert steps_in(run.out / "evaluations.csv") == [400, 400]


def test_snapshots_are_told_in_the_order_of_their_steps_whatever_evaluation_ends_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = run_in(tmp_path)
    ended: list[int] = []
    told: list[int] = []
    monkeypatch.setattr(snapshots, "start_rollouts", lambda plan, episodes: [int(plan.folder[-3:])])
    monkeypatch.setattr(snapshots.ray, "wait", lambda refs, **_: (refs, []) if set(refs) <= set(ended) else ([], refs))
    monkeypatch.setattr(
        snapshots, "gather_rollouts", lambda refs: [EpisodeRow("m", 0, 0, {"return": 2.0, "subtasks": 2.0})]
    )
    evaluations = SnapshotEvaluations(run, 800, lambda row: told.append(row["env_steps"]))
    for steps in (200, 400, 600):
        evaluations._start(steps)
    for steps, expected in ((400, []), (200, [200, 400]), (600, [200, 400, 600])):
        ended.append(steps)
        evaluations.collect(1.0)
        assert told == expected
    told.clear()
    for mode in ("deterministic", "sampled"):  # of a run that was interrupted meanwhile
        (snapshots.snapshot_folder(run.out, 400) / f"evaluation-{mode}.json").unlink()
    (snapshots.snapshot_folder(run.out, 400) / "policy.json").touch()
    monkeypatch.setattr(snapshots, "read_policy_card", lambda folder: type("Card", (), {"env_steps": 400}))
    resumed = SnapshotEvaluations(run, 800, lambda row: told.append(row["env_steps"]))
    assert told == [200]
    resumed.collect(1.0, wait=True)
    assert told == [200, 400, 600]


def test_a_published_policy_is_completed_by_its_card(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    snapshot, out, order = tmp_path / "snapshot", tmp_path / "out", []
    for name in ("policy.json", "policy.safetensors", "skills/skill.json"):
        (snapshot / name).parent.mkdir(parents=True, exist_ok=True)
        (snapshot / name).write_text(name)
    monkeypatch.setattr(training, "write_atomically", lambda path, data: order.append(path.relative_to(out)))
    training._publish(snapshot, out)
    assert order[-1] == Path("policy.json")
    assert len(order) == 3


def test_a_run_is_trained_when_it_has_reached_the_asked_steps(tmp_path: Path) -> None:
    run = run_in(tmp_path)
    assert not is_trained(run)
    evaluated(run.out, {400: (1.0, 1.0)})
    (run.out / "policy.json").touch()
    training._publish_and_note(run, Attempt.begin(run.out), TOTALS)
    assert is_trained(run)
    assert not is_trained(run_in(tmp_path, env_steps=401))
