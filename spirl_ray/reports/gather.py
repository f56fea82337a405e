"""Collects what an experiment's folder holds into the record that the report is made from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from spirl_ray.config_file import to_yaml
from spirl_ray.episodes.dataset import read_card
from spirl_ray.files import layout
from spirl_ray.files.atomic import read_json
from spirl_ray.files.tables import read_columns
from spirl_ray.metrics import deciding_metrics
from spirl_ray.pipeline.exploration import exploration_folder
from spirl_ray.pipeline.findings import skill_findings
from spirl_ray.pipeline.offline import noted_offline
from spirl_ray.pipeline.provenance import hardware, versions
from spirl_ray.pipeline.scores import experiment_scores
from spirl_ray.pipeline.trained import read_trained
from spirl_ray.pipeline.training import joined_commits, noted_findings, noted_rewards, read_provenance
from spirl_ray.pipeline.workspace import Trial, Workspace
from spirl_ray.reports.records import (
    DecidingRecord,
    ExperimentRecord,
    ExplorationRecord,
    PriorRecord,
    SkillRecord,
    TrialRecord,
)
from spirl_ray.rl.methods import METHODS
from spirl_ray.skills.artifact import read_skill_card
from spirl_ray.skills.decoders import DECODERS


def gather(workspace: Workspace, command: str) -> ExperimentRecord:
    """Gathers the record of everything finished so far; missing pieces are left out.

    Args:
        workspace: a reserved folder with its dataset.
        command: shell command that reproduces the experiment.

    Raises:
        SpirlError: a file is damaged.
    """
    experiment = workspace.experiment
    skills: dict[Path, SkillRecord] = {}
    priors: dict[Path, list[PriorRecord]] = {}
    trials: list[TrialRecord] = []
    for trial in workspace.trials():
        if trial.skills not in skills and (trial.skills / layout.SKILL_CARD).exists():
            skills[trial.skills] = _skills(trial)
        if trial.prior_rollouts not in priors and (trial.prior_rollouts / layout.SUMMARY).exists():
            priors[trial.prior_rollouts] = _priors(trial)
        if (trial.policy / layout.METRICS).exists() or (trial.policy / layout.TRAINED).exists():
            trials.append(_trial(trial))
    return ExperimentRecord(
        name=experiment.name,
        environment=experiment.env.id or "data alone",
        scores=experiment_scores(experiment),
        config_yaml=to_yaml(experiment),
        commands=[command],
        versions=versions(),
        hardware=_hardware(workspace),
        data_card=_data_card(workspace),
        skills=list(skills.values()),
        priors=[record for records in priors.values() for record in records],
        trials=trials,
        deciding=[record for trial in workspace.trials() if (record := _deciding(trial)) is not None],
        exploration=_exploration(workspace),
        demonstrations=_demonstrations(workspace),
    )


def _data_card(workspace: Workspace) -> dict[str, Any] | None:
    return read_card(workspace.dataset).model_dump(mode="json", exclude={"files"}) if workspace.has_data else None


def _demonstrations(workspace: Workspace) -> list[Path]:
    video = workspace.demonstrations / layout.DEMONSTRATIONS_VIDEO if workspace.has_data else None
    return [video] if video is not None and video.exists() else []


def _exploration(workspace: Workspace) -> ExplorationRecord | None:
    folder = exploration_folder(workspace)
    if not (folder / layout.SUMMARY).exists():
        return None
    summary = read_json(folder / layout.SUMMARY)
    return ExplorationRecord(folder / layout.EXPLORATION_FIGURE, summary["rows"], summary["env_steps"])


def _hardware(workspace: Workspace) -> dict[str, str]:
    """The hardware of the newest training, because the report may be made on another machine."""
    processes = [process for trial in workspace.trials() for process in read_provenance(trial.policy)]
    return dict(processes[-1]["hardware"]) if processes else hardware()


def _skills(trial: Trial) -> SkillRecord:
    card = read_skill_card(trial.skills)
    summary = {
        "decoder": card.spec.decoder.replace("_", " "),
        "skill length": card.spec.horizon,
        "latent size": card.spec.latent_dim,
        "prior": DECODERS[card.spec.decoder].prior(card.spec.settings),
        "augmentation": card.pretrain["augmentation"]["kind"].replace("_", "-"),
        "seed": card.seed,
        **{name: card.metrics[name] for name in sorted(card.metrics) if name.startswith("validation")},
    }
    metrics = trial.skills / layout.METRICS
    return SkillRecord(_label(trial), metrics if metrics.exists() else None, summary)


def _deciding(trial: Trial) -> DecidingRecord | None:
    """What decides for a trial; None where nothing has been measured."""
    card = trial.skills / layout.SKILL_CARD
    measured = read_skill_card(trial.skills).metrics if card.exists() else {}
    metrics = {row.name: measured[row.name] for row in deciding_metrics("pretrain") if row.name in measured}
    train, noted = trial.experiment.train, noted_rewards(trial.policy)
    findings = skill_findings(measured, trial.spec, trial.method_config, train)
    findings += noted_offline(trial)
    findings += noted_findings(trial.policy, train, trial.method_config)
    return DecidingRecord(trial.method, trial.seed, {**metrics, **noted}, findings) if findings else None


def _label(trial: Trial) -> str:
    return DECODERS[METHODS[trial.method].decoder].label


def _priors(trial: Trial) -> list[PriorRecord]:
    folder = trial.prior_rollouts
    return [
        PriorRecord(
            skill_label=_label(trial),
            augmentation=trial.experiment.pretrain.augmentation.kind,
            seed=trial.seed,
            mode=mode,
            episodes_csv=folder / layout.EPISODES,
            videos=_videos(folder, mode),
        )
        for mode in read_json(folder / layout.SUMMARY)["modes"]
    ]


def _trial(trial: Trial) -> TrialRecord:
    """The record of a finished training, or of an unfinished one by its metrics so far."""
    trained, metrics = read_trained(trial.policy), trial.policy / layout.METRICS
    if trained is not None:
        commit, so_far = trained.commit, {"env_steps": trained.env_steps, "wall_clock_s": trained.wall_clock_s}
    else:
        commit = joined_commits(read_provenance(trial.policy)) or "unknown"
        columns = read_columns(metrics) if metrics.exists() else {}
        so_far = {name: column[-1] for name, column in columns.items() if len(column)}
    evaluated = (trial.evaluation / layout.SUMMARY).exists()
    return TrialRecord(
        method=trial.method,
        seed=trial.seed,
        config_hash=trial.config_hash,
        commit=commit,
        env_steps=int(so_far.get("env_steps", 0)),
        wall_clock_s=float(so_far.get("wall_clock_s", 0.0)),
        metrics_csv=metrics,
        evaluations_csv=trial.policy / layout.EVALUATIONS,
        trained=trained,
        final_episodes_csv=trial.evaluation / layout.EPISODES if evaluated else None,
        videos=[path for mode in trial.experiment.evaluate.modes for path in _videos(trial.evaluation, mode)],
    )


def _videos(folder: Path, mode: str) -> list[Path]:
    path = layout.video(folder, mode)
    return [path] if path.exists() else []
