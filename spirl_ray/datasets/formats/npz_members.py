"""Rows of the arrays in an npz file, read without unpacking whole arrays."""

from __future__ import annotations

import math
import struct
import zipfile
import zlib
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.lib import format as npy

from spirl_ray.datasets.formats.arrays import refuse_objects
from spirl_ray.episodes.recording import KeyLayout, Values
from spirl_ray.errors import SpirlError

_FAULTS = (OSError, ValueError, EOFError, RuntimeError, struct.error, zlib.error, zipfile.BadZipFile)
"""What zipfile and numpy raise for damaged files. NotImplementedError (an unknown compression) is a RuntimeError."""

_STEP = 1 << 20
"""The number of bytes that are skipped at once."""


class NpzFile:
    """An open npz file. It is a context manager; every array stays open at the row after the last one that was read,
    so that reading rows in ascending order unpacks each array once."""

    def __init__(self, path: Path) -> None:
        """Reads the names, shapes and types of the arrays.

        Raises:
            SpirlError: the file is missing, damaged, or no npz file.
        """
        self.path = path
        self.arrays: dict[str, KeyLayout] = {}
        """The whole shape, rows included, and the dtype of each array."""
        self._open: dict[str, IO[bytes]] = {}
        self._begin: dict[str, int] = {}
        self._columns_first: set[str] = set()
        try:
            self._zip = zipfile.ZipFile(path)
        except _FAULTS as error:
            raise SpirlError(f"{path}: is no readable npz file: {error}.") from error
        try:
            for member in self._zip.infolist():
                if member.filename.endswith(".npy"):
                    self._read_header(member, member.filename.removesuffix(".npy"))
        except BaseException:  # an interruption leaves no open file either
            self._zip.close()
            raise

    def _read_header(self, member: zipfile.ZipInfo, name: str) -> None:
        try:
            with self._zip.open(member) as stream:
                version = npy.read_magic(stream)
                if version not in ((1, 0), (2, 0)):
                    raise ValueError(f"version {version} of the npy format")
                read = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
                shape, columns_first, dtype = read(stream)
                begin = stream.tell()
        except _FAULTS as error:
            raise SpirlError(f"{self.path}: {name}: is no readable array: {error}.") from error
        size = member.file_size - begin
        if not dtype.hasobject and size != math.prod(shape) * dtype.itemsize:
            raise SpirlError(
                f"{self.path}: {name}: has {size} bytes, which do not make {dtype} of shape {list(shape)}."
            )
        self.arrays[name] = KeyLayout(tuple(shape), dtype)
        self._begin[name] = begin
        if columns_first and len(shape) > 1:
            self._columns_first.add(name)

    def __enter__(self) -> NpzFile:
        return self

    def __exit__(self, *_: object) -> None:
        for stream in self._open.values():
            stream.close()
        self._zip.close()

    def rows(self, name: str, first: int, last: int) -> Values:
        """Reads the rows [first, last) of an array; a file that is not compressed is skipped through as well.

        Raises:
            SpirlError: the array holds objects, is stored column by column, or is damaged.
        """
        shape, dtype = self.arrays[name]
        where = f"{self.path}: {name}"
        refuse_objects(dtype, where)
        if name in self._columns_first:
            raise SpirlError(
                f"{where}: is stored column by column (Fortran order), so that no rows can be read without the rest. "
                "Save it with numpy.ascontiguousarray."
            )
        width = math.prod(shape[1:]) * dtype.itemsize
        data = bytearray((last - first) * width)
        try:
            if name not in self._open:
                self._open[name] = self._zip.open(f"{name}.npy")
            self._seek(self._open[name], self._begin[name] + first * width)
            self._fill(self._open[name], memoryview(data))
        except _FAULTS as error:
            raise SpirlError(f"{where}: rows {first} to {last - 1} cannot be read: {error}.") from error
        return np.frombuffer(data, dtype).reshape(last - first, *shape[1:])

    @staticmethod
    def _seek(stream: IO[bytes], position: int) -> None:
        """Goes forward in small steps, because zipfile unpacks what it skips."""
        for step in range(stream.tell() + _STEP, position, _STEP):
            stream.seek(step)
        stream.seek(position)

    @staticmethod
    def _fill(stream: IO[Any], view: memoryview) -> None:
        while len(view):
            count = stream.readinto(view)  # type: ignore[attr-defined]
            if not count:
                raise EOFError("the array ends too early")
            view = view[count:]

    def values(self, name: str) -> Values:
        """Reads a whole array."""
        shape, _ = self.arrays[name]
        if shape:
            return self.rows(name, 0, shape[0])
        refuse_objects(self.arrays[name].dtype, f"{self.path}: {name}")
        return self.rows(name, 0, 1).reshape(())
