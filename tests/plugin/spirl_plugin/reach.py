"""An environment: a point that has to come near a target, with a scripted expert."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import gymnasium
import numpy as np
from gymnasium.spaces import Box, Dict

from spirl_ray.envs import EnvironmentEntry
from spirl_ray.envs.metrics import declare
from spirl_ray.envs.spec import EnvironmentSpec
from spirl_ray.episodes.episode import Episode
from spirl_ray.episodes.features import Feature

STEPS = 30


class Reach(gymnasium.Env[Any, Any]):
    """A point that moves up to 0.1 in a step; the episode ends within 0.1 of the target."""

    def __init__(self, size: float = 1.0) -> None:
        self.size = size
        shapes = {"position": (2,), "target": (2,)}
        self.observation_space = Dict({name: Box(-np.inf, np.inf, shape, np.float32) for name, shape in shapes.items()})
        self.action_space = Box(-1.0, 1.0, (2,), np.float32)

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        self.position, self.target = self.np_random.uniform(-self.size, self.size, (2, 2))
        self.closest = float(np.linalg.norm(self.position - self.target))
        return self._observe(), {"closest": self.closest}

    def step(self, action: Any) -> Any:
        self.position = self.position + 0.1 * np.clip(action, -1.0, 1.0)
        distance = float(np.linalg.norm(self.position - self.target))
        self.closest = min(self.closest, distance)
        return self._observe(), -distance, distance < 0.1, False, {"closest": self.closest}

    def _observe(self) -> dict[str, np.ndarray]:
        return {"position": self.position.astype(np.float32), "target": self.target.astype(np.float32)}


def generate(indices: Iterable[int], seed: int) -> Iterator[Episode]:
    """Generates demonstrations that go straight to the target."""
    env = Reach()
    for index in indices:
        yield walk(env, seed * 100_003 + index, f"reach-{seed}-{index:05d}")


def walk(env: Reach, seed: int, name: str) -> Episode:
    """Generates one demonstration, with a little noise."""
    rng = np.random.default_rng(seed)
    seen, _ = env.reset(seed=seed)
    observations, ended = [seen], False
    actions: list[np.ndarray] = []
    rewards: list[float] = []
    while not ended and len(actions) < STEPS:
        wanted = 10.0 * (seen["target"] - seen["position"]) + rng.normal(0.0, 0.2, 2)
        action = np.clip(wanted, -1.0, 1.0).astype(np.float32)
        seen, reward, ended, _, _ = env.step(action)
        observations.append(seen)
        actions.append(action)
        rewards.append(reward)
    return Episode(
        id=name,
        observations={key: np.stack([each[key] for each in observations]) for key in seen},
        actions=np.stack(actions),
        rewards=np.asarray(rewards, np.float32),
        terminated=ended,
        truncated=not ended,
    )


ENTRY = EnvironmentEntry(
    EnvironmentSpec(
        id="plugin/Reach-v0",
        features={"position": Feature(shape=(2,), role="proprioception"), "target": Feature(shape=(2,))},
        action_dim=2,
        max_episode_steps=STEPS,
        metrics=lambda kwargs: declare(["closest"], "closest"),
        expert="spirl_plugin.reach:generate",
    ),
    Reach,
)
