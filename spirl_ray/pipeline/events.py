"""The events by which an experiment reports its progress, and the functions that listen to them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, Protocol

from spirl_ray.pipeline.results import Finding, StageResult

Stage = Literal["data", "demonstrations", "skills", "prior", "exploration", "training", "evaluation", "report"]
Happening = Literal["started", "progress", "waiting", "noted", "finished"]


@dataclass(frozen=True, kw_only=True)
class Event:
    """An event of an experiment. A stage sends ``started``, ``progress`` any number of times, and
    ``finished`` unless it fails; ``waiting`` is sent where another process works on the same result, and once a minute
    where Ray has no place for what a stage needs; ``noted`` tells ``findings`` about trackers, beside the stages."""

    happening: Happening
    stage: Stage | None = None
    """The stage; None for ``waiting`` between two stages."""
    method: str | None = None
    """The method of the trial; None for stages that all trials share."""
    seed: int | None = None
    done: float = 0.0
    total: float | None = None
    """The progress: ``done`` of ``total`` steps, updates or episodes; None before ``total`` is known."""
    metrics: Mapping[str, float] = field(default_factory=dict)
    """The metrics of ``progress``: the newest row of metrics, by the names in ``metrics.csv``."""
    scores: Mapping[str, float] = field(default_factory=dict)
    """The scores of ``progress``: the newest scores of episodes, by their labels."""
    findings: Sequence[Finding] = ()
    """The findings of ``progress``: what has been found out since the last event about whether stage 2 can learn. Those
    of ``noted``: where results are tracked, or why they are not."""
    folder: Path | None = None
    """The folder of ``waiting``: the result on which another process works."""
    resources: str | None = None
    """The resources of ``waiting``, in words: what tasks and workers ask for and the cluster does not have free."""
    result: StageResult | None = None
    """The result of ``finished``."""


Listener = Callable[[Event], None]
"""A function that is called in the process of the experiment, with one event at a time, so it should be quick; what it
raises ends the experiment."""


def ignore(event: Event) -> None:
    """A listener that does nothing."""


class Progress(Protocol):
    """A callback for the progress of a stage: ``done`` of ``total``, and what `Event` says of the others."""

    def __call__(
        self,
        done: float,
        total: float,
        *,
        metrics: Mapping[str, float] = {},
        scores: Mapping[str, float] = {},
        findings: Sequence[Finding] = (),
    ) -> None: ...


def silent(done: float, total: float, **newest: object) -> None:
    """A `Progress` that shows nothing."""
