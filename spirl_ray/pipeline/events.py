"""How an experiment tells how far it is: one event class, and functions that listen."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

from spirl_ray.pipeline.results import StageResult

Stage = Literal["data", "demonstrations", "skills", "prior", "exploration", "training", "evaluation", "report"]
Happening = Literal["started", "progress", "waiting", "finished"]


@dataclass(frozen=True, kw_only=True)
class Event:
    """Something that happened in an experiment. A stage sends ``started``, ``progress`` any number of times, and
    ``finished`` unless it fails; ``waiting`` comes where another process works on the same result."""

    happening: Happening
    stage: Stage | None = None
    """None for ``waiting`` between two stages."""
    method: str | None = None
    """Of the trial; None for stages that all trials share."""
    seed: int | None = None
    done: float = 0.0
    total: float | None = None
    """How far the stage is: ``done`` of ``total`` steps, updates or episodes; None before that is known."""
    metrics: Mapping[str, float] = field(default_factory=dict)
    """Of ``progress``: the newest row of metrics, by the names in ``metrics.csv``."""
    scores: Mapping[str, float] = field(default_factory=dict)
    """Of ``progress``: the newest scores of episodes, by what to call them in a line."""
    folder: Path | None = None
    """Of ``waiting``: the result that another process works on."""
    result: StageResult | None = None
    """Of ``finished``."""


Listener = Callable[[Event], None]
"""Called in the process of the experiment, with one event at a time, so it should be quick; what it raises ends the
experiment."""


def ignore(event: Event) -> None:
    """A listener that does nothing."""


class Progress(Protocol):
    """How a stage tells how far it is: done, total, and the newest metrics, with ``scores`` by label among them."""

    def __call__(self, done: float, total: float, facts: dict[str, Any]) -> None: ...


def silent(done: float, total: float, facts: dict[str, Any]) -> None:
    """A `Progress` that shows nothing."""
