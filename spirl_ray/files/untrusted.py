"""Reading files that somebody else may have made: links are not followed, sizes are bounded, errors are readable."""

from __future__ import annotations

import errno
import json
import os
import stat
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

from pydantic import BaseModel, ValidationError

from spirl_ray.errors import SpirlError
from spirl_ray.files.shared import require_seen

Card = TypeVar("Card", bound=BaseModel)

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
        if error.errno == errno.ENOENT:
            require_seen(path)
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


def validate_card(raw: dict[str, Any], card: type[Card], what: str) -> Card:
    """Makes the card from the JSON object that `read_card` returns.

    Args:
        raw: the JSON object.
        card: the model of the card.
        what: the beginning of an error's message, which names the file.

    Raises:
        SpirlError: a field is missing, unknown or impossible; the message names each.
    """
    try:
        return card.model_validate(raw)
    except ValidationError as error:
        faults = "; ".join(f"{'.'.join(map(str, fault['loc']))}: {fault['msg']}" for fault in error.errors())
        raise SpirlError(f"{what}: {faults}") from error


def read_artifact_card(path: Path, card: type[Card], version: int, *, kind: str, remedy: str) -> Card:
    """Reads and checks the card of trained skills or of a policy.

    Args:
        path: the card.
        card: the model of the card.
        version: the only format version that this program reads.
        kind: the kind of artifact, such as "policy".
        remedy: what replaces an artifact of another version, such as "Train the policy again with spirl train".

    Raises:
        SpirlError: the card is missing, damaged, or of another version; see `read_card` and `validate_card`.
    """
    raw = read_card(path)
    if raw.get("format_version") != version:
        writer = f" ({raw['package_version']})" if "package_version" in raw else ""
        raise SpirlError(
            f"{path} has format version {raw.get('format_version')!r}; this program reads {version}. {remedy}, or use "
            f"the version of spirl-ray that wrote it{writer}."
        )
    return validate_card(raw, card, f"{path} is not a {kind} card")
