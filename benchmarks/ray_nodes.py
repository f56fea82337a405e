"""Real Ray nodes with token authentication, started and ended by the test or benchmark that needs them."""

from __future__ import annotations

import contextlib
import os
import random
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import requests

_REPOSITORY = Path(__file__).parents[1]
_PATIENCE_S = 300.0
_NODE_IP = "127.0.0.2"
"""A loopback address that Ray does not replace by the machine's own, as it does with 127.0.0.1."""


def session_members(leader: int) -> list[int]:
    """Lists the living processes of a session that a child leads; whatever Ray starts for it is in it."""
    members = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            fields = (entry / "stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[3]) == leader and fields[0] != "Z":
            members.append(int(entry.name))
    return members


def _program(pid: int) -> str:
    with contextlib.suppress(OSError):
        return (Path("/proc") / str(pid) / "comm").read_text().strip()
    return ""


def kill_session(leader: subprocess.Popen[Any]) -> None:
    """Sends SIGKILL to a child that leads a session, and to all processes in it."""
    for member in session_members(leader.pid):
        with contextlib.suppress(ProcessLookupError):
            os.kill(member, signal.SIGKILL)
    leader.wait()


def free_port() -> int:
    """Finds a port that nobody uses, outside the ranges from which the kernel and Ray give ports themselves: one that
    they give away before the node uses it would end the node.
    """
    while True:
        port = random.randrange(20_000, 32_000)
        with socket.socket() as opened, contextlib.suppress(OSError):
            opened.bind(("", port))
            return port


class Cable:
    """A network between this process and a namespace that is made for a node, and removed at the end; for root."""

    near, far = "198.51.100.1", "198.51.100.2"  # for documentation (RFC 5737), so nobody's
    _LEFT = "SPIRL_LEFT_OTHER_NETWORKS"

    @classmethod
    def leave_other_networks(cls) -> None:
        """Starts this program again in a network namespace where nothing but loopback and cables is."""
        if cls._LEFT not in os.environ:
            # As it was started: `python -m` has replaced the first argument by the file.
            command = [sys.executable, *sys.orig_argv[1:]]
            os.execvpe("unshare", ["unshare", "--net", *command], {**os.environ, cls._LEFT: "1"})
        _ip("link set lo up")

    def __init__(self) -> None:
        self.name = f"spirl-{os.getpid()}"
        _ip(f"netns add {self.name}")
        _ip(f"link add near0 type veth peer name far0 netns {self.name}")
        _ip(f"address add {self.near}/24 dev near0")
        _ip(f"-n {self.name} address add {self.far}/24 dev far0")
        _ip(f"-n {self.name} link set lo up")
        _ip(f"-n {self.name} link set far0 up")
        self.plug_in()

    def plug_in(self) -> None:
        _ip("link set near0 up")

    def pull(self) -> None:
        """Cuts the network: packets are lost, and nobody is told."""
        _ip("link set near0 down")

    def close(self) -> None:
        _ip(f"netns delete {self.name}")


def _ip(arguments: str) -> None:
    subprocess.run(["ip", *arguments.split()], check=True)


class RayNodes:
    """A head and its workers on loopback; every port and folder is their own, so other Ray clusters can run beside
    them.

    Args:
        ip: the address of the head, and of workers without a cable.
    """

    def __init__(self, ip: str = _NODE_IP) -> None:
        self.ip = ip
        # Short, because Ray's socket paths must fit in 107 bytes.
        self.folder = Path(tempfile.mkdtemp(prefix="spirl-", dir="/tmp"))
        self.token = self.folder / "token"
        self.token.write_text(secrets.token_hex(32))
        self.gcs_port, self.dashboard_port, self.metrics_port = free_port(), free_port(), free_port()
        self.processes: list[subprocess.Popen[bytes]] = []
        self.started = 0
        """The number of nodes so far, ended ones included; they count in the names of logs and folders."""

    @property
    def address(self) -> str:
        return f"{self.ip}:{self.gcs_port}"

    @property
    def dashboard(self) -> str:
        return f"http://127.0.0.1:{self.dashboard_port}"

    @property
    def environment(self) -> dict[str, str]:
        """The environment variables for the nodes, and for programs that use them."""
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
        return {
            **inherited,
            "OMP_NUM_THREADS": "1",
            "PATH": f"{Path(sys.executable).parent}:{inherited['PATH']}",
            "PYTHONPATH": str(_REPOSITORY),
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN_PATH": str(self.token),
            "RAY_TMPDIR": str(self.folder),
            "RAY_USAGE_STATS_ENABLED": "0",
            "RAY_worker_niceness": "0",  # of 15, workers would starve beside other work
            "RAY_raylet_start_wait_time_s": "120",
        }

    def start_head(self, *options: str, command: Sequence[str] = ("ray", "start", "--head", "--block")) -> None:
        """Starts the head, and returns when its dashboard answers and takes jobs."""
        self.start(
            [
                *command,
                f"--node-ip-address={self.ip}",
                f"--port={self.gcs_port}",
                "--dashboard-host=127.0.0.1",
                f"--dashboard-port={self.dashboard_port}",
                f"--metrics-export-port={self.metrics_port}",
                f"--temp-dir={self.folder}",
                *options,
            ]
        )
        self.wait(self._head_answers)

    def start_worker(
        self, *options: str, command: Sequence[str] = ("ray", "start", "--block"), cable: Cable | None = None
    ) -> None:
        """Starts a worker node, at the far end of a cable if one is given."""
        self.start(
            [
                *(("ip", "netns", "exec", cable.name) if cable is not None else ()),
                *command,
                f"--node-ip-address={self.ip if cable is None else cable.far}",
                f"--address={self.address}",
                f"--metrics-export-port={free_port()}",
                # Of its own: when a node is done with a job's files, it removes them from its folder.
                f"--temp-dir={self.folder / f'n{self.started}'}",
                *options,
            ]
        )

    def start(self, command: Sequence[str], environment: Mapping[str, str] | None = None) -> None:
        ports = [f"--{name}-port={free_port()}" for name in ("dashboard-agent-listen", "dashboard-agent-grpc")]
        client = [f"--ray-client-server-port={free_port()}"] if "--head" in command else []
        store = ["--object-store-memory=100000000", "--disable-usage-stats"]
        with (self.folder / f"node-{self.started}.log").open("wb") as log:
            self.started += 1
            self.processes.append(
                subprocess.Popen(
                    [*command, *ports, *client, *store],
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                    env={**self.environment, **(environment or {})},
                )
            )

    def ask(self, page: str) -> requests.Response:
        headers = {"Authorization": f"Bearer {self.token.read_text()}"}
        return requests.get(f"{self.dashboard}{page}", headers=headers, timeout=60)

    def _head_answers(self) -> bool:
        try:
            # Jobs need the agent of a node, which comes up after the dashboard.
            return self.ask("/api/version").ok and bool(self.alive_nodes())
        except requests.RequestException:
            return False

    def alive_nodes(self) -> list[dict[str, object]]:
        summary = self.ask("/nodes?view=summary").json()["data"]["summary"]
        return [node for node in summary if node["raylet"].get("state") == "ALIVE"]

    def given_up(self) -> int:
        """Counts the nodes that the head has given up. One that only does not answer is missing from `alive_nodes`
        earlier."""
        found = self.ask("/api/v0/nodes").json()["data"]["result"]["result"]
        return sum(node["state"] == "DEAD" for node in found)

    def wait(self, condition: object) -> None:
        deadline = time.monotonic() + _PATIENCE_S
        while not condition():  # type: ignore[operator]
            for process in self.processes:
                assert process.poll() is None, self._logs()
            assert time.monotonic() < deadline, "waited in vain"
            time.sleep(0.5)

    def _logs(self) -> str:
        """What the nodes printed, and the ends of the logs that say why one ended."""
        names = ("node-*.log", "**/logs/raylet.*", "**/logs/dashboard_agent.log", "**/logs/runtime_env_agent.log")
        logs = [log for name in names for log in sorted(self.folder.glob(name))]
        return "\n".join(f"--- {log}\n{log.read_text(errors='replace')[-3000:]}" for log in logs)

    def kill(self, number: int) -> None:
        """Kills a node, by the order in which they were started, with SIGKILL for all of its processes."""
        kill_session(self.processes.pop(number))

    def await_end(self, number: int) -> None:
        """Waits for the raylet of a node to end by itself, and kills what is left of the node."""
        leader = self.processes[number].pid
        deadline = time.monotonic() + _PATIENCE_S
        while any(_program(member) == "raylet" for member in session_members(leader)):
            assert time.monotonic() < deadline, "the node does not end"
            time.sleep(0.5)
        self.kill(number)

    def stop(self) -> None:
        """Ends these nodes and nothing else; removes their files."""
        for process in reversed(self.processes):
            process.terminate()  # with --block, Ray ends what it started
        for process in self.processes:
            try:
                process.wait(timeout=30)
            except subprocess.TimeoutExpired:
                process.kill()
        for process in self.processes:
            kill_session(process)
        shutil.rmtree(self.folder, ignore_errors=True)
