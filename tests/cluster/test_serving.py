"""A policy over HTTP: the replica without Ray, and one that Ray Serve runs on loopback."""

from __future__ import annotations

import asyncio
import csv
import json
import os
import socket
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from toy_skills import STATE, random_observations, save_toy_policy, save_toy_skills, toy_model

from spirl_ray.errors import SpirlError
from spirl_ray.policy.policy import load_policy

pytest.importorskip("fastapi", reason="Ray Serve is not installed: pip install -e '.[serve]'")
from spirl_ray.cluster.serving import PolicyServer, ServingSettings, serving

ROOT = Path(__file__).parents[2]


@pytest.fixture
def policy(tmp_path: Path) -> Path:
    return save_toy_policy(tmp_path / "policy", save_toy_skills(tmp_path / "skills", toy_model()), STATE)


class _Request:
    """The part of Starlette's request that the replica uses."""

    def __init__(self, method: str, path: str, body: bytes = b"", **headers: str) -> None:
        from starlette.datastructures import URL, Headers

        self.method, self.url, self.headers = method, URL(f"http://x{path}"), Headers(headers)
        self._body = body

    async def body(self) -> bytes:
        return self._body


def gathered(settings: ServingSettings, act: Any) -> Any:
    """Answers everything that is asked until the event loop is idle in one batch, as Ray Serve does in a replica."""
    waiting: list[tuple[Any, asyncio.Future[Any]]] = []

    async def flush() -> None:
        batch = waiting[:]
        waiting.clear()
        for (_, future), found in zip(batch, await act([request for request, _ in batch]), strict=True):
            future.set_result(found)

    async def one(request: Any) -> Any:
        loop = asyncio.get_running_loop()
        waiting.append((request, loop.create_future()))
        if len(waiting) == 1:
            loop.call_later(0.01, lambda: loop.create_task(flush()))
        return await waiting[-1][1]

    return one


def asked(session: str, state: Any) -> _Request:
    return _Request("POST", "/act", json.dumps({"session": session, "observation": {"state": state}}).encode())


def test_good_and_bad_requests_share_a_batch_and_nothing_is_lost(policy: Path) -> None:
    states = random_observations(STATE, 6)["state"].numpy()

    async def all_at_once() -> list[Any]:
        server: Any = PolicyServer(ServingSettings(str(policy), sessions=3), gathered)
        requests: list[_Request] = []
        for number in range(3):
            requests += [asked(f"s{number}", states[number].tolist()), asked(f"s{number}", [1.0])]
        requests += [asked("one too many", states[0].tolist()), _Request("GET", "/")]
        first = await asyncio.gather(*(server(request) for request in requests))
        return [*first, await server(asked("s0", states[5].tolist())), await server(_Request("DELETE", "/sessions/no"))]

    found = [(response.status_code, json.loads(response.body)) for response in asyncio.run(all_at_once())]
    assert [status for status, _ in found] == [200, 422, 200, 422, 200, 422, 429, 200, 200, 404]
    for number in range(3):
        expected = load_policy(policy).act({"state": states[number]})
        np.testing.assert_allclose(found[2 * number][1]["action"], expected, atol=1e-6)
    assert found[-2][1]["step"] == 1
    assert all("error" in body for status, body in found if status >= 400)


def test_a_port_that_is_taken_is_named(policy: Path) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        with (
            pytest.raises(SpirlError, match=rf"127\.0\.0\.1:{port}.*--port"),
            serving(ServingSettings(str(policy), port=port)),
        ):
            pass


@pytest.mark.slow
def test_the_load_test_is_served_by_ray(tmp_path: Path) -> None:
    """The benchmark starts Ray Serve, asks with good and bad requests at once, and compares every answer."""
    table = tmp_path / "serving.csv"
    clean = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    with tempfile.TemporaryDirectory(prefix="spirl-", dir="/tmp", ignore_cleanup_errors=True) as sockets:
        done = subprocess.run(
            [sys.executable, "-m", "benchmarks.serving", "--clients", "4", "--requests", "40", "--out", str(table)],
            cwd=ROOT,
            env={**clean, "RAY_TMPDIR": sockets, "RAY_raylet_start_wait_time_s": "120"},
            capture_output=True,
            text=True,
            timeout=600,
        )
    assert done.returncode == 0, done.stdout + done.stderr
    with table.open(newline="", encoding="utf-8") as file:
        (values,) = csv.DictReader(file)
    assert (values["answered"], values["refused"], values["lost"]) == ("160", "16", "0")
    assert float(values["requests_per_s"]) > 0
    assert float(values["p99_ms"]) >= float(values["p50_ms"]) > 0
    assert {"hardware_cpu", "hardware_cores", "version_ray"} <= set(values)
