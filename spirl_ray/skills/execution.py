"""Skills at work: one latent in, primitive actions out, a state at a time."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
import torch

from spirl_ray.skills.model import SkillModel

Array = npt.NDArray[np.float32]


def decision_discount(gamma: float, steps: int, *, per_decision: bool) -> float:
    """SMDP discount of a skill that ran ``steps`` primitive steps: gamma (the paper), or gamma^steps."""
    return gamma if per_decision else math.pow(gamma, steps)


class SkillExecution:
    """Runs skills with a frozen decoder: `begin` with a latent, then `action` at each step, of one agent or several.

    The closed-loop decoder sees the current state at every primitive step, the open-loop decoder runs
    once, when the skill begins.
    """

    def __init__(self, model: SkillModel, latent_limit: float | None = None) -> None:
        self.model = model
        self.horizon = model.spec.horizon
        self.latent_limit = latent_limit
        self._latent = torch.zeros(1, model.spec.latent_dim)
        self._plan: Array | None = None
        self.step = 0

    @torch.inference_mode()
    def begin(self, latent: Array) -> None:
        """Starts a skill: ``latent`` [..., Z] is the choice before ``limit * tanh(.)`` if there is a limit."""
        self._latent = torch.as_tensor(latent, dtype=torch.float32).reshape(-1, self.model.spec.latent_dim)
        if self.latent_limit is not None:
            self._latent = self.latent_limit * torch.tanh(self._latent)
        self.step = 0
        if not self.model.codec.closed_loop:
            unseen = torch.empty(len(self._latent), 0, self.model.spec.state_dim + self.model.spec.pixels)
            self._plan = self.model.decode(unseen, self._latent).numpy()

    @torch.inference_mode()
    def action(self, observation: Array) -> Array:
        """The next primitive action [..., A] in [-1, 1] for the current observation [..., O]."""
        if self._plan is not None:
            actions = self._plan[:, self.step]
        else:
            seen = torch.as_tensor(observation, dtype=torch.float32).reshape(len(self._latent), 1, -1)
            actions = self.model.decode(seen, self._latent)[:, 0].numpy()
        self.step += 1
        return np.clip(actions.reshape(*np.shape(observation)[:-1], -1), -1.0, 1.0)

    @property
    def finished(self) -> bool:
        """True after H actions: time for the next latent."""
        return self.step >= self.horizon
