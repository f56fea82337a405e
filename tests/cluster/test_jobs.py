"""Which dashboards are spoken to, with which token, and what is refused before a job is sent."""

from __future__ import annotations

import errno
import http.server
import importlib
import json
import os
import shlex
import socket
import ssl
import subprocess
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import requests
import urllib3
from toy import TOY
from typer.testing import CliRunner

from spirl_ray.cli import cluster as cli_cluster
from spirl_ray.cli import main as cli
from spirl_ray.cluster import interpreter, jobs
from spirl_ray.cluster.jobs import Dashboard, check_output, connect, find_dashboard, follow, submit
from spirl_ray.config import parse_experiment
from spirl_ray.errors import SpirlError


@pytest.fixture(autouse=True)
def no_token(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A home without a token, and none of Ray's variables."""
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH", "RAY_API_SERVER_ADDRESS", "RAY_ADDRESS"):
        monkeypatch.delenv(name, raising=False)
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)


def answer(monkeypatch: pytest.MonkeyPatch, mode: str | Exception) -> list[str]:
    """Lets every dashboard say that it has this authentication mode; returns the pages that are asked for."""
    asked: list[str] = []

    def get(url: str, **options: Any) -> Any:
        asked.append(url)
        assert "headers" not in options  # not the token, before it is known who is there
        if isinstance(mode, Exception):
            raise mode
        return SimpleNamespace(ok=True, json=lambda: {"authentication_mode": mode})

    monkeypatch.setattr(jobs.requests, "get", get)
    return asked


class Server:
    """A web server of this test, which notes what it is asked and by whom a token is shown."""

    def __init__(self, status: int, body: str, pages: dict[str, str] | None = None) -> None:
        self.asked: list[str] = []
        self.tokens: list[str] = []
        test = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                test.asked.append(self.path)
                test.tokens += [token for token in [self.headers.get("Authorization")] if token]
                known = (pages or {}).get(self.path)
                self.send_response(status if known is None else 200)
                self.end_headers()
                self.wfile.write((body if known is None else known).encode())

            def log_message(self, *arguments: object) -> None:
                pass

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> Server:
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *error: object) -> None:
        self._server.shutdown()
        self._server.server_close()


@pytest.mark.parametrize(
    ("status", "body", "found"),
    [
        (502, "<html>Bad gateway</html>", "HTTP status 502"),
        (503, "{}", "HTTP status 503"),
        (401, "who are you", "HTTP status 401"),
        (403, "", "HTTP status 403"),
        (404, "nothing here", "HTTP status 404"),
        (200, "<html>Log in</html>", "an answer"),
        (200, "[]", "an answer"),
        (200, '{"authentication_mode": "kerberos"}', "'kerberos'"),
    ],
)
def test_an_unknown_answer_is_never_taken_for_no_token(
    monkeypatch: pytest.MonkeyPatch, status: int, body: str, found: str
) -> None:
    made = client(monkeypatch)
    with Server(status, body) as server, pytest.raises(SpirlError, match="not a Ray dashboard") as caught:
        connect(Dashboard(server.url, "secret"))
    assert found in str(caught.value)
    assert "asks for no token" not in str(caught.value)
    assert (made, server.tokens) == ([], [])


def test_an_old_ray_has_a_version_and_no_page_about_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    made = client(monkeypatch)
    with Server(404, "", {"/api/version": '{"ray_version": "2.40.0"}'}) as server:
        connect(Dashboard(server.url, None))
    assert len(made) == 1


@pytest.mark.parametrize("variable", ["http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"])
def test_no_proxy_is_asked_for_a_dashboard(monkeypatch: pytest.MonkeyPatch, variable: str) -> None:
    monkeypatch.setenv("no_proxy", "other.example")
    with Server(502, "") as proxy, Server(200, '{"authentication_mode": "token"}') as dashboard:
        monkeypatch.setenv(variable, proxy.url)
        monkeypatch.setenv("NO_PROXY", "another.example")
        with pytest.raises(SpirlError):  # past the question for the mode, with the token
            connect(Dashboard(dashboard.url, "secret"))
    assert proxy.asked == []
    assert dashboard.asked[0] == "/api/authentication_mode"
    assert dashboard.tokens == ["Bearer secret"]
    for name in ("no_proxy", "NO_PROXY"):
        assert os.environ[name].split(",") == ["other.example", "another.example", "127.0.0.1"]


def test_a_job_runs_with_the_interpreter_of_ray(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sent: dict[str, Any] = {}
    fake: Any = SimpleNamespace(submit_job=lambda **arguments: sent.update(arguments))
    submit(fake, ["--version"], name="x")
    module, _, function = sent["runtime_env"]["worker_process_setup_hook"].rpartition(".")
    monkeypatch.setenv(interpreter.VARIABLE, "")
    getattr(importlib.import_module(module), function)()  # as Ray does in the process that starts the command
    environment = {**os.environ, "PATH": "/usr/bin:/bin"}
    done = subprocess.run(sent["entrypoint"], shell=True, capture_output=True, text=True, env=environment, check=True)
    assert done.stdout.startswith("spirl-ray ")
    (tmp_path / "python").write_text("#!/bin/sh\necho other $*\n")
    (tmp_path / "python").chmod(0o755)
    environment = {"PATH": f"{tmp_path}:/usr/bin:/bin"}  # a node where Ray calls no hook
    done = subprocess.run(sent["entrypoint"], shell=True, capture_output=True, text=True, env=environment, check=True)
    assert done.stdout == "other -m spirl_ray.cli --version\n"


def client(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    made: list[dict[str, Any]] = []
    monkeypatch.setattr(jobs, "JobSubmissionClient", lambda url, headers: made.append({"url": url, "headers": headers}))
    return made


@pytest.mark.parametrize("address", ["10.0.0.1:6379", "ray://head:10001", "auto", "http://"])
def test_an_address_that_is_no_dashboard_is_refused_with_an_example(address: str) -> None:
    with pytest.raises(SpirlError, match=r"write it like http://127\.0\.0\.1:8265"):
        find_dashboard(address)


def test_the_dashboard_is_the_named_one_or_rays_own_variable_or_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    assert find_dashboard(None).url == "http://127.0.0.1:8265"
    monkeypatch.setenv("RAY_API_SERVER_ADDRESS", "https://a.example")
    assert find_dashboard(None).url == "https://a.example"
    assert find_dashboard("http://b.example:8265/").url == "http://b.example:8265"


def test_the_token_is_found_in_rays_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert find_dashboard(None).token is None
    (tmp_path / ".ray").mkdir()
    (tmp_path / ".ray" / "auth_token").write_text("home\n")
    assert find_dashboard(None).token == "home"
    (tmp_path / "elsewhere").write_text("file")
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(tmp_path / "elsewhere"))
    assert find_dashboard(None).token == "file"
    monkeypatch.setenv("RAY_AUTH_TOKEN", "variable")
    assert find_dashboard(None).token == "variable"


def test_a_token_file_that_is_named_but_not_there_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", "/nowhere/token")
    with pytest.raises(SpirlError, match="RAY_AUTH_TOKEN_PATH: cannot read /nowhere/token: No such file"):
        find_dashboard(None)


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "[::1]", "127.1.2.3"])
def test_loopback_is_local(host: str) -> None:
    assert Dashboard(f"http://{host}:8265", None).is_local


@pytest.mark.parametrize("host", ["10.0.0.1", "head.example", "0.0.0.0", "localhost.example"])
def test_other_hosts_are_remote(host: str) -> None:
    assert not Dashboard(f"http://{host}:8265", None).is_local


def test_a_remote_dashboard_is_not_even_asked_without_a_token(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = answer(monkeypatch, "token")
    with pytest.raises(SpirlError, match=r"there is no token here to show it\. Nothing was sent"):
        connect(Dashboard("https://head.example", None))
    assert asked == []


def test_a_remote_dashboard_that_is_open_to_everybody_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    answer(monkeypatch, "disabled")
    made = client(monkeypatch)
    with pytest.raises(SpirlError, match="asks for no token: whoever reaches it can run programs there"):
        connect(Dashboard("https://head.example", "secret"))
    assert made == []


def test_the_token_is_shown_to_a_dashboard_that_asks_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    answer(monkeypatch, "token")
    made = client(monkeypatch)
    connect(Dashboard("https://head.example", "secret"))
    assert made == [{"url": "https://head.example", "headers": {"Authorization": "Bearer secret"}}]


def test_a_local_dashboard_may_do_without(monkeypatch: pytest.MonkeyPatch) -> None:
    answer(monkeypatch, "disabled")
    made = client(monkeypatch)
    connect(Dashboard("http://127.0.0.1:8265", None))
    assert made[0]["headers"] == {}


def test_a_local_dashboard_that_asks_for_a_token_says_where_it_is_looked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    answer(monkeypatch, "token")
    with pytest.raises(SpirlError, match=r"there is none here\. Put the cluster's token into ~/\.ray/auth_token"):
        connect(Dashboard("http://127.0.0.1:8265", None))


@pytest.mark.parametrize(
    ("cause", "reason"),
    [
        (socket.gaierror(-2, "Name or service not known"), "no machine of this name is known"),
        (OSError(errno.EHOSTUNREACH, "x"), "no route to host"),
        (OSError(errno.ENETUNREACH, "x"), "network is unreachable"),
        (ConnectionRefusedError(errno.ECONNREFUSED, "x"), "connection refused"),
        (ConnectionResetError(errno.ECONNRESET, "x"), "write https://"),
        (http.client.RemoteDisconnected("x"), "write https://"),
        (ssl.SSLError(1, "[SSL: WRONG_VERSION_NUMBER] wrong version number"), "write http://"),
        (ssl.SSLCertVerificationError(1, "self-signed"), "certificate is not accepted ("),
    ],
)
def test_each_cause_of_no_answer_has_its_name(monkeypatch: pytest.MonkeyPatch, cause: Exception, reason: str) -> None:
    error = requests.ConnectionError()
    error.__context__ = urllib3.exceptions.HTTPError()
    error.__context__.__cause__ = cause
    answer(monkeypatch, error)
    with pytest.raises(SpirlError, match=r"Cannot reach a Ray dashboard at http://127\.0\.0\.1:1: ") as caught:
        connect(Dashboard("http://127.0.0.1:1", None))
    assert reason in str(caught.value)


def test_tls_and_plain_connections_that_meet_are_told_apart_from_a_refused_one() -> None:
    with Server(200, "") as server, pytest.raises(SpirlError, match="write http://"):
        connect(Dashboard(server.url.replace("http:", "https:"), None))


def test_a_token_in_the_clear_is_noticed() -> None:
    assert Dashboard("http://head.example:8265", "t").sends_token_in_clear
    assert not Dashboard("https://head.example", "t").sends_token_in_clear
    assert not Dashboard("http://127.0.0.1:8265", "t").sends_token_in_clear


@pytest.mark.parametrize("output", [None, "runs/toy", "./shared"])
def test_a_job_needs_an_output_that_means_the_same_everywhere(output: str | None) -> None:
    with pytest.raises(SpirlError, match=r"output: .* is relative.*--set output=/shared/folder"):
        check_output(parse_experiment({**TOY, "output": output}, "test"))


def test_a_relative_folder_of_demonstrations_is_refused() -> None:
    data = {"sources": [*TOY["data"]["sources"], {"type": "folder", "path": "mine"}]}
    experiment = parse_experiment({**TOY, "output": "/shared", "data": data}, "test")
    with pytest.raises(SpirlError, match=r"data\.sources\.1\.path: mine is relative"):
        check_output(experiment)


def test_submit_refuses_a_uri_with_exit_status_2(tmp_path: Path) -> None:
    from toy import write_config

    result = CliRunner().invoke(cli.app, ["submit", str(write_config(tmp_path)), "--set", "output=s3://bucket/runs"])
    assert result.exit_code == 2
    assert "output: this is a URI, and work is done in a folder" in result.output
    assert "Traceback" not in result.output


@pytest.mark.parametrize(
    ("words", "found"),
    [(["a.yaml"], ("run", "a.yaml")), (["run", "a.yaml"], ("run", "a.yaml")), (["sweep", "s"], ("sweep", "s"))],
)
def test_a_job_runs_the_command_that_is_given(words: list[str], found: tuple[str, str]) -> None:
    assert cli_cluster._command_in(words) == (found[0], Path(found[1]))


@pytest.mark.parametrize("words", [["doctor", "a.yaml"], ["a.yaml", "b.yaml"], ["run", "train", "a.yaml"]])
def test_what_is_no_command_for_a_job_is_refused_with_those_that_are(words: list[str]) -> None:
    result = CliRunner().invoke(cli.app, ["submit", *words])
    assert result.exit_code == 2
    assert f"spirl submit run {words[-1]}" in result.output


class Job:
    """Stands for the client of a cluster; the log breaks off once before the job ends."""

    def __init__(self, status: str, exit_code: int | None) -> None:
        self.status, self.exit_code, self.parts = status, exit_code, [["one "], ["two"]]

    def get_job_status(self, job: str) -> Any:
        return SimpleNamespace(is_terminal=lambda: not self.parts)

    async def tail_job_logs(self, job: str) -> Any:
        for text in self.parts.pop(0):
            yield text

    def get_job_info(self, job: str) -> Any:
        status = jobs.JobStatus(self.status)
        return SimpleNamespace(status=status, driver_exit_code=self.exit_code, message="why")


@pytest.mark.parametrize(
    ("status", "exit_code", "expected"), [("SUCCEEDED", 0, 0), ("FAILED", 2, 2), ("FAILED", None, 1), ("STOPPED", 0, 1)]
)
def test_the_log_is_followed_to_the_end_and_the_exit_status_is_the_drivers(
    monkeypatch: pytest.MonkeyPatch, status: str, exit_code: int | None, expected: int
) -> None:
    monkeypatch.setattr(jobs, "_POLL_S", 0.0)
    seen: list[str] = []
    ending = follow(Job(status, exit_code), "job", seen.append)
    assert "".join(seen) == "one two"
    assert ending.exit_code == expected


def test_a_job_that_does_not_start_is_not_waited_for_in_silence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jobs, "_POLL_S", 0.0)
    monkeypatch.setattr(jobs, "SAY_EVERY_S", 0.0)
    happened: list[str] = []

    class Pending(Job):
        looks = 0

        def get_job_status(self, job: str) -> Any:
            self.looks += 1
            return jobs.JobStatus.PENDING if self.looks < 3 else jobs.JobStatus.SUCCEEDED

    waiting = Pending("SUCCEEDED", 0)
    assert follow(waiting, "job", happened.append, lambda: happened.append("waits")).exit_code == 0
    assert happened == ["waits", "waits", "one "]  # the log of a job that ended at once is there, too


@pytest.mark.parametrize(
    ("nodes", "resources", "said"),
    [
        (["0.0/2.0 CPU\n0.0/1.0 spirl_driver", "0.0/2.0 CPU"], {"spirl_driver": 1.0}, None),
        (
            ["0.0/2.0 CPU\n0B/1GiB memory"],
            {"spirl_driver": 1.0},
            "'spirl_driver'; those of the cluster have CPU, memory",
        ),
        (["0.0/2.0 CPU"], None, None),
        (None, {"spirl_driver": 1.0}, None),
    ],
)
def test_a_resource_that_no_node_has_is_named(nodes: list[str] | None, resources: Any, said: str | None) -> None:
    data = {} if nodes is None else {"nodeLogicalResources": dict(enumerate(nodes))}
    with Server(404, "", {"/nodes?view=summary": json.dumps({"data": data})}) as server:
        found = jobs.missing_resource(Dashboard(server.url, "secret"), resources)
    assert (said or "") in (found or "")
    assert (said is None) == (found is None)


def test_the_reason_of_a_failure_promises_no_log_that_is_not_there() -> None:
    message = "Job entrypoint command failed with exit code 2, last available logs (truncated to 20,000 chars):\nError"
    assert jobs.Ending("failed", 2, message).reason == "Job entrypoint command failed with exit code 2"


@pytest.mark.parametrize("token", [None, "secret"])
def test_the_command_about_a_job_works_in_any_shell(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, token: str | None
) -> None:
    dashboard = Dashboard("http://127.0.0.1:1234", token)
    command = shlex.join(cli_cluster._ray_job("logs", dashboard, "spirl-x", "--follow"))
    (tmp_path / "ray").write_text("#!/bin/sh\necho $RAY_AUTH_MODE $RAY_API_SERVER_ADDRESS $*\n")
    (tmp_path / "ray").chmod(0o755)
    environment = {"PATH": f"{tmp_path}:/usr/bin:/bin", "RAY_API_SERVER_ADDRESS": "http://other.example"}
    done = subprocess.run(command, shell=True, capture_output=True, text=True, env=environment, check=True)
    assert done.stdout.split() == [*(["token"] if token else []), dashboard.url, "job", "logs", "--follow", "spirl-x"]


@pytest.mark.parametrize("command", ["submit", "doctor"])
def test_the_commands_explain_themselves(command: str) -> None:
    result = CliRunner().invoke(cli.app, [command, "--help"])
    assert result.exit_code == 0
    for option in ("--set", "--address"):
        assert option in result.output
