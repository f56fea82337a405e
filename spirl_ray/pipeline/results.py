"""The results that the stages of an experiment return: folders, files and numbers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from spirl_ray.settings import Settings

Means = Mapping[str, int | float]
"""The means over the episodes of an evaluation, by the name of the metric; ``episodes`` is their number."""


@dataclass(frozen=True)
class Finding:
    """One sentence, or a few, about something that decides whether stage 2 can learn."""

    text: str
    warning: bool = False
    """True where the user should change a setting, which the text names."""


@dataclass(frozen=True, kw_only=True)
class StageResult:
    """The result of one stage."""

    folder: Path
    """The folder of everything that the stage has written."""
    ran: bool
    """False where the result existed already, so that nothing had to be done."""


@dataclass(frozen=True, kw_only=True)
class DataResult(StageResult):
    """An imported or generated dataset; ``folder`` holds its Parquet files and ``card.json``."""

    episodes: int
    steps: int
    """The number of actions in all episodes together."""
    skipped: Sequence[str] = ()
    """The problem of each episode that this import left out (``data.skip_bad``)."""
    expert_success: float | None = None
    """The share of the expert's attempts that succeeded; None for recorded data, and where nothing had to be done."""


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
    """The losses at the end of stage 1, by the names of its ``metrics.csv``; ``validation_…`` is of held-out
    episodes."""
    findings: Sequence[Finding] = ()
    """What the latents decide, in sentences; empty for skills of an older version, which did not measure it."""


class Snapshot(Settings):
    """The evaluations during training of the policy as it was after some steps."""

    env_steps: int
    """The number of primitive environment steps."""
    score: float | None
    """The mean of the score over both modes; None where it has no value."""
    deterministic: Means
    sampled: Means

    @property
    def modes(self) -> Mapping[str, Means]:
        """The means by mode."""
        return {"deterministic": self.deterministic, "sampled": self.sampled}


@dataclass(frozen=True, kw_only=True)
class TrainingResult(TrialResult):
    """A trained policy; `spirl_ray.load_policy` reads ``folder``."""

    env_steps: int
    """The number of primitive environment steps of the training."""
    decisions: int
    updates: int
    wall_clock_s: float
    """The time of training in seconds, including processes before an interruption."""
    commit: str
    """The commits of the code that trained the policy, joined with ``+``, as far as they are known."""
    score: str
    """The name of the metric by which policies are compared."""
    publish: str
    """The choice of the snapshot that is the policy, ``best`` or ``last`` (``train.publish``)."""
    best: Snapshot
    last: Snapshot
    findings: Sequence[Finding] = ()
    """What rewards have been worth beside the penalty for leaving the prior, in sentences."""

    @property
    def published(self) -> Snapshot:
        """The snapshot that is published as the policy."""
        return self.best if self.publish == "best" else self.last


@dataclass(frozen=True, kw_only=True)
class EvaluationResult(TrialResult):
    """Episodes of a trained policy, or of the bare prior."""

    score: str
    """The name of the metric by which policies are compared."""
    modes: Mapping[str, Means]
    """The means by mode, ``deterministic`` or ``sampled``."""
    episodes_csv: Path
    """The CSV file with a row for each episode."""
    videos: Mapping[str, Path] = field(default_factory=dict)
    """The videos by mode, where episodes have been recorded."""
    no_videos: str | None = None
    """Why the environment cannot be rendered, where ``evaluate.videos`` asks for videos."""

    def mean(self, mode: str = "deterministic") -> float | None:
        """The mean score of a mode; None where it has no value."""
        return self.modes[mode].get(self.score)


@dataclass(frozen=True, kw_only=True)
class ExplorationResult(StageResult):
    """The exploration by skills from the prior without a policy, and by other explorers."""

    figure: Path
    rows: Sequence[Mapping[str, Any]]
    """The row of `spirl_ray.pipeline.exploration.coverage_rows` for each explorer, the skill prior's first."""


@dataclass(frozen=True, kw_only=True)
class ReportResult(StageResult):
    """The report of an experiment."""

    html: Path
    """The page, which needs no other file."""
    csv: Path
    json: Path


@dataclass(frozen=True)
class ExperimentResult:
    """All results that `spirl_ray.run` has produced or found; trials are in the order in which they ran."""

    folder: Path
    data: DataResult | None
    skills: Sequence[SkillsResult]
    priors: Sequence[EvaluationResult]
    """Episodes of the bare prior, of the methods that have one."""
    policies: Sequence[TrainingResult]
    evaluations: Sequence[EvaluationResult]
    """Final evaluations, in the order of ``policies``."""
    exploration: ExplorationResult | None
    report: ReportResult
