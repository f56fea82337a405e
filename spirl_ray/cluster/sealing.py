"""The token of a cluster, and values that are sealed with it, so that only those who have the token can read them.

Ray keeps the runtime environment of a job on the head, hands it to everybody who may list jobs, writes it into a log on
each node, and puts it on the command line of each worker. A sealed value is useless in all of these places.
"""

from __future__ import annotations

import base64
import contextlib
import json
import os
from collections.abc import Mapping
from pathlib import Path

from cryptography.fernet import Fernet, InvalidToken
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from spirl_ray.errors import SpirlError


def read_token() -> str | None:
    """Reads the cluster's token from where Ray looks for it, in Ray's order; None where there is none.

    Raises:
        SpirlError: the file that ``RAY_AUTH_TOKEN_PATH`` names cannot be read.
    """
    if token := os.environ.get("RAY_AUTH_TOKEN", "").strip():
        return token
    named = os.environ.get("RAY_AUTH_TOKEN_PATH")
    # Not Path.home(), which fails where there is no home folder.
    path = Path(os.path.expanduser(named or "~/.ray/auth_token"))
    try:
        return path.read_text(encoding="utf-8").strip() or None
    except OSError as error:
        if named:
            raise SpirlError(f"RAY_AUTH_TOKEN_PATH: cannot read {path}: {error.strerror}.") from error
        return None


def seal(values: Mapping[str, str], token: str) -> str:
    """Encrypts variables with a key that is derived from the token."""
    return _box(token).encrypt(json.dumps(dict(values)).encode()).decode()


def unseal(sealed: str, token: str | None) -> dict[str, str]:
    """The variables in a text of `seal`.

    Raises:
        SpirlError: the token is another one than that with which they were sealed, or there is none.
    """
    if token is not None:
        with contextlib.suppress(InvalidToken):
            return dict(json.loads(_box(token).decrypt(sealed)))
    raise SpirlError(
        f"submit.env_vars: {'no' if token is None else 'another'} cluster token on this node than on the machine that "
        "submitted the job, so the values cannot be opened. Give every node the same token, in RAY_AUTH_TOKEN, in the "
        "file that RAY_AUTH_TOKEN_PATH names, or in ~/.ray/auth_token."
    )


def _box(token: str) -> Fernet:
    key = HKDF(algorithm=SHA256(), length=32, salt=None, info=b"spirl-ray submit.env_vars").derive(token.encode())
    return Fernet(base64.urlsafe_b64encode(key))
