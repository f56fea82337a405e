"""An episode: the unit of offline data."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from spirl_ray.episodes.features import Array
from spirl_ray.errors import SpirlError

FloatArray = npt.NDArray[np.float32]
Tries = Callable[[Mapping[str, Any]], Iterable[tuple[str, bool]]]
"""A function from an episode's metadata to the subtasks that a scripted expert tried, and whether it solved them."""


@dataclass(frozen=True, eq=False)
class Episode:
    """One trajectory: T actions between T + 1 observations."""

    id: str
    """The name of the episode, unique within its dataset."""
    observations: Mapping[str, Array]
    """The values [T+1, *shape] of each stored feature by its name, float32 or, for images, uint8; the last row was
    observed after the last action."""
    actions: FloatArray
    """The actions, float32 [T, A] in [-1, 1]."""
    rewards: FloatArray
    """The rewards, float32 [T], as the source recorded them."""
    terminated: bool
    """True where the task ended the episode."""
    truncated: bool
    """True where a time limit or the recording ended the episode."""
    metadata: dict[str, Any] = field(default_factory=dict)
    """JSON-able information about the episode; ``completed``, where present, lists the subtasks in the order of
    completion."""

    @property
    def length(self) -> int:
        """The number of actions, T."""
        return len(self.actions)

    @property
    def nbytes(self) -> int:
        """The size of observations and actions in bytes."""
        return sum(values.nbytes for values in self.observations.values()) + self.actions.nbytes


def metadata_json(episode: Episode) -> str:
    """The metadata in the one form that is stored and hashed.

    Raises:
        SpirlError: the metadata are not JSON-able.
    """
    try:
        return json.dumps(episode.metadata, sort_keys=True, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise SpirlError(f"episode {episode.id!r}: metadata are not JSON-able: {error}") from error
