"""The dashboard of a running Ray cluster: its address, its token, the connection to its job service, and its nodes."""

from __future__ import annotations

import http.client
import ipaddress
import logging
import os
import re
import socket
import ssl
from collections.abc import Mapping
from dataclasses import dataclass
from urllib.parse import urlsplit

import requests
from pydantic import ByteSize, TypeAdapter
from ray.exceptions import AuthenticationError
from ray.job_submission import JobSubmissionClient

from spirl_ray.cluster.sealing import read_token
from spirl_ray.config_submit import DriverSettings
from spirl_ray.errors import SpirlError
from spirl_ray.pipeline.ray_environment import keep_from_proxies

DEFAULT_DASHBOARD = "http://127.0.0.1:8265"
_TIMEOUT_S = 30.0
_TALKATIVE = (
    "ray.dashboard.modules.dashboard_sdk",
    "ray.dashboard.modules.job.sdk",
    "ray._private.runtime_env.packaging",
)
"""The loggers that would report every package that is uploaded."""
UNKNOWN_ANSWERS = (RuntimeError, ConnectionError, requests.RequestException, ValueError, KeyError, TypeError)
"""Ray's client raises these where something else answers than it expects."""
_TOKEN_HELP = (
    "Put the cluster's token into ~/.ray/auth_token, or point RAY_AUTH_TOKEN_PATH to a file that holds it "
    "(on the head node, `ray get-auth-token` prints it)."
)


@dataclass(frozen=True)
class Dashboard:
    """The address of a cluster's dashboard, and the token for it (None: there is none on this machine)."""

    url: str
    token: str | None

    @property
    def is_local(self) -> bool:
        """True for this machine's loopback, which is also where tunnels end."""
        return _is_loopback(urlsplit(self.url).hostname or "")

    @property
    def sends_token_in_clear(self) -> bool:
        return not self.is_local and self.url.startswith("http://")

    @property
    def headers(self) -> dict[str, str]:
        """The headers that show the token, where there is one."""
        return {"Authorization": f"Bearer {self.token}"} if self.token else {}

    def link(self, job: str) -> str:
        """The address of a job's page."""
        return f"{self.url}/#/jobs/{job}"


def find_dashboard(address: str | None) -> Dashboard:
    """Finds the dashboard at an address, at Ray's ``RAY_API_SERVER_ADDRESS``, or on this machine.

    Raises:
        SpirlError: the address is not http(s), or a token file cannot be read.
    """
    url = (address or os.environ.get("RAY_API_SERVER_ADDRESS") or DEFAULT_DASHBOARD).rstrip("/")
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise SpirlError(
            f"--address {url}: jobs go to the dashboard of a cluster, so write it like {DEFAULT_DASHBOARD}. "
            "(Port 6379, where the nodes of a cluster meet, is another one.)"
        )
    return Dashboard(url, read_token())


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def connect(dashboard: Dashboard) -> JobSubmissionClient:
    """Connects to the cluster's job service, unless strangers could submit to it as well.

    Raises:
        SpirlError: a remote dashboard has no token authentication, there is no token for it, it is wrong, or nothing
            answers.
    """
    if not dashboard.is_local and dashboard.token is None:
        raise SpirlError(
            f"{dashboard.url} is on another machine and there is no token here to show it. Nothing was sent. "
            + _TOKEN_HELP
        )
    # The token is for the dashboard alone, and a proxy would see it.
    keep_from_proxies(urlsplit(dashboard.url).hostname or "")
    mode = authentication_mode(dashboard)
    if mode == "disabled" and not dashboard.is_local:
        raise SpirlError(
            f"{dashboard.url} asks for no token: whoever reaches it can run programs there. Nothing was sent. "
            "Start the cluster with RAY_AUTH_MODE=token (the files in cluster/ do)."
        )
    if mode != "disabled" and dashboard.token is None:
        raise SpirlError(f"{dashboard.url} asks for a token and there is none here. {_TOKEN_HELP}")
    for name in _TALKATIVE:
        logging.getLogger(name).setLevel(logging.WARNING)
    # Ray prefers this variable to the argument, so it has to hold an address from the command line.
    os.environ["RAY_API_SERVER_ADDRESS"] = dashboard.url
    try:
        return JobSubmissionClient(dashboard.url, headers=dashboard.headers)
    except AuthenticationError as error:
        raise SpirlError(f"{dashboard.url} does not accept the token on this machine. {_TOKEN_HELP}") from error
    except UNKNOWN_ANSWERS as error:
        raise SpirlError(f"{dashboard.url} is no dashboard that jobs can be submitted to: {error}") from error


def authentication_mode(dashboard: Dashboard) -> str:
    """Asks the dashboard for its authentication mode, without the token: ``disabled`` or ``token``.

    Raises:
        SpirlError: nothing answers, or something that is not known to be a Ray dashboard.
    """
    answer = _ask(dashboard, "authentication_mode")
    if answer.ok:
        mode = _field(answer, "authentication_mode")
        if mode in ("disabled", "token"):
            return mode
        found = "an answer that it does not have" if mode is None else f"the authentication mode {mode!r}"
    elif answer.status_code == requests.codes.not_found and _field(_ask(dashboard, "version"), "ray_version"):
        return "disabled"  # Ray before 2.52 has no tokens, and not this page either
    else:
        found = f"HTTP status {answer.status_code}"
    raise SpirlError(
        f"What answers at {dashboard.url} is not a Ray dashboard that this version knows: it gave {found}. Nothing was "
        "sent. A proxy or a load balancer may answer in its place; name the dashboard itself with --address, or a "
        "tunnel to it."
    )


def _ask(dashboard: Dashboard, page: str) -> requests.Response:
    try:
        return requests.get(f"{dashboard.url}/api/{page}", timeout=_TIMEOUT_S)
    except requests.RequestException as error:
        raise SpirlError(
            f"Cannot reach a Ray dashboard at {dashboard.url}: {_reason(error)}. Check that the cluster runs and that "
            "its port is open or tunnelled to here, and name it with --address. Proxies are not used for it."
        ) from error


def _field(answer: requests.Response, name: str) -> str | None:
    """A field of an answer in JSON; None where there is none."""
    try:
        return str(answer.json()[name])
    except (ValueError, KeyError, TypeError, IndexError):
        return None


def _reason(error: requests.RequestException) -> str:
    """Why there is no answer, each cause by its name."""
    if isinstance(error, requests.Timeout):
        return "no answer in time"
    chain: list[BaseException] = [error]
    while (inner := chain[-1].__cause__ or chain[-1].__context__) is not None and inner not in chain:
        chain.append(inner)
    if any(isinstance(each, ssl.SSLCertVerificationError) for each in chain):
        return f"its certificate is not accepted ({chain[-1]})"
    if any(isinstance(each, ssl.SSLError) for each in chain):
        return f"it does not speak TLS as this machine does, or not at all; then write http:// ({chain[-1]})"
    if any(isinstance(each, socket.gaierror) for each in chain):
        return "no machine of this name is known"
    if any(isinstance(each, ConnectionResetError | http.client.BadStatusLine) for each in chain):
        return "it broke the connection off; if it speaks TLS, write https://"
    numbers = [each.errno for each in chain if isinstance(each, OSError) and each.errno]
    return os.strerror(numbers[-1]).lower() if numbers else str(error)


def missing_place(dashboard: Dashboard, driver: DriverSettings) -> str | None:
    """Says what a job's driver asks for, where no node of the cluster has all of it, with what the nodes have; None
    where one has it, or the dashboard does not tell. It does not tell of labels."""
    page = f"{dashboard.url}/nodes?view=summary"
    try:
        answer = requests.get(page, headers=dashboard.headers, timeout=_TIMEOUT_S).json()
        nodes = [_totals(text) for text in answer["data"]["nodeLogicalResources"].values()]
    except (requests.RequestException, *UNKNOWN_ANSWERS, AttributeError):
        return None
    asked = driver.asked
    if not nodes or any(all(node.get(name, 0) >= amount for name, amount in asked.items()) for node in nodes):
        return None
    having = "; ".join(dict.fromkeys(_amounts({name: node[name] for name in sorted(node)}) for node in nodes))
    return f"a node with {_amounts(asked)} for the driver; those of the cluster have {having}"


def _totals(text: str) -> dict[str, float]:
    """The resources of a node in lines such as ``0.0/1.0 spirl_driver`` and ``0B/1.50GiB memory``."""
    found = re.findall(r"/(\S+) (\S+)", text)
    return {
        name: float(total if total[-1] != "B" else TypeAdapter(ByteSize).validate_python(total))
        for total, name in found
    }


def _amounts(resources: Mapping[str, float]) -> str:
    return ", ".join(
        f"{amount / 2**30:.1f} GiB {name}" if name.endswith("memory") else f"{amount:g} {name}"
        for name, amount in resources.items()
    )
