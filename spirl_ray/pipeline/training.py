"""Stage 2 from its driver: build or resume the algorithm, checkpoint, log, publish the policy."""

from __future__ import annotations

import contextlib
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from spirl_ray.config import TrainSettings
from spirl_ray.errors import SpirlError
from spirl_ray.files import layout
from spirl_ray.files.atomic import partial_folder, read_json, remove_partial_folders, write_atomically, write_json
from spirl_ray.files.attempts import Attempt
from spirl_ray.pipeline.events import Progress, silent
from spirl_ray.pipeline.findings import reward_findings, reward_numbers
from spirl_ray.pipeline.metrics_log import MetricsLog, TrainingClock
from spirl_ray.pipeline.monitoring import Monitor
from spirl_ray.pipeline.provenance import commit, hardware, versions
from spirl_ray.pipeline.results import Finding
from spirl_ray.pipeline.scores import experiment_scores
from spirl_ray.pipeline.session import deferred_termination
from spirl_ray.pipeline.snapshots import (
    SnapshotEvaluations,
    best_and_last,
    evaluations_so_far,
    results_so_far,
    snapshot_folder,
)
from spirl_ray.pipeline.stopping import TERMINATED
from spirl_ray.pipeline.trained import TrainedRecord, read_trained, write_trained
from spirl_ray.pipeline.training_run import TrainingRun, algorithm_config, rllib_seed
from spirl_ray.rl import checkpoint
from spirl_ray.rl.algorithm import SkillPriorSAC, SkillPriorSACConfig
from spirl_ray.rl.learners import LearnerLost
from spirl_ray.rl.methods import MethodConfig, kept_divergence

_OFFLINE_UPDATES_A_CHECKPOINT = 10_000
_LOST_IN_A_ROW = 3
"""The number of times that lost learners are replaced without a new checkpoint, before a run gives up."""
Row = dict[str, Any]
Trained = tuple[Row, list[Row]]
"""The counters at the end of a training, and the processes that trained."""


def is_trained(run: TrainingRun) -> bool:
    """True when the run has reached the experiment's number of steps and has published the snapshot it asks for."""
    record = _reached(run)
    if record is None:
        return False
    # Another `train.publish` or `evaluate.score` may choose another snapshot; without snapshots, there is no choice.
    scores, publish, results = experiment_scores(run.experiment), run.experiment.train.publish, results_so_far(run.out)
    wanted = best_and_last(results, scores).get(publish)
    if wanted is None:
        return True
    published = wanted.env_steps == record.published_env_steps
    if wanted.score is None:  # no snapshot was evaluated by this score, so none is the best
        return published or publish == "best"
    return published and record.score == scores.score_in(results.values()).name


def _reached(run: TrainingRun) -> TrainedRecord | None:
    """The record of a training that has reached the experiment's number of steps."""
    record = read_trained(run.out) if (run.out / layout.POLICY_CARD).exists() else None
    return record if record is not None and record.env_steps >= run.experiment.train.env_steps else None


def train_policy(
    run: TrainingRun, progress: Progress = silent, on_evaluation: Callable[[Row], None] | None = None
) -> TrainedRecord:
    """Trains one policy, or resumes its training, and writes its artifact to ``run.out``.

    Everything is in ``run.out``: checkpoints, snapshots with their evaluations, ``metrics.csv``,
    ``evaluations.csv``, ``rewards.json``, ``provenance.json``, TensorBoard files, the policy artifact and
    ``trained.json``. After a SIGTERM, the process ends with a checkpoint of the running round.

    Args:
        run: what to train, and where.
        progress: called with each row of metrics and the newest scores; also with findings, once something is known of
            rewards.
        on_evaluation: called with each evaluated snapshot, those from before an interruption included:
            ``env_steps``, ``wall_clock_s``, and ``MODE_METRIC`` for both modes and every metric of the episodes, one
            of which is called ``score``.

    Returns:
        What ``trained.json`` holds.

    Raises:
        SpirlError: skills or environment that do not fit, a damaged checkpoint, storage that fails.
    """
    scores = experiment_scores(run.experiment)
    if (record := _reached(run)) is not None:
        if on_evaluation is not None:
            for evaluation in evaluations_so_far(run.out, scores):
                on_evaluation(evaluation)
        return record if is_trained(run) else _publish_and_note(run, Attempt.begin(run.out), dict(record))
    torch.set_num_threads(1)
    config = algorithm_config(run)
    config.validate()  # before the run's folder: nothing is left of a run whose skills or settings are refused
    attempt = Attempt.begin(run.out)
    counters, history = _train_through_lost_learners(
        run,
        lambda saved: _train(run, config.copy(copy_frozen=False), attempt, saved, progress, on_evaluation),
        progress,
    )
    totals = {
        "env_steps": counters["env_steps"],
        "decisions": counters["decisions"],
        "updates": counters["updates"],
        "wall_clock_s": round(counters["wall_clock_s"], 1),
        "config_hash": run.config_hash,
        "commit": joined_commits(history),
    }
    return _publish_and_note(run, attempt, totals)


def _train_through_lost_learners(
    run: TrainingRun, train: Callable[[Path | None], Trained], progress: Progress
) -> Trained:
    """Calls ``train`` with the newest checkpoint, or None, until it returns; it resumes whenever learners are lost."""
    lost = 0
    while True:
        saved = checkpoints(run.out)
        try:
            return train(saved[-1] if saved else None)
        except LearnerLost as error:
            lost = lost + 1 if checkpoints(run.out)[-1:] == saved[-1:] else 1
            if lost > _LOST_IN_A_ROW:
                raise SpirlError(
                    f"{run.out}: training has lost its learners {lost} times since its last checkpoint ({error}). See "
                    "Ray's logs of their nodes, then start the command again: it resumes from that checkpoint."
                ) from error
            steps = layout.steps_of(saved[-1]) if saved else 0
            found = Finding(f"{error}, so training resumes from step {steps:,} with new ones.", warning=True)
            progress(steps, run.length, findings=(found,))


def _train(
    run: TrainingRun,
    config: SkillPriorSACConfig,
    attempt: Attempt,
    saved: Path | None,
    progress: Progress,
    on_evaluation: Callable[[Row], None] | None,
) -> Trained:
    """Trains to the end from a checkpoint, or from the start."""
    scores = experiment_scores(run.experiment)
    if saved is not None:
        # Episodes that start after a restore must not repeat those from before.
        config.debugging(seed=rllib_seed(run.seed, 1000 * (1 + layout.steps_of(saved))))
    algorithm: SkillPriorSAC = config.build_algo()
    try:
        if saved is not None:
            algorithm.load_checkpoint(str(saved))
        algorithm.episodes.scores = scores
        counters = algorithm.counters
        history = _note_provenance(run.out, counters["env_steps"], counters["updates"])
        # In the midst of updates without a step, the snapshot of this step is of the time after them.
        kept = counters["env_steps"] - bool(algorithm.offline_updates_left)
        evaluations = SnapshotEvaluations(run, kept, on_evaluation)
        monitor = Monitor(run.experiment.name, f"{run.method.name}-s{run.seed}", "train", scores, run.out)
        target = kept_divergence(run.method, run.experiment.train)
        with monitor.at_work({"env_steps": counters["env_steps"], "target_divergence": target}):
            _loop(run, attempt, algorithm, evaluations, monitor, progress)
    finally:
        algorithm.stop()
    # After the env runners have given their CPUs back: the evaluations may need them.
    evaluations.collect(counters["wall_clock_s"], wait=True)
    monitor.show({}, evaluations.newest)
    return counters, history


def _loop(
    run: TrainingRun,
    attempt: Attempt,
    algorithm: SkillPriorSAC,
    evaluations: SnapshotEvaluations,
    monitor: Monitor,
    progress: Progress,
) -> None:
    train, limit = run.experiment.train, run.experiment.train.env_steps
    counters = algorithm.counters
    log, clock = MetricsLog(run.out, counters["env_steps"], counters["updates"]), TrainingClock(algorithm)
    notices = _Notices(run, attempt, algorithm, monitor, progress)
    if counters["env_steps"] == 0:
        evaluations.snapshot(algorithm, 0)
    with contextlib.closing(log), deferred_termination() as termination:
        while (before := counters["env_steps"]) < limit or algorithm.offline_updates_left:
            offline_before = counters["offline_updates"]
            algorithm.train()
            clock.tick()
            notices.give()
            steps, offline, leaves = counters["env_steps"], counters["offline_updates"], termination.is_set()
            practises = not algorithm.offline_updates_left
            ends, begins = practises and steps >= limit, practises and offline > offline_before
            saves = ends or leaves or begins or _passes(train.checkpoint_every, before, steps)
            saves = saves or _passes(_OFFLINE_UPDATES_A_CHECKPOINT, offline_before, offline)
            # Also before a checkpoint: what it covers is not measured again after a restart.
            if clock.row_is_due(now=saves):
                attempt.check()
                row = clock.row()
                log.add(row)
                monitor.show(row, evaluations.newest)
                progress(steps + offline, run.length, metrics=row, scores=_newest_scores(evaluations, row))
            if ends or begins or (practises and _passes(train.evaluate_every, before, steps)):
                evaluations.snapshot(algorithm, steps)
            evaluations.collect(counters["wall_clock_s"])
            if saves:
                _checkpoint(run, attempt, algorithm)
            if leaves:
                sys.exit(TERMINATED)
    if algorithm.rewards.warmed_up:
        notices.note_rewards()


def _passes(every: int, before: int, now: int) -> bool:
    """True where a multiple of ``every`` lies among the steps after ``before`` up to ``now``."""
    return now // every > before // every


class _Notices:
    """The notices of a training beside its rows: env runners that are lost, and what rewards are worth."""

    def __init__(
        self, run: TrainingRun, attempt: Attempt, algorithm: SkillPriorSAC, monitor: Monitor, progress: Progress
    ) -> None:
        self._run, self._attempt, self._algorithm = run, attempt, algorithm
        self._monitor, self._progress = monitor, progress
        self._lost: Row = {}
        self._settled: bool | None = None
        """True where rewards had settled when they were told of; None before."""

    def give(self) -> None:
        """Shows another number of lost env runners; tells of rewards after the warm-up, and once they have settled."""
        if (lost := self._algorithm.sampler.lost()) != self._lost:
            self._lost = lost
            self._monitor.show(lost)
        rewards = self._algorithm.rewards
        if rewards.warmed_up and self._settled != rewards.settled:
            self._settled = rewards.settled
            counters = self._algorithm.counters
            done = counters["env_steps"] + counters["offline_updates"]
            self._progress(done, self._run.length, findings=self.note_rewards())

    def note_rewards(self) -> tuple[Finding, ...]:
        """Writes what is known of rewards to ``rewards.json``, and returns what it says."""
        train, method, rewards = self._run.experiment.train, self._run.method, self._algorithm.rewards
        numbers = reward_numbers(rewards.numbers(), train, method)
        self._attempt.check()
        write_json(self._run.out / layout.REWARDS, {"settled": rewards.settled, "metrics": numbers})
        self._monitor.show(numbers)
        return reward_findings(numbers, train, method, settled=rewards.settled)


def noted_rewards(out: Path) -> dict[str, float]:
    """The metrics in ``rewards.json``; empty where there is none."""
    return dict(read_json(out / layout.REWARDS)["metrics"]) if (out / layout.REWARDS).exists() else {}


def noted_findings(out: Path, train: TrainSettings, method: MethodConfig) -> tuple[Finding, ...]:
    """What ``rewards.json`` says; nothing where there is none."""
    if not (out / layout.REWARDS).exists():
        return ()
    noted = read_json(out / layout.REWARDS)
    return reward_findings(noted["metrics"], train, method, settled=noted["settled"])


def _newest_scores(evaluations: SnapshotEvaluations, row: Row) -> dict[str, float]:
    """The score of the newest training episodes and evaluations, by its label in a line."""
    newest: dict[str, Row] = {"": row, **{f", {mode}": found for mode, found in evaluations.newest.items()}}
    score = evaluations.scores.score_in(newest.values())
    return {f"{score.label}{where}": found[score.name] for where, found in newest.items() if score.name in found}


def _publish_and_note(run: TrainingRun, attempt: Attempt, totals: Row) -> TrainedRecord:
    """Publishes the snapshot that the settings ask for, then writes ``trained.json``, which says which one it is."""
    scores, publish = experiment_scores(run.experiment), run.experiment.train.publish
    results = results_so_far(run.out)
    found = best_and_last(results, scores)
    attempt.check()
    steps = found[publish].env_steps
    _publish(snapshot_folder(run.out, steps), run.out)
    chosen = {"publish": publish, "published_env_steps": steps, "score": scores.score_in(results.values()).name}
    record = TrainedRecord.model_validate({**totals, **chosen, **found})
    write_trained(run.out, record)
    return record


def _publish(snapshot: Path, out: Path) -> None:
    """Copies a snapshot to where users look for the policy; its card comes last and completes it."""
    files = [path.relative_to(snapshot) for path in sorted(snapshot.rglob("*")) if path.is_file()]
    files = [file for file in files if not layout.is_snapshot_evaluation(file.name)]
    for file in sorted(files, key=lambda file: file == Path(layout.POLICY_CARD)):
        write_atomically(out / file, (snapshot / file).read_bytes())


def _note_provenance(out: Path, env_steps: int, updates: int) -> list[Row]:
    """Adds this process to ``provenance.json``: its commit, its first step and update, and its hardware."""
    path, first = out / layout.PROVENANCE, {"from_env_steps": env_steps, "from_updates": updates}
    history = [
        entry
        for entry in read_provenance(out)
        if (entry["from_env_steps"], entry.get("from_updates", 0)) < (env_steps, updates)
    ]
    history.append({**first, "commit": commit(), "versions": versions(), "hardware": hardware()})
    write_json(path, {"processes": history})
    return history


def read_provenance(out: Path) -> list[Row]:
    """The processes that trained a policy, in order; empty for one that has not started."""
    path = out / layout.PROVENANCE
    return list(read_json(path)["processes"]) if path.exists() else []


def joined_commits(processes: list[Row]) -> str:
    """The commits of such processes, joined with ``+``."""
    return "+".join(dict.fromkeys(process["commit"] for process in processes))


# --- checkpoints ---


def checkpoints(out: Path) -> list[Path]:
    """The complete checkpoints, oldest first."""
    return [path for path in layout.step_folders(out / layout.CHECKPOINTS) if checkpoint.complete(path)]


def _checkpoint(run: TrainingRun, attempt: Attempt, algorithm: SkillPriorSAC) -> None:
    """Writes a checkpoint and removes the oldest ones; an attempt that a newer one has overtaken publishes nothing."""
    counters = algorithm.counters
    only_offline = counters["offline_updates"] == counters["updates"]  # no further update has been made
    offline = counters["offline_updates"] if only_offline else 0
    target = layout.step_folder(run.out / layout.CHECKPOINTS, counters["env_steps"], offline)
    remove_partial_folders(target.parent)  # of attempts that have ended, or are about to
    if not target.exists():
        with partial_folder(target) as partial:
            algorithm.save_checkpoint(str(partial))
            attempt.check()
    for old in checkpoints(run.out)[: -run.experiment.train.keep_checkpoints]:
        shutil.rmtree(old, ignore_errors=True)
