"""The driver of stage 2: metrics that survive restarts, checkpoints, notices, lost learners."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from spirl_ray.config import TrainSettings
from spirl_ray.envs import declared_scores
from spirl_ray.errors import SpirlError
from spirl_ray.files.attempts import Attempt
from spirl_ray.files.tables import read_csv
from spirl_ray.pipeline import training
from spirl_ray.pipeline.events import silent
from spirl_ray.pipeline.metrics_log import MetricsLog
from spirl_ray.pipeline.results import Finding
from spirl_ray.pipeline.stopping import TERMINATED
from spirl_ray.pipeline.training import read_provenance
from spirl_ray.pipeline.training_run import TrainingRun, rllib_seed
from spirl_ray.rl.learners import LearnerLost
from spirl_ray.rl.rewards import RewardScale

from training_runs import run_in, steps_in  # isort: skip


def test_the_weight_of_the_divergence_can_be_fixed(tmp_path: Path) -> None:
    assert training.algorithm_config(run_in(tmp_path)).settings.fixed_alpha is None
    assert training.algorithm_config(run_in(tmp_path, fixed_alpha=0.2)).settings.fixed_alpha == 0.2


def test_the_learner_is_told_the_scale_of_rewards(tmp_path: Path) -> None:
    assert training.algorithm_config(run_in(tmp_path, reward_scale=0.02)).settings.reward_scale == 0.02


def test_metrics_from_after_the_restored_checkpoint_are_dropped(tmp_path: Path) -> None:
    log = MetricsLog(tmp_path, 0, 0)
    for steps, updates in ((100, 0), (200, 0), (200, 50), (200, 90), (300, 90)):
        log.add({"env_steps": steps, "updates": updates, "alpha": 0.5})
    log.close()
    log = MetricsLog(tmp_path, 200, 50)
    log.add({"env_steps": 310, "updates": 60, "alpha": 0.5, "critic_loss": 1.0})
    log.close()
    assert steps_in(tmp_path / "metrics.csv") == [100, 200, 200, 310]


def test_provenance_names_the_processes_whose_steps_were_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert read_provenance(tmp_path) == []
    for commit, steps, updates in (("first", 0, 0), ("lost", 100, 0), ("second", 100, 0), ("alone", 100, 500)):
        monkeypatch.setattr(training, "commit", lambda commit=commit: commit)
        training._note_provenance(tmp_path, steps, updates)
    history = read_provenance(tmp_path)
    assert [(entry["commit"], entry["from_env_steps"]) for entry in history] == [
        ("first", 0),
        ("second", 100),
        ("alone", 100),
    ]
    assert set(history[0]["hardware"]) >= {"cpu", "cores", "gpu"}


# --- attempts, and the notice that a node goes ---


class Algorithm:
    """Counts 50 steps a round; ``events`` happen during the round that reaches these steps."""

    def __init__(self, events: dict[int, Callable[[], Any]]) -> None:
        self.counters = {"env_steps": 0, "decisions": 0, "updates": 0, "episodes": 0, "offline_updates": 0}
        self.episodes = SimpleNamespace(mean=lambda: {})
        self.offline_updates_left = 0
        self.events, self.learner_metrics = events, dict[str, float]()
        self.rewards = RewardScale(TrainSettings(), horizon=10)
        self.sampler = SimpleNamespace(lost=lambda: {"env_runners_lost": self.counters["env_steps"] // 150})

    def train(self) -> None:
        if self.offline_updates_left:
            self.offline_updates_left -= 2500
            self.counters["offline_updates"] += 2500
            self.counters["updates"] += 2500
        else:
            self.counters["env_steps"] += 50
            self.counters["updates"] += bool(self.counters["offline_updates"])
        self.events.get(self.counters["env_steps"], lambda: None)()

    def save_checkpoint(self, folder: str) -> None:
        Path(folder).mkdir(parents=True, exist_ok=True)
        (Path(folder) / "state.json").write_text(json.dumps(self.counters))
        self.events.get(-self.counters["env_steps"], lambda: None)()


def course(
    run: TrainingRun, algorithm: Algorithm, show: Callable[..., None] = lambda *_: None
) -> tuple[list[int], list[float]]:
    """The steps of the snapshots of a training, and its progress."""
    snapshots, done = list[int](), list[float]()
    evaluations: Any = SimpleNamespace(
        snapshot=lambda _, steps: snapshots.append(steps),
        collect=lambda *_: None,
        newest={},
        scores=declared_scores("spirl/PointPads-v0"),
    )

    def tell(now: float, total: float, **newest: Any) -> None:
        done.append(now)

    attempt, monitor = Attempt.begin(run.out), SimpleNamespace(show=show)
    training._loop(run, attempt, algorithm, evaluations, monitor, tell)  # type: ignore[arg-type]
    return snapshots, done


def loop(run: TrainingRun, events: dict[int, Callable[[], Any]], show: Callable[..., None] = lambda *_: None) -> None:
    course(run, Algorithm(events), show)


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


class OfflineFirst(Algorithm):
    """Makes 15,000 updates without a step once it has made 100 steps."""

    def __init__(self, events: dict[int, Callable[[], Any]]) -> None:
        super().__init__({100: self.begin, **events})

    def begin(self) -> None:
        self.offline_updates_left = 15_000 - self.counters["offline_updates"]


def test_updates_without_a_step_are_logged_saved_and_evaluated(tmp_path: Path) -> None:
    run = run_in(tmp_path, env_steps=200, checkpoint_every=1000, evaluate_every=100)
    seen: list[list[str]] = []
    checkpoints = run.out / "checkpoints"
    algorithm = OfflineFirst({-100: lambda: seen.append(sorted(path.name for path in checkpoints.glob("s*")))})
    snapshots, done = course(run, algorithm)
    assert snapshots == [0, 100, 200]  # before, once after the updates without a step, and at the end
    assert done == [2600, 5100, 7600, 10_100, 12_600, 15_100, 15_200]
    updates = [row.whole_number("updates") for row in read_csv(run.out / "metrics.csv")]
    assert updates == [2500, 5000, 7500, 10_000, 12_500, 15_000, 15_002]
    assert steps_in(run.out / "metrics.csv") == [100] * 6 + [200]
    assert seen == [[], ["step-000000000100-000000010000"]]
    left = [folder.name for folder in training.checkpoints(run.out)]
    assert left == ["step-000000000100-000000015000", "step-000000000200"]


def test_a_training_that_ends_with_the_warm_up_makes_its_updates_without_a_step(tmp_path: Path) -> None:
    run, algorithm = run_in(tmp_path, env_steps=100), OfflineFirst({})
    assert course(run, algorithm)[0] == [0, 100]
    assert algorithm.counters["updates"] == 15_000


def test_a_notice_amid_updates_without_a_step_saves_them(tmp_path: Path) -> None:
    run = run_in(tmp_path, env_steps=200, checkpoint_every=1000)
    algorithm = OfflineFirst({})
    rounds, train = iter(range(10)), algorithm.train

    def notified() -> None:
        train()
        if next(rounds) == 3:
            os.kill(os.getpid(), signal.SIGTERM)

    algorithm.train = notified  # type: ignore[method-assign]
    with pytest.raises(SystemExit):
        course(run, algorithm)
    assert [folder.name for folder in training.checkpoints(run.out)] == ["step-000000000100-000000005000"]


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
