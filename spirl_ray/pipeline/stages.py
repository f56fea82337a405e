"""The stages of an experiment: each resumes where it stopped and skips what is done."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from spirl_ray.config import EnvSettings, EvaluateSettings, Experiment
from spirl_ray.datasets.importing import import_dataset
from spirl_ray.envs import render_problem
from spirl_ray.envs.metrics import MODES, Mode
from spirl_ray.episodes.dataset import dataset_files, read_card
from spirl_ray.episodes.validation import file_digest
from spirl_ray.errors import SpirlError
from spirl_ray.files import layout
from spirl_ray.files.atomic import read_json, write_json
from spirl_ray.files.tables import read_csv, write_csv
from spirl_ray.pipeline.demonstrations import render_remotely
from spirl_ray.pipeline.events import Progress, silent
from spirl_ray.pipeline.findings import skill_findings
from spirl_ray.pipeline.monitoring import Monitor
from spirl_ray.pipeline.offline import noted_offline, offline_decisions
from spirl_ray.pipeline.results import (
    DataResult,
    DemonstrationsResult,
    EvaluationResult,
    SkillsResult,
    Snapshot,
    TrainingResult,
)
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
from spirl_ray.pipeline.training import is_trained, noted_findings, train_policy
from spirl_ray.pipeline.training_run import TrainingRun
from spirl_ray.pipeline.workspace import Trial, Workspace
from spirl_ray.skills.artifact import read_skill_card
from spirl_ray.skills.batches import PretrainJob
from spirl_ray.skills.pretrain import held_out, pretrain

Row = dict[str, Any]


def prepare_data(workspace: Workspace, progress: Progress = silent) -> DataResult:
    """Imports or generates the dataset, unless it exists."""
    data, out = workspace.experiment.data, workspace.dataset
    with workspace.locked(out):
        if (out / layout.DATASET_CARD).exists():
            card = read_card(out)
            workspace.remember_import()
            return DataResult(folder=out, ran=False, episodes=card.episodes, steps=card.steps)
        report = import_dataset(
            workspace.data,
            out,
            environment=workspace.experiment.env.id,
            skip_bad=data.skip_bad,
            shards=data.shards,
            progress=lambda done, total: progress(done, total, {}),
        )
        workspace.remember_import()
    attempts = workspace.data.source.attempts
    return DataResult(
        folder=out,
        ran=True,
        episodes=report.card.episodes,
        steps=report.card.steps,
        skipped=tuple(map(str, report.skipped)),
        expert_success=1.0 - report.missing / attempts if attempts else None,
    )


def show_demonstrations(workspace: Workspace) -> DemonstrationsResult:
    """Records a video of as many demonstrations as episodes of an agent; the environment must be able to render
    them."""
    out, settings = workspace.demonstrations, workspace.experiment.evaluate
    with workspace.locked(out):
        if (out / layout.DEMONSTRATIONS_VIDEO).exists() and read_json(out / layout.VIDEO_SETTINGS) == _video_settings(
            settings
        ):
            return DemonstrationsResult(folder=out, ran=False, video=out / layout.DEMONSTRATIONS_VIDEO)
        render_remotely(workspace.dataset, out / layout.DEMONSTRATIONS_VIDEO, settings.videos, settings.video_fps)
        write_json(out / layout.VIDEO_SETTINGS, _video_settings(settings))
    return DemonstrationsResult(folder=out, ran=True, video=out / layout.DEMONSTRATIONS_VIDEO)


def train_skills(trial: Trial, progress: Progress = silent) -> SkillsResult:
    """Stage 1: skills and prior of a trial, unless another trial has trained the same.

    Raises:
        SpirlError: the data are damaged or do not fit.
    """
    out = trial.skills
    if trial.artifact is not None:
        return _skills(trial, False, read_skill_card(out).metrics)
    with trial.workspace.locked(out):
        if (out / layout.SKILL_CARD).exists():
            return _skills(trial, False, read_skill_card(out).metrics)
        data, settings = trial.experiment.data, trial.experiment.pretrain
        dataset, described = trial.workspace.dataset, trial.workspace.described
        check_files(dataset)
        job = PretrainJob(
            dataset=str(dataset),
            spec=trial.spec,
            settings=settings,
            seed=trial.seed,
            validation=held_out(dataset, data.validation_fraction, trial.seed),
            in_memory_limit_mb=data.in_memory_limit_mb,
            renderers=described.renderers,
            position_target=described.position_target,
        )
        rows = [row.cells for row in read_csv(out / layout.METRICS)]
        monitor = Monitor(trial.experiment.name, f"{trial.method}-s{trial.seed}", "pretrain", folder=out)

        def on_row(row: Row) -> None:
            rows[:] = [known for known in rows if float(known["update"]) < row["update"]] + [row]
            write_csv(out / layout.METRICS, rows)
            monitor.show(row)
            progress(row["update"], settings.updates, row)

        with monitor.at_work({"update": float(rows[-1]["update"]) if rows else 0}):
            metrics = interruptible(lambda: pretrain(job, out, on_row=on_row))
    return _skills(trial, True, metrics)


def _skills(trial: Trial, ran: bool, metrics: Mapping[str, float]) -> SkillsResult:
    return SkillsResult(
        folder=trial.skills,
        ran=ran,
        method=trial.method,
        seed=trial.seed,
        metrics=dict(metrics),
        findings=skill_findings(metrics, trial.spec, trial.method_config, trial.experiment.train),
    )


def check_files(dataset: Path) -> None:
    """Compares the size and hash of every data file with the card, which takes a second for a gigabyte.

    Raises:
        SpirlError: a file is missing, cut short or changed; the message names it.
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


def train(
    trial: Trial, progress: Progress = silent, on_evaluation: Callable[[Row], None] | None = None
) -> TrainingResult:
    """Trains the high-level policy of a trial (stage 2).

    Args:
        trial: the trial whose policy is trained.
        progress: callback that gets every row of metrics.
        on_evaluation: callback that gets every evaluated snapshot; see `train_policy`.
    """
    run = TrainingRun(
        experiment=trial.experiment,
        method=trial.method_config,
        seed=trial.seed,
        skills=trial.skills,
        out=trial.policy,
        config_hash=trial.config_hash,
        dataset=trial.workspace.dataset if trial.workspace.has_data else None,
        offline=trial.offline,
    )
    with trial.workspace.locked(trial.policy):
        done, total = is_trained(run), trial.experiment.train.env_steps
        if not done and offline_decisions(trial, progress) is not None:
            progress(0, total, {"findings": noted_offline(trial)})
        trained = train_policy(run, lambda row: progress(row["env_steps"], total, row), on_evaluation)
    return TrainingResult(
        folder=trial.policy,
        ran=not done,
        method=trial.method,
        seed=trial.seed,
        best=_snapshot(trained["best"]),
        last=_snapshot(trained["last"]),
        **{name: trained[name] for name in ("env_steps", "decisions", "updates", "wall_clock_s", "commit")},
        score=trained["score"],
        publish=trained["publish"],
        findings=(*noted_offline(trial), *noted_findings(trial.policy, trial.experiment.train, trial.method_config)),
    )


def _snapshot(evaluated: Row) -> Snapshot:
    return Snapshot(
        evaluated["env_steps"], evaluated["score"], {mode: evaluated[mode] for mode in MODES if mode in evaluated}
    )


def evaluate_policy(
    trial: Trial, progress: Progress = silent, *, videos: bool = True, env: EnvSettings | None = None
) -> EvaluationResult:
    """Evaluates a trained policy finally: episodes in every mode, and videos.

    Args:
        trial: the trial whose policy is evaluated.
        progress: callback that gets the number of finished episodes.
        videos: True to record some episodes as well.
        env: the environment, if it is not that of the training.

    Raises:
        SpirlError: there is no trained policy, or it is damaged.
    """
    if not (trial.policy / layout.POLICY_CARD).exists():
        raise SpirlError(f"There is no trained policy in {trial.policy}: run spirl train first.")
    env = trial.experiment.env if env is None else env
    settings, out = trial.experiment.evaluate, trial.evaluation_in(env)
    there = trial.experiment.model_copy(update={"env": env})
    plans = _plans(there, trial.policy, prior=False)
    with trial.workspace.locked(out):
        ran, summary = _evaluate(out, plans, settings, settings.episodes, videos, progress)
    return _evaluation(trial, out, ran, summary, _no_videos(plans, settings) if videos else None)


def roll_out_prior(trial: Trial, progress: Progress = silent, *, videos: bool = True) -> EvaluationResult:
    """Runs episodes of the bare prior: latents drawn from p(z | s), and the prior's mean latent."""
    settings, out = trial.experiment.evaluate, trial.prior_rollouts
    plans = _plans(trial.experiment, trial.skills, prior=True)
    with trial.workspace.locked(out):
        ran, summary = _evaluate(out, plans, settings, settings.prior_episodes, videos, progress)
    return _evaluation(trial, out, ran, summary, _no_videos(plans, settings) if videos else None)


def _evaluation(trial: Trial, out: Path, ran: bool, summary: Row, no_videos: str | None) -> EvaluationResult:
    videos = {mode: layout.video(out, mode) for mode in summary["modes"]}
    return EvaluationResult(
        folder=out,
        ran=ran,
        method=trial.method,
        seed=trial.seed,
        score=summary["score"],
        modes=summary["modes"],
        episodes_csv=out / layout.EPISODES,
        videos={mode: video for mode, video in videos.items() if video.exists()},
        no_videos=no_videos,
    )


def _plans(experiment: Experiment, agent: Path, *, prior: bool) -> dict[Mode, RolloutPlan]:
    env, settings, scores = experiment.environment, experiment.evaluate, experiment_scores(experiment)
    return {
        mode: RolloutPlan(str(agent), env, mode, prior=prior, seed=settings.seed, scores=scores)
        for mode in settings.modes
    }


def _evaluate(
    out: Path,
    plans: dict[Mode, RolloutPlan],
    settings: EvaluateSettings,
    episodes: int,
    videos: bool,
    progress: Progress,
) -> tuple[bool, Row]:
    """Runs and writes the episodes of one agent, except those that a stopped evaluation has finished.

    Returns:
        True where there was anything to do, and the contents of ``summary.json``.
    """
    wanted = _missing_videos(out, settings) if videos and _no_videos(plans, settings) is None else []
    done = (out / layout.SUMMARY).exists()
    if done and not wanted:
        return False, read_json(out / layout.SUMMARY)
    rows = read_episode_rows(out / (layout.EPISODES if done else layout.EPISODES_SO_FAR))
    scores = next(iter(plans.values())).scores
    finished = {(row.mode, row.episode) for row in rows}
    missing = {mode: [i for i in range(episodes) if (mode, i) not in finished] for mode in plans}
    references = [ref for mode, plan in plans.items() for ref in start_rollouts(plan, missing[mode])]
    total = episodes * len(plans)

    def on_rows(found: list[EpisodeRow]) -> None:
        rows.extend(found)
        rows.sort(key=lambda row: (settings.modes.index(row.mode), row.episode))
        write_episodes(out / layout.EPISODES_SO_FAR, rows)
        means = scores.mean(row.metrics for row in rows)
        score = scores.score_in([means])
        progress(len(rows), total, {"scores": {score.label: means[score.name]} if score.name in means else {}})

    recordings = [
        start_video(plans[mode], settings.videos, layout.video(out, mode), settings.video_fps) for mode in wanted
    ]
    gather_rollouts(references, on_rows)
    gather_rollouts(recordings)
    if wanted:
        write_json(out / layout.VIDEOS / layout.VIDEO_SETTINGS, _video_settings(settings))
    if done:
        return True, read_json(out / layout.SUMMARY)
    summary: Row = {"score": scores.score_in([row.metrics for row in rows]).name, "modes": {}}
    for mode in settings.modes:
        chosen = [row.metrics for row in rows if row.mode == mode]
        summary["modes"][mode] = {"episodes": len(chosen), **scores.mean(chosen)}
    write_episodes(out / layout.EPISODES, rows)
    write_json(out / layout.SUMMARY, summary)
    (out / layout.EPISODES_SO_FAR).unlink(missing_ok=True)
    return True, summary


def _video_settings(settings: EvaluateSettings) -> Row:
    return {"episodes": settings.videos, "fps": settings.video_fps}


def _no_videos(plans: dict[Mode, RolloutPlan], settings: EvaluateSettings) -> str | None:
    """Why videos that the settings ask for cannot be made; None where they can, or none are wanted."""
    return next(filter(None, (render_problem(plan.env) for plan in plans.values())), None) if settings.videos else None


def _missing_videos(out: Path, settings: EvaluateSettings) -> list[Mode]:
    """The modes without a video, or with one of another length or speed."""
    if not settings.videos:
        return []
    card = out / layout.VIDEOS / layout.VIDEO_SETTINGS
    if card.exists() and read_json(card) != _video_settings(settings):
        return list(settings.modes)
    return [mode for mode in settings.modes if not (card.exists() and (layout.video(out, mode)).exists())]
