"""A look at an environment before it is used: what it holds, how it is read, its seeding and its speed."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from dataclasses import dataclass

import gymnasium
import numpy as np

import spirl_ray.envs as envs
from spirl_ray.config_environment import EnvironmentSettings
from spirl_ray.envs.adapter import AdaptedEnv, author_error
from spirl_ray.envs.interface import key_layouts, unrecognised_images
from spirl_ray.envs.spec import EnvironmentSpec
from spirl_ray.episodes.features import Array
from spirl_ray.errors import SpirlError

_SEEDED_STEPS = 5


@dataclass(frozen=True)
class EnvironmentInspection:
    """What a look at an environment found."""

    spec: EnvironmentSpec
    keys: Mapping[str, str]
    """The keys of its own observations, with type and shape."""
    left_out: tuple[str, ...]
    """The keys that are no feature."""
    unrecognised: tuple[str, ...]
    """The keys that look like images and are read as numbers, each with what to do, in words."""
    own_actions: str
    """Its own action space."""
    seeded: bool
    """True where the same seed and actions gave the same observations and rewards in two instances."""
    reset_ms: float
    step_ms: float
    instance_mb: float
    """The growth of this process (MB) for one more instance."""
    steps: int
    """The number of random steps that were taken."""
    episodes: int
    """The number of episodes that ended in them."""
    success: str
    """What was seen of success in them, in words."""
    info_keys: tuple[str, ...]
    """The keys of info."""
    rewards: tuple[float, float]
    """The least and the greatest reward of a step."""
    render_problem: str | None
    """Why it cannot be rendered."""


def inspect_environment(settings: EnvironmentSettings, steps: int = 500) -> EnvironmentInspection:
    """Makes an environment, takes random steps, and measures.

    Args:
        settings: how it is made and read.
        steps: number of steps.

    Raises:
        SpirlError: it cannot be made or used, or raises an exception while it runs.
    """
    spec = envs.environment(settings)
    before = _resident_mb()
    made = envs.make(settings)
    try:
        return _inspect(settings, spec, made, before, steps)
    except SpirlError:
        raise
    except Exception as error:
        raise author_error(f"env: {settings.id} fails while it runs", error) from error
    finally:
        made.close()


def _inspect(
    settings: EnvironmentSettings, spec: EnvironmentSpec, made: gymnasium.Env, before: float, steps: int
) -> EnvironmentInspection:
    started = time.perf_counter()
    made.reset(seed=0)
    reset_s, resets = time.perf_counter() - started, 1
    grown = _resident_mb() - before
    rng = np.random.default_rng(0)
    rewards: list[float] = []
    info_keys: dict[str, None] = {}
    judged = successes = episodes = 0
    stepping_s = 0.0
    for _ in range(steps):
        action = rng.uniform(-1.0, 1.0, spec.action_dim).astype(np.float32)
        started = time.perf_counter()
        _, reward, terminated, truncated, info = made.step(action)
        stepping_s += time.perf_counter() - started
        rewards.append(float(reward))
        info_keys |= dict.fromkeys(map(str, info))
        if terminated or truncated:
            episodes += 1
            judged += "success" in info
            successes += bool(info.get("success", False))
            started = time.perf_counter()
            made.reset()
            reset_s, resets = reset_s + time.perf_counter() - started, resets + 1
    said = "success" in info_keys
    if not said:
        success = "nothing says success, so results tell the return; interface.success can name it"
    elif not episodes:
        success = f"info says success; no episode ended in {steps} random steps"
    else:
        success = f"{successes} of {episodes} episodes of random actions ended as a success"
    raw = made.env if isinstance(made, AdaptedEnv) else made
    layouts = key_layouts(raw.observation_space)
    keys = {key: f"{layout.dtype} {list(layout.shape)}" for key, layout in layouts.items()}
    used = {spec.keys.get(name, name): feature for name, feature in spec.features.items()}
    return EnvironmentInspection(
        spec=spec,
        keys=keys,
        left_out=tuple(key for key in keys if key not in used),
        unrecognised=unrecognised_images(layouts, used) if spec.keys else (),
        own_actions=str(raw.action_space),
        seeded=_seeded(settings, spec),
        reset_ms=1000.0 * reset_s / resets,
        step_ms=1000.0 * stepping_s / steps,
        instance_mb=max(0.0, grown),
        steps=steps,
        episodes=episodes,
        success=success,
        info_keys=tuple(made.info_keys if isinstance(made, AdaptedEnv) else info_keys),
        rewards=(min(rewards), max(rewards)),
        render_problem=envs.render_problem(settings),
    )


def _seeded(settings: EnvironmentSettings, spec: EnvironmentSpec) -> bool:
    """True where two new instances do the same with the same seed and actions."""
    courses: list[list[tuple[dict[str, Array], float]]] = []
    for _ in range(2):
        made, rng = envs.make(settings), np.random.default_rng(1)
        observation, reward, course = made.reset(seed=7)[0], 0.0, []
        for _ in range(_SEEDED_STEPS):
            course.append((observation, reward))
            action = rng.uniform(-1.0, 1.0, spec.action_dim).astype(np.float32)
            observation, earned, terminated, truncated, _ = made.step(action)
            reward = float(earned)
            if terminated or truncated:
                break
        course.append((observation, reward))
        courses.append(course)
        made.close()
    first, second = courses
    return len(first) == len(second) and all(
        a[1] == b[1] and all(np.array_equal(a[0][name], b[0][name]) for name in a[0])
        for a, b in zip(first, second, strict=True)
    )


def _resident_mb() -> float:
    try:
        with open("/proc/self/statm") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20
    except OSError:
        return 0.0
