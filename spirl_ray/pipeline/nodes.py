"""What an experiment needs on every node of a cluster: its environment, and modules that are installed there."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from spirl_ray.config_environment import EnvironmentSettings
from spirl_ray.envs import try_out
from spirl_ray.errors import SpirlError


def try_on_every_node(environment: EnvironmentSettings | None, modules: Sequence[str] = ()) -> dict[str, str | None]:
    """Makes an environment and imports modules on every node of the cluster to which this process is connected.

    Returns:
        What failed on each node, by the node's name; None where nothing has.
    """
    task: Any = ray.remote(num_cpus=0, max_retries=1)(_problem)
    nodes = {node["NodeID"]: node["NodeName"] for node in ray.nodes() if node["Alive"]}
    started = {
        task.options(scheduling_strategy=NodeAffinitySchedulingStrategy(node, soft=False)).remote(
            environment, modules
        ): name
        for node, name in nodes.items()
    }
    found: dict[str, str | None] = {}
    for reference, name in started.items():
        try:
            found[name] = ray.get(reference)
        except ray.exceptions.RayError as error:
            found[name] = str(error).strip().splitlines()[-1]
    return found


def _problem(environment: EnvironmentSettings | None, modules: Sequence[str]) -> str | None:
    for module in modules:
        try:
            importlib.import_module(module)
        except ImportError as error:
            return f"the config needs the package {module}, which cannot be imported ({error}). Install it there."
    try:
        if environment is not None:
            try_out(environment)
    except SpirlError as error:
        return str(error)
    return None
