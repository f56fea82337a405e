"""Files of flat rows: all episodes one after the other in arrays of one length, with flags where an episode ends.

OGBench and D4RL write them, as npz or HDF5. Row t holds the observation o_t and the action a_t that follows it. The
last row of an OGBench episode holds the last observation and an action that is never taken, so it is left out with its
reward. The last row of a D4RL episode holds the last action, whose successor is known only where there is
``next_observations``. Without successors it is left out, and its reward is added to the one before.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple, Protocol, Self

import numpy as np
import numpy.typing as npt

from spirl_ray.datasets.formats.arrays import (
    assemble,
    errors_at,
    joined,
    joined_layout,
    missing,
    numbers,
    per_row,
    refuse_objects,
    vectors,
    without_last_action,
)
from spirl_ray.datasets.formats.locations import RecordedFiles
from spirl_ray.episodes.recording import NUMBERS, KeyLayout, Recording, RecordingLayout, Values
from spirl_ray.errors import SpirlError

_BLOCK = 1 << 20
"""The number of rows of the flags that are read at once."""
OBSERVATIONS, SUCCESSORS = "observations", "next_observations"
FLAGS = ("terminals", "timeouts")


class RowFile(Protocol):
    """An open file of arrays whose first axis is the rows; names of nested groups are joined by slashes."""

    path: Path
    arrays: dict[str, KeyLayout]

    def __enter__(self) -> Self: ...

    def __exit__(self, *_: object) -> None: ...

    def rows(self, name: str, first: int, last: int) -> Values:
        """Reads the rows [first, last) of an array.

        Raises:
            SpirlError: they cannot be read; the message names the file and the array.
        """


class Columns(NamedTuple):
    """What the arrays of a file are."""

    rows: int
    observations: dict[str, str]
    """The array of each key, of any length."""
    successors: dict[str, str]
    """The array of each key's next observations."""
    actions: tuple[str, ...]
    rewards: tuple[str, ...]
    flags: tuple[str | None, str | None]
    """The arrays that say where the task, and where a time limit ends an episode."""


class Episodes(NamedTuple):
    """The episodes of one file."""

    file: Path
    bounds: tuple[tuple[int, int], ...]
    """The first row of each episode and the one after its last."""


def key_of(name: str, prefix: str = OBSERVATIONS) -> str:
    """The key of an array: ``observations`` is ``observation``, and in others, slashes become dots."""
    return "observation" if name == prefix else name.removeprefix(f"{prefix}/").replace("/", ".")


def observation_keys(path: Path, arrays: Mapping[str, KeyLayout], others: Sequence[str]) -> dict[str, str]:
    """The array of each key of the observations: all arrays but these others and ``next_observations``."""
    found: dict[str, str] = {}
    for name, layout in arrays.items():
        if name in others or name.partition("/")[0] == SUCCESSORS or not layout.shape:
            continue
        if found.setdefault(key_of(name), name) != name:
            raise SpirlError(f"{path}: {found[key_of(name)]} and {name} would both be the key {key_of(name)!r}.")
    return found


def array_named(path: Path, arrays: Mapping[str, KeyLayout], name: str) -> str:
    """The array that a setting names with slashes or with dots.

    Raises:
        SpirlError: there is none; the message lists those that are there.
    """
    for candidate in (name, name.replace(".", "/")):
        if candidate in arrays:
            return candidate
    raise missing(str(path), name, arrays)


def reward_arrays(file: RowFile, names: tuple[str, ...] | None) -> tuple[str, ...]:
    """The arrays of rewards that a setting names; where it names none, ``rewards``, if there is one.

    Raises:
        SpirlError: an array that is named is not there.
    """
    if names is None:
        return ("rewards",) if "rewards" in file.arrays else ()
    return tuple(array_named(file.path, file.arrays, name) for name in names)


@dataclass(frozen=True)
class FlatRows:
    """The reader of files of flat rows, whatever holds their arrays."""

    location: RecordedFiles
    open: Callable[[Path], RowFile]
    """Opens a file; a class or function of a module, so that the reader can be pickled."""
    ogbench: bool
    """True: only ``terminals`` ends an episode, and it says nothing about the task."""
    actions: tuple[str, ...]
    rewards: tuple[str, ...] | None
    """The arrays of rewards; None: ``rewards``, where there is one."""

    def columns(self, file: RowFile) -> Columns:
        """Finds out what the arrays of a file are.

        Raises:
            SpirlError: one is missing, holds no numbers, or has another number of rows than the actions.
        """
        arrays, path = file.arrays, file.path
        actions = tuple(array_named(path, arrays, name) for name in self.actions)
        rewards = reward_arrays(file, self.rewards)
        terminals, timeouts = (name if name in arrays else None for name in FLAGS)
        flags = (None, terminals) if self.ogbench else (terminals, timeouts)
        if not any(flags):
            raise missing(str(path), FLAGS[0], arrays)
        observations = observation_keys(path, arrays, [*actions, *rewards, *FLAGS, "rewards"])
        nested = {name: layout for name, layout in arrays.items() if name.partition("/")[0] == SUCCESSORS}
        successors = {} if self.ogbench else {key_of(name, SUCCESSORS): name for name in nested}
        rows = arrays[actions[0]].shape[0] if arrays[actions[0]].shape else 0
        own = [name for name in observations.values() if name.partition("/")[0] == OBSERVATIONS]
        if not own and not observations:
            raise missing(str(path), OBSERVATIONS, arrays)
        for name in (*actions, *rewards, *filter(None, flags), *own, *successors.values()):
            refuse_objects(arrays[name].dtype, f"{path}: {name}")
            length = arrays[name].shape[0] if arrays[name].shape else None
            if length != rows:
                raise SpirlError(f"{path}: {name} has {length} rows and {actions[0]} has {rows}.")
        if not rows:
            raise SpirlError(f"{path}: {actions[0]} has no rows.")
        return Columns(rows, observations, successors, actions, rewards, flags)

    @cached_property
    def _episodes(self) -> tuple[Episodes, ...]:
        found = []
        for path in self.location.files:
            with self.open(path) as file:
                columns = self.columns(file)
                ends = np.zeros(0, np.int64)
                for first in range(0, columns.rows, _BLOCK):
                    last = min(first + _BLOCK, columns.rows)
                    flags = [file.rows(name, first, last) for name in columns.flags if name is not None]
                    ends = np.append(ends, first + 1 + np.flatnonzero(np.any([_flat(flag) for flag in flags], axis=0)))
                if not len(ends) or ends[-1] != columns.rows:
                    ends = np.append(ends, columns.rows)
                bounds = zip([0, *ends[:-1].tolist()], ends.tolist(), strict=True)
                # An episode without a step between two observations holds nothing to learn from.
                least = 1 if columns.successors else 2
                found.append(Episodes(path, tuple(pair for pair in bounds if pair[1] - pair[0] >= least)))
        return tuple(found)

    def layout(self) -> RecordingLayout:
        """The layout of the first file; the numeric arrays of as many rows as there are actions are observations."""
        path = self.location.files[0]
        with self.open(path) as file:
            columns = self.columns(file)
            keys = {
                key: per_row(file.arrays[name])
                for key, name in columns.observations.items()
                if file.arrays[name].shape[0] == columns.rows and file.arrays[name].dtype.kind in NUMBERS
            }
            actions = joined_layout([per_row(file.arrays[name]) for name in columns.actions])
        return RecordingLayout(keys, actions, rewards=bool(columns.rewards))

    def chunks(self) -> list[tuple[int, ...]]:
        """Every episode by itself, because a file is read in one pass wherever its episodes are."""
        return [(index,) for index in range(sum(len(one.bounds) for one in self._episodes))]

    def read(self, chunk: Sequence[int], keys: Sequence[str]) -> Iterator[Recording]:
        """Reads episodes; see `RecordingReader.read`. Ascending indices unpack a compressed file once."""
        places = [(file, number) for file, one in enumerate(self._episodes) for number in range(len(one.bounds))]
        for file_number, wanted in groupby((places[index] for index in chunk), key=lambda place: place[0]):
            path, bounds = self._episodes[file_number]
            with self.open(path) as file:
                columns = self.columns(file)
                for _, number in wanted:
                    yield self._recording(file, columns, number, bounds[number], keys)

    def _recording(
        self, file: RowFile, columns: Columns, number: int, bounds: tuple[int, int], keys: Sequence[str]
    ) -> Recording:
        first, last = bounds
        name = f"{self.location.name(file.path)}:{number:05d}"
        where = f"{file.path}: episode {name}"
        followed = bool(columns.successors) and all(key in columns.successors for key in keys)
        observations = {}
        for key in keys:
            if key not in columns.observations:
                raise missing(where, key, columns.observations)
            array = columns.observations[key]
            if file.arrays[array].shape[0] != columns.rows:
                raise SpirlError(
                    f"{where}: {key} has {file.arrays[array].shape[0]} rows in the file and {columns.actions[0]} has "
                    f"{columns.rows}."
                )
            values = _rows(file, where, array, first, last)
            if followed:
                values = np.concatenate([values, _rows(file, where, columns.successors[key], last - 1, last)])
            observations[key] = values
        actions = joined([_rows(file, where, array, first, last) for array in columns.actions])
        rewards = (
            joined([_rows(file, where, array, first, last) for array in columns.rewards]) if columns.rewards else None
        )
        ended, cut = (flag and _rows(file, where, flag, last - 1, last) for flag in columns.flags)
        if self.ogbench:
            actions, rewards = actions[:-1], None if rewards is None else rewards[:-1]
        elif not keys and not followed:  # the same actions, whatever keys are asked for
            actions, rewards = without_last_action(actions, None if rewards is None else rewards.reshape(-1))
        metadata: dict[str, Any] = {"file": self.location.name(file.path), "rows": [first, bounds[1] - 1]}
        return assemble(where, name, observations, actions, rewards, ended, cut, metadata)


def _flat(flag: Values) -> npt.NDArray[np.bool_]:
    return np.any(flag.reshape(len(flag), -1) != 0, axis=1)


def _rows(file: RowFile, where: str, name: str, first: int, last: int) -> Values:
    """Rows of an array; an error also names the episode."""
    with errors_at(where, file.path):
        return vectors(numbers(file.rows(name, first, last), str(file.path)))
