"""Real nodes for the tests that ask for them."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from ray_nodes import RayNodes


@pytest.fixture(scope="module")
def nodes() -> Iterator[RayNodes]:
    """A head with two CPUs and a worker with two, which offers the driver's resource."""
    started = RayNodes()
    try:
        started.start_head("--num-cpus=2")
        started.start_worker("--num-cpus=2", '--resources={"spirl_driver": 1}')
        started.wait(lambda: len(started.alive_nodes()) == 2)
        yield started
    finally:
        started.stop()
