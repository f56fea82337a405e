"""The driver of stage 2: metrics that survive restarts, snapshots of one course, a published policy."""

from __future__ import annotations

import csv
import json
import os
import signal
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from spirl_ray.config import TrainSettings, parse_experiment
from spirl_ray.envs import declared_scores, environment
from spirl_ray.envs.metrics import EpisodeMetric, declare
from spirl_ray.errors import SpirlError
from spirl_ray.files.attempts import Attempt
from spirl_ray.pipeline import snapshots, training
from spirl_ray.pipeline.events import silent
from spirl_ray.pipeline.metrics_log import MetricsLog
from spirl_ray.pipeline.results import Finding
from spirl_ray.pipeline.rollouts import EpisodeRow
from spirl_ray.pipeline.snapshots import SnapshotEvaluations
from spirl_ray.pipeline.stopping import TERMINATED
from spirl_ray.pipeline.training import is_trained, read_provenance
from spirl_ray.pipeline.training_run import TrainingRun, rllib_seed
from spirl_ray.rl.learners import LearnerLost
from spirl_ray.rl.methods import method_config, skill_spec
from spirl_ray.rl.rewards import RewardScale

from toy import TOY  # isort: skip


def run_in(folder: Path, **train: Any) -> TrainingRun:
    experiment = parse_experiment({**TOY, "train": {**TOY["train"], **train}}, "test")
    pads = environment(experiment.environment)
    spec = skill_spec(experiment.skills, "spirl_cl", pads.features, pads.action_dim)
    method = method_config("spirl_cl", experiment.train, spec)
    return TrainingRun(experiment, method, 0, folder / "skills", folder / "out", "hash")


TOTALS = dict(env_steps=400, decisions=40, updates=7, wall_clock_s=1.5, config_hash="hash", commit="abc")
"""What ``trained.json`` says of a training beside its snapshots."""


def steps_in(path: Path) -> list[int]:
    with path.open(newline="") as file:
        return [int(row["env_steps"]) for row in csv.DictReader(file)]


def test_the_weight_of_the_divergence_can_be_fixed(tmp_path: Path) -> None:
    assert training.algorithm_config(run_in(tmp_path)).settings.fixed_alpha is None
    assert training.algorithm_config(run_in(tmp_path, fixed_alpha=0.2)).settings.fixed_alpha == 0.2


def test_the_learner_is_told_the_scale_of_rewards(tmp_path: Path) -> None:
    assert training.algorithm_config(run_in(tmp_path, reward_scale=0.02)).settings.reward_scale == 0.02


def test_metrics_from_after_the_restored_checkpoint_are_dropped(tmp_path: Path) -> None:
    log = MetricsLog(tmp_path, 0)
    for steps in (100, 200, 300):
        log.add({"env_steps": steps, "alpha": 0.5})
    log.close()
    log = MetricsLog(tmp_path, 200)
    log.add({"env_steps": 310, "alpha": 0.5, "critic_loss": 1.0})
    log.close()
    assert steps_in(tmp_path / "metrics.csv") == [100, 200, 310]


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


def evaluated(out: Path, subtasks: dict[int, tuple[float, float]], name: str = "subtasks") -> None:
    """Snapshots with this score, deterministic and sampled, by their steps."""
    for steps, values in subtasks.items():
        folder = snapshots.snapshot_folder(out, steps)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "policy.safetensors").write_text(f"weights {steps}")
        for mode, value in zip(("deterministic", "sampled"), values, strict=True):
            result = {"env_steps": steps, "mode": mode, "episodes": 5, name: value, "return": -steps}
            (folder / f"evaluation-{mode}.json").write_text(json.dumps(result))


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


def test_provenance_names_the_processes_whose_steps_were_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert read_provenance(tmp_path) == []
    for commit, steps in (("first", 0), ("lost", 100), ("second", 100)):
        monkeypatch.setattr(training, "commit", lambda commit=commit: commit)
        training._note_provenance(tmp_path, steps)
    history = read_provenance(tmp_path)
    assert [(entry["commit"], entry["from_env_steps"]) for entry in history] == [("first", 0), ("second", 100)]
    assert set(history[0]["hardware"]) >= {"cpu", "cores", "gpu"}


# --- attempts, and the notice that a node goes ---


class Algorithm:
    """Counts 50 steps a round; ``events`` happen during the round that reaches these steps."""

    def __init__(self, events: dict[int, Callable[[], Any]]) -> None:
        self.counters = {"env_steps": 0, "decisions": 0, "updates": 0, "episodes": 0}
        self.events, self.learner_metrics = events, dict[str, float]()
        self.rewards = RewardScale(TrainSettings(), horizon=10)
        self.sampler = SimpleNamespace(lost=lambda: {"env_runners_lost": self.counters["env_steps"] // 150})

    def train(self) -> None:
        self.counters["env_steps"] += 50
        self.events.get(self.counters["env_steps"], lambda: None)()

    def episode_metrics(self) -> dict[str, float]:
        return {}

    def save_checkpoint(self, folder: str) -> None:
        Path(folder).mkdir(parents=True, exist_ok=True)
        (Path(folder) / "state.json").write_text(json.dumps(self.counters))
        self.events.get(-self.counters["env_steps"], lambda: None)()


def loop(run: TrainingRun, events: dict[int, Callable[[], Any]], show: Callable[..., None] = lambda *_: None) -> None:
    attempt = Attempt.begin(run.out)
    evaluations: Any = SimpleNamespace(
        snapshot=lambda *_: None,
        collect=lambda *_: None,
        newest={},
        scores=declared_scores("spirl/PointPads-v0"),
    )
    monitor: Any = SimpleNamespace(show=show)
    training._loop(run, attempt, Algorithm(events), evaluations, monitor, silent)  # type: ignore[arg-type]


def test_a_lost_env_runner_is_shown_at_once_and_each_loss_once(tmp_path: Path) -> None:
    shown: list[dict[str, Any]] = []
    loop(run_in(tmp_path, env_steps=400), {}, lambda row, *_: shown.append(row))
    assert [row["env_runners_lost"] for row in shown if "env_runners_lost" in row] == [0, 1, 2]


def saved(run: TrainingRun) -> list[int]:
    return [int(folder.name.split("-")[1]) for folder in training.checkpoints(run.out)]


def test_a_notice_leads_to_a_checkpoint_of_the_running_round_and_the_end(tmp_path: Path) -> None:
    run = run_in(tmp_path, env_steps=1000, checkpoint_every=1000)
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(SystemExit) as end:
        loop(run, {300: lambda: os.kill(os.getpid(), signal.SIGTERM)})
    assert end.value.code == TERMINATED
    assert saved(run) == [300]
    assert steps_in(run.out / "metrics.csv") == [300]
    assert signal.getsignal(signal.SIGTERM) is before


def test_an_overlapping_attempt_takes_over_and_the_older_one_writes_nothing_more(tmp_path: Path) -> None:
    run = run_in(tmp_path, env_steps=1000, checkpoint_every=100)
    with pytest.raises(SpirlError, match=r"attempt 2 .* number 1, stops"):
        loop(run, {350: lambda: Attempt.begin(run.out)})
    assert saved(run) == [200, 300]  # the two newest are kept
    assert steps_in(run.out / "metrics.csv") == [100, 200, 300]


def test_a_checkpoint_that_was_being_written_when_another_attempt_began_is_not_published(tmp_path: Path) -> None:
    run = run_in(tmp_path, env_steps=1000, checkpoint_every=100)
    with pytest.raises(SpirlError, match="attempt 2"):
        loop(run, {-300: lambda: Attempt.begin(run.out)})
    assert saved(run) == [100, 200]
    killed = run.out / "checkpoints" / ".step-000000000300.partial-another-host-1"
    killed.mkdir()
    loop(run, {})
    assert saved(run) == [900, 1000]
    assert not list((run.out / "checkpoints").glob(".*"))


def test_seeds_of_resumed_runs_stay_within_32_bits_and_differ() -> None:
    assert rllib_seed(7) == 7
    assert rllib_seed(7, 3000) == 3007
    large = [rllib_seed(seed, offset) for seed in (2**31, 2**32 - 2, 2**32 - 1) for offset in (0, 10**12, 2 * 10**12)]
    large += [rllib_seed(0, 10**12), rllib_seed(1, 10**12)]
    assert len(set(large)) == len(large)
    # RLlib adds numbers of env runners, and a million for evaluations.
    assert all(0 <= seed < 2**32 - 2_000_000 for seed in large)


# --- lost learners ---


def test_training_resumes_from_the_newest_checkpoint_when_learners_are_lost(tmp_path: Path) -> None:
    run, began = run_in(tmp_path, env_steps=500, checkpoint_every=100), list[str | None]()
    told = list[Finding]()

    def tell(done: float, total: float, *, findings: Sequence[Finding] = (), **newest: Any) -> None:
        told.extend(findings)

    def train(checkpoint: Path | None) -> Any:
        began.append(None if checkpoint is None else checkpoint.name)
        if len(began) == 1:

            def lose() -> None:
                raise LearnerLost("1 of 2 learners did not answer")

            loop(run, {250: lose})
        return {"env_steps": 500}, []

    assert training._train_through_lost_learners(run, train, tell)[0] == {"env_steps": 500}
    assert began == [None, "step-000000000200"]
    [finding] = told
    assert finding.warning
    assert "1 of 2 learners" in finding.text


def test_training_gives_up_when_learners_are_lost_again_and_again_without_a_checkpoint(tmp_path: Path) -> None:
    run, calls = run_in(tmp_path), []

    def train(checkpoint: Path | None) -> Any:
        calls.append(checkpoint)
        raise LearnerLost("2 of 2 learners did not answer")

    with pytest.raises(SpirlError, match=r"lost its learners 4 times .*2 of 2"):
        training._train_through_lost_learners(run, train, silent)
    assert len(calls) == 4
