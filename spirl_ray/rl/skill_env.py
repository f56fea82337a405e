"""The environment that a high-level learner sees: one action is one skill."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import torch
from gymnasium.spaces import Box

import spirl_ray.envs as envs
from spirl_ray.skills.artifact import load_skills
from spirl_ray.skills.execution import Array, SkillExecution


class SkillEnv(gymnasium.Env[Array, Array]):
    """Executes latents with a frozen skill decoder.

    ``step(latent [Z])`` runs up to H primitive steps and returns the policy's next input (the state [S], or
    [S + P], see `SkillModel.decision_input`), the summed reward and the flags of the last primitive step; a skill is
    cut short by the end of the episode. ``info`` is that of the last primitive step with ``primitive_steps`` (of this
    skill) and ``phase`` (where in the episode the skill began, from 0 to 1) added.
    """

    metadata = {"render_modes": ["rgb_array"]}  # noqa: RUF012 - gymnasium declares it so

    def __init__(
        self,
        env_id: str,
        env_kwargs: dict[str, Any],
        skills: Path,
        latent_limit: float | None,
        render_mode: str | None = None,
        *,
        proposals: bool = False,
    ) -> None:
        self.env = envs.make(env_id, **env_kwargs, render_mode=render_mode)
        self.render_mode = render_mode
        self.execution = SkillExecution(load_skills(skills, env_id), latent_limit)
        self.proposals = proposals
        self.observation_dim = envs.observation_dim(self.env)
        self.limit = envs.episode_limit(self.env)
        spec = self.execution.model.spec
        input_dim = envs.state_dim(self.env) + (spec.proposal_dim if proposals else 0)
        self.observation_space = Box(-np.inf, np.inf, (input_dim,), np.float32)
        self.action_space = Box(-np.inf, np.inf, (spec.latent_dim,), np.float32)
        self._seen: Array = np.zeros(self.observation_dim, np.float32)
        self._elapsed = 0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Array, dict[str, Any]]:
        super().reset(seed=seed)
        observation, info = self.env.reset(seed=seed, options=options)
        self._seen, self._elapsed = observation[: self.observation_dim], 0
        return self._decision_input(), {**info, "primitive_steps": 0, "phase": 0.0}

    def step(self, action: Array) -> tuple[Array, float, bool, bool, dict[str, Any]]:
        self.execution.begin(action)
        total, steps, ended = 0.0, 0, False
        while not ended and not self.execution.finished:
            primitive = self.execution.action(self._seen)
            observation, reward, terminated, truncated, info = self.env.step(primitive)
            self._seen = observation[: self.observation_dim]
            total += float(reward)
            steps += 1
            ended = terminated or truncated
        phase = self._elapsed / self.limit
        self._elapsed += steps
        facts = {**info, "primitive_steps": steps, "phase": phase}
        return self._decision_input(), total, terminated, truncated, facts

    @torch.inference_mode()
    def _decision_input(self) -> Array:
        seen = torch.from_numpy(self._seen)
        return self.execution.model.decision_input(seen, proposals=self.proposals).numpy()

    def render(self) -> Any:
        return self.env.render()

    def close(self) -> None:
        self.env.close()
