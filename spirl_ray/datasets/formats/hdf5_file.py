"""Rows of the datasets in an HDF5 file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from spirl_ray.datasets.formats.arrays import refuse_objects
from spirl_ray.episodes.recording import KeyLayout, Values
from spirl_ray.errors import SpirlError


class Hdf5File:
    """An open HDF5 file, or a group in it; a context manager that closes the file. Links to other files are not
    followed."""

    def __init__(self, path: Path, group: str = "/") -> None:
        """Reads the names, shapes and types of the datasets in the group and in those below it.

        Raises:
            SpirlError: the file is missing, damaged or no HDF5 file, or it has no such group.
        """
        import h5py  # here, because most commands never need it

        self.path = path
        self.arrays: dict[str, KeyLayout] = {}
        """The whole shape, rows included, and the dtype of each dataset."""
        try:
            self._file = h5py.File(path, "r")
        except OSError as error:
            raise SpirlError(f"{path}: is no readable HDF5 file: {error}.") from error
        try:
            self._group = self._file[group]
            self._group.visititems(self._add)
        except (KeyError, OSError, RuntimeError, AttributeError, ValueError) as error:
            self._file.close()
            raise SpirlError(f"{path}: the group {group} cannot be read: {error}.") from error

    def _add(self, name: str, item: Any) -> None:
        shape = getattr(item, "shape", None)
        if shape is not None:
            self.arrays[name] = KeyLayout(shape, item.dtype)

    def __enter__(self) -> Hdf5File:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def rows(self, name: str, first: int, last: int) -> Values:
        """Reads the rows [first, last) of a dataset.

        Raises:
            SpirlError: it does not hold numbers or is damaged.
        """
        where = f"{self.path}: {name}"
        refuse_objects(self.arrays[name].dtype, where)
        try:
            return np.asarray(self._group[name][first:last])
        except (OSError, RuntimeError, KeyError, ValueError) as error:
            raise SpirlError(f"{where}: rows {first} to {last - 1} cannot be read: {error}.") from error

    def names(self, group: str) -> list[str] | None:
        """The names of what a group below this one holds; None where there is no such group."""
        found = self._group.get(group)
        return list(found) if hasattr(found, "keys") else None

    def strings(self, name: str) -> list[str]:
        """Reads a dataset of strings."""
        try:
            return [value.decode() if isinstance(value, bytes) else str(value) for value in self._group[name][()]]
        except (OSError, RuntimeError, KeyError, ValueError, TypeError) as error:
            raise SpirlError(f"{self.path}: {name}: is no readable list of names: {error}.") from error
