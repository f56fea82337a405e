"""Kills parts of running experiments, again and again: ``python -m benchmarks.recovery [--kills 10] [--out FILE.csv]``.

There is one row for each kind of victim. It says how many were killed with SIGKILL, how often the run then got further
than it had been, how long that took (median and 95th percentile, from the kill to the first row of metrics beyond what
had been reached), and how many steps (updates, in stage 1) were repeated. Env runners, training workers and drivers run
on a local Ray instance. Worker nodes and heads are nodes of a real cluster with token authentication. They are replaced
as an autoscaler or a RayJob would do it: a new worker node joins at once, and the same command is given again where the
driver has died.

Rows of kinds that are not measured again stay in the file. The experiment is small (point pads), so the benchmark
measures the time to notice, to start processes and to restore.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from benchmarks.collect import with_others
from benchmarks.ray_nodes import RayNodes, kill_session, session_members
from spirl_ray.errors import SpirlError
from spirl_ray.files.tables import read_csv, write_csv
from spirl_ray.pipeline.provenance import commit, hardware

_LONG = 10**9
_PATIENCE_S, _POLL_S = 300.0, 0.05
EXPERIMENT: dict[str, Any] = {
    "name": "recovery",
    "methods": ["spirl_cl"],
    "env": {"id": "spirl/PointPads-v0"},
    "data": {"sources": [{"type": "generated", "episodes": 12}], "shards": 2},
    "skills": {"horizon": 10, "latent_dim": 2, "width": 32, "decoder_layers": 2, "prior_layers": 2},
    "pretrain": {"updates": 100, "log_every": 20, "checkpoint_every": 100, "warmup_updates": 0, "max_failures": 1000},
    "train": {
        "env_steps": _LONG,
        "batch_size": 32,
        "warmup_decisions": 8,
        "critic_width": 32,
        "critic_layers": 2,
        "replay_capacity": 10_000,
        "decisions_per_round": 8,
        "evaluate_every": _LONG,
        "evaluate_episodes": 1,
        "checkpoint_every": 3000,  # three rows of metrics
    },
    "ray": {"object_store_mb": 80},
}


class Run:
    """A process of ``spirl train``, with its progress."""

    def __init__(self, folder: Path, metrics: str, column: str, environment: Mapping[str, str]) -> None:
        self.folder, self.metrics, self.column, self.environment = folder, metrics, column, environment
        self.start()

    def start(self) -> None:
        """The command, the same each time."""
        log = (self.folder / "log.txt").open("ab")
        self.process = subprocess.Popen(
            [sys.executable, "-m", "spirl_ray.cli", "train", str(self.folder / "experiment.yaml")],
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            env=dict(self.environment),
        )

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
        lowest, deadline = steps, time.monotonic() + _PATIENCE_S
        while (now := self.reached()) <= steps:
            lowest = min(lowest, now)
            if time.monotonic() > deadline:
                raise TimeoutError((self.folder / "log.txt").read_text()[-2000:])
            time.sleep(_POLL_S)
        return lowest

    def repeats(self, steps: float, lowest: float, since: float) -> float:
        """The share of progress that is repeated: a driver that restarts records the step from which it resumes."""
        for file in (self.folder / "out").glob("policy/*/provenance.json"):
            if file.stat().st_mtime > since:
                return max(0.0, steps - json.loads(file.read_text())["processes"][-1]["from_env_steps"])
        return steps - lowest

    def kill_one(self, title: str) -> None:
        """Sends SIGKILL to a process of this run whose title begins like this."""
        for member in session_members(self.process.pid):
            if _title(member).startswith(title):
                os.kill(member, signal.SIGKILL)
                return
        raise ProcessLookupError(title)


def _title(pid: int) -> str:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_text().replace("\0", " ")
    return ""


def _write(folder: Path, **changes: Any) -> None:
    settings = {**EXPERIMENT, "output": str(folder / "out"), **changes}
    (folder / "experiment.yaml").write_text(yaml.safe_dump(settings))


_STAGE_1 = ("skills/*/metrics.csv", "update")
_STAGE_2 = ("policy/*/metrics.csv", "env_steps")
Victim = Iterator[tuple[Run, Callable[[], None]]]
"""The run, and what kills and, where nothing else does, replaces."""


@contextlib.contextmanager
def _local(folder: Path, stage: tuple[str, str], **changes: Any) -> Iterator[Run]:
    _write(folder, **changes)
    inherited = {name: value for name, value in os.environ.items() if name not in ("RAY_ADDRESS", "RAY_TMPDIR")}
    run = Run(folder, *stage, {**inherited, "RAY_worker_niceness": "0"})
    try:
        yield run
    finally:
        kill_session(run.process)


@contextlib.contextmanager
def env_runner(folder: Path) -> Victim:
    """The victim is the only env runner, while training."""
    with _local(folder, _STAGE_2) as run:
        yield run, lambda: run.kill_one("ray::SingleAgentEnvRunner")


@contextlib.contextmanager
def training_worker(folder: Path) -> Victim:
    """The victim is the only worker of stage 1."""
    pretrain = {**EXPERIMENT["pretrain"], "updates": _LONG}
    with _local(folder, _STAGE_1, pretrain=pretrain) as run:
        yield run, lambda: run.kill_one("ray::RayTrainWorker")


@contextlib.contextmanager
def driver(folder: Path) -> Victim:
    """The victim is the command itself with its local Ray instance; the command is given again at once."""
    with _local(folder, _STAGE_2) as run:

        def kill() -> None:
            kill_session(run.process)
            run.start()

        yield run, kill


@contextlib.contextmanager
def _cluster(folder: Path) -> Iterator[tuple[Run, RayNodes]]:
    """A cluster with the driver on the head's machine, and all CPUs on a worker node."""
    _write(folder)
    nodes = RayNodes()
    try:
        nodes.start_head("--num-cpus=0")
        nodes.start_worker("--num-cpus=3")
        run = Run(folder, *_STAGE_2, {**nodes.environment, "RAY_ADDRESS": nodes.address})
        try:
            yield run, nodes
        finally:
            kill_session(run.process)
    finally:
        nodes.stop()


@contextlib.contextmanager
def worker_node(folder: Path) -> Victim:
    """The victim is the node with the env runner; another one joins at once."""
    with _cluster(folder) as (run, nodes):

        def kill() -> None:
            nodes.kill(1)
            nodes.start_worker("--num-cpus=3")

        yield run, kill


@contextlib.contextmanager
def head(folder: Path) -> Victim:
    """The victim is the head, and with it the cluster and the driver; all are restarted."""
    with _cluster(folder) as (run, nodes):

        def kill() -> None:
            nodes.kill(0)
            kill_session(run.process)
            nodes.kill(0)
            nodes.start_head("--num-cpus=0")
            nodes.start_worker("--num-cpus=3")
            run.start()

        yield run, kill


KINDS = {
    "env runner": env_runner,
    "training worker": training_worker,
    "driver": driver,
    "worker node": worker_node,
    "head": head,
}


def measure(kind: str, kills: int) -> dict[str, Any]:
    """Kills a kind of victim repeatedly, each time after the run got further than at the last kill."""
    seconds, repeated = [], []
    with tempfile.TemporaryDirectory(prefix="spirl-recovery-") as name, KINDS[kind](Path(name)) as (run, kill):
        run.wait_beyond(0.0)
        for _ in range(kills):
            run.wait_beyond(run.reached())
            before, started, since = run.reached(), time.monotonic(), time.time()
            kill()
            lowest = run.wait_beyond(before)
            seconds.append(time.monotonic() - started)
            repeated.append(run.repeats(before, lowest, since))
            print(f"{kind}: {seconds[-1]:.1f} s, {repeated[-1]:.0f} repeated", flush=True)
    return {
        "kind": kind,
        "kills": kills,
        "recovered": len(seconds),
        "seconds_median": round(statistics.median(seconds), 2),
        "seconds_p95": round(float(np.percentile(seconds, 95)), 2),
        "repeated_max": int(max(repeated)),
        "unit": "updates" if kind == "training worker" else "env steps",
        "commit": commit(),
        **hardware(),
    }


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--kinds", nargs="+", choices=list(KINDS), default=list(KINDS))
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    rows = []
    for kind in options.kinds:
        rows.append(measure(kind, options.kills))
        print(rows[-1], flush=True)
        if options.out is not None:
            write_csv(options.out, with_others(options.out, rows, ("kind",)))


if __name__ == "__main__":
    main()
