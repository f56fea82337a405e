"""``spirl doctor``, which checks whether every node of a cluster can run an experiment, and says what to repair."""

from __future__ import annotations

import contextlib
import os
import shutil
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import GetTimeoutError, RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from spirl_ray.cluster import probe
from spirl_ray.cluster.probe import NodeProbe
from spirl_ray.errors import SpirlError
from spirl_ray.files import source

ANSWER_S = 180.0
"""The time (s) in which a node must start a worker, import the package and answer."""
CLOCK_LIMIT_S = 1.0
_CLOCK_READINGS = 3
_GIGABYTE = 2**30


@dataclass
class NodeReport:
    """The result of the check of one node; the table has a row for each."""

    node: str
    """The address of the node, and "head" for the head node."""
    cpus: float
    gpus: float
    memory_gib: float
    versions: dict[str, str] = field(default_factory=dict)
    clock_offset_s: float | None = None
    """The seconds by which the node's clock is ahead of the driver's."""
    output: str = "not checked"
    storage: str = "not checked"
    problems: list[str] = field(default_factory=list)
    """The problems, each with what to do."""


def check_cluster(output: Path | None, storage: str | None = None, *, answer_s: float = ANSWER_S) -> list[NodeReport]:
    """Checks every living node of the connected cluster.

    Args:
        output: the folder that experiments are to be written to; None leaves it out.
        storage: the URI that `output` is to be copied to; None leaves it out.
        answer_s: seconds to wait for a node.

    Raises:
        SpirlError: the driver itself cannot write to ``output``.
    """
    for module in (probe, source):
        ray.cloudpickle.register_pickle_by_value(module)
    here = NodeProbe(0).versions()
    with _probe_folder(output) as folder:
        content = uuid.uuid4().hex
        if folder is not None:
            (folder / "driver").write_text(content)
        reports, asked = [], []
        for node in ray.nodes():
            if not node["Alive"]:
                continue
            resources = node["Resources"]
            head = "node:__internal_head__" in resources
            report = NodeReport(
                node=node["NodeManagerAddress"] + (" head" if head else ""),
                cpus=resources.get("CPU", 0.0),
                gpus=resources.get("GPU", 0.0),
                memory_gib=resources.get("memory", 0.0) / _GIGABYTE,
            )
            reports.append(report)
            actor: Any = (
                ray.remote(NodeProbe)
                .options(num_cpus=0, scheduling_strategy=NodeAffinitySchedulingStrategy(node["NodeID"], soft=False))
                .remote(report.gpus)
            )
            own = f"node-{node['NodeID']}"
            reference = actor.asked.remote(None if folder is None else str(folder), storage, content, own)
            asked.append((report, actor, reference, own))
        deadline = time.monotonic() + answer_s
        for report, actor, reference, own in asked:
            try:
                found = ray.get(reference, timeout=max(1.0, deadline - time.monotonic()))
                report.clock_offset_s = _clock_offset(actor)
            except GetTimeoutError:
                report.problems.append(
                    f"no answer in {answer_s:.0f} s. Look into the raylet's log on that node: it cannot start workers, "
                    "or is overloaded."
                )
                continue
            except RayError as error:
                report.problems.append(
                    f"cannot run a task: {_first_line(error)}. Its image needs the same Python and Ray as the driver's."
                )
                continue
            finally:
                ray.kill(actor)
            _judge(report, found, here)
            _judge_output(report, found, folder, own, output)
            _judge_storage(report, found, storage)
    return reports


def cluster_problems(reports: list[NodeReport]) -> list[str]:
    """The problems of the cluster as a whole."""
    if sum(report.cpus for report in reports) < 2:
        return ["The cluster has fewer than 2 CPUs; a run needs one for a worker and one for tasks. Add a node."]
    return []


def _judge(report: NodeReport, found: dict[str, Any], here: dict[str, str]) -> None:
    report.versions = found["versions"]
    for name, wanted in here.items():
        has = report.versions.get(name)
        if has != wanted and not (name == "spirl-ray" and has and _digest(has) == _digest(wanted) != ""):
            advice = (
                "Give the job its code with spirl submit, or install the same package."
                if name == "spirl-ray"
                else "Use the same image on every node."
            )
            report.problems.append(f"{name} is {has}, the driver has {wanted}. {advice}")
    if found["import"]:
        report.problems.append(
            f"the package does not import: {found['import']}. Install the packages of constraints.txt."
        )
    if found["gpu"]:
        report.problems.append(f"{found['gpu']}. Use the CUDA image, and look at nvidia-smi on that node.")
    if report.clock_offset_s is not None and abs(report.clock_offset_s) > CLOCK_LIMIT_S:
        report.problems.append(
            f"its clock is {report.clock_offset_s:+.1f} s off the driver's. Start its time service (chrony, ntpd)."
        )


def _digest(package: str) -> str:
    """The digest of the code in the text for the package, which may be installed in one place and shipped to another:
    ``0.2.0 (9bf99f06)``."""
    return package.partition("(")[2]


def _judge_output(
    report: NodeReport, found: dict[str, Any], folder: Path | None, own: str, output: Path | None
) -> None:
    if folder is None:
        return
    problem = found["output"]
    if problem is None and not _appears(folder / own):
        problem = "writes what the driver does not see"
    report.output = "yes" if problem is None else "NO"
    if problem is not None:
        report.problems.append(
            f"{output}: {problem}. Mount the same storage at this path on every node, writable for the user that Ray "
            "runs as."
        )


def _judge_storage(report: NodeReport, found: dict[str, Any], storage: str | None) -> None:
    if storage is None:
        return
    problem = found["storage"]
    report.storage = "yes" if problem is None else "NO"
    if problem is not None:
        report.problems.append(
            f"{storage}: {problem}. Check the URI, and that this node has the storage's credentials in its environment "
            "(or its role) and may write and delete there."
        )


def _appears(file: Path, patience_s: float = 5.0) -> bool:
    """True where a file exists, or appears once the network file system has caught up."""
    deadline = time.monotonic() + patience_s
    while not file.exists():
        if time.monotonic() > deadline:
            return False
        os.listdir(file.parent)
        time.sleep(0.1)
    return True


def _clock_offset(actor: Any) -> float | None:
    """The seconds by which a node's clock is ahead, at least; the message's travel time counts in the node's favour."""
    best: tuple[float, float] | None = None
    for _ in range(_CLOCK_READINGS):
        before = time.time()
        there = ray.get(actor.clock.remote(), timeout=30.0)
        after = time.time()
        way = (after - before) / 2
        if best is None or way < best[0]:
            best = way, there - before - way
    assert best is not None
    way, offset = best
    return 0.0 if abs(offset) <= way else offset


@contextlib.contextmanager
def _probe_folder(output: Path | None) -> Iterator[Path | None]:
    if output is None:
        yield None
        return
    folder = output / f".doctor-{uuid.uuid4().hex[:8]}"
    try:
        folder.mkdir(parents=True)
        # Nodes may run as other users.
        folder.chmod(0o777)
    except OSError as error:
        raise SpirlError(
            f"The driver cannot write to {output}: {error.strerror}. Fix its permissions, or choose another folder "
            "with --set output=…."
        ) from error
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__
