"""An episode: the unit of offline data."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from spirl_ray.episodes.features import Array
from spirl_ray.errors import SpirlError

FloatArray = npt.NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class Episode:
    """One trajectory: T actions between T + 1 observations."""

    id: str
    """Unique within its dataset."""
    observations: Mapping[str, Array]
    """[T+1, *shape] for each stored feature by its name, float32 or, for images, uint8; the last row is what was
    observed after the last action."""
    actions: FloatArray
    """float32 [T, A] in [-1, 1]."""
    rewards: FloatArray
    """float32 [T], as the source recorded them."""
    terminated: bool
    """The task ended the episode."""
    truncated: bool
    """A time limit or the recording ended it."""
    metadata: dict[str, Any] = field(default_factory=dict)
    """JSON-able facts; ``completed``, where present, lists the subtasks in the order of completion."""

    @property
    def length(self) -> int:
        """Number of actions T."""
        return len(self.actions)

    @property
    def nbytes(self) -> int:
        """Bytes of observations and actions."""
        return sum(values.nbytes for values in self.observations.values()) + self.actions.nbytes


def metadata_json(episode: Episode) -> str:
    """Metadata in the one form that is stored and hashed.

    Raises:
        SpirlError: it is not JSON-able.
    """
    try:
        return json.dumps(episode.metadata, sort_keys=True, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise SpirlError(f"episode {episode.id!r}: metadata is not JSON-able: {error}") from error
