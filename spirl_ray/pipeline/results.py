"""What the stages of an experiment give back: where their files are, and the numbers worth knowing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

Means = Mapping[str, float]
"""Means over the episodes of an evaluation, by the name of the metric; ``episodes`` is their number."""


@dataclass(frozen=True, kw_only=True)
class StageResult:
    """The result of one stage."""

    folder: Path
    """Where everything is that the stage has written."""
    ran: bool
    """False where the result was there already, so that nothing had to be done."""


@dataclass(frozen=True, kw_only=True)
class DataResult(StageResult):
    """An imported or generated dataset; ``folder`` holds its Parquet files and ``card.json``."""

    episodes: int
    steps: int
    """Actions in all episodes together."""
    skipped: Sequence[str] = ()
    """What was wrong with each episode that this import left out (``data.skip_bad``)."""
    expert_success: float | None = None
    """Share of the expert's attempts that gave an episode; None for recorded data, and where nothing had to be done."""


@dataclass(frozen=True, kw_only=True)
class DemonstrationsResult(StageResult):
    """A video of some episodes of the dataset."""

    video: Path


@dataclass(frozen=True, kw_only=True)
class TrialResult(StageResult):
    """The result of a stage for one method with one seed."""

    method: str
    seed: int


@dataclass(frozen=True, kw_only=True)
class SkillsResult(TrialResult):
    """Trained skills with their prior; `spirl_ray.load_skills` reads ``folder``. Methods may share one artifact."""

    metrics: Means
    """Losses at the end of stage 1, by the names of its ``metrics.csv``; ``validation_…`` is of held-out episodes."""


@dataclass(frozen=True)
class Snapshot:
    """What the evaluations made during training say of the policy as it was after some steps."""

    env_steps: int
    """Primitive environment steps."""
    score: float | None
    """Mean of the score over both modes; None where it has no value."""
    modes: Mapping[str, Means]
    """By mode, ``deterministic`` or ``sampled``."""


@dataclass(frozen=True, kw_only=True)
class TrainingResult(TrialResult):
    """A trained policy; `spirl_ray.load_policy` reads ``folder``."""

    env_steps: int
    """Primitive environment steps of the training."""
    decisions: int
    updates: int
    wall_clock_s: float
    """Seconds, those of the processes before an interruption included."""
    commit: str
    """Of the code that trained the policy, as far as it is known; of several ones with ``+`` between them."""
    score: str
    """Name of the metric by which policies are compared."""
    publish: str
    """``best`` or ``last``: which snapshot the policy is (``train.publish``)."""
    best: Snapshot
    last: Snapshot

    @property
    def published(self) -> Snapshot:
        """The snapshot that the policy is."""
        return self.best if self.publish == "best" else self.last


@dataclass(frozen=True, kw_only=True)
class EvaluationResult(TrialResult):
    """Episodes of a trained policy, or of the bare prior."""

    score: str
    """Name of the metric by which policies are compared."""
    modes: Mapping[str, Means]
    """By mode, ``deterministic`` or ``sampled``."""
    episodes_csv: Path
    """A row for each episode."""
    videos: Mapping[str, Path] = field(default_factory=dict)
    """By mode, where episodes have been recorded."""

    def mean(self, mode: str = "deterministic") -> float | None:
        """The mean score of a mode; None where it has no value."""
        return self.modes[mode].get(self.score)


@dataclass(frozen=True, kw_only=True)
class ExplorationResult(StageResult):
    """How far skills from the prior get without a policy, beside other explorers."""

    figure: Path
    rows: Sequence[Mapping[str, Any]]
    """For each explorer what `spirl_ray.pipeline.exploration.coverage_rows` says of it, the skill prior's first."""


@dataclass(frozen=True, kw_only=True)
class ReportResult(StageResult):
    """The report of an experiment."""

    html: Path
    """One page that needs no other file."""
    csv: Path
    json: Path


@dataclass(frozen=True)
class ExperimentResult:
    """Everything that `spirl_ray.run` has done or found done; trials are in the order in which they ran."""

    folder: Path
    data: DataResult
    skills: Sequence[SkillsResult]
    priors: Sequence[EvaluationResult]
    """Episodes of the bare prior, of the methods that have one."""
    policies: Sequence[TrainingResult]
    evaluations: Sequence[EvaluationResult]
    """Final evaluations, in the order of ``policies``."""
    exploration: ExplorationResult | None
    report: ReportResult
