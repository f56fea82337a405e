"""Which dashboards are spoken to, with which token, and what is refused before anything is sent there."""

from __future__ import annotations

import errno
import http.server
import json
import os
import socket
import ssl
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import requests
import urllib3

from spirl_ray.cluster import dashboard as dashboards
from spirl_ray.cluster.dashboard import Dashboard, connect, find_dashboard, missing_place
from spirl_ray.config_submit import DriverSettings
from spirl_ray.errors import SpirlError

pytestmark = pytest.mark.usefixtures("no_token")


def answer(monkeypatch: pytest.MonkeyPatch, mode: str | Exception) -> list[str]:
    """Lets every dashboard say that it has this authentication mode; returns the pages that are asked for."""
    asked: list[str] = []

    def get(url: str, **options: Any) -> Any:
        asked.append(url)
        assert "headers" not in options  # not the token, before it is known who is there
        if isinstance(mode, Exception):
            raise mode
        return SimpleNamespace(ok=True, json=lambda: {"authentication_mode": mode})

    monkeypatch.setattr(dashboards.requests, "get", get)
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


def client(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    made: list[dict[str, Any]] = []
    monkeypatch.setattr(
        dashboards, "JobSubmissionClient", lambda url, headers: made.append({"url": url, "headers": headers})
    )
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


@pytest.mark.parametrize(
    ("nodes", "driver", "said"),
    [
        (["0.0/2.0 CPU\n0.0/1.0 spirl_driver", "0.0/2.0 CPU"], {"resources": {"spirl_driver": 1}}, None),
        (["0.0/2.0 CPU\n0B/1.00GiB memory"], {"resources": {"spirl_driver": 1}}, "those of the cluster have 2 CPU"),
        (["0.0/2.0 CPU", "0.0/4.0 CPU"], {"cpus": 4}, None),
        (["0.0/2.0 CPU", "0.0/4.0 CPU"], {"cpus": 8}, "a node with 8 CPU for the driver; those of the cluster have 2"),
        (["0.0/4.0 CPU", "0.0/1.0 GPU"], {"cpus": 4, "gpus": 1}, "a node with 4 CPU, 1 GPU"),  # not on the same node
        (["0B/1.00GiB memory"], {"memory": "512MiB"}, None),
        (["0B/1.00GiB memory"], {"memory": "2GiB"}, "2.0 GiB memory for the driver; those of the cluster have 1.0 GiB"),
        (["0.0/2.0 CPU"], {}, None),
        (None, {"resources": {"spirl_driver": 1}}, None),
    ],
)
def test_a_place_for_the_driver_that_no_node_has_is_named(
    nodes: list[str] | None, driver: dict[str, Any], said: str | None
) -> None:
    data = {} if nodes is None else {"nodeLogicalResources": dict(enumerate(nodes))}
    with Server(404, "", {"/nodes?view=summary": json.dumps({"data": data})}) as server:
        found = missing_place(Dashboard(server.url, "secret"), DriverSettings.model_validate(driver))
    assert (said or "") in (found or "")
    assert (said is None) == (found is None)
