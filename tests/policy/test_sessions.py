"""Many sessions at once act as one policy for each would, and bad requests are answered with 4xx and change nothing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from toy_skills import STATE, random_observations, save_toy_policy, save_toy_skills, toy_model

from spirl_ray.episodes.features import Feature, Features
from spirl_ray.policy.policy import Policy, load_policy
from spirl_ray.policy.service import (
    BODY_LIMIT_BYTES,
    BadRequest,
    Describe,
    Forget,
    answer,
    description,
    read_request,
)
from spirl_ray.policy.sessions import Act, ActRequest, PolicySessions, TooManySessions

IMAGES: Features = {"state": Feature(shape=(4,)), "view": Feature(shape=(8, 8, 1), role="image", frames=2)}
STEPS, NAMES = 12, ("a", "b", "c")


def made(folder: Path, decoder: str = "closed_loop", features: Features = STATE, **card: Any) -> Path:
    skills = save_toy_skills(folder / "skills", toy_model(decoder, features))
    return save_toy_policy(folder / "policy", skills, features, **card)


def observations(features: Features, number: int) -> list[dict[str, np.ndarray]]:
    rows = random_observations(features, STEPS, seed=number)
    return [{name: value[step].numpy() for name, value in rows.items()} for step in range(STEPS)]


def acted(sessions: PolicySessions, *requests: ActRequest) -> list[Act]:
    found = sessions.act(requests)
    acts = [one for one in found if isinstance(one, Act)]
    assert len(acts) == len(requests), found
    return acts


@pytest.mark.parametrize("deterministic", [True, False])
@pytest.mark.parametrize("decoder", ["closed_loop", "open_loop", "identity", "plan", "flow"])
def test_sessions_act_as_policies_of_their_own(tmp_path: Path, decoder: str, deterministic: bool) -> None:
    folder = made(tmp_path, decoder, IMAGES, latent_limit=2.0)
    seen = {name: observations(IMAGES, number) for number, name in enumerate(NAMES)}
    sessions = PolicySessions(load_policy(folder, deterministic=deterministic))
    found: dict[str, list[np.ndarray]] = {name: [] for name in NAMES}
    for step in range(STEPS):
        # The second session begins later, and the third one is sometimes not asked, so their skills are out of step.
        asked = [name for name in NAMES if not (name == "b" and step < 2) and not (name == "c" and step % 3 == 1)]
        requests = [
            ActRequest(name, seen[name][step], seed=7 + NAMES.index(name) if not found[name] else None)
            for name in asked
        ]
        for name, act in zip(asked, acted(sessions, *requests), strict=True):
            found[name].append(act.action)
    for number, name in enumerate(NAMES):
        policy = load_policy(folder, deterministic=deterministic, seed=7 + number)
        steps = [s for s in range(STEPS) if not (name == "b" and s < 2) and not (name == "c" and s % 3 == 1)]
        expected = [policy.act(seen[name][step]) for step in steps]
        np.testing.assert_allclose(np.stack(found[name]), np.stack(expected), atol=1e-6)


def test_sessions_without_a_seed_draw_their_own_latents(tmp_path: Path) -> None:
    sessions = PolicySessions(load_policy(made(tmp_path), deterministic=False))
    seen = observations(STATE, 0)[0]
    one, other = acted(sessions, ActRequest("a", seen), ActRequest("b", seen))
    assert not np.allclose(one.action, other.action)


def test_two_observations_of_one_session_in_a_batch_follow_each_other(tmp_path: Path) -> None:
    folder, seen = made(tmp_path), observations(STATE, 0)
    first, second, other = acted(
        PolicySessions(load_policy(folder)),
        ActRequest("a", seen[0]),
        ActRequest("a", seen[1]),
        ActRequest("b", seen[2]),
    )
    policy = load_policy(folder)
    np.testing.assert_allclose(first.action, policy.act(seen[0]), atol=1e-6)
    np.testing.assert_allclose(second.action, policy.act(seen[1]), atol=1e-6)
    assert (first.step, second.step, other.step) == (0, 1, 0)


def test_a_reset_begins_a_new_skill(tmp_path: Path) -> None:
    sessions, seen = PolicySessions(load_policy(made(tmp_path, "open_loop"))), observations(STATE, 0)
    assert [acted(sessions, ActRequest("a", seen[0]))[0].step for _ in range(7)] == [0, 1, 2, 3, 4, 0, 1]
    assert acted(sessions, ActRequest("a", seen[0], reset=True))[0].step == 0


def test_no_session_in_use_is_lost_to_a_new_one(tmp_path: Path) -> None:
    now = [0.0]
    sessions = PolicySessions(load_policy(made(tmp_path)), most=2, idle_s=10.0, clock=lambda: now[0])
    seen = observations(STATE, 0)
    acted(sessions, ActRequest("a", seen[0]), ActRequest("b", seen[0]))
    refused, served = sessions.act([ActRequest("c", seen[0]), ActRequest("a", seen[1])])
    assert isinstance(refused, TooManySessions)
    assert isinstance(served, Act)
    assert served.step == 1
    now[0] = 9.0
    acted(sessions, ActRequest("a", seen[0]))
    now[0] = 11.0
    assert acted(sessions, ActRequest("c", seen[0]))[0].step == 0
    assert acted(sessions, ActRequest("a", seen[0]))[0].step == 3
    assert sessions.end("c")
    assert not sessions.end("c")


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> Policy:
    return load_policy(made(tmp_path_factory.mktemp("served"), features=IMAGES))


GOOD: dict[str, Any] = {
    "session": "a",
    "observation": {"state": [0.1, 0.2, 0.3, 4], "view": np.zeros((2, 8, 8, 1), int).tolist(), "more": "ignored"},
}


def test_a_good_request_is_read(policy: Policy) -> None:
    body = json.dumps({**GOOD, "reset": True, "seed": 3}).encode()
    asked = read_request("POST", "/act", body, policy)
    assert isinstance(asked, ActRequest)
    assert (asked.session, asked.reset, asked.seed) == ("a", True, 3)
    assert {name: (value.dtype.name, value.shape) for name, value in asked.observation.items()} == {
        "state": ("float32", (4,)),
        "view": ("uint8", (2, 8, 8, 1)),
    }
    [act] = PolicySessions(policy).act([asked])
    assert isinstance(act, Act)
    said = json.loads(json.dumps(answer(asked, act)))
    assert (said["session"], said["step"], len(said["action"])) == ("a", 0, 2)
    assert isinstance(read_request("GET", "/", b"", policy), Describe)
    assert read_request("DELETE", "/sessions/a%20b", b"", policy) == Forget("a b")
    assert description(policy)["features"]["view"] == {"shape": [2, 8, 8, 1], "dtype": "uint8"}


def changed(**observation: Any) -> dict[str, Any]:
    return {**GOOD, "observation": {**GOOD["observation"], **observation}}


BAD: dict[str, tuple[str, str, Any, int, str]] = {
    "path": ("GET", "/else", b"", 404, "/act"),
    "method": ("GET", "/act", b"", 405, "POST"),
    "no JSON": ("POST", "/act", b"{", 400, "JSON"),
    "deep JSON": ("POST", "/act", b"[" * 100_000, 400, "JSON"),
    "no text": ("POST", "/act", b"\xff", 400, "JSON"),
    "a list": ("POST", "/act", [], 400, "object"),
    "too long": ("POST", "/act", b" " * (BODY_LIMIT_BYTES + 1), 413, "bytes"),
    "another key": ("POST", "/act", {**GOOD, "sesion": "a"}, 422, "'sesion'"),
    "no session": ("POST", "/act", {"observation": {}}, 422, "session"),
    "a long session": ("POST", "/act", {**GOOD, "session": "a" * 201}, 422, "session"),
    "half a character": ("POST", "/act", {**GOOD, "session": "\ud800"}, 422, "session"),
    "reset": ("POST", "/act", {**GOOD, "reset": 1}, 422, "reset"),
    "seed": ("POST", "/act", {**GOOD, "seed": -1}, 422, "seed"),
    "no observation": ("POST", "/act", {"session": "a"}, 422, "view, state"),
    "no feature": ("POST", "/act", {"session": "a", "observation": {"state": [0, 0, 0, 0]}}, 422, "'view'"),
    "shape": ("POST", "/act", changed(state=[1.0, 2.0]), 422, r"\[2\].*\[4\]"),
    "ragged": ("POST", "/act", changed(state=[[1], [2, 3]]), 422, "'state'"),
    "words": ("POST", "/act", changed(state=["a"] * 4), 422, "'state'"),
    "null": ("POST", "/act", changed(state=[None] * 4), 422, "'state'"),
    "not finite": ("POST", "/act", changed(state=[float("nan"), 1, 1, 1]), 422, "finite"),
    "too large": ("POST", "/act", changed(state=[1e300, 0, 0, 0]), 422, "finite"),
    "huge whole numbers": ("POST", "/act", changed(state=[10**400, 0, 0, 0]), 422, "'state'"),
    "image of fractions": ("POST", "/act", changed(view=np.full((2, 8, 8, 1), 0.5).tolist()), 422, "'view'"),
    "image out of range": ("POST", "/act", changed(view=np.full((2, 8, 8, 1), 256).tolist()), 422, "'view'"),
}


@pytest.mark.parametrize("case", BAD)
@pytest.mark.filterwarnings("error")
def test_bad_requests_are_refused_with_4xx(policy: Policy, case: str) -> None:
    method, path, body, status, message = BAD[case]
    with pytest.raises(BadRequest, match=message) as refused:
        read_request(method, path, body if isinstance(body, bytes) else json.dumps(body).encode(), policy)
    assert refused.value.status == status
