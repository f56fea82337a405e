"""Folders that every node of a cluster must see: what is missing on a node is said with the node's address."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

from spirl_ray.errors import SpirlError

_PATIENCE_S = 5.0


def node() -> str | None:
    """The address of the node on which this process is one of Ray's workers; None in any other process.

    It does not import Ray, because policies act without it.
    """
    ray = sys.modules.get("ray")
    if ray is None or not ray.is_initialized() or ray._private.worker.global_worker.mode != ray.WORKER_MODE:
        return None
    return str(ray.util.get_node_ip_address())


def require_seen(path: Path) -> None:
    """Checks in a worker of Ray that it sees a file or folder that is there already; does nothing elsewhere.

    Without this, a node without the shared storage would read incomplete artifacts, and write where nobody looks.

    Raises:
        SpirlError: it is missing here; the message names the node and what to mount.
    """
    if (here := node()) is None:
        return
    deadline = time.monotonic() + _PATIENCE_S
    while not os.path.lexists(path):
        # Network file systems may show what is new a little later.
        if time.monotonic() > deadline:
            first = next(each for each in [*reversed(path.parents), path] if not os.path.lexists(each))
            raise SpirlError(
                f"The node {here} does not see {path}: there is no {first}. Mount the same storage at the same path on "
                "every node; spirl doctor with --set output=FOLDER names the nodes without it."
            )
        time.sleep(0.2)


def storage_problem(error: OSError, folder: Path) -> SpirlError:
    """The message about storage that has failed: the node, the path as far as it is known, and what to do."""
    here = node()
    at = f"On the node {here}, " if here else ""
    return SpirlError(
        f"{at}{error.filename or folder}: {error.strerror or error}. Free space or fix permissions, or choose another "
        "folder with --set output=…, then give the same command again."
    )
