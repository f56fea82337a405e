"""The stages of an experiment, each of which goes on where it stopped and skips what is done."""

from __future__ import annotations

import csv
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from spirl_ray.config import EnvSettings, EvaluateSettings, Experiment
from spirl_ray.datasets.importing import ImportReport, import_dataset
from spirl_ray.envs.metrics import MODES, Mode
from spirl_ray.episodes.dataset import dataset_files, read_card
from spirl_ray.episodes.validation import file_digest
from spirl_ray.errors import SpirlError
from spirl_ray.files.atomic import read_json, write_json
from spirl_ray.files.tables import write_csv
from spirl_ray.pipeline.demonstrations import render_remotely
from spirl_ray.pipeline.monitoring import Monitor
from spirl_ray.pipeline.rollouts import (
    EpisodeRow,
    RolloutPlan,
    gather_rollouts,
    read_episode_rows,
    start_rollouts,
    start_video,
    write_episodes,
)
from spirl_ray.pipeline.scores import experiment_scores
from spirl_ray.pipeline.session import interruptible
from spirl_ray.pipeline.training import is_trained, train_policy
from spirl_ray.pipeline.training_run import TrainingRun
from spirl_ray.pipeline.workspace import Trial, Workspace
from spirl_ray.policy.policy import CARD as POLICY_CARD
from spirl_ray.skills.artifact import CARD as SKILL_CARD
from spirl_ray.skills.artifact import read_skill_card
from spirl_ray.skills.batches import PretrainJob
from spirl_ray.skills.pretrain import held_out, pretrain

SUMMARY, EPISODES, FILM = "summary.json", "episodes.csv", "demonstrations.mp4"
_UNFINISHED, _FILMS = "episodes-so-far.csv", "videos.json"
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
    facts: Row = {"episodes": report.card.episodes, "steps": report.card.steps}
    if report.skipped:
        facts["skipped"] = len(report.skipped)
    if attempts := workspace.source.attempts:
        facts["success_rate"] = 1.0 - report.missing / attempts
    return StageResult(out, True, facts), report


def show_demonstrations(workspace: Workspace) -> StageResult:
    """Films as many demonstrations as episodes of an agent; the environment must be able to draw them."""
    out, settings = workspace.demonstrations, workspace.experiment.evaluate
    with workspace.locked(out):
        if (out / FILM).exists() and read_json(out / _FILMS) == _films(settings):
            return StageResult(out, False)
        render_remotely(workspace.dataset, out / FILM, settings.videos, settings.video_fps)
        write_json(out / _FILMS, _films(settings))
    return StageResult(out, True)


def train_skills(trial: Trial, progress: Progress = silent) -> StageResult:
    """Stage 1: skills and prior of a trial, unless another trial has trained the same.

    Raises:
        SpirlError: for data that is damaged or does not fit.
    """
    out = trial.skills
    with trial.workspace.locked(out):
        if (out / SKILL_CARD).exists():
            return StageResult(out, False, dict(read_skill_card(out).metrics))
        data, settings = trial.experiment.data, trial.experiment.pretrain
        dataset = trial.workspace.dataset
        check_files(dataset)
        job = PretrainJob(
            dataset=str(dataset),
            spec=trial.spec,
            settings=settings,
            seed=trial.seed,
            validation=held_out(dataset, data.validation_fraction, trial.seed),
            in_memory_limit_mb=data.in_memory_limit_mb,
        )
        rows = _rows_so_far(out / "metrics.csv")
        monitor = Monitor(trial.experiment.name, f"{trial.method}-s{trial.seed}", "pretrain")

        def on_row(row: Row) -> None:
            rows[:] = [known for known in rows if float(known["update"]) < row["update"]] + [row]
            write_csv(out / "metrics.csv", rows)
            monitor.show(row)
            progress(row["update"], settings.updates, row)

        metrics = interruptible(lambda: pretrain(job, out, on_row=on_row))
    return StageResult(out, True, dict(metrics))


def check_files(dataset: Path) -> None:
    """Compares the size and hash of every data file with the card, which takes a second for a gigabyte.

    Raises:
        SpirlError: naming the file that is missing, cut short or changed.
    """
    card = read_card(dataset)
    for name in dataset_files(dataset):
        entry, size = card.files[Path(name).name], Path(name).stat().st_size
        if size != entry.bytes:
            found = f"has {size} bytes, its card says {entry.bytes}: it was cut short or replaced"
        elif file_digest(Path(name)) != entry.sha256:
            found = "does not match the SHA-256 in its card: it was changed or damaged"
        else:
            continue
        raise SpirlError(f"{name} {found}. Remove the folder {dataset} and import the data again.")


def _rows_so_far(path: Path) -> list[Row]:
    if not path.exists():
        return []
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def train(trial: Trial, progress: Progress = silent, on_evaluation: Callable[[Row], None] | None = None) -> StageResult:
    """Stage 2: the high-level policy of a trial.

    Args:
        trial: which policy.
        progress: told of every row of metrics.
        on_evaluation: told of every evaluated snapshot; see `train_policy`.
    """
    run = TrainingRun(
        experiment=trial.experiment,
        method=trial.method_config,
        seed=trial.seed,
        skills=trial.skills,
        out=trial.policy,
        config_hash=trial.config_hash,
        dataset=trial.workspace.dataset,
    )
    with trial.workspace.locked(trial.policy):
        done = is_trained(run)
        total = trial.experiment.train.env_steps
        facts = train_policy(run, lambda row: progress(row["env_steps"], total, row), on_evaluation)
    published, score = facts[facts["publish"]], facts["score"]
    label = score.replace("_", " ")
    shown = {f"{label}, {mode}": published[mode][score] for mode in MODES if score in published[mode]}
    return StageResult(trial.policy, not done, {**facts, "scores": shown})


def evaluate_policy(
    trial: Trial, progress: Progress = silent, *, videos: bool = True, env: EnvSettings | None = None
) -> StageResult:
    """The final evaluation of a trained policy: episodes in every mode, and videos.

    Args:
        trial: whose policy.
        progress: told of finished episodes.
        videos: film some episodes, too.
        env: where, if not in the environment of the training.

    Raises:
        SpirlError: when there is no trained policy, or it is damaged.
    """
    if not (trial.policy / POLICY_CARD).exists():
        raise SpirlError(f"There is no trained policy in {trial.policy}: run spirl train first.")
    env = trial.experiment.env if env is None else env
    settings, out = trial.experiment.evaluate, trial.evaluation_in(env)
    there = trial.experiment.model_copy(update={"env": env})
    plans = _plans(there, trial.policy, prior=False)
    with trial.workspace.locked(out):
        return _evaluate(out, plans, settings, settings.episodes, videos, progress)


def roll_out_prior(trial: Trial, progress: Progress = silent, *, videos: bool = True) -> StageResult:
    """Episodes of the bare prior: latents drawn from p(z | s), and the prior's mean latent."""
    settings, out = trial.experiment.evaluate, trial.prior_rollouts
    plans = _plans(trial.experiment, trial.skills, prior=True)
    with trial.workspace.locked(out):
        return _evaluate(out, plans, settings, settings.prior_episodes, videos, progress)


def _plans(experiment: Experiment, agent: Path, *, prior: bool) -> dict[Mode, RolloutPlan]:
    env, settings, scores = experiment.env, experiment.evaluate, experiment_scores(experiment)
    return {
        mode: RolloutPlan(str(agent), env.id, env.kwargs, mode, prior=prior, seed=settings.seed, scores=scores)
        for mode in settings.modes
    }


def _evaluate(
    out: Path,
    plans: dict[Mode, RolloutPlan],
    settings: EvaluateSettings,
    episodes: int,
    videos: bool,
    progress: Progress,
) -> StageResult:
    """Runs and writes the episodes of one agent. What a stopped evaluation has finished is not run again."""
    films = _missing_films(out, settings) if videos else []
    done = (out / SUMMARY).exists()
    if done and not films:
        return StageResult(out, False, read_json(out / SUMMARY))
    rows = read_episode_rows(out / (EPISODES if done else _UNFINISHED))
    scores = next(iter(plans.values())).scores
    finished = {(row.mode, row.episode) for row in rows}
    missing = {mode: [i for i in range(episodes) if (mode, i) not in finished] for mode in plans}
    references = [ref for mode, plan in plans.items() for ref in start_rollouts(plan, missing[mode])]
    total = episodes * len(plans)

    def on_rows(found: list[EpisodeRow]) -> None:
        rows.extend(found)
        rows.sort(key=lambda row: (settings.modes.index(row.mode), row.episode))
        write_episodes(out / _UNFINISHED, rows)
        means = scores.mean(row.metrics for row in rows)
        score = scores.score_in([means])
        progress(len(rows), total, {"scores": {score.label: means[score.name]} if score.name in means else {}})

    films_started = [
        start_video(plans[mode], settings.videos, out / "videos" / f"{mode}.mp4", settings.video_fps) for mode in films
    ]
    gather_rollouts(references, on_rows)
    gather_rollouts(films_started)
    if films:
        write_json(out / "videos" / _FILMS, _films(settings))
    if done:
        return StageResult(out, True, read_json(out / SUMMARY))
    summary: Row = {"score": scores.score_in([row.metrics for row in rows]).name, "modes": {}}
    for mode in settings.modes:
        chosen = [row.metrics for row in rows if row.mode == mode]
        summary["modes"][mode] = {"episodes": len(chosen), **scores.mean(chosen)}
    write_episodes(out / EPISODES, rows)
    write_json(out / SUMMARY, summary)
    (out / _UNFINISHED).unlink(missing_ok=True)
    return StageResult(out, True, summary)


def _films(settings: EvaluateSettings) -> Row:
    return {"episodes": settings.videos, "fps": settings.video_fps}


def _missing_films(out: Path, settings: EvaluateSettings) -> list[Mode]:
    """Modes of which there is no video yet, or one of another length or speed."""
    if not settings.videos:
        return []
    card = out / "videos" / _FILMS
    if card.exists() and read_json(card) != _films(settings):
        return list(settings.modes)
    return [mode for mode in settings.modes if not (card.exists() and (out / "videos" / f"{mode}.mp4").exists())]
