"""Why Ray does not start or cannot be reached, and which variable or setting to change."""

from __future__ import annotations

import os
import re
import socket
import tempfile
from pathlib import Path
from urllib.parse import urlsplit

from spirl_ray.errors import SpirlError

_PATIENCE_S = 10.0
_ANSWER_S = 30.0
_SETTINGS, _UNASKED = b"\4", b"?"
"""The type of the frame with which HTTP/2 begins, in both directions, and what stands for an answer behind TLS."""
_LONGEST = 45
"""About the most characters of a folder below which Ray's sockets have names that Unix allows."""


def temporary_folder() -> tuple[str, Path]:
    """The folder below which a local Ray has its files, and the variable that names it."""
    for name in ("RAY_TMPDIR", "TMPDIR"):
        if os.environ.get(name):
            return name, Path(os.environ[name])
    return "RAY_TMPDIR", Path(tempfile.gettempdir())


def advice(error: BaseException) -> str:
    """What to change where a local Ray instance has not started, by the cause."""
    text = str(error)
    variable, folder = temporary_folder()
    home = os.path.expanduser("~")
    file = error.filename if isinstance(error, OSError) else None
    place = str(file) if file is not None else (re.findall(r"'(/[^']*)'", text) or [""])[0]
    if "AF_UNIX" in text:
        return (
            f"The names of Ray's sockets are too long, because {variable} is {folder}. Set RAY_TMPDIR to a folder of "
            f"less than {_LONGEST} characters, such as RAY_TMPDIR=/tmp."
        )
    if place and (Path(place) == folder or Path(place).is_relative_to(folder)):
        return (
            f"Ray writes below {folder} ({variable}). Set RAY_TMPDIR to a folder that exists and is writable, such as "
            "RAY_TMPDIR=/tmp."
        )
    if (place and (Path(place).is_relative_to(home) or Path(home).is_relative_to(place))) or ".ray/auth_token" in text:
        return (
            f"Ray keeps its token in the home folder, and {home} is not writable. Set HOME to a folder that is, point "
            "RAY_AUTH_TOKEN_PATH to a file with a token, or set RAY_AUTH_MODE=disabled."
        )
    if isinstance(error, OSError) and error.strerror and place:
        return f"Free space or fix permissions of {place}."
    if "object_store_memory" in text or "object store" in text or "/dev/shm" in text:
        return "Lower ray.object_store_mb, which is the memory (MB) that Ray takes for objects."
    if "CUDA_VISIBLE_DEVICES" in text:
        seen = os.environ.get("CUDA_VISIBLE_DEVICES")
        return f"CUDA_VISIBLE_DEVICES is {seen!r}: unset it, or name GPUs that are there."
    if "runtime_env" in text or "Package size" in text or "runtime environment" in text:
        return "A local Ray needs no runtime environment: unset RAY_RUNTIME_ENV_HOOK and RAY_JOB_CONFIG_JSON_ENV_VAR."
    if "ddress already in use" in text or "port" in text.split():
        return "A port that Ray needs is taken: end the other program, or try again."
    return "If this machine is busy, try again later; the command resumes where it stopped."


def check_address(address: str, name: str) -> None:
    """Looks whether a cluster answers at an address, because Ray itself would try for minutes.

    Args:
        address: as ``ray.init`` takes it; only HOST:PORT can be looked at.
        name: the setting, option or variable that holds it.

    Raises:
        SpirlError: the address has another form, its host is unknown, or no cluster answers there.
    """
    if address == "auto":
        return
    how = (
        f"Unset {name} to use this machine alone, or name a cluster that runs, as its nodes do: HOST:6379."
        if name == "RAY_ADDRESS"
        else f"Leave {name} out to use this machine alone, or name a cluster that runs, as its nodes do: HOST:6379."
    )
    if "://" in address:
        hint = " Jobs go there with spirl submit." if address.startswith("http") else ""
        raise SpirlError(f"{name}: {address} is not the address of a cluster's nodes.{hint} {how}")
    parts = urlsplit(f"//{address}")
    try:
        host, port = parts.hostname, parts.port
    except ValueError:
        host = port = None
    if not host or port is None:
        raise SpirlError(f"{name}: {address!r} is not the address of a cluster. {how}")
    try:
        with socket.create_connection((host, port), timeout=_PATIENCE_S) as connection:
            found = _answer(connection)
    except OSError as error:
        reason = f"no answer in {_ANSWER_S:.0f} s" if isinstance(error, TimeoutError) else error.strerror or error
        raise SpirlError(f"Cannot reach the Ray cluster at {address} ({name}): {reason}. {how}") from error
    if found.startswith(b"HTTP/"):
        raise SpirlError(
            f"{name}: {address} is a web page, such as a cluster's dashboard, and not the port of its nodes. For a "
            f"dashboard, spirl doctor and spirl submit take --address http://{address}. {how}"
        )
    if found is not _UNASKED and found[3:4] != _SETTINGS:
        raise SpirlError(f"{name}: what answers at {address} is no Ray cluster. {how}")


def _answer(connection: socket.socket) -> bytes:
    """The first bytes of the answer to a greeting in HTTP/2, in which the nodes of a cluster speak."""
    if os.environ.get("RAY_USE_TLS", "0").lower() not in ("", "0", "false"):
        return _UNASKED
    connection.settimeout(_ANSWER_S)
    connection.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes(3) + _SETTINGS + bytes(5))
    return connection.recv(16)
