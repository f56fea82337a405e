"""One way to write a file: it is there in full or not at all."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from spirl_ray.errors import SpirlError
from spirl_ray.files.untrusted import parse_json


def write_atomically(path: Path, data: bytes) -> None:
    """Writes a file in full or not at all.

    Raises:
        SpirlError: with the path and the reason, e.g. no space or no permission.
    """
    partial = path.with_name(f".{path.name}.partial-{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with partial.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise SpirlError(
            f"Cannot write {path}: {error.strerror}. Free space or fix permissions, or choose another `output`."
        ) from error


def write_json(path: Path, value: Any) -> None:
    """Writes indented JSON atomically."""
    write_atomically(path, (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode())


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file of our own, or a `SpirlError` that names it."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise SpirlError(f"Cannot read {path}: {error.strerror}.") from error
    return parse_json(data, path)
