"""The layout of robomimic's HDF5 files: a group for each demonstration, and masks that name some of them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import groupby
from pathlib import Path

import numpy as np

from spirl_ray.datasets.formats.arrays import assemble, errors_at, joined, joined_layout, keys_to_read, missing, per_row
from spirl_ray.datasets.formats.flat_rows import array_named, reward_arrays
from spirl_ray.datasets.formats.hdf5_file import Hdf5File
from spirl_ray.datasets.formats.locations import RecordedFiles, numeric_order
from spirl_ray.episodes.recording import NUMBERS, KeyLayout, Recording, RecordingLayout, Values
from spirl_ray.errors import SpirlError

DATA = "data"
_MASK, _OBSERVATIONS, _SUCCESSORS, _ENDS = "mask", "obs/", "next_obs/", "dones"


@dataclass(frozen=True)
class RobomimicFiles:
    """The reader of robomimic's demonstrations.

    An array ``obs/KEY`` has the observation before each action. The one after the last action is in ``next_obs/KEY``;
    where a file has none, the last action is left out. ``dones`` is 1 at the last action of a demonstration that the
    task has ended; many files set it at the end of every demonstration.
    """

    location: RecordedFiles
    filter: str | None
    """The name of a mask; None reads all demonstrations."""
    actions: tuple[str, ...]
    rewards: tuple[str, ...] | None

    @cached_property
    def _demonstrations(self) -> tuple[tuple[Path, tuple[str, ...]], ...]:
        return tuple((path, self._names(path)) for path in self.location.files)

    def _names(self, path: Path) -> tuple[str, ...]:
        with Hdf5File(path) as file:
            there = file.names(DATA)
            if not there:
                raise SpirlError(f"{path}: has no group data with demonstrations, so it is no robomimic file.")
            if self.filter is None:
                return tuple(sorted(there, key=numeric_order))
            masks = file.names(_MASK) or []
            if self.filter not in masks:
                raise missing(f"{path}: mask", self.filter, masks)
            wanted = file.strings(f"{_MASK}/{self.filter}")
        if unknown := sorted(set(wanted) - set(there)):
            raise SpirlError(f"{path}: mask/{self.filter} names {unknown[0]}, which data does not have.")
        return tuple(sorted(set(wanted), key=numeric_order))

    def _first(self) -> tuple[Path, str]:
        for path, names in self._demonstrations:
            if names:
                return path, names[0]
        raise SpirlError(f"{self.location.files[0]}: mask/{self.filter} names no demonstration.")

    def layout(self) -> RecordingLayout:
        """The layout of the first demonstration."""
        path, name = self._first()
        with Hdf5File(path, f"{DATA}/{name}") as file:
            keys = {key: per_row(file.arrays[array]) for key, array in _keys(file, name).items()}
            numeric = {key: layout for key, layout in keys.items() if layout.dtype.kind in NUMBERS}
            actions = joined_layout([per_row(layout) for layout in self._action_arrays(file, name).values()])
            return RecordingLayout(numeric, actions, rewards=bool(reward_arrays(file, self.rewards)))

    def chunks(self) -> list[tuple[int, ...]]:
        return [(index,) for index in range(sum(len(names) for _, names in self._demonstrations))]

    def read(self, chunk: Sequence[int], keys: Sequence[str]) -> Iterator[Recording]:
        places = [(path, name) for path, names in self._demonstrations for name in names]
        for path, wanted in groupby((places[index] for index in chunk), key=lambda place: place[0]):
            for _, name in wanted:
                with Hdf5File(path, f"{DATA}/{name}") as file:
                    yield self._recording(file, name, keys)

    def _recording(self, file: Hdf5File, demonstration: str, keys: Sequence[str]) -> Recording:
        name = f"{self.location.name(file.path)}:{demonstration}"
        where = f"{file.path}: episode {name}"
        there = _keys(file, demonstration)
        observations = {}
        for key in keys:
            if key not in there:
                raise missing(where, key, there)
        for key in keys_to_read(keys, {key: file.arrays[name] for key, name in there.items()}):
            values, successors = (
                _whole(file, where, there[key]),
                f"{_SUCCESSORS}{there[key].removeprefix(_OBSERVATIONS)}",
            )
            if successors in file.arrays:
                following = _whole(file, where, successors)
                if len(following) != len(values):
                    raise SpirlError(
                        f"{where}: next_obs/{key} has {len(following)} rows and obs/{key} has {len(values)}."
                    )
                values = np.concatenate([values, following[-1:]])
            observations[key] = values
        rewards = reward_arrays(file, self.rewards)
        return assemble(
            where,
            name,
            observations,
            joined([_whole(file, where, array) for array in self._action_arrays(file, demonstration)]),
            joined([_whole(file, where, array) for array in rewards]) if rewards else None,
            _whole(file, where, _ENDS) if _ENDS in file.arrays else None,
            metadata={"demonstration": demonstration},
            keys=keys,
        )

    def _action_arrays(self, file: Hdf5File, demonstration: str) -> dict[str, KeyLayout]:
        names = [array_named(Path(f"{file.path}: data/{demonstration}"), file.arrays, name) for name in self.actions]
        return {name: file.arrays[name] for name in names}


def _keys(file: Hdf5File, demonstration: str) -> dict[str, str]:
    """The array of each key."""
    arrays = [name for name, layout in file.arrays.items() if name.startswith(_OBSERVATIONS) and layout.shape]
    if not arrays:
        raise SpirlError(
            f"{file.path}: data/{demonstration} has no group obs, only {', '.join(sorted(file.arrays))}. It is "
            "raw: make a file with observations by robomimic's scripts/dataset_states_to_obs.py; data recorded by "
            "robosuite need scripts/conversion/convert_robosuite.py before that."
        )
    return {name.removeprefix(_OBSERVATIONS).replace("/", "."): name for name in arrays}


def _whole(file: Hdf5File, where: str, name: str) -> Values:
    """A whole array of a demonstration; an error also names the episode."""
    with errors_at(where, file.path):
        layout = file.arrays[name]
        if not layout.shape:
            raise SpirlError(f"{name}: is a single value; expected a row for each step.")
        return file.rows(name, 0, layout.shape[0])
