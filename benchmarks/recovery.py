"""Kills parts of running experiments, again and again: ``python -m benchmarks.recovery [--kills 10] [--out FILE.csv]``.

There is one row for each kind of victim. It says how many were killed with SIGKILL, how often the run then got further
than it had been, how long that took (median and 95th percentile, from the kill to the first row of metrics beyond what
had been reached), and how many steps (updates, in stage 1) were repeated. Env runners, training workers and drivers run
on a local Ray instance. Worker nodes and heads are nodes of a real cluster with token authentication. They are replaced
as an autoscaler or a RayJob would do it: a new worker node joins at once, and the same command is given again where the
driver has died. Under a sweep, a node is replaced only after every trial has got further without it; at the end, all
trials must have finished, and no five minutes may have passed in silence.

For "network cut", the worker node has a network namespace of its own (Linux, root), and the cable to it is pulled until
the head has given the node up. Its raylet ends by itself when it is back, and the node is started again. This benchmark
then runs in a namespace without any other network.

Rows of kinds that are not measured again stay in the file. The experiment is small (point pads), so the benchmark
measures the time to notice, to start processes and to restore.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.collect import with_others
from benchmarks.ray_nodes import Cable, RayNodes, kill_session
from benchmarks.recovery_run import EXPERIMENT, LONG, Run, write
from benchmarks.recovery_sweep import node_in_a_sweep
from spirl_ray.files.tables import write_csv
from spirl_ray.pipeline.provenance import commit, hardware

_STAGE_1 = ("skills/*/metrics.csv", "update")
_STAGE_2 = ("policy/*/metrics.csv", "env_steps")
Victim = Iterator[tuple[Run, Callable[[], None]]]
"""The run, and what kills and, where nothing else does, replaces."""


@contextlib.contextmanager
def _local(folder: Path, stage: tuple[str, str], **changes: Any) -> Iterator[Run]:
    write(folder, **changes)
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
    pretrain = {**EXPERIMENT["pretrain"], "updates": LONG}
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
def _cluster(folder: Path, cable: Cable | None = None) -> Iterator[tuple[Run, RayNodes]]:
    """A cluster with the driver on the head's machine, and all CPUs on a worker node, which may be behind a cable."""
    write(folder)
    nodes = RayNodes() if cable is None else RayNodes(cable.near)
    try:
        nodes.start_head("--num-cpus=0")
        nodes.start_worker("--num-cpus=3", cable=cable)
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


@contextlib.contextmanager
def network_cut(folder: Path) -> Victim:
    """The victim is the network of the node with the env runner, for longer than the head waits for a node."""
    with contextlib.closing(Cable()) as cable, _cluster(folder, cable) as (run, nodes):

        def cut() -> None:
            before = nodes.given_up()
            cable.pull()
            nodes.wait(lambda: nodes.given_up() > before)
            cable.plug_in()
            nodes.await_end(1)
            nodes.start_worker("--num-cpus=3", cable=cable)
            nodes.wait(lambda: len(nodes.alive_nodes()) == 2)

        yield run, cut


KINDS = {
    "env runner": env_runner,
    "training worker": training_worker,
    "driver": driver,
    "worker node": worker_node,
    "head": head,
    "network cut": network_cut,
}
SWEEP = "node in a sweep"
UNITS = {"training worker": "updates", SWEEP: "updates or env steps"}
"""The unit of what is repeated, where it is not env steps."""


def kill_again_and_again(kind: str, folder: Path, kills: int, say: Callable[[float, float], None]) -> None:
    """Kills a kind of victim repeatedly, each time after the run got further than at the last kill."""
    with KINDS[kind](folder) as (run, kill):
        run.wait_beyond(0.0)
        for _ in range(kills):
            run.wait_beyond(run.reached())
            before, started, since = run.reached(), time.monotonic(), time.time()
            kill()
            lowest = run.wait_beyond(before)
            say(time.monotonic() - started, run.repeats(before, lowest, since))


def measure(kind: str, kills: int) -> dict[str, Any]:
    """Measures a kind of victim; an error where the run does not recover."""
    seconds: list[float] = []
    repeated: list[float] = []

    def say(taken: float, again: float) -> None:
        seconds.append(taken)
        repeated.append(again)
        print(f"{kind}: {taken:.1f} s, {again:.0f} repeated", flush=True)

    with tempfile.TemporaryDirectory(prefix="spirl-recovery-") as name:
        if kind == SWEEP:
            node_in_a_sweep(Path(name), kills, say)
        else:
            kill_again_and_again(kind, Path(name), kills, say)
    return {
        "kind": kind,
        "kills": kills,
        "recovered": len(seconds),
        "seconds_median": round(statistics.median(seconds), 2),
        "seconds_p95": round(float(np.percentile(seconds, 95)), 2),
        "repeated_max": int(max(repeated)),
        "unit": UNITS.get(kind, "env steps"),
        "commit": commit(),
        **hardware(),
    }


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--kinds", nargs="+", choices=[*KINDS, SWEEP], default=[*KINDS, SWEEP])
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    if "network cut" in options.kinds:
        Cable.leave_other_networks()
    rows = []
    for kind in options.kinds:
        rows.append(measure(kind, options.kills))
        print(rows[-1], flush=True)
        if options.out is not None:
            write_csv(options.out, with_others(options.out, rows, ("kind",)))


if __name__ == "__main__":
    main()
