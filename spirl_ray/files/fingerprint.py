"""Keys of results: a short hash of what a result depends on, by which its folder is found again."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path, PurePath
from typing import Any

from pydantic import BaseModel

KEY_VERSION = 2
"""The version in every key. Raise it when equal settings lead to other results than before, or a file format
changes."""


def fingerprint(*parts: Any) -> str:
    """Returns ten hex digits that identify settings and upstream results; equal input gives an equal key.

    Args:
        parts: settings and plain data (JSON values, mappings with names as keys, sequences, paths). The names of
            classes and of their files are not part of the key; nor should texts for people be.

    Raises:
        TypeError: a part is something else, whose only plain form would be its ``repr``.
    """
    text = json.dumps([KEY_VERSION, *map(_plain, parts)], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:10]


def _plain(value: Any) -> Any:
    if isinstance(value, BaseModel):
        return value.model_dump(mode="json")
    if isinstance(value, Mapping):
        if other := [name for name in value if not isinstance(name, str)]:
            raise TypeError(f"a key cannot be made of a mapping with {type(other[0]).__name__} as a name")
        return {name: _plain(inner) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(inner) for inner in value]
    if isinstance(value, PurePath):
        return value.as_posix()
    if value is None or isinstance(value, str | int | float):
        return value
    raise TypeError(f"a key cannot be made of {type(value).__name__}; give its plain data")


class FilesIdentity(list[list[str | int]]):
    """The name below ``root``, the size and the time of change (ns) of each of some files, as plain data."""

    def __init__(self, root: Path) -> None:
        super().__init__()
        self.root = root


def files_identity(files: Iterable[Path], root: Path) -> FilesIdentity:
    """Plain data that change when one of these files changes: the names below ``root``, sizes and times of change.

    Contents are not hashed, because recordings can be larger than one would read at the start of every command.

    Raises:
        OSError: a file is missing; ``filename`` names it.
    """
    found = FilesIdentity(root)
    for file in sorted(files):
        state = file.stat()
        found.append([file.relative_to(root).as_posix(), state.st_size, state.st_mtime_ns])
    return found
