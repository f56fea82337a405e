"""Reading files that somebody else may have made: links are not followed, sizes are bounded, errors are readable."""

from __future__ import annotations

import errno
import json
import os
import stat
from pathlib import Path
from typing import Any, BinaryIO

from spirl_ray.errors import SpirlError

CARD_LIMIT_BYTES = 16 * 2**20
"""The most that a card can have; those of real datasets and artifacts are a thousand times smaller."""


def read_plain_file(path: Path, limit: int) -> bytes:
    """The bytes of a regular file that belongs to an artifact.

    Args:
        path: no symbolic link, pipe or device; a shared artifact could point anywhere with it.
        limit: the most bytes that such a file can have.

    Raises:
        SpirlError: for anything else, naming the file.
    """
    with _open_plain(path) as file:
        size = os.fstat(file.fileno()).st_size
        if size > limit:
            raise SpirlError(f"{path} has {size:,} bytes, such a file has at most {limit:,}: refused.")
        return file.read(limit)


def plain_file_size(path: Path) -> int:
    """Bytes in a regular file.

    Raises:
        SpirlError: as `read_plain_file`.
    """
    with _open_plain(path) as file:
        return os.fstat(file.fileno()).st_size


def _open_plain(path: Path) -> BinaryIO:
    try:
        # Without waiting for the other end of a pipe.
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise SpirlError(f"{path} is a symbolic link; an artifact consists of plain files: refused.") from error
        raise SpirlError(f"Cannot read {path}: {error.strerror}. The artifact is incomplete.") from error
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise SpirlError(f"{path} is not a plain file: refused.")
    return os.fdopen(descriptor, "rb")


def parse_json(data: bytes, path: Path) -> dict[str, Any]:
    """A JSON object.

    Args:
        data: what the file holds.
        path: named in errors.

    Raises:
        SpirlError: for anything else.
    """
    try:
        raw = json.loads(data.decode("utf-8"))
    except ValueError as error:
        raise SpirlError(f"{path} is not valid JSON: {error}") from error
    except RecursionError as error:
        raise SpirlError(f"{path} is not valid JSON: it is nested too deeply.") from error
    if not isinstance(raw, dict):
        raise SpirlError(f"{path} must hold a JSON object.")
    return raw


def read_card(path: Path) -> dict[str, Any]:
    """The JSON object in the card of an artifact that somebody else may have made.

    Raises:
        SpirlError: naming the file; see `read_plain_file`.
    """
    return parse_json(read_plain_file(path, CARD_LIMIT_BYTES), path)
