"""A policy over HTTP with Ray Serve: batched, one running skill for each session.

There is one replica, because a session's skill is in its memory. The requests are those of `spirl_ray.policy.service`.
"""

from __future__ import annotations

import contextlib
import logging
import socket
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import torch

from spirl_ray.config import RaySettings
from spirl_ray.errors import SpirlError
from spirl_ray.pipeline.ray_environment import prepare_ray
from spirl_ray.pipeline.session import ray_session
from spirl_ray.policy.policy import load_policy
from spirl_ray.policy.service import BODY_LIMIT_BYTES, BadRequest, Describe, Forget, answer, description, read_request
from spirl_ray.policy.sessions import Act, ActRequest, PolicySessions, TooManySessions

if TYPE_CHECKING:
    from starlette.requests import Request
    from starlette.responses import Response

_APPLICATION = "spirl"
_OPEN_REQUESTS = 1000


@dataclass(frozen=True)
class ServingSettings:
    """The settings of a policy's server."""

    folder: str
    """The folder of the policy, an absolute path, or ``hf://ORG/NAME``."""
    host: str = "127.0.0.1"
    port: int = 8000
    deterministic: bool = True
    batch: int = 64
    """The most observations that pass through the networks together."""
    wait_s: float = 0.002
    """The time in seconds that an observation waits for others to join its batch."""
    sessions: int = 1000
    """The most sessions at the same time."""


ActTogether = Callable[[list[ActRequest]], Awaitable[list[Act | SpirlError]]]
ActAlone = Callable[[ActRequest], Awaitable[Act | SpirlError]]


def _batched(settings: ServingSettings, act: ActTogether) -> ActAlone:
    """Lets Ray Serve gather single requests to batches."""
    from ray import serve

    return serve.batch(max_batch_size=settings.batch, batch_wait_timeout_s=settings.wait_s)(act)


class PolicyServer:
    """The replica: reads requests, and answers those that arrive together in one batch.

    Args:
        settings: which policy, and how it is served.
        batched: what gathers single requests to batches; Ray Serve's needs a replica.
    """

    def __init__(
        self, settings: ServingSettings, batched: Callable[[ServingSettings, ActTogether], ActAlone] = _batched
    ) -> None:
        torch.set_num_threads(1)
        policy = load_policy(settings.folder, deterministic=settings.deterministic)
        self.sessions = PolicySessions(policy, most=settings.sessions)

        async def act(requests: list[ActRequest]) -> list[Act | SpirlError]:
            return self.sessions.act(requests)

        self._act = batched(settings, act)

    async def __call__(self, request: Request) -> Response:
        from starlette.responses import JSONResponse

        try:
            return JSONResponse(await self._answer(request))
        except BadRequest as error:
            return JSONResponse({"error": str(error)}, status_code=error.status)

    async def _answer(self, request: Request) -> Any:
        size = request.headers.get("content-length", "0")
        if size.isdecimal() and int(size) > BODY_LIMIT_BYTES:
            raise BadRequest(413, f"the body has {int(size):,} bytes, at most {BODY_LIMIT_BYTES:,} are read")
        policy = self.sessions.policy
        asked = read_request(request.method, request.url.path, await request.body(), policy)
        if isinstance(asked, Describe):
            return description(policy)
        if isinstance(asked, Forget):
            if not self.sessions.end(asked.session):
                raise BadRequest(404, f"there is no session {asked.session!r}")
            return {"session": asked.session}
        found = await self._act(asked)
        if isinstance(found, SpirlError):
            raise BadRequest(429 if isinstance(found, TooManySessions) else 400, str(found))
        return answer(asked, found)


@contextlib.contextmanager
def serving(settings: ServingSettings) -> Iterator[str]:
    """Serves a policy until the block ends, in a Ray of its own on this machine; yields its address.

    Raises:
        SpirlError: Ray Serve is not installed, the policy cannot be loaded, or the port is taken.
    """
    missing = [name for name in ("fastapi", "starlette", "uvicorn") if find_spec(name) is None]
    if missing:
        raise SpirlError(f"Serving needs {', '.join(missing)}: pip install 'spirl-ray[serve]'.")
    load_policy(settings.folder)  # what is wrong with it is said before anything is started
    _check_port(settings)
    prepare_ray()
    import ray
    from ray.exceptions import RayError

    ours = not ray.is_initialized()
    with ray_session(RaySettings(address="local")):
        from ray import serve

        logging.getLogger("ray.serve").setLevel(logging.WARNING)  # after the import, which sets it
        quiet = {"log_level": "WARNING", "enable_access_log": False}
        try:
            serve.start(http_options={"host": settings.host, "port": settings.port}, logging_config=quiet)
            deployment = serve.deployment(
                PolicyServer, name=_APPLICATION, num_replicas=1, max_ongoing_requests=_OPEN_REQUESTS
            )
            serve.run(deployment.bind(settings), name=_APPLICATION, route_prefix="/", logging_config=quiet)
        except (RayError, RuntimeError, TimeoutError) as error:
            raise SpirlError(
                f"Ray Serve did not start: {str(error).strip().splitlines()[0]} On a busy machine, try again later."
            ) from error
        try:
            yield f"http://{settings.host}:{settings.port}"
        finally:
            if not ours:  # a Ray of our own ends with all that is in it
                serve.shutdown()


def _check_port(settings: ServingSettings) -> None:
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    with socket.socket(family) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((settings.host, settings.port))
        except OSError as error:
            raise SpirlError(
                f"Cannot listen on {settings.host}:{settings.port}: {error.strerror}. Choose another --host or --port."
            ) from error
