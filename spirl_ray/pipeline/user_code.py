"""The user's own code: folders and files of ``submit.ship``, importable here, in Ray's workers and in jobs."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence
from pathlib import Path

import spirl_ray
from spirl_ray.errors import SpirlError

_SKIPPED = ("__pycache__",)


def shipped_paths(ship: Sequence[Path]) -> list[Path]:
    """The absolute paths of what is shipped: folders that are packages, and single modules.

    Raises:
        SpirlError: something is missing, is neither a folder nor a ``.py`` file, or would hide another module.
    """
    found: list[Path] = []
    for path in ship:
        whole = path.expanduser().absolute()
        if not whole.exists():
            raise SpirlError(f"submit.ship: there is no {whole}. Name a folder with Python files, or a file NAME.py.")
        if not whole.is_dir() and whole.suffix != ".py":
            raise SpirlError(f"submit.ship: {whole} is neither a folder nor a .py file.")
        if not whole.stem.isidentifier():
            raise SpirlError(f"submit.ship: {whole.name} has no name that can be imported; rename it.")
        if whole.stem in (spirl_ray.__name__, *(other.stem for other in found)):
            raise SpirlError(f"submit.ship: {whole.name}: the name {whole.stem} is taken; rename it.")
        found.append(whole)
    return found


def make_importable(ship: Sequence[Path]) -> None:
    """Lets this process import what is shipped, as ``import NAME`` of the folder or file.

    Raises:
        SpirlError: see `shipped_paths`.
    """
    for path in shipped_paths(ship):
        if str(path.parent) not in sys.path:
            sys.path.insert(0, str(path.parent))
            importlib.invalidate_caches()


def current_folder_importable() -> None:
    """Lets this process import modules in the current folder, which the console script does not have on its path."""
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)


def shipped_files(path: Path) -> list[Path]:
    """The files of a shipped folder, sorted, without byte code and hidden files; a single file is itself."""
    if not path.is_dir():
        return [path]
    return [
        file
        for file in sorted(path.rglob("*"))
        if file.is_file() and not any(part in _SKIPPED or part.startswith(".") for part in file.relative_to(path).parts)
    ]
