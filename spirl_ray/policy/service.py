"""The requests of ``spirl serve``, read and answered without Ray.

``POST /act`` with ``{"session": NAME, "observation": {FEATURE: numbers}}`` (and ``"reset": true`` at the start of an
episode, ``"seed"``) answers ``{"session", "action", "step"}``; ``DELETE /sessions/NAME`` forgets a session; ``GET /``
says what an observation holds. Bad input is answered with 4xx and ``{"error": …}``, and changes no session.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import unquote

import numpy as np

from spirl_ray.episodes.features import Feature
from spirl_ray.errors import SpirlError
from spirl_ray.policy.policy import Policy
from spirl_ray.policy.sessions import Act, ActRequest
from spirl_ray.skills.execution import Array

BODY_LIMIT_BYTES = 16 * 2**20
_NAME_LIMIT = 200
_FIELDS = {"session", "observation", "reset", "seed"}


class BadRequest(SpirlError):
    """The error of a request that cannot be answered, with its HTTP status."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


@dataclass(frozen=True)
class Forget:
    """A request to forget a session."""

    session: str


class Describe:
    """A request for the description of the policy."""


def read_request(method: str, path: str, body: bytes, policy: Policy) -> ActRequest | Forget | Describe:
    """Reads an HTTP request.

    Args:
        method: such as POST.
        path: without the host and the query.
        body: JSON, or nothing.
        policy: the policy that will act.

    Raises:
        BadRequest: the request is none of those above; the message says what is wrong.
    """
    if path == "/act":
        _allow(method, "POST")
        return _act_request(body, policy)
    if path.startswith("/sessions/"):
        _allow(method, "DELETE")
        return Forget(unquote(path.removeprefix("/sessions/")))
    if path == "/":
        _allow(method, "GET")
        return Describe()
    raise BadRequest(404, f"{path} is not served: POST /act, DELETE /sessions/NAME, GET /")


def _allow(method: str, only: str) -> None:
    if method != only:
        raise BadRequest(405, f"use {only}, not {method}")


def _act_request(body: bytes, policy: Policy) -> ActRequest:
    if len(body) > BODY_LIMIT_BYTES:
        raise BadRequest(413, f"the body has {len(body):,} bytes, at most {BODY_LIMIT_BYTES:,} are read")
    try:
        raw = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise BadRequest(400, f"the body is not JSON: {error}") from None
    if not isinstance(raw, dict):
        raise BadRequest(400, "the body must be a JSON object")
    if unknown := sorted(set(raw) - _FIELDS):
        raise BadRequest(422, f"{unknown[0]!r} is unknown; a request has {', '.join(sorted(_FIELDS))}")
    session, reset, seed = raw.get("session"), raw.get("reset", False), raw.get("seed")
    if not isinstance(session, str) or not 0 < len(session) <= _NAME_LIMIT:
        raise BadRequest(422, f"session must be a text of 1 to {_NAME_LIMIT} characters")
    if session != session.encode(errors="replace").decode():
        raise BadRequest(422, "session holds half a surrogate pair, which is no character")
    if not isinstance(reset, bool):
        raise BadRequest(422, "reset must be true or false")
    if seed is not None and (isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed < 2**32):
        raise BadRequest(422, "seed must be a whole number from 0 to 4294967295")
    given = raw.get("observation")
    if not isinstance(given, dict):
        raise BadRequest(422, f"observation must be an object with {', '.join(policy.features)}")
    observation = {}
    for name, feature in policy.features.items():
        if name not in given:
            raise BadRequest(422, f"the observation lacks the feature {name!r}")
        observation[name] = _value(name, feature, given[name])
    return ActRequest(session, observation, reset, seed)


def _value(name: str, feature: Feature, raw: Any) -> Array:
    """The value of a feature, [*observed_shape] of its dtype."""
    try:
        value = np.asarray(raw)
    except ValueError:
        raise BadRequest(422, f"{name!r} is not an array: its rows differ in length") from None
    if value.dtype.kind not in "iuf":
        raise BadRequest(422, f"{name!r} must hold numbers alone")
    if value.shape != feature.observed_shape:
        raise BadRequest(422, f"{name!r} has the shape {list(value.shape)}, needed is {list(feature.observed_shape)}")
    if feature.is_image:
        if value.dtype.kind == "f" or value.min() < 0 or value.max() > 255:
            raise BadRequest(422, f"{name!r} is an image: whole numbers from 0 to 255")
        return value.astype(np.uint8)
    with np.errstate(over="ignore"):  # such a number becomes infinite
        found = value.astype(np.float32)
    if not np.isfinite(found).all():
        raise BadRequest(422, f"{name!r} holds a number that is not finite in float32")
    return found


def description(policy: Policy) -> dict[str, Any]:
    """What an observation must hold and what an action is, as JSON."""
    spec = policy.execution.model.spec
    return {
        "features": {
            name: {"shape": list(feature.observed_shape), "dtype": np.dtype(feature.dtype).name}
            for name, feature in policy.features.items()
        },
        "action_dim": spec.action_dim,
        "actions": None if spec.actions is None else spec.actions.model_dump(mode="json"),
        "horizon": spec.horizon,
        "deterministic": policy.deterministic,
    }


def answer(request: ActRequest, act: Act) -> Mapping[str, Any]:
    """The JSON that answers a request."""
    return {"session": request.session, "action": act.action.tolist(), "step": act.step}
