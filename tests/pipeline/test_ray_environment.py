"""What a command inherits does not stop it, and causes of a Ray that does not start are told apart."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from spirl_ray.config import RaySettings
from spirl_ray.errors import SpirlError
from spirl_ray.pipeline.ray_environment import keep_from_proxies, prepare_ray
from spirl_ray.pipeline.ray_start import advice, check_address
from spirl_ray.pipeline.session import ray_session


@pytest.fixture(autouse=True)
def own_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """An environment that the test may change."""
    monkeypatch.setattr(os, "environ", os.environ.copy())
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        os.environ.pop(name, None)
        os.environ.pop(name.upper(), None)


def test_what_the_program_needs_is_set_and_what_the_user_may_choose_is_left() -> None:
    os.environ |= {"RAY_TRAIN_V2_ENABLED": "0", "RAY_USAGE_STATS_ENABLED": "1"}
    os.environ["RAY_RUNTIME_ENV_HOOK"] = "ray._private.runtime_env.uv_runtime_env_hook.hook"
    os.environ.pop("RAY_ENABLE_UV_RUN_RUNTIME_ENV", None)
    prepare_ray()
    assert os.environ["RAY_TRAIN_V2_ENABLED"] == "1"
    assert os.environ["RAY_USAGE_STATS_ENABLED"] == "1"
    assert os.environ["RAY_ENABLE_UV_RUN_RUNTIME_ENV"] == "0"
    assert "RAY_RUNTIME_ENV_HOOK" not in os.environ


def test_another_hook_is_the_users_own() -> None:
    os.environ["RAY_RUNTIME_ENV_HOOK"] = "my.hook"
    prepare_ray()
    assert os.environ["RAY_RUNTIME_ENV_HOOK"] == "my.hook"


@pytest.mark.parametrize("proxy", ["http_proxy", "HTTPS_PROXY", "ALL_PROXY"])
@pytest.mark.parametrize("known", ["", "a.example, b.example"])
def test_loopback_is_never_asked_through_a_proxy(proxy: str, known: str) -> None:
    os.environ |= {proxy: "http://proxy.example:3128", "NO_PROXY": known}
    prepare_ray()
    prepare_ray()
    for name in ("no_proxy", "NO_PROXY"):
        hosts = os.environ[name].split(",")
        assert hosts == [*(["a.example", "b.example"] if known else []), "127.0.0.1", "localhost", "::1"]


def test_without_a_proxy_nothing_is_set_and_none_for_all_stays() -> None:
    keep_from_proxies("head.example")
    assert "no_proxy" not in os.environ
    os.environ |= {"http_proxy": "http://proxy.example:3128", "no_proxy": "*"}
    keep_from_proxies("head.example")
    assert os.environ["no_proxy"] == "*"


@pytest.mark.parametrize("backend", ["module://nowhere.backend", "no such", "agg"])
def test_figures_need_no_window_whatever_backend_is_inherited(backend: str) -> None:
    program = (
        "from spirl_ray.pipeline.ray_environment import prepare_ray; prepare_ray(); import spirl_ray.reports.plots; "
        "import matplotlib; print(matplotlib.get_backend())"
    )
    environment = {**os.environ, "MPLBACKEND": backend}
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=environment)
    assert (done.stdout.strip(), done.returncode) == ("agg", 0), done.stderr


# --- a cluster that is not there ---


def closed_port() -> int:
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        return int(listening.getsockname()[1])


def test_an_address_at_which_nothing_listens_is_refused_at_once_with_where_it_comes_from() -> None:
    address = f"127.0.0.1:{closed_port()}"
    with pytest.raises(SpirlError, match=rf"{address} \(ray\.address\).*Leave ray\.address out"):
        check_address(address, "ray.address")
    with pytest.raises(SpirlError, match=rf"{address} \(RAY_ADDRESS\).*Unset RAY_ADDRESS"):
        check_address(address, "RAY_ADDRESS")


@pytest.mark.parametrize("address", ["http://127.0.0.1:8265", "ray://head:10001", "head", "head:port", ":6379", ""])
def test_an_address_of_another_form_is_refused(address: str) -> None:
    with pytest.raises(SpirlError, match=r"RAY_ADDRESS.*HOST:6379"):
        check_address(address, "RAY_ADDRESS")


@contextlib.contextmanager
def answering(text: bytes) -> Iterator[str]:
    """The address of a server that says this to whoever connects."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def answer() -> None:
            connection, _ = server.accept()
            with connection:
                connection.recv(100)
                connection.sendall(text)

        thread = threading.Thread(target=answer)
        thread.start()
        yield f"127.0.0.1:{server.getsockname()[1]}"
        thread.join()


def test_a_cluster_that_answers_is_not_refused() -> None:
    with answering(b"\x00\x00\x18\x04\x00\x00\x00\x00\x00") as address:
        check_address(address, "RAY_ADDRESS")
    check_address("auto", "RAY_ADDRESS")


@pytest.mark.parametrize(
    ("text", "what"),
    [
        (b"HTTP/1.0 400 Bad Request\r\n", "--address http://{}"),
        (b"SSH-2.0-OpenSSH\r\n", "{} is no Ray"),
        (b"", "no Ray"),
    ],
)
def test_what_answers_and_is_no_cluster_is_refused_at_once(text: bytes, what: str) -> None:
    with answering(text) as address, pytest.raises(SpirlError) as caught:
        check_address(address, "--address")
    assert what.format(address) in str(caught.value)


def test_a_stale_ray_address_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ray.is_initialized", lambda: False)
    os.environ["RAY_ADDRESS"] = f"127.0.0.1:{closed_port()}"
    with pytest.raises(SpirlError, match="Unset RAY_ADDRESS"), ray_session(RaySettings()):
        pass


# --- a local Ray that does not start ---


@pytest.mark.parametrize(
    ("error", "what"),
    [
        (
            OSError("validate_socket_filename failed: AF_UNIX path length cannot exceed 107 bytes: /x"),
            "RAY_TMPDIR=/tmp",
        ),
        (PermissionError(13, "Permission denied", "/scratch/mine/ray"), "RAY_TMPDIR"),
        (FileNotFoundError(2, "No such file or directory", "/home/me/.ray"), "HOME"),
        (OSError(30, "Read-only file system", "/home"), "HOME"),
        (OSError(28, "No space left on device", "/var/x"), "/var/x"),
        (ValueError("After taking into account object store and redis memory usage"), "ray.object_store_mb"),
        (
            RuntimeError("Failed to set up runtime environment. Package size (572.21MiB) exceeds"),
            "RAY_RUNTIME_ENV_HOOK",
        ),
        (Exception("The current node timed out during startup."), "busy"),
    ],
)
def test_each_cause_has_its_own_advice(error: Exception, what: str) -> None:
    os.environ |= {"RAY_TMPDIR": "/scratch/mine", "HOME": "/home/me"}
    assert what in advice(error)
    assert ("busy" in advice(error)) == (what == "busy")


def test_the_variable_that_is_to_be_changed_is_the_one_that_is_set() -> None:
    os.environ.pop("RAY_TMPDIR", None)
    os.environ["TMPDIR"] = "/long"
    assert "because TMPDIR is /long" in advice(OSError("AF_UNIX path length"))
    os.environ["RAY_TMPDIR"] = "/longer"
    assert "because RAY_TMPDIR is /longer" in advice(OSError("AF_UNIX path length"))


@pytest.mark.slow
@pytest.mark.parametrize(("variable", "value"), [("RAY_TMPDIR", f"/tmp/{'x' * 80}"), ("HOME", "/proc/nohome")])
def test_a_command_names_the_variable_that_keeps_ray_from_starting(tmp_path: Path, variable: str, value: str) -> None:
    from toy import write_config

    environment = {**os.environ, variable: value}
    for name in ("RAY_ADDRESS", *({"RAY_TMPDIR"} - {variable})):
        environment.pop(name, None)
    done = subprocess.run(
        [sys.executable, "-m", "spirl_ray.cli", "data", "import", str(write_config(tmp_path))],
        capture_output=True,
        text=True,
        env=environment,
    )
    assert done.returncode == 2, done.stderr
    assert f"{variable}" in done.stderr
    assert done.stderr.count("\n") == 1, done.stderr
