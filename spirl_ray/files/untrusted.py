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
"""The most bytes of a card; those of real datasets and artifacts are a thousand times smaller."""


def read_plain_file(path: Path, limit: int) -> bytes:
    """Reads the bytes of a regular file that belongs to an artifact.

    Args:
        path: a regular file; a symbolic link, pipe or device in a shared artifact could lead anywhere.
        limit: the most bytes that such a file can have.

    Raises:
        SpirlError: the file is anything else; the message names it.
    """
    with _open_plain(path) as file:
        size = os.fstat(file.fileno()).st_size
        if size > limit:
            raise SpirlError(f"{path} has {size:,} bytes, such a file has at most {limit:,}: refused.")
        return file.read(limit)


def plain_file_size(path: Path) -> int:
    """The size of a regular file in bytes.

    Raises:
        SpirlError: see `read_plain_file`.
    """
    with _open_plain(path) as file:
        return os.fstat(file.fileno()).st_size


def _open_plain(path: Path) -> BinaryIO:
    try:
        # Nonblocking, so that it does not wait for the other end of a pipe.
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
    """Parses a JSON object.

    Args:
        data: content of the file.
        path: path of the file, for errors.

    Raises:
        SpirlError: the data are anything else.
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
    """Reads the JSON object in the card of an artifact that somebody else may have made.

    Raises:
        SpirlError: see `read_plain_file` and `parse_json`; the message names the file.
    """
    return parse_json(read_plain_file(path, CARD_LIMIT_BYTES), path)
