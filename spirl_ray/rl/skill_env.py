"""The environment of the high-level learner, in which one action is one skill."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import gymnasium
import numpy as np
from gymnasium.spaces import Box
from ray import cloudpickle

import spirl_ray.envs as envs
from spirl_ray.config import EnvironmentSettings
from spirl_ray.rl.policy_network import PolicyObserver, PolicySpec
from spirl_ray.skills.artifact import check_fit
from spirl_ray.skills.execution import Array, SkillExecution
from spirl_ray.skills.model import SkillModel

LAST_INFO = "last_info"
"""The key of the info of an episode's last primitive step, as a tuple of one."""


class SkillEnv(gymnasium.Env[Array, Array]):
    """An environment that executes latents with a frozen skill decoder.

    ``step(latent [Z])`` runs up to H primitive steps and returns the next policy observation [D], the summed reward
    and the flags of the last primitive step; a skill is cut short by the end of the episode. ``info`` has
    ``primitive_steps`` (of this skill), ``phase`` (where in the episode the skill began, from 0 to 1) and, at the end
    of an episode, ``last_info``, see `last_info`.

    Args:
        environment: settings of the environment in which skills run.
        skills: the skill model.
        policy: what the policy observes.
        latent_limit: bounds latents by ``limit * tanh(.)``; None leaves them as they are.
        stream: numbers that are mixed into every seed of `reset`, so that environments whose seeds are neighbours draw
            other random numbers; without any, seeds are passed on as they are.

    Raises:
        SpirlError: the skills do not fit the environment.
    """

    def __init__(
        self,
        environment: EnvironmentSettings,
        skills: SkillModel,
        policy: PolicySpec,
        latent_limit: float | None = None,
        stream: tuple[int, ...] = (),
    ) -> None:
        described = envs.environment(environment)
        self.env = envs.make(environment)
        spec = skills.spec
        features = envs.observed_features(self.env, described)
        check_fit(spec, features, described.action_dim, described.actions, f"The skills and {described.id}")
        self.execution = SkillExecution(skills, latent_limit)
        self.observer = PolicyObserver(policy, skills)
        self.limit = described.max_episode_steps
        self.stream = stream
        self.observation_space = Box(-np.inf, np.inf, (self.observer.size,), np.float32)
        self.action_space = Box(-np.inf, np.inf, (spec.latent_dim,), np.float32)
        self._observation: Mapping[str, Any] = {}
        self._elapsed = 0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Array, dict[str, Any]]:
        if seed is not None and self.stream:
            # Of 31 bits, because environments may pass it on to libraries that take no more.
            seed = int(np.random.SeedSequence((seed, *self.stream)).generate_state(1)[0]) >> 1
        super().reset(seed=seed)
        self._observation, _ = self.env.reset(seed=seed, options=options)
        self._elapsed = 0
        return self.observer(self._observation), {"primitive_steps": 0, "phase": 0.0}

    def step(self, action: Array) -> tuple[Array, float, bool, bool, dict[str, Any]]:
        self.execution.begin(action)
        total, steps, ended = 0.0, 0, False
        while not ended and not self.execution.finished:
            primitive = self.execution.action(self._observation)
            self._observation, reward, terminated, truncated, info = self.env.step(primitive)
            total += float(reward)
            steps += 1
            ended = terminated or truncated
        told: dict[str, Any] = {"primitive_steps": steps, "phase": self._elapsed / self.limit}
        self._elapsed += steps
        if ended:
            # In a tuple, because a vector environment merges all else: it makes one array of a key's values, which
            # fails where their shapes differ, and cuts a number to the type of the first one.
            told[LAST_INFO] = (_snapshot(info),)
        return self.observer(self._observation), total, terminated, truncated, told

    def close(self) -> None:
        self.env.close()


def last_info(info: Mapping[str, Any]) -> dict[str, Any]:
    """The environment's own info of the last primitive step, from the info of an episode's last decision.

    It is a copy, without the keys whose values cannot be pickled, because it travels to the learner's process.
    """
    return info[LAST_INFO][0]


def _snapshot(info: Mapping[str, Any]) -> dict[str, Any]:
    """A copy of an info, because an environment may write into the same arrays in its next episode."""
    copied = {}
    for key, value in info.items():
        try:
            copied[key] = cloudpickle.loads(cloudpickle.dumps(value))
        except Exception:  # whatever the pickling of a user's object raises
            continue
    return copied
