"""The stages of an experiment, each of which goes on where it stopped and skips what is done."""

from __future__ import annotations

import csv
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import ray

from spirl_ray.config import EvaluateSettings
from spirl_ray.data.importing import ImportReport, import_dataset, spirl_error_within
from spirl_ray.data.trajectories import read_card
from spirl_ray.experiments.rollouts import (
    RolloutPlan,
    gather_rollouts,
    mean_return,
    mean_subtasks,
    run_episodes,
    start_rollouts,
    write_csv,
    write_episodes,
)
from spirl_ray.experiments.training import TrainingRun, is_trained, train_policy
from spirl_ray.experiments.workspace import Trial, Workspace
from spirl_ray.skills.artifact import CARD as SKILL_CARD
from spirl_ray.skills.artifact import read_json, read_skill_card, write_json
from spirl_ray.skills.batches import PretrainJob
from spirl_ray.skills.pretrain import held_out, pretrain

SUMMARY, EPISODES = "summary.json", "episodes.csv"
Row = dict[str, Any]


class Progress(Protocol):
    """How long work tells how far it is; the command line shows bars, tests show nothing."""

    def __call__(self, done: float, total: float, facts: Row) -> None: ...


def silent(done: float, total: float, facts: Row) -> None:
    """Shows nothing."""


@dataclass
class StageResult:
    """What a stage has to show: its folder, whether it had to work, and facts worth a line."""

    folder: Path
    ran: bool
    facts: Row = field(default_factory=dict)


def prepare_data(workspace: Workspace, progress: Progress = silent) -> tuple[StageResult, ImportReport | None]:
    """Imports or generates the dataset, unless it is there."""
    data, out = workspace.experiment.data, workspace.dataset
    with workspace.locked(out):
        if (out / "card.json").exists():
            card = read_card(out)
            return StageResult(out, False, {"episodes": card.episodes, "steps": card.steps}), None
        report = import_dataset(
            workspace.source,
            out,
            environment=workspace.experiment.env.id,
            skip_bad=data.skip_bad,
            shards=data.shards,
            progress=lambda done, total: progress(done, total, {}),
        )
    facts = {"episodes": report.card.episodes, "steps": report.card.steps}
    if report.skipped:
        facts["skipped"] = len(report.skipped)
    return StageResult(out, True, facts), report


def train_skills(trial: Trial, progress: Progress = silent) -> StageResult:
    """Stage 1: skills and prior of a trial, unless another trial has trained the same."""
    out = trial.skills
    with trial.workspace.locked(out):
        if (out / SKILL_CARD).exists():
            return StageResult(out, False, dict(read_skill_card(out).metrics))
        data, settings = trial.experiment.data, trial.experiment.pretrain
        dataset = trial.workspace.dataset
        job = PretrainJob(
            dataset=str(dataset),
            spec=trial.spec,
            settings=settings,
            seed=trial.seed,
            validation=held_out(dataset, data.validation_fraction, trial.seed),
            in_memory_limit_mb=data.in_memory_limit_mb,
        )
        rows = _rows_so_far(out / "metrics.csv")

        def on_row(row: Row) -> None:
            rows[:] = [known for known in rows if float(known["update"]) < row["update"]] + [row]
            write_csv(out / "metrics.csv", rows)
            progress(row["update"], settings.updates, row)

        try:
            metrics = pretrain(job, out, on_row=on_row)
        except Exception as error:
            known = spirl_error_within(error) or _worker_error(error)
            if known is None:
                raise
            raise known from error
    return StageResult(out, True, dict(metrics))


def _worker_error(error: BaseException) -> Exception | None:
    """The `SpirlError` of a training worker, which Ray Train keeps by rank."""
    failures: dict[int, BaseException] = getattr(error, "worker_failures", {})
    found = [spirl_error_within(failure) for failure in failures.values()]
    return next((known for known in found if known is not None), None)


def _rows_so_far(path: Path) -> list[Row]:
    if not path.exists():
        return []
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def train(trial: Trial, progress: Progress = silent) -> StageResult:
    """Stage 2: the high-level policy of a trial."""
    run = TrainingRun(trial.experiment, trial.resolved, trial.seed, trial.skills, trial.policy, trial.config_hash)
    with trial.workspace.locked(trial.policy):
        done = is_trained(run)
        total = trial.experiment.train.env_steps
        facts = train_policy(run, on_row=lambda row: progress(row["env_steps"], total, row))
    return StageResult(trial.policy, not done, facts)


def evaluate_policy(trial: Trial, progress: Progress = silent, *, videos: bool = True) -> StageResult:
    """The final evaluation of a trained policy: episodes in every mode, and videos."""

    def plan(mode: Any) -> RolloutPlan:
        env = trial.experiment.env
        return RolloutPlan(str(trial.policy), env.id, env.kwargs, mode, seed=trial.experiment.evaluate.seed)

    settings = trial.experiment.evaluate
    with trial.workspace.locked(trial.evaluation):
        return _evaluate(trial.evaluation, plan, settings, settings.episodes, videos, progress)


def roll_out_prior(trial: Trial, progress: Progress = silent, *, videos: bool = True) -> StageResult:
    """Episodes of the bare prior: latents drawn from p(z | s), and the prior's mean latent."""

    def plan(mode: Any) -> RolloutPlan:
        env = trial.experiment.env
        return RolloutPlan(str(trial.skills), env.id, env.kwargs, mode, prior=True, seed=trial.experiment.evaluate.seed)

    settings = trial.experiment.evaluate
    with trial.workspace.locked(trial.prior_rollouts):
        return _evaluate(trial.prior_rollouts, plan, settings, settings.prior_episodes, videos, progress)


def _evaluate(
    out: Path,
    plan: Callable[[Any], RolloutPlan],
    settings: EvaluateSettings,
    episodes: int,
    videos: bool,
    progress: Progress,
) -> StageResult:
    """Runs and writes the episodes of one agent; a finished folder is read back."""
    if (out / SUMMARY).exists():
        return StageResult(out, False, read_json(out / SUMMARY))
    films = _start_videos(out, plan, settings) if videos else []
    total = episodes * len(settings.modes)
    references = [ref for mode in settings.modes for ref in start_rollouts(plan(mode), episodes)]
    finished = 0

    def on_done(count: int) -> None:
        nonlocal finished
        finished += count
        progress(finished, total, {})

    rows = gather_rollouts(references, on_done)
    for film in films:
        ray.get(film)
    write_episodes(out / EPISODES, rows)
    summary: Row = {}
    for mode in settings.modes:
        chosen = [row for row in rows if row.mode == mode]
        summary[mode] = {
            "episodes": len(chosen),
            "subtasks": mean_subtasks(chosen),
            "episode_return": mean_return(chosen),
        }
    write_json(out / SUMMARY, summary)
    return StageResult(out, True, summary)


def _start_videos(out: Path, plan: Callable[[Any], RolloutPlan], settings: EvaluateSettings) -> list[ray.ObjectRef]:
    """One Ray task for each mode that films the first episodes of the evaluation."""
    if not settings.videos:
        return []
    task = ray.remote(num_cpus=1, max_retries=1)(run_episodes)
    return [
        task.remote(plan(mode), list(range(settings.videos)), out / "videos" / f"{mode}.mp4", settings.video_fps)
        for mode in settings.modes
    ]
