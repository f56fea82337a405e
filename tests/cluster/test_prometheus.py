"""A Prometheus server with the shipped configuration and a real run, on a cluster that asks for the token."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import requests
import yaml
from toy import write_config

from benchmarks.ray_nodes import RayNodes, free_port, kill_session, session_members

CLUSTER = Path(__file__).parents[2] / "cluster"
PROMETHEUS = shutil.which("prometheus")
pytestmark = [
    pytest.mark.cluster,
    pytest.mark.skipif(PROMETHEUS is None, reason="no Prometheus: install the package prometheus of the distribution"),
]
_PATIENCE_S = 300.0
WITHOUT_DATA: dict[str, str] = {}
"""Queries of the dashboard that a run of a minute cannot answer, with the reason."""


class Server:
    """A Prometheus server with the shipped files; their addresses are those of this cluster."""

    def __init__(self, nodes: RayNodes, folder: Path) -> None:
        self.url, self.log = f"http://127.0.0.1:{free_port()}", folder / "log.txt"
        for file in (CLUSTER / "prometheus").iterdir():
            text = file.read_text().replace("http://head:8265", nodes.dashboard)
            (folder / file.name).write_text(text.replace("/run/secrets/ray_token", str(nodes.token)))
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [
                    str(PROMETHEUS),
                    f"--config.file={folder / 'prometheus.yml'}",
                    f"--storage.tsdb.path={folder / 'data'}",
                    f"--web.listen-address={self.url.removeprefix('http://')}",
                ],
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self.wait("an answer", lambda: requests.get(f"{self.url}/-/ready", timeout=10).ok)
        self.started = time.time()

    def get(self, page: str, **parameters: Any) -> Any:
        answer = requests.get(f"{self.url}/api/v1/{page}", params=parameters, timeout=60).json()
        assert answer["status"] == "success", answer
        return answer["data"]

    def now(self, query: str) -> list[Any]:
        """The series of a query at this moment."""
        return self.get("query", query=query)["result"]

    def drawn(self, query: str) -> list[Any]:
        """The series that Grafana would draw of a query."""
        return self.get("query_range", query=query, start=self.started, end=time.time(), step=10)["result"]

    def wait(self, what: str, condition: Callable[[], object]) -> None:
        deadline = time.monotonic() + _PATIENCE_S
        while True:
            assert self.process.poll() is None, self.log.read_text()
            try:
                if condition():
                    return
            except requests.ConnectionError:
                pass
            assert time.monotonic() < deadline, f"waited in vain for {what}"
            time.sleep(1.0)


@pytest.fixture(scope="module")
def prometheus(nodes: RayNodes, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    server = Server(nodes, tmp_path_factory.mktemp("prometheus"))
    try:
        yield server
    finally:
        kill_session(server.process)


@pytest.fixture(scope="module")
def run(nodes: RayNodes, tmp_path_factory: pytest.TempPathFactory) -> Iterator[subprocess.Popen[bytes]]:
    """A run whose stage 2 does not end by itself."""
    folder = tmp_path_factory.mktemp("run")
    config = write_config(folder, train__env_steps=10**9, train__evaluate_every=2000, train__checkpoint_every=10**6)
    with (folder / "log.txt").open("wb") as log:
        driver = subprocess.Popen(
            [sys.executable, "-m", "spirl_ray.cli", "run", str(config)],
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            env={**nodes.environment, "RAY_ADDRESS": nodes.address},
        )
    try:
        yield driver
    finally:
        kill_session(driver)
        print((folder / "log.txt").read_text()[-3000:])


def queries(prometheus: Server) -> list[str]:
    """The queries of every panel, with the values that Grafana's variables take where all are chosen."""
    dashboard = json.loads((CLUSTER / "grafana" / "spirl-ray.json").read_text())
    chosen: dict[str, str] = {}
    for variable in dashboard["templating"]["list"]:
        if variable["type"] == "query":
            found = re.fullmatch(r"label_values\((.*), (\w+)\)", with_values(variable["query"], chosen))
            assert found is not None
            chosen[variable["name"]] = "|".join(prometheus.get(f"label/{found[2]}/values", **{"match[]": found[1]}))
    return [with_values(target["expr"], chosen) for panel in dashboard["panels"] for target in panel.get("targets", [])]


def with_values(text: str, chosen: dict[str, str]) -> str:
    return re.sub(r"\$(\w+)", lambda name: f"({chosen[name[1]]})", text)


def test_prometheus_finds_every_node_by_the_token_and_not_without(nodes: RayNodes, prometheus: Server) -> None:
    assert requests.get(f"{nodes.dashboard}/api/prometheus/sd", timeout=60).status_code == 401
    (group,) = nodes.ask("/api/prometheus/sd").json()

    def targets() -> dict[str, str]:
        found = prometheus.get("targets")["activeTargets"]
        return {target["discoveredLabels"]["__address__"]: target["health"] for target in found}

    prometheus.wait("the nodes", lambda: targets() == dict.fromkeys(group["targets"], "up"))


def test_every_query_of_every_panel_is_answered(run: subprocess.Popen[bytes], prometheus: Server) -> None:
    def unanswered() -> set[str]:
        assert run.poll() is None
        asked = queries(prometheus)
        assert len(asked) > 20
        return {re.sub(r"\{.*", "", query) for query in asked if not prometheus.drawn(query)}

    prometheus.wait("data", lambda: unanswered() == set(WITHOUT_DATA))


def test_every_rule_is_evaluated_on_series_that_are_there(run: subprocess.Popen[bytes], prometheus: Server) -> None:
    shipped = yaml.safe_load((CLUSTER / "prometheus" / "alerts.yml").read_text())["groups"][0]["rules"]

    def rules() -> dict[str, str]:
        return {rule["name"]: rule["health"] for group in prometheus.get("rules")["groups"] for rule in group["rules"]}

    prometheus.wait("the rules", lambda: rules() == {rule["alert"]: "ok" for rule in shipped})
    for name in {name for rule in shipped for name in re.findall(r"\bray_\w+", rule["expr"])}:
        prometheus.wait(name, lambda name=name: prometheus.drawn(name))  # type: ignore[misc]
    assert not prometheus.now(
        'ALERTS{alertname=~"Spirl(NoProgress|EnvRunnerLost|ClusterNotSeen)", alertstate="firing"}'
    )


def test_a_lost_env_runner_is_told_and_gauges_end_with_their_driver(
    nodes: RayNodes, run: subprocess.Popen[bytes], prometheus: Server
) -> None:
    prometheus.wait("stage 2", lambda: prometheus.now("ray_spirl_env_runners_lost == 0"))
    members = [member for node in nodes.processes for member in session_members(node.pid)]
    (runner,) = [one for one in members if title(one).startswith("ray::SingleAgentEnvRunner")]
    os.kill(runner, signal.SIGKILL)
    fires = 'ALERTS{alertname="SpirlEnvRunnerLost", alertstate="firing", run="toy", trial="spirl_cl-s0"}'
    prometheus.wait("the alert", lambda: prometheus.now(fires))
    prometheus.wait("another runner", lambda: prometheus.now("ray_spirl_env_runners_missing == 0"))
    kill_session(run)
    prometheus.wait("the end of the gauges", lambda: not prometheus.now('{__name__=~"ray_spirl_.*"}'))


def title(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_text().replace("\0", " ")
    except OSError:
        return ""
