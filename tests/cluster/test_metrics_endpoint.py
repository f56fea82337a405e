"""What the program sets is what Prometheus reads from a real node, under the names that Grafana plots."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import requests

from benchmarks.ray_nodes import RayNodes

DASHBOARD = Path(__file__).parents[2] / "cluster" / "grafana" / "spirl-ray.json"
DRIVER = """
import sys
import ray
from spirl_ray.envs import declared_scores
from spirl_ray.metrics import training_metrics
from spirl_ray.pipeline.monitoring import Monitor
ray.init(address=sys.argv[1], log_to_driver=False)
scores = declared_scores("spirl/PointPads-v0")
for stage in ("pretrain", "train"):
    columns = [metric.name for metric in training_metrics(stage)] + ["subtasks"]
    Monitor("toy", "spirl_cl-s0", stage, scores).show(dict.fromkeys(columns, 1.5))
print("shown", flush=True)
sys.stdin.read()
"""
pytestmark = pytest.mark.slow


@pytest.fixture
def head() -> Iterator[RayNodes]:
    started = RayNodes()
    try:
        started.start_head("--num-cpus=1")
        yield started
    finally:
        started.stop()


def test_every_series_of_the_dashboard_is_on_the_endpoint_with_its_tags(head: RayNodes) -> None:
    plotted = set(re.findall(r'"expr": "(\w+)\{', DASHBOARD.read_text()))
    assert len(plotted) > 10
    driver = subprocess.Popen(
        [sys.executable, "-c", DRIVER, head.address],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=head.environment,
    )
    assert driver.stdout is not None
    lines: list[str] = []

    def all_there() -> bool:
        (group,) = head.ask("/api/prometheus/sd").json()
        texts = [requests.get(f"http://{target}/metrics", timeout=60).text for target in group["targets"]]
        lines[:] = [line for text in texts for line in text.splitlines() if line.startswith("ray_spirl_")]
        return plotted <= {line.partition("{")[0] for line in lines}

    try:
        assert driver.stdout.readline().strip() == "shown"
        head.wait(all_there)
    finally:
        driver.kill()
        driver.wait()
    for line in lines:
        assert 'run="toy"' in line
        assert 'trial="spirl_cl-s0"' in line
        assert re.search(r'stage="(pretrain|train)"', line)
        assert line.endswith(" 1.5")
