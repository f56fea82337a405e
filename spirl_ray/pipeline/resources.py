"""What an experiment asks of Ray at one time, compared with what there is: nothing waits for ever without a word."""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import ray

from spirl_ray.config import Experiment
from spirl_ray.errors import SpirlError

SAY_EVERY_S = 60.0


@dataclass(frozen=True)
class Needs:
    """What the stages of an experiment, or the trials of a sweep, hold at the same time."""

    processes: int = 1
    """The number of processes of one logical CPU each."""
    gpus: float = 0.0
    custom: Mapping[str, float] = field(default_factory=dict)
    """Ray's custom resources."""
    cpu_keys: str = "pretrain.workers, train.env_runners and train.learners"
    gpu_keys: str = ""
    """The settings that ask for the CPUs and GPUs, for messages."""


def needs_of(experiments: Sequence[Experiment]) -> Needs:
    """What these experiments need, one after the other, with all their methods."""
    processes, gpus, key = 1, 0.0, ""
    for experiment in experiments:
        for method in experiment.methods:
            variant = experiment.for_method(method)
            stage1, stage2 = variant.pretrain, variant.train
            processes = max(processes, stage1.workers, stage2.env_runners + stage2.learners)
            asked = [("pretrain.use_gpu", float(stage1.use_gpu * stage1.workers))]
            asked.append(("train.gpus_per_learner", stage2.gpus_per_learner * max(1, stage2.learners)))
            for name, count in asked:
                if count > gpus:
                    gpus, key = count, name
    return Needs(processes, gpus, gpu_keys=key)


def check_resources(needs: Needs, found: Mapping[str, float]) -> None:
    """Compares what is needed with the resources of a local Ray, which gets no more of them.

    Raises:
        SpirlError: a resource is missing; the message says what is there and what to set.
    """
    cpus = found.get("CPU", 0.0)
    if cpus <= needs.processes:
        raise SpirlError(
            f"ray.num_cpus: {cpus:g} is too few. {needs.cpu_keys} ask for {needs.processes} processes at the same "
            f"time, and one more CPU is needed for tasks beside them. Set ray.num_cpus to {needs.processes + 1}, or "
            "leave it out."
        )
    if (gpus := found.get("GPU", 0.0)) < needs.gpus:
        hidden = os.environ.get("CUDA_VISIBLE_DEVICES")
        why = "" if hidden is None else f" (CUDA_VISIBLE_DEVICES is {hidden!r}, which hides the others)"
        raise SpirlError(
            f"{needs.gpu_keys} asks for {needs.gpus:g} GPU(s), and the local Ray has {gpus:g}{why}. Set "
            f"{needs.gpu_keys}={'false' if needs.gpu_keys.endswith('use_gpu') else 0} to use the CPU, or name a "
            "cluster that has them with ray.address."
        )
    for name, count in needs.custom.items():
        if found.get(name, 0.0) < count:
            raise SpirlError(
                f"resources.custom: the local Ray has no {name!r}, of which {count:g} are asked for. Leave it out, or "
                "name a cluster whose nodes declare it with ray.address."
            )


def is_own_instance() -> bool:
    """True where this process has started the Ray that it is connected to, so that no node will join."""
    node = getattr(ray._private.worker, "_global_node", None)
    return bool(node is not None and node.is_head())


# --- what is waited for ---


@contextlib.contextmanager
def said_while_waiting(say: Callable[[str], None], every_s: float = SAY_EVERY_S) -> Iterator[Callable[[], None]]:
    """Says once a minute what a cluster cannot place, as long as nothing else happens.

    A local Ray has been checked before (`check_resources`): there, what is not placed waits only for its turn.

    Args:
        say: gets the text; it is called in a thread of its own.
        every_s: seconds without progress after which it is said.

    Yields:
        The function to call at each progress.
    """
    if is_own_instance():
        yield lambda: None
        return
    ended = threading.Event()
    newest = time.monotonic()

    def progress() -> None:
        nonlocal newest
        newest = time.monotonic()

    def watch() -> None:
        said = newest
        while not ended.wait(min(1.0, every_s / 4)):
            since = max(newest, said)
            if time.monotonic() - since < every_s:
                continue
            said = time.monotonic()
            if (text := waited_for()) and not ended.is_set():
                say(text)

    thread = threading.Thread(target=watch, daemon=True, name="waiting")
    thread.start()
    try:
        yield progress
    finally:
        ended.set()


def waited_for() -> str:
    """What tasks and workers ask for and Ray has not placed, with what the cluster has; empty if there is nothing."""
    try:
        from ray.autoscaler.v2.sdk import get_cluster_status

        status = get_cluster_status(ray.get_runtime_context().gcs_address)
        wanted = [
            (bundle.bundle, bundle.count)
            for demand in (
                *status.resource_demands.placement_group_demand,
                *status.resource_demands.ray_task_actor_demand,
            )
            for bundle in demand.bundles_by_count
        ]
        total, free = ray.cluster_resources(), ray.available_resources()
    except Exception:  # Ray is ending, or its state has another form; only the notice is lost
        return ""
    if not wanted:
        return ""
    asked = " and ".join(dict.fromkeys(f"{count} x {_text(bundle)}" for bundle, count in wanted))
    names = dict.fromkeys(["CPU", *(name for bundle, _ in wanted for name in bundle if name != "memory")])
    there = ", ".join(f"{total.get(name, 0.0):g} {name} ({free.get(name, 0.0):g} free)" for name in names)
    return f"{asked}; the cluster has {there}"


def _text(bundle: Mapping[str, Any]) -> str:
    return " + ".join(f"{amount:g} {name}" for name, amount in sorted(bundle.items()) if amount) or "a place"
