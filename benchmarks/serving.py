"""How many observations `spirl serve` answers on loopback: ``python -m benchmarks.serving [--out results.csv]``.

Clients in threads of this process ask at the same time, each with a session of its own and one observation after the
other, as agents do. Every tenth time they also send bad input. Every action is compared with that of the same policy in
this process; ``lost`` counts requests without the right answer, and the exit status is 1 if there are any. The latency
is that of a request as a client sees it, so it includes the client's share of the same cores.

Without ``--policy``, the networks have the size of the kitchen's and random weights.
"""

from __future__ import annotations

import argparse
import http.client
import json
import socket
import sys
import tempfile
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.speed import add_row
from spirl_ray.cluster.serving import ServingSettings, serving
from spirl_ray.config import EnvironmentSettings, SkillSettings, TrainSettings
from spirl_ray.episodes.features import Feature
from spirl_ray.errors import SpirlError
from spirl_ray.policy.policy import load_policy, save_policy
from spirl_ray.rl.methods import method_config, skill_spec
from spirl_ray.rl.policy_network import PolicyNetwork, policy_spec
from spirl_ray.skills.artifact import save_skills
from spirl_ray.skills.execution import Array
from spirl_ray.skills.model import SkillModel

_FEATURES = {"robot": Feature(shape=(9,), role="proprioception"), "objects": Feature(shape=(21,))}
_BAD_EVERY = 10
_CLOSE = 1e-5


@dataclass
class _Client:
    """One session: its requests, and what became of them."""

    name: str
    observations: list[dict[str, Array]]
    expected: list[Array]
    seconds: list[float] = field(default_factory=list)
    answered: int = 0
    refused: int = 0
    lost: int = 0

    def run(self, port: int, start: threading.Barrier) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=120)
        start.wait()
        for number, observation in enumerate(self.observations):
            given = {name: value.tolist() for name, value in observation.items()}
            began = time.perf_counter()
            status, found = _post(connection, {"session": self.name, "observation": given})
            self.seconds.append(time.perf_counter() - began)
            right = status == 200 and np.allclose(found.get("action", []), self.expected[number], atol=_CLOSE)
            self.answered += right
            self.lost += not right
            if number % _BAD_EVERY == 0:
                status, _ = _post(connection, {"session": self.name, "observation": {}})
                self.refused += 400 <= status < 500
                self.lost += not 400 <= status < 500
        connection.close()


def _post(connection: http.client.HTTPConnection, body: object) -> tuple[int, dict[str, list[float]]]:
    """The status of a request and its answer; status 0 where there is none."""
    try:
        connection.request("POST", "/act", json.dumps(body), {"Content-Type": "application/json"})
        response = connection.getresponse()
        return response.status, json.loads(response.read())
    except (OSError, ValueError, http.client.HTTPException):
        connection.close()
        return 0, {}


def random_policy(folder: Path) -> Path:
    """Writes a policy of the kitchen's size with random weights, and returns its folder."""
    torch.manual_seed(0)
    settings = SkillSettings(width=128, decoder_layers=5, prior_layers=6)
    model = SkillModel(skill_spec(settings, "spirl_cl", _FEATURES, 9))
    skills = folder / "skills"
    made: dict[str, Any] = dict.fromkeys(("dataset_sha256", "package_version"), "")
    made |= {"environment": None, "pretrain": {}, "seed": 0, "metrics": {}}
    save_skills(skills, model, **made)
    method = method_config("spirl_cl", TrainSettings(), model.spec)
    spec = policy_spec(model, method, _FEATURES)
    card = {"environment": EnvironmentSettings(), "method": "spirl_cl", "seed": 0, "env_steps": 0, "config_hash": ""}
    save_policy(folder / "policy", PolicyNetwork(spec, model).state_dict(), skills, policy=spec, **card)
    return folder / "policy"


def measure(policy: Path, clients: int, requests: int) -> dict[str, object]:
    """Measures one run of all clients, after one of a tenth of its length that is not counted."""
    loaded = load_policy(policy)
    rng = np.random.default_rng(0)

    def client(name: str, length: int) -> _Client:
        observations = []
        for _ in range(length):
            values = {}
            for feature, one in loaded.features.items():
                random = (
                    rng.integers(0, 256, one.observed_shape) if one.is_image else rng.normal(size=one.observed_shape)
                )
                values[feature] = random.astype(one.dtype)
            observations.append(values)
        loaded.reset()
        return _Client(name, observations, [loaded.act(observation) for observation in observations])

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    settings = ServingSettings(str(policy.absolute()), port=port)
    with serving(settings):
        _run([client(f"warm-{number}", max(1, requests // 10)) for number in range(clients)], port)
        counted = [client(f"{number}", requests) for number in range(clients)]
        seconds = _run(counted, port)
    latencies = 1000 * np.concatenate([one.seconds for one in counted])
    total = {name: sum(getattr(one, name) for one in counted) for name in ("answered", "refused", "lost")}
    return {
        "clients": clients,
        **total,
        "batch": settings.batch,
        "wait_ms": f"{1000 * settings.wait_s:g}",
        "requests_per_s": f"{(total['answered'] + total['refused']) / seconds:.1f}",
        "p50_ms": f"{np.percentile(latencies, 50):.2f}",
        "p99_ms": f"{np.percentile(latencies, 99):.2f}",
    }


def _run(clients: list[_Client], port: int) -> float:
    """Runs the clients at the same time; returns the seconds."""
    start = threading.Barrier(len(clients) + 1)
    threads = [threading.Thread(target=one.run, args=(port, start)) for one in clients]
    for thread in threads:
        thread.start()
    start.wait()
    began = time.perf_counter()
    for thread in threads:
        thread.join()
    return time.perf_counter() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--policy", type=Path, help="folder of a policy; random weights if not given")
    parser.add_argument(
        "--clients", type=int, nargs="+", default=[1, 8, 32], help="clients at the same time, a row each"
    )
    parser.add_argument("--requests", type=int, default=200, help="requests of each client")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/serving.csv"))
    asked = parser.parse_args()
    torch.set_num_threads(1)
    lost = 0
    try:
        with tempfile.TemporaryDirectory() as folder:
            policy = asked.policy or random_policy(Path(folder))
            for clients in asked.clients:
                row = measure(policy, clients, asked.requests)
                print(json.dumps(row), flush=True)
                add_row(asked.out, row)
                lost += int(str(row["lost"]))
    except SpirlError as error:
        sys.exit(f"Error: {error}")
    sys.exit(1 if lost else 0)


if __name__ == "__main__":
    main()
