"""Recordings: trajectories as somebody else's files hold them, with keys, units and shapes of their own.

A reader of a format gives recordings. `spirl_ray.datasets.mapping` makes episodes of them, in the same way for every
format: it chooses and names features, and rescales actions.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

Values = npt.NDArray[Any]
NUMBERS = "biuf"
"""The kinds of dtype that are numbers, and so can be features: bool, integers and floats."""


class KeyLayout(NamedTuple):
    """The layout of one key of recordings."""

    shape: tuple[int, ...]
    """The shape of one value, without the axis of time."""
    dtype: np.dtype[Any]


@dataclass(frozen=True)
class RecordingLayout:
    """What the recordings of a source hold, as its files say it; no episode is read to find out."""

    observations: Mapping[str, KeyLayout]
    """The keys of observations. The keys of nested mappings are joined by dots (``robot.joints``); a single array is
    the key ``observation``."""
    actions: KeyLayout | None
    """The layout of an action; None where a source has no actions, so that it cannot be imported."""
    action_low: tuple[float, ...] | None = None
    """The least value of each entry of the actions, where the files say it."""
    action_high: tuple[float, ...] | None = None
    rewards: bool = False
    """True where there are rewards."""


@dataclass(frozen=True, eq=False)
class Recording:
    """One trajectory as it was recorded: T actions between T + 1 observations."""

    id: str
    """The name of the episode, unique within its source."""
    observations: Mapping[str, Values]
    """The values [T+1, *shape] of the keys that were asked for."""
    actions: Values
    """The actions [T, *shape], in the units of the source."""
    rewards: Values | None = None
    """The rewards [T]; None where the source has none."""
    terminated: bool = False
    """True where the task ended the episode."""
    truncated: bool = True
    """True where a time limit or the recording ended the episode."""
    metadata: dict[str, Any] = field(default_factory=dict)
    """JSON-able information about the episode."""


class RecordingReader(Protocol):
    """The interface of a format: recordings by index, picklable, and read in any number of processes with the same
    result."""

    def layout(self) -> RecordingLayout:
        """Reads what the files say about their keys, shapes and types.

        Raises:
            SpirlError: a file is missing, damaged, or of another format; the message names it.
        """

    def chunks(self) -> list[tuple[int, ...]]:
        """Returns every episode's index once, in the order of the dataset: 0, 1, 2, … A chunk is what one call of
        `read` reads best, such as the episodes of one file."""

    def read(self, chunk: Sequence[int], keys: Sequence[str]) -> Iterator[Recording]:
        """Reads the episodes with these indices, in order, with these keys of their observations.

        Raises:
            SpirlError: a file is damaged; the message names the file, the episode and the key.
        """

    def origin(self) -> str:
        """A short name of the files for cards and messages, such as ``lerobot:/data/pusht``."""

    def licence(self) -> str:
        """The licence that the files name; "unknown" where they name none."""

    def attribution(self) -> str:
        """The people or papers that the files name; "unknown" where they name none."""

    def identity(self) -> dict[str, Any]:
        """Plain data (JSON) that change whenever the episodes change: options, and `files_identity` of the files."""
