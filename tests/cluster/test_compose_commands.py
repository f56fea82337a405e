"""What the compose file's containers would run, run as plain processes with this machine's addresses and ports."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from benchmarks.ray_nodes import RayNodes

COMPOSE = Path(__file__).parents[2] / "cluster" / "compose.yaml"
pytestmark = pytest.mark.cluster
_REPLACED = ("--port=", "--dashboard-host=", "--dashboard-port=", "--metrics-export-port=", "--address=")
"""Options that `RayNodes` sets itself, for every Ray on this machine needs ports of its own."""


def command(service: dict[str, Any]) -> list[str]:
    kept = [word for word in service["command"] if not word.startswith(_REPLACED)]
    assert len(kept) < len(service["command"])
    return kept


@pytest.fixture(scope="module")
def services() -> dict[str, Any]:
    return yaml.safe_load(COMPOSE.read_text())["services"]


@pytest.fixture(scope="module")
def composed(services: dict[str, Any]) -> Iterator[RayNodes]:
    started = RayNodes()
    try:
        started.start_head(command=command(services["head"]))
        for _ in range(services["worker"]["deploy"]["replicas"]):
            started.start_worker(command=command(services["worker"]))
        started.wait(lambda: len(started.alive_nodes()) == 3)
        yield started
    finally:
        started.stop()


def test_doctor_finds_the_composed_cluster_fit(composed: RayNodes, tmp_path: Path) -> None:
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "spirl_ray.cli",
            "doctor",
            "--address",
            composed.address,
            "--set",
            f"output={tmp_path}",
        ],
        capture_output=True,
        text=True,
        timeout=1800,
        env=composed.environment,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "All 3 node(s) are ready" in done.stdout


def test_the_health_check_of_the_head_passes(services: dict[str, Any], composed: RayNodes) -> None:
    kind, *words = services["head"]["healthcheck"]["test"]
    assert kind == "CMD"
    words = [composed.address if word == "head:6379" else word for word in words]
    assert subprocess.run(words, env=composed.environment, timeout=600).returncode == 0


def test_prometheus_is_told_of_every_node_for_the_token(composed: RayNodes) -> None:
    (group,) = composed.ask("/api/prometheus/sd").json()
    assert len(group["targets"]) >= 3
