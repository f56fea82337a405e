"""The one way to write files and folders: each exists as a whole or not at all.

An incomplete file or folder has a hidden name beside its place that ends in the host and the process that writes it, so
that two processes never write the same one, and every process can tell whether its owner still lives.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from spirl_ray.errors import SpirlError
from spirl_ray.files.untrusted import parse_json


class FolderExists(SpirlError):
    """The error that another process has put a folder where `partial_folder` was about to put its own."""


def write_atomically(path: Path, data: bytes | str) -> None:
    """Writes a file as a whole or not at all; text is written as UTF-8.

    Raises:
        SpirlError: the file cannot be written; the message has the path and the reason, such as no space.
    """
    with partial_file(path) as partial:
        partial.write_bytes(data.encode() if isinstance(data, str) else data)


def write_json(path: Path, value: Any, *, allow_nan: bool = True) -> None:
    """Writes indented JSON atomically; without ``allow_nan``, a number that JSON does not have is a `ValueError`."""
    write_atomically(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=allow_nan) + "\n")


def read_json(path: Path) -> dict[str, Any]:
    """Reads a JSON object from a file of our own, or raises a `SpirlError` that names the file."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise SpirlError(f"Cannot read {path}: {error.strerror}.") from error
    return parse_json(data, path)


@contextlib.contextmanager
def partial_file(path: Path) -> Iterator[Path]:
    """Yields a path to write a file to, which becomes ``path`` when the block ends; its folder is made if need be.

    It is meant for programs and libraries that open the file themselves, because for text and bytes there is
    `write_atomically`. When the block raises, what it has written is removed and a previous file stays as it was.

    Raises:
        SpirlError: instead of an `OSError`, with the path and the reason.
    """
    partial = _partial(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield partial
        with partial.open("rb") as file:
            os.fsync(file.fileno())
        partial.replace(path)
    except OSError as error:
        raise _cannot_write(path, partial, error) from error
    finally:
        with contextlib.suppress(OSError):
            partial.unlink()


@contextlib.contextmanager
def partial_folder(path: Path, *, resume: bool = False) -> Iterator[Path]:
    """Yields a new folder to write to, which becomes ``path`` when the block ends.

    It is removed when the block raises. What a process that died has left of the same folder is removed, too.

    Args:
        path: where the complete folder will be; nothing or an empty folder may be there.
        resume: the block continues from what it finds in the folder. Then what a dead process has left becomes the
            folder, and the folder stays when Ctrl-C or a termination ends the block.

    Raises:
        FolderExists: when the block has ended and something is at ``path``, which stays.
        SpirlError: instead of an `OSError`, with the path and the reason.
    """
    partial = _partial(path)
    stopped = False
    try:
        for left in sorted(path.parent.glob(f".{path.name}.partial-*")):
            if left != partial and not _abandoned(left):
                continue
            if not resume or (partial.exists() and left != partial):
                shutil.rmtree(left)
            else:
                left.rename(partial)
        partial.mkdir(parents=True, exist_ok=True)
        yield partial
        try:
            partial.rename(path)
        except OSError as error:
            if not os.path.lexists(path):
                raise
            raise FolderExists(f"{path} exists already, so nothing was written.") from error
    except OSError as error:
        raise _cannot_write(path, partial, error) from error
    except (KeyboardInterrupt, SystemExit):
        stopped = resume
        raise
    finally:
        if not stopped:
            shutil.rmtree(partial, ignore_errors=True)


def remove_partial_folders(parent: Path) -> None:
    """Removes all that `partial_folder` has not completed in a folder, whoever writes it.

    Only a process that holds the folder (by a lock, and by an `Attempt` that is newer than all others) may do so.
    """
    for left in parent.glob(".*.partial-*"):
        shutil.rmtree(left, ignore_errors=True)


def _partial(path: Path) -> Path:
    return path.with_name(f".{path.name}.partial-{socket.gethostname()}-{os.getpid()}")


def _abandoned(partial: Path) -> bool:
    """True where the process that made a partial file or folder is known to be gone; on shared storage it may live on
    another host.
    """
    owner, _, pid = partial.name.rpartition("-")
    return owner.endswith(f".partial-{socket.gethostname()}") and pid.isdecimal() and not alive(int(pid))


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _cannot_write(path: Path, partial: Path, error: OSError) -> SpirlError:
    """The error names the file that failed as well, if that is another one, such as a full disk's or a source."""
    reason = error.strerror or str(error).strip().split("\n")[0] or type(error).__name__
    if error.filename is not None and partial not in ((failed := Path(str(error.filename))), *failed.parents):
        reason += f" ({failed})"
    return SpirlError(f"Cannot write {path}: {reason}. Free space or fix permissions, or choose another `output`.")
