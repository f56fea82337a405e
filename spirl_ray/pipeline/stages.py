"""The stages of an experiment: each resumes where it stopped and skips what is done."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from spirl_ray.config import EnvSettings, EvaluateSettings, Experiment
from spirl_ray.datasets.importing import import_dataset
from spirl_ray.envs import render_problem
from spirl_ray.envs.metrics import Mode, Scores
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
            progress=progress,
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
            progress(row["update"], settings.updates, metrics=row)

        with monitor.at_work({"update": float(rows[-1]["update"]) if rows else 0}):
            metrics = pretrain(job, out, on_row=on_row)
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
        done = is_trained(run)
        if not done and offline_decisions(trial, progress) is not None:
            progress(0, run.length, findings=noted_offline(trial))
        trained = train_policy(run, progress, on_evaluation)
    return TrainingResult(
        folder=trial.policy,
        ran=not done,
        method=trial.method,
        seed=trial.seed,
        env_steps=trained.env_steps,
        decisions=trained.decisions,
        updates=trained.updates,
        wall_clock_s=trained.wall_clock_s,
        commit=trained.commit,
        score=trained.score,
        publish=trained.publish,
        best=trained.best,
        last=trained.last,
        findings=(*noted_offline(trial), *noted_findings(trial.policy, trial.experiment.train, trial.method_config)),
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
    plan = _plan(trial.experiment.model_copy(update={"env": env}), trial.policy, prior=False)
    episodes = trial.experiment.evaluate.episodes
    return _run_episodes(trial, plan, trial.evaluation_in(env), episodes, progress, videos=videos)


def roll_out_prior(trial: Trial, progress: Progress = silent, *, videos: bool = True) -> EvaluationResult:
    """Runs episodes of the bare prior: latents drawn from p(z | s), and the prior's mean latent."""
    plan = _plan(trial.experiment, trial.skills, prior=True)
    episodes = trial.experiment.evaluate.prior_episodes
    return _run_episodes(trial, plan, trial.prior_rollouts, episodes, progress, videos=videos)


def _plan(experiment: Experiment, agent: Path, *, prior: bool) -> RolloutPlan:
    """The plan of an evaluation in its first mode."""
    settings, scores = experiment.evaluate, experiment_scores(experiment)
    return RolloutPlan(
        str(agent), experiment.environment, settings.modes[0], prior=prior, seed=settings.seed, scores=scores
    )


def _run_episodes(
    trial: Trial, plan: RolloutPlan, out: Path, episodes: int, progress: Progress, *, videos: bool
) -> EvaluationResult:
    """Runs and writes the episodes and videos of one agent, except what a stopped evaluation has finished.

    Args:
        trial: the trial that the agent belongs to.
        plan: the agent and its environment; it acts in every mode of the settings.
        out: the folder of the results.
        episodes: the number of episodes in each mode.
        progress: callback that gets the number of finished episodes.
        videos: True to record some episodes as well.
    """
    settings, scores = trial.experiment.evaluate, plan.scores
    plans = {mode: replace(plan, mode=mode) for mode in settings.modes}
    no_videos = render_problem(plan.env) if videos and settings.videos else None
    with trial.workspace.locked(out):
        wanted = _missing_videos(out, settings) if videos and no_videos is None else []
        done = (out / layout.SUMMARY).exists()
        rows = [] if done else read_episode_rows(out / layout.EPISODES_SO_FAR)
        finished = {(row.mode, row.episode) for row in rows}

        def on_rows(found: list[EpisodeRow]) -> None:
            rows.extend(found)
            rows.sort(key=lambda row: (settings.modes.index(row.mode), row.episode))
            write_episodes(out / layout.EPISODES_SO_FAR, rows)
            means = scores.mean(row.metrics for row in rows)
            score = scores.score_in([means])
            newest = {score.label: means[score.name]} if score.name in means else {}
            progress(len(rows), episodes * len(plans), scores=newest)

        missing = {mode: [i for i in range(episodes) if (mode, i) not in finished] for mode in plans}
        references = [ref for mode in plans if not done for ref in start_rollouts(plans[mode], missing[mode])]
        recordings = [
            start_video(plans[mode], settings.videos, layout.video(out, mode), settings.video_fps) for mode in wanted
        ]
        gather_rollouts(references, on_rows)
        gather_rollouts(recordings)
        if wanted:
            write_json(out / layout.VIDEOS / layout.VIDEO_SETTINGS, _video_settings(settings))
        if not done:
            _write_evaluation(out, rows, scores, settings.modes)
        summary = read_json(out / layout.SUMMARY)
    found = {mode: layout.video(out, mode) for mode in summary["modes"]}
    return EvaluationResult(
        folder=out,
        ran=bool(wanted) or not done,
        method=trial.method,
        seed=trial.seed,
        score=scores.score_in(summary["modes"].values()).name,
        modes=summary["modes"],
        episodes_csv=out / layout.EPISODES,
        videos={mode: video for mode, video in found.items() if video.exists()},
        no_videos=no_videos,
    )


def _write_evaluation(out: Path, rows: list[EpisodeRow], scores: Scores, modes: Sequence[Mode]) -> None:
    """Writes the episodes and their means; the summary is the last file of an evaluation."""
    summary: Row = {"score": scores.score_in([row.metrics for row in rows]).name, "modes": {}}
    for mode in modes:
        chosen = [row.metrics for row in rows if row.mode == mode]
        summary["modes"][mode] = {"episodes": len(chosen), **scores.mean(chosen)}
    write_episodes(out / layout.EPISODES, rows)
    write_json(out / layout.SUMMARY, summary)
    (out / layout.EPISODES_SO_FAR).unlink(missing_ok=True)


def _video_settings(settings: EvaluateSettings) -> Row:
    return {"episodes": settings.videos, "fps": settings.video_fps}


def _missing_videos(out: Path, settings: EvaluateSettings) -> list[Mode]:
    """The modes without a video, or with one of another length or speed."""
    if not settings.videos:
        return []
    card = out / layout.VIDEOS / layout.VIDEO_SETTINGS
    if card.exists() and read_json(card) != _video_settings(settings):
        return list(settings.modes)
    return [mode for mode in settings.modes if not (card.exists() and (layout.video(out, mode)).exists())]
