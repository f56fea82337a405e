"""What the rest of the program knows about an environment, and the table of those it ships."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class PositionTarget:
    """The environment turns an action into a position target, ``target = q + gain * action``.

    This is what target-preserving augmentation needs: moving ``q`` by d and the action by ``-d / gain``
    leaves the target where the demonstration had it.
    """

    positions: tuple[int, ...]
    """Entries of the state that hold q, one for each action dimension."""
    gain: tuple[float, ...]
    """Position units for an action of 1, one for each action dimension."""
    objects: tuple[int, ...] = ()
    """Entries of the state that are not under direct control and may be perturbed without relabelling."""


@dataclass(frozen=True)
class EnvironmentSpec:
    """Facts about one environment id that data, skills and training share."""

    id: str
    state_dim: int
    """Leading entries of the observation that are state; the rest (a constant goal) is not shown to networks."""
    action_dim: int
    """Actions are float32 in [-1, 1]."""
    max_episode_steps: int
    """Primitive steps."""
    subtasks: tuple[str, ...]
    """Names that may appear in ``info["completed"]``."""
    default_tasks: tuple[str, ...] = ()
    """The target's subtasks when the constructor's ``tasks`` is not given."""
    position_target: PositionTarget | None = None
    generate: Callable[..., Iterator[Any]] | None = None
    """``generate(indices, seed, **kwargs)`` yields one scripted `Episode` for each index, or None.

    An episode depends on (seed, index, kwargs) alone, so any number of workers produces the same data.
    """
    minari_states: Callable[[Any], Any] | None = None
    """Maps the observations of a Minari episode (array [T+1, ·] or dict of them) to states float32 [T+1, S]."""
