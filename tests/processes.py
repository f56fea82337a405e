"""The ``spirl`` command as a process of its own: start it, wait for it, see that nothing of it is left."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from benchmarks.ray_nodes import session_members

_PATIENCE_S = 300.0


def start(*arguments: str | Path) -> subprocess.Popen[str]:
    """``spirl`` with these arguments in a process group of its own; stdout and stderr are one pipe."""
    environment = {name: value for name, value in os.environ.items() if name not in ("RAY_ADDRESS", "RAY_TMPDIR")}
    return subprocess.Popen(
        [sys.executable, "-m", "spirl_ray.cli", *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
        env=environment,
    )


def finish(process: subprocess.Popen[str]) -> str:
    """Its output, once it has ended with status 0."""
    output, _ = process.communicate(timeout=2 * _PATIENCE_S)
    assert process.returncode == 0, output
    return output


def until(process: subprocess.Popen[str], condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + _PATIENCE_S
    while not condition():
        assert process.poll() is None, process.stdout.read() if process.stdout else ""
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.02)


def assert_nothing_is_left(process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 240.0
    while session_members(process.pid):
        assert time.monotonic() < deadline, session_members(process.pid)
        time.sleep(0.1)
