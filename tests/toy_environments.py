"""Three tiny environments of somebody else: two cameras, a set of objects without an image, and a goal.

In each, a point moves to a target; a step takes microseconds. This module stands for a package of a user's: the folder
``toy_environments.dist-info`` beside it says what an installed package would, so whoever has ``tests/`` on the path
(`conftest.py` sees to it for Ray's workers and for subprocesses) knows these environments, in every process.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from spirl_ray.envs import register_environment
from spirl_ray.envs.spec import EnvironmentSpec, observation_space
from spirl_ray.episodes.episode import Episode
from spirl_ray.episodes.features import Array, Feature, Features, ObjectSet, recorded, stack_observations

CAMERAS, OBJECTS, GOAL = "toy/Cameras-v0", "toy/Objects-v0", "toy/Goal-v0"
SIDE = 64  # pixels
STEP, NEAR = 0.2, 0.15  # the point's places are in [-1, 1]
STEPS = 20
DEMONSTRATED = 16  # steps of a demonstration
RED, GREEN = (255, 0, 0), (0, 255, 0)

CAMERA_FEATURES: Features = {
    "arm": Feature(shape=(2,), role="proprioception"),
    "front": Feature(shape=(SIDE, SIDE, 3), role="image"),
    "wrist": Feature(shape=(SIDE, SIDE, 3), role="image", frames=2),
}
GOAL_FEATURES: Features = {"position": Feature(shape=(2,)), "goal": Feature(shape=(2,), role="goal")}


def object_features(things: int) -> Features:
    """The features of `Objects` with this many things."""
    return {
        "hand": Feature(shape=(3,)),
        "speed": Feature(shape=(3,), role="proprioception"),
        "things": Feature(shape=(things, 3), objects=ObjectSet(agent="hand", up=2, size=0.1)),
    }


class _Reach(gymnasium.Env[dict[str, Array], NDArray[np.float32]]):
    """A point that moves by 0.2 · action; the reward is 1 at the target, where the episode ends as a success."""

    metadata = {"render_modes": ["rgb_array"], "render_fps": 10}  # noqa: RUF012 - gymnasium declares it so

    def __init__(self, features: Features, axes: int, render_mode: str | None) -> None:
        self.observation_space = observation_space(features)
        self.action_space = spaces.Box(-1.0, 1.0, (axes,), np.float32)
        self.render_mode = render_mode
        self.axes = axes
        self.position: NDArray[np.float64] = np.zeros(axes)
        self.target: NDArray[np.float64] = np.zeros(axes)
        self.moved: NDArray[np.floating] = np.zeros(axes)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[dict[str, Array], dict[str, Any]]:
        super().reset(seed=seed)
        drawn = self.np_random.uniform(-1.0, 1.0, (2, self.axes))
        self.position, self.target = drawn[0], drawn[1]
        self.moved = np.zeros(self.axes)
        return self.observe(first=True), {"success": False}

    def step(self, action: NDArray[np.float32]) -> tuple[dict[str, Array], float, bool, bool, dict[str, Any]]:
        self.moved = STEP * np.clip(action, -1.0, 1.0)
        self.position = np.clip(self.position + self.moved, -1.0, 1.0).astype(np.float64)
        reached = self.reached
        return self.observe(), float(reached), reached, False, {"success": reached}

    @property
    def reached(self) -> bool:
        return bool(np.abs(self.position - self.target).max() < NEAR)

    def observe(self, *, first: bool = False) -> dict[str, Array]:
        raise NotImplementedError

    def render(self) -> NDArray[np.uint8] | None:  # type: ignore[override]
        return None if self.render_mode is None else self.image()

    def image(self) -> NDArray[np.uint8]:
        """Draws the target red and the point green, uint8 [64, 64, 3]."""
        image = np.zeros((SIDE, SIDE, 3), np.uint8)
        _draw(image, self.target, RED)
        _draw(image, self.position, GREEN)
        return image


class Cameras(_Reach):
    """A reach whose target only cameras show: "front" shows target and point, "wrist" the target relative to the
    point."""

    def __init__(self, render_mode: str | None = None) -> None:
        super().__init__(CAMERA_FEATURES, 2, render_mode)
        self._wrist = np.zeros((SIDE, SIDE, 3), np.uint8)

    def observe(self, *, first: bool = False) -> dict[str, Array]:
        wrist = np.zeros((SIDE, SIDE, 3), np.uint8)
        _draw(wrist, 0.5 * (self.target - self.position), RED)
        before, self._wrist = wrist if first else self._wrist, wrist
        return {
            "arm": self.position.astype(np.float32),
            "front": self.image()[None],
            "wrist": np.stack([before, wrist]),
        }


class Objects(_Reach):
    """A reach whose target is the highest of some things, listed in random order."""

    def __init__(self, things: int = 3, render_mode: str | None = None) -> None:
        super().__init__(object_features(things), 3, render_mode)
        self._things = np.zeros((things, 3))

    def observe(self, *, first: bool = False) -> dict[str, Array]:
        if first:
            self._things = self.np_random.uniform(-1.0, 1.0, self._things.shape)
            self.target = self._things[self._things[:, 2].argmax()]
        seen = {"hand": self.position, "speed": self.moved, "things": self._things}
        return {name: value.astype(np.float32) for name, value in seen.items()}


class Goal(_Reach):
    """A reach whose target differs between episodes, and is part of the observation."""

    def __init__(self, render_mode: str | None = None) -> None:
        super().__init__(GOAL_FEATURES, 2, render_mode)

    def observe(self, *, first: bool = False) -> dict[str, Array]:
        return {"position": self.position.astype(np.float32), "goal": self.target.astype(np.float32)}


def _draw(image: NDArray[np.uint8], place: NDArray[np.float64], colour: tuple[int, int, int]) -> None:
    column, row = ((np.clip(place[:2], -1.0, 1.0) + 1.0) / 2.0 * (SIDE - 8)).astype(int)
    image[row : row + 8, column : column + 8] = colour


def demonstrate_cameras(indices: Iterable[int], seed: int, *, noise: float = 0.1) -> Iterator[Episode]:
    """Generates demonstrations of `Cameras`, see `_demonstrations`."""
    return _demonstrations(Cameras(), "cameras", indices, seed, noise)


def demonstrate_objects(indices: Iterable[int], seed: int, *, noise: float = 0.1) -> Iterator[Episode]:
    """Generates demonstrations of `Objects` with three things, see `_demonstrations`."""
    return _demonstrations(Objects(), "objects", indices, seed, noise)


def demonstrate_goal(indices: Iterable[int], seed: int, *, noise: float = 0.1) -> Iterator[Episode]:
    """Generates demonstrations of `Goal`, see `_demonstrations`."""
    return _demonstrations(Goal(), "goal", indices, seed, noise)


def _demonstrations(env: _Reach, name: str, indices: Iterable[int], seed: int, noise: float) -> Iterator[Episode]:
    """Generates episodes of 16 steps that go straight to the target, and then to random places."""
    for index in indices:
        rng = np.random.default_rng((seed, index))
        observation, _ = env.reset(seed=int(rng.integers(2**31)))
        seen, actions, rewards, there, completed = [observation], [], [], env.target, False
        for _ in range(DEMONSTRATED):
            if np.abs(env.position - there).max() < NEAR:
                there = rng.uniform(-1.0, 1.0, env.axes)
            wanted = (there - env.position) / STEP + noise * rng.normal(size=env.axes)
            actions.append(np.clip(wanted, -1.0, 1.0).astype(np.float32))
            observation, reward, _, _, _ = env.step(actions[-1])
            completed = completed or reward > 0
            seen.append(observation)
            rewards.append(reward)
        yield Episode(
            id=f"{name}-{seed}-{index:06d}",
            observations=stack_observations([recorded(each, SPECS[name].features) for each in seen]),
            actions=np.stack(actions),
            rewards=np.array(rewards, np.float32),
            terminated=False,
            truncated=True,
            metadata={"completed": ["reached"] if completed else []},
        )


def _spec(env_id: str, features: Features, axes: int, expert: str) -> EnvironmentSpec:
    return EnvironmentSpec(
        id=env_id,
        features=features,
        action_dim=axes,
        max_episode_steps=STEPS,
        expert=f"toy_environments:{expert}",
    )


SPECS = {
    "cameras": _spec(CAMERAS, CAMERA_FEATURES, 2, "demonstrate_cameras"),
    "objects": _spec(OBJECTS, object_features(3), 3, "demonstrate_objects"),
    "goal": _spec(GOAL, GOAL_FEATURES, 2, "demonstrate_goal"),
}
register_environment(SPECS["cameras"], Cameras)
register_environment(SPECS["objects"], Objects)
register_environment(SPECS["goal"], Goal)
