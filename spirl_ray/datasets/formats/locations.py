"""The files of a source of recordings: a file, a folder of files, or several of both."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from spirl_ray.errors import SpirlError
from spirl_ray.files.fingerprint import files_identity


@dataclass(frozen=True)
class RecordedFiles:
    """The files of a source, found by the paths that a user gives."""

    format: str
    """The name of the format, such as "npz"."""
    paths: tuple[Path, ...]
    """Absolute paths of files and folders. Folders are searched with all folders below them."""
    suffixes: tuple[str, ...]
    """The endings of the files that belong to a folder's data; a file that is named itself may have any ending."""

    @cached_property
    def files(self) -> tuple[Path, ...]:
        """The files, path by path as given; within a folder by name, with numbers in numerical order.

        Raises:
            SpirlError: a path does not exist, a folder holds no such file, or a file occurs twice.
        """
        found: list[Path] = []
        for path in self.paths:
            found += self._folder(path) if path.is_dir() else [path]
            if not path.exists():
                raise SpirlError(f"{path}: no such file or folder; it was given as the path of {self.format} data.")
        if twice := [file for number, file in enumerate(found) if file in found[:number]]:
            raise SpirlError(f"{twice[0]}: is twice among the files of one source; name it once.")
        return tuple(found)

    def _folder(self, folder: Path) -> list[Path]:
        files = [
            file
            for file in folder.rglob("*")
            if file.suffix.lower() in self.suffixes
            and file.is_file()
            and not any(part.startswith(".") for part in file.relative_to(folder).parts)
        ]
        if not files:
            raise SpirlError(f"{folder}: this folder holds no file that ends in {' or '.join(self.suffixes)}.")
        return sorted(files, key=lambda file: numeric_order(file.relative_to(folder).as_posix()))

    @cached_property
    def root(self) -> Path:
        """The folder that all files have in common."""
        return Path(os.path.commonpath([file.parent for file in self.files]))

    def name(self, file: Path) -> str:
        """The path of a file below `root` without its ending; unique within the source, wherever the files are."""
        return file.relative_to(self.root).with_suffix("").as_posix()

    def origin(self) -> str:
        """The name of the source for cards and messages, such as ``npz:/data/play.npz``."""
        return f"{self.format}:{', '.join(map(str, self.paths))}"

    def identity(self, **options: Any) -> dict[str, Any]:
        """Plain data that change whenever a file or one of these options changes."""
        try:
            files = files_identity(self.files, self.root)
        except OSError as error:
            raise SpirlError(f"{error.filename}: cannot be read: {error.strerror}.") from error
        return {"format": self.format, "files": files, **options}


def recorded_files(kind: str, path: Path | Sequence[Path], suffixes: tuple[str, ...]) -> RecordedFiles:
    """Makes the files of a source from the setting ``path``; relative paths start at the current folder."""
    paths = [path] if isinstance(path, Path) else list(path)
    if not paths:
        raise SpirlError(f"{kind}: path is empty; give a file, a folder or a list of them.")
    return RecordedFiles(kind, tuple(Path(one).expanduser().absolute() for one in paths), suffixes)


def numeric_order(name: str) -> list[str | int]:
    """The key by which names sort with their numbers in numerical order: demo_2 before demo_10."""
    return [int(part) if part.isdecimal() else part for part in re.split(r"([0-9]+)", name)]
