"""The content of a report: the record of an experiment, and readers of the CSV files that it points to."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from spirl_ray.envs.metrics import Scores
from spirl_ray.files.tables import CsvRow, read_csv
from spirl_ray.pipeline.results import Finding
from spirl_ray.pipeline.trained import TrainedRecord


@dataclass(frozen=True)
class SkillRecord:
    """One skill model (stage 1)."""

    label: str
    metrics_csv: Path | None = None
    """The metrics, whose columns are the rows of stage 1 in `spirl_ray.metrics`."""
    summary: dict[str, Any] = field(default_factory=dict)
    """Values for a table: latent size, skill length, best validation loss, …"""


@dataclass(frozen=True)
class PriorRecord:
    """Episodes of a bare prior: skills drawn from it without any reinforcement learning."""

    skill_label: str
    augmentation: str
    seed: int
    mode: str
    """The mode: ``sampled`` (latents drawn from the prior) or ``deterministic`` (the prior's mean latent)."""
    episodes_csv: Path
    videos: list[Path] = field(default_factory=list)


@dataclass(frozen=True)
class TrialRecord:
    """One method with one seed (stage 2)."""

    method: str
    seed: int
    config_hash: str
    commit: str
    env_steps: int
    """The number of primitive environment steps of the training."""
    wall_clock_s: float
    metrics_csv: Path | None = None
    evaluations_csv: Path | None = None
    final_episodes_csv: Path | None = None
    trained: TrainedRecord | None = None
    """The record of the training with its best and last snapshot; None before its end."""
    videos: list[Path] = field(default_factory=list)


@dataclass(frozen=True)
class DecidingRecord:
    """What decides whether one method with one seed can learn in stage 2."""

    method: str
    seed: int
    metrics: dict[str, float]
    """The values of the rows in `spirl_ray.metrics` that decide, by name, as far as they are known."""
    findings: Sequence[Finding] = ()
    """The same in sentences."""


@dataclass(frozen=True)
class ExplorationRecord:
    """The exploration without a policy: a figure, and the rows of its table."""

    figure: Path
    rows: list[dict[str, Any]]
    env_steps: int
    """The number of primitive steps of each explorer."""


@dataclass(frozen=True)
class ExperimentRecord:
    """The record of an experiment, everything that a report shows; pieces that do not exist yet are None or empty."""

    name: str
    environment: str
    scores: Scores
    """The metrics of the environment's episodes."""
    config_yaml: str
    commands: list[str]
    """The shell commands that reproduce the experiment, in order."""
    versions: dict[str, str]
    hardware: dict[str, str]
    data_card: dict[str, Any] | None = None
    skills: list[SkillRecord] = field(default_factory=list)
    priors: list[PriorRecord] = field(default_factory=list)
    trials: list[TrialRecord] = field(default_factory=list)
    deciding: list[DecidingRecord] = field(default_factory=list)
    exploration: ExplorationRecord | None = None
    demonstrations: list[Path] = field(default_factory=list)
    """The videos of the data."""


@dataclass(frozen=True)
class EvaluationPoint:
    """One evaluation during training."""

    env_steps: int
    mode: str
    """The mode: ``deterministic`` or ``sampled``."""
    episodes: int
    metrics: dict[str, float]
    """The means over the episodes, by name."""
    wall_clock_s: float


@dataclass(frozen=True)
class EpisodeValues:
    """The metrics of one evaluation episode, by name."""

    mode: str
    metrics: dict[str, float]


def read_evaluations(path: Path | None, scores: Scores) -> list[EvaluationPoint]:
    """Reads the points of an evaluations CSV by rising env_steps; no file is no points.

    A resumed run may have evaluated the same point twice; the later row counts.

    Raises:
        SpirlError: the file cannot be read, lacks env_steps, or a cell is not a number.
    """
    points = {}
    for row in read_csv(path, ("env_steps", "mode")):
        steps, episodes = row.number("env_steps"), row.number("episodes")
        if math.isnan(steps):
            continue
        point = EvaluationPoint(
            env_steps=int(steps),
            mode=row.cells.get("mode") or "deterministic",
            episodes=0 if math.isnan(episodes) else int(episodes),
            metrics=_metrics(row, scores),
            wall_clock_s=row.number("wall_clock_s"),
        )
        points[point.env_steps, point.mode] = point
    return [points[key] for key in sorted(points)]


def read_episodes(path: Path | None, scores: Scores) -> list[EpisodeValues]:
    """Reads the episodes of an episodes CSV in the order of the file; no file is no episodes.

    Raises:
        SpirlError: the file cannot be read, lacks the mode, or a cell is not a number.
    """
    return [
        EpisodeValues(row.cells.get("mode") or "deterministic", _metrics(row, scores))
        for row in read_csv(path, ("mode",))
    ]


def _metrics(row: CsvRow, scores: Scores) -> dict[str, float]:
    values = {name: row.number(name) for name in scores.names}
    return {name: value for name, value in values.items() if not math.isnan(value)}
