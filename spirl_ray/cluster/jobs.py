"""Jobs on a running Ray cluster: finding its dashboard, submitting, following the log until the job ends."""

from __future__ import annotations

import asyncio
import http.client
import ipaddress
import logging
import os
import shlex
import socket
import ssl
import tempfile
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import aiohttp
import requests
from ray.exceptions import AuthenticationError
from ray.job_submission import JobStatus, JobSubmissionClient

from spirl_ray.cluster import interpreter
from spirl_ray.cluster.shipping import stage
from spirl_ray.config import Experiment
from spirl_ray.datasets.sources import source_options
from spirl_ray.errors import SpirlError
from spirl_ray.pipeline.ray_environment import keep_from_proxies
from spirl_ray.pipeline.resources import SAY_EVERY_S

DEFAULT_DASHBOARD = "http://127.0.0.1:8265"
_TIMEOUT_S = 30.0
_POLL_S = 1.0
_TALKATIVE = (
    "ray.dashboard.modules.dashboard_sdk",
    "ray.dashboard.modules.job.sdk",
    "ray._private.runtime_env.packaging",
)
"""The loggers that would report every package that is uploaded."""
_UNKNOWN_ANSWERS = (RuntimeError, ConnectionError, requests.RequestException, ValueError, KeyError, TypeError)
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
    return Dashboard(url, _token())


def _token() -> str | None:
    """Reads the token from where Ray looks for it, in Ray's order."""
    if token := os.environ.get("RAY_AUTH_TOKEN", "").strip():
        return token
    named = os.environ.get("RAY_AUTH_TOKEN_PATH")
    # Not Path.home(), which fails where there is no home folder.
    path = Path(os.path.expanduser(named or "~/.ray/auth_token"))
    try:
        return path.read_text(encoding="utf-8").strip() or None
    except OSError as error:
        if named:
            raise SpirlError(f"RAY_AUTH_TOKEN_PATH: cannot read {path}: {error.strerror}.") from error
        return None


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
    mode = _authentication_mode(dashboard)
    if mode == "disabled" and not dashboard.is_local:
        raise SpirlError(
            f"{dashboard.url} asks for no token: whoever reaches it can run programs there. Nothing was sent. "
            "Start the cluster with RAY_AUTH_MODE=token (the files in cluster/ do)."
        )
    if mode != "disabled" and dashboard.token is None:
        raise SpirlError(f"{dashboard.url} asks for a token and there is none here. {_TOKEN_HELP}")
    headers = {"Authorization": f"Bearer {dashboard.token}"} if dashboard.token else {}
    for name in _TALKATIVE:
        logging.getLogger(name).setLevel(logging.WARNING)
    # Ray prefers this variable to the argument, so it has to hold an address from the command line.
    os.environ["RAY_API_SERVER_ADDRESS"] = dashboard.url
    try:
        return JobSubmissionClient(dashboard.url, headers=headers)
    except AuthenticationError as error:
        raise SpirlError(f"{dashboard.url} does not accept the token on this machine. {_TOKEN_HELP}") from error
    except _UNKNOWN_ANSWERS as error:
        raise SpirlError(f"{dashboard.url} is no dashboard that jobs can be submitted to: {error}") from error


def _authentication_mode(dashboard: Dashboard) -> str:
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


def check_output(experiment: Experiment) -> Path:
    """Returns the output folder of a job, which must be the same on every node.

    Raises:
        SpirlError: there is none, or it is relative.
    """
    if experiment.output is None or not experiment.output.is_absolute():
        raise SpirlError(
            f"output: {experiment.folder} is relative, and a job's folder is removed when it ends. Name a folder "
            "that every node of the cluster sees under the same path: --set output=/shared/folder."
        )
    for place, source in enumerate(experiment.data.sources):
        for name, value in source_options(source, place):
            if isinstance(value, Path) and not value.expanduser().is_absolute():
                raise SpirlError(
                    f"data.sources.{place}.{name}: {value} is relative. Name it as the nodes of the cluster see it."
                )
    return experiment.output


def submit(
    client: JobSubmissionClient,
    command: Sequence[str],
    *,
    name: str,
    experiment: Experiment | None = None,
    resources: Mapping[str, float] | None = None,
    config: str | None = None,
) -> str:
    """Submits ``spirl COMMAND``, with this package's code and the experiment's settings.

    Args:
        client: the cluster, from `connect`.
        command: arguments of ``spirl``, for example ``["run", layout.JOB_CONFIG]``.
        name: becomes part of the job's id.
        experiment: written to ``experiment.yaml`` in the job's folder.
        resources: what the driver occupies on its node, for example ``{"spirl_driver": 1}``.
        config: the text of that file, where it is more than the experiment.

    Returns:
        The job's id.

    Raises:
        SpirlError: the code is too big to upload, or the cluster refuses the job.
    """
    with tempfile.TemporaryDirectory(prefix="spirl-job-") as folder:
        stage(Path(folder), experiment, config=config)
        try:
            return client.submit_job(
                entrypoint=f"exec {interpreter.COMMAND} " + shlex.join(["-m", "spirl_ray.cli", *command]),
                submission_id=f"spirl-{name}-{uuid.uuid4().hex[:8]}",
                runtime_env={
                    "working_dir": folder,
                    "env_vars": {"PYTHONUNBUFFERED": "1"},
                    "worker_process_setup_hook": interpreter.HOOK,
                },
                metadata={"experiment": name},
                entrypoint_resources=dict(resources) if resources else None,
            )
        except (AuthenticationError, *_UNKNOWN_ANSWERS) as error:
            raise SpirlError(f"The cluster did not take the job: {error}") from error


@dataclass(frozen=True)
class Ending:
    """The end of a job."""

    status: str
    exit_code: int
    """The exit code: 0 for success, else the driver's exit status where it is known, or 1."""
    message: str

    @property
    def reason(self) -> str:
        """The reason in one line, without the log, which has been shown already."""
        return self.message.partition(", last available logs")[0].strip().partition("\n")[0]


def missing_resource(dashboard: Dashboard, resources: Mapping[str, float] | None) -> str | None:
    """Says which resource for a job's driver no node of the cluster has, with those that there are; None where one has
    it, or the dashboard does not tell."""
    headers = {"Authorization": f"Bearer {dashboard.token}"} if dashboard.token else {}
    try:
        answer = requests.get(f"{dashboard.url}/nodes?view=summary", headers=headers, timeout=_TIMEOUT_S).json()
        # A line for each resource, such as "0.0/1.0 spirl_driver".
        lines = [line for text in answer["data"]["nodeLogicalResources"].values() for line in text.splitlines()]
        known = sorted({line.partition(" ")[2] for line in lines})
    except (requests.RequestException, *_UNKNOWN_ANSWERS, AttributeError):
        return None
    for name in resources or {}:
        if known and name not in known:
            return f"a node with the resource {name!r}; those of the cluster have {', '.join(known)}"
    return None


def follow(
    client: JobSubmissionClient, job: str, write: Callable[[str], Any], say_waiting: Callable[[], Any] = lambda: None
) -> Ending:
    """Passes on a job's log as it is written, until the job ends.

    Args:
        client: the cluster.
        job: the job's id.
        write: gets the parts of the log.
        say_waiting: is called once a minute while the job has not started.

    Raises:
        SpirlError: the connection is lost; the job continues.
    """

    async def tail() -> None:
        async for text in client.tail_job_logs(job):
            write(text)

    said, tailed = time.monotonic(), False
    try:
        while not (status := client.get_job_status(job)).is_terminal():
            if status == JobStatus.PENDING:
                if time.monotonic() - said >= SAY_EVERY_S:
                    said = time.monotonic()
                    say_waiting()
            else:
                asyncio.run(tail())
                tailed = True
            time.sleep(_POLL_S)
        if not tailed:
            asyncio.run(tail())  # it has started and ended between two looks
        details = client.get_job_info(job)
    except (AuthenticationError, aiohttp.ClientError, *_UNKNOWN_ANSWERS) as error:
        raise SpirlError(
            f"The connection to the cluster was lost ({error}). If the cluster still runs, so does the job."
        ) from error
    if details.status == JobStatus.SUCCEEDED:
        return Ending("succeeded", 0, "")
    return Ending(str(details.status.value).lower(), details.driver_exit_code or 1, details.message or "")
