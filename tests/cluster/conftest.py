"""Real nodes for the tests that ask for them, and a home without a token for the others."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

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
        try:
            started.wait(lambda: len(started.alive_nodes()) == 2)
        except AssertionError as error:
            # A node's start can fail on a busy machine, which is not what these tests are about.
            print(error)
            started.kill(1)
            started.start_worker("--num-cpus=2")
            started.wait(lambda: len(started.alive_nodes()) == 2)
        yield started
    finally:
        started.stop()


@pytest.fixture
def no_token(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A home without a token, and none of Ray's variables."""
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH", "RAY_API_SERVER_ADDRESS", "RAY_ADDRESS"):
        monkeypatch.delenv(name, raising=False)
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
