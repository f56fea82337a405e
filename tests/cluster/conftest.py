"""Real nodes for the tests that ask for them."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from benchmarks.ray_nodes import RayNodes


@pytest.fixture(scope="session")
def nodes() -> Iterator[RayNodes]:
    """One cluster for all modules: a head with two CPUs, which offers the driver's resource, and a worker with two.

    Ray finds a job's log where the head has its files, and a worker on the same machine has others.
    """
    started = RayNodes()
    try:
        started.start_head("--num-cpus=2", '--resources={"spirl_driver": 1}')
        started.start_worker("--num-cpus=2")
        started.wait(lambda: len(started.alive_nodes()) == 2)
        yield started
    finally:
        started.stop()
