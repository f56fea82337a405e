"""A process of this package whose parts are killed, and how far it is, for `benchmarks.recovery`."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from benchmarks.ray_nodes import session_members
from spirl_ray.errors import SpirlError
from spirl_ray.files import layout
from spirl_ray.files.tables import read_csv

LONG = 10**9
PATIENCE_S, POLL_S = 300.0, 0.05
EXPERIMENT: dict[str, Any] = {
    "name": "recovery",
    "methods": ["spirl_cl"],
    "env": {"id": "spirl/PointPads-v0"},
    "data": {"sources": [{"type": "generated", "episodes": 12}], "shards": 2},
    "skills": {"horizon": 10, "latent_dim": 2, "width": 32, "decoder_layers": 2, "prior_layers": 2},
    "pretrain": {"updates": 100, "log_every": 20, "checkpoint_every": 100, "warmup_updates": 0, "max_failures": 1000},
    "train": {
        "env_steps": LONG,
        "batch_size": 32,
        "warmup_decisions": 8,
        "critic_width": 32,
        "critic_layers": 2,
        "replay_capacity": 10_000,
        "decisions_per_round": 8,
        "evaluate_every": LONG,
        "evaluate_episodes": 1,
        "checkpoint_every": 3000,  # three rows of metrics
    },
    "ray": {"object_store_mb": 80},
}


def start(command: str, folder: Path, environment: Mapping[str, str]) -> subprocess.Popen[bytes]:
    """Starts a command of this package on the folder's ``experiment.yaml``; its output is added to ``log.txt``."""
    with (folder / "log.txt").open("ab") as log:
        return subprocess.Popen(
            [sys.executable, "-m", "spirl_ray.cli", command, str(folder / "experiment.yaml")],
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            env=dict(environment),
        )


class Run:
    """A process of ``spirl train``, with its progress."""

    def __init__(self, folder: Path, metrics: str, column: str, environment: Mapping[str, str]) -> None:
        self.folder, self.metrics, self.column, self.environment = folder, metrics, column, environment
        self.start()

    def start(self) -> None:
        """The command, the same each time."""
        self.process = start("train", self.folder, self.environment)

    def reached(self) -> float:
        """The number of steps (or updates) in the last row of the metrics; 0 before there is one."""
        for file in (self.folder / "out").glob(self.metrics):
            with contextlib.suppress(SpirlError):
                if rows := read_csv(file):
                    return rows[-1].number(self.column)
        return 0.0

    def wait_beyond(self, steps: float) -> float:
        """Waits until the run is further than this; returns how far back it went meanwhile.

        Raises:
            TimeoutError: it does not get there.
        """
        lowest, deadline = steps, time.monotonic() + PATIENCE_S
        while (now := self.reached()) <= steps:
            lowest = min(lowest, now)
            if time.monotonic() > deadline:
                raise TimeoutError((self.folder / "log.txt").read_text()[-2000:])
            time.sleep(POLL_S)
        return lowest

    def repeats(self, steps: float, lowest: float, since: float) -> float:
        """The share of progress that is repeated: a driver that restarts records the step from which it resumes."""
        for policy in (self.folder / "out").glob("policy/*"):
            if (resumed := resumed_at(policy, since)) is not None:
                return max(0.0, steps - resumed)
        return steps - lowest

    def kill_one(self, title: str) -> None:
        """Sends SIGKILL to a process of this run whose title begins like this."""
        for member in session_members(self.process.pid):
            if title_of(member).startswith(title):
                os.kill(member, signal.SIGKILL)
                return
        raise ProcessLookupError(title)


def resumed_at(policy: Path, since: float) -> float | None:
    """Returns the step from which the training of a policy was resumed after a moment; None where it was not."""
    file = policy / layout.PROVENANCE
    if not file.exists() or file.stat().st_mtime <= since:
        return None
    return float(json.loads(file.read_text())["processes"][-1]["from_env_steps"])


def title_of(pid: int) -> str:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_text().replace("\0", " ")
    return ""


def write(folder: Path, **changes: Any) -> None:
    settings = {**EXPERIMENT, "output": str(folder / "out"), **changes}
    (folder / "experiment.yaml").write_text(yaml.safe_dump(settings))
