"""The execution of skills, which turns one latent into primitive actions, one observation at a time."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from spirl_ray.skills.model import SkillModel

Array = npt.NDArray[np.float32]
Observation = Mapping[str, npt.NDArray[np.generic]]
"""The values of features by name, [..., *Feature.observed_shape]."""


def decision_discount(gamma: float, steps: int, *, per_decision: bool) -> float:
    """The SMDP discount of a skill that ran ``steps`` primitive steps: gamma (the paper), or gamma^steps."""
    return gamma if per_decision else math.pow(gamma, steps)


_MOST = 0.99
"""The largest part of the limit that a latent of the demonstrations takes."""


def limited(latent: Tensor, limit: float | None) -> Tensor:
    """The latents that a decoder gets: the chosen ones, or ``limit * tanh(.)`` of them."""
    return latent if limit is None else limit * torch.tanh(latent)


def unlimited(latent: Tensor, limit: float | None) -> Tensor:
    """The inverse of `limited`; latents at the limit or beyond it become those a little within."""
    return latent if limit is None else torch.atanh((latent / limit).clamp(-_MOST, _MOST))


def at_limit(unlimited_latents: Array) -> npt.NDArray[np.bool_]:
    """True where an entry of `unlimited` latents is at the end of the box, because it was there or beyond."""
    return np.abs(unlimited_latents) > math.atanh(_MOST) - 1e-3


class SkillExecution:
    """Runs skills of one or several agents with a frozen decoder: `begin` with a latent, then `action` at each step.

    The closed-loop decoder gets the current observation at every primitive step. Other decoders run once, at the first
    step of the skill.
    """

    def __init__(self, model: SkillModel, latent_limit: float | None = None) -> None:
        self.model = model
        self.horizon = model.spec.horizon
        self.latent_limit = latent_limit
        self._latent = torch.zeros(1, model.spec.latent_dim)
        self._shape: tuple[int, ...] = ()
        self._plan: Array | None = None
        self.step = 0

    @torch.inference_mode()
    def begin(self, latent: Array) -> None:
        """Starts a skill with latents [..., Z], the choice before ``limit * tanh(.)`` if there is a limit."""
        self._shape = np.shape(latent)[:-1]
        chosen = torch.as_tensor(latent, dtype=torch.float32).reshape(-1, self.model.spec.latent_dim)
        self._latent = limited(chosen, self.latent_limit)
        self.step = 0

    @torch.inference_mode()
    def action(self, observation: Observation) -> Array:
        """The next primitive actions [..., A] in [-1, 1]; the observation is [..., *observed_shape] by name."""
        kind, now = self.model.kind, 0 if self.model.kind.closed_loop else self.step
        if now == 0:
            seen = None if kind.observes == "nothing" else self._batch(observation)
            self._plan = self.model.decode(seen, self._latent).numpy()
        assert self._plan is not None
        actions = self._plan[:, now]
        self.step += 1
        return np.clip(actions.reshape(*self._shape, -1), -1.0, 1.0)

    def _batch(self, observation: Observation) -> dict[str, Tensor]:
        """The features of the skills as tensors [B, 1, *observed_shape]."""
        rows = len(self._latent)
        return {
            name: torch.from_numpy(np.asarray(value).reshape(rows, 1, *feature.observed_shape))
            for (name, feature), value in zip(
                self.model.spec.observed.items(), self.model.select(observation).values(), strict=True
            )
        }

    @property
    def finished(self) -> bool:
        """True after H actions, when the next latent is due."""
        return self.step >= self.horizon
