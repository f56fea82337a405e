"""Labels of offline decisions where nothing says what the task is: learned rewards and ends, and a bonus for novelty.

Two networks learn the rewards of the decisions of the online replay, and which of these end the task. The bonus makes
decisions that are unlike them look good, so that the policy tries them (Burda et al. 2018, random network distillation;
Li et al. 2023, ExPLORe): a third network learns, on the online decisions, what a fourth, fixed one gives, and fails on
what it has not seen.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
import torch.nn.functional as F
from ray.rllib.core.columns import Columns
from torch import Tensor, nn

from spirl_ray.config import TrainSettings
from spirl_ray.rl.policy_network import PolicyNetwork
from spirl_ray.skills.execution import limited
from spirl_ray.skills.networks import mlp

_LEARNING_RATE = 3e-4
_FEATURES = 64
_AVERAGE = 0.99
"""The weight of the past in the running mean of the error on online decisions."""


class LearnedLabels(nn.Module):
    """Offline decisions get r(s, z) as learned, plus at most ``train.novelty_bonus``, and the learned probability that
    the task ends in them.

    The bonus grows with the error of the distillation from 0, where the error is that of online decisions or less, to
    the whole, where it is twice that or more.

    Args:
        policy: the policy network as it begins, of whose encoder a copy reads observations: one that learns would make
            the same decision look new again.
        latent_dim: Z.
        limit: latents count as ``limit * tanh(.)``, as the decoder gets them; None leaves them as they are.
        settings: the settings of stage 2.
        seed: seed of the networks.
    """

    error: Tensor

    def __init__(
        self, policy: PolicyNetwork, latent_dim: int, limit: float | None, settings: TrainSettings, seed: int
    ) -> None:
        super().__init__()
        self._limit = limit
        self._bonus = settings.novelty_bonus
        inputs, width, layers = policy.input_dim + latent_dim, settings.critic_width, settings.critic_layers
        self.observer = copy.deepcopy(policy).requires_grad_(False)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.reward = mlp(inputs, 1, width=width, layers=layers, layer_norm=True)
            self.fixed = mlp(inputs, _FEATURES, width=width, layers=layers).requires_grad_(False)
            self.distilled = mlp(inputs, _FEATURES, width=width, layers=layers, layer_norm=True)
            self.end = mlp(inputs, 1, width=width, layers=layers, layer_norm=True)
        self.register_buffer("error", torch.zeros(()))
        learned = [*self.reward.parameters(), *self.distilled.parameters(), *self.end.parameters()]
        self.optimizer = torch.optim.Adam(learned, lr=_LEARNING_RATE)

    def learn(self, online: dict[str, Tensor], updates: int) -> None:
        """Makes updates from decisions of the replay, of which each gets an equal part.

        Args:
            online: rows with the columns of `spirl_ray.rl.replay.DecisionReplay`.
            updates: number of updates.
        """
        inputs = self._inputs(online)
        with torch.no_grad():
            wanted = self.fixed(inputs)
        for some in torch.arange(len(inputs), device=inputs.device).chunk(updates):
            error = F.mse_loss(self.distilled(inputs[some]), wanted[some])
            reward = F.mse_loss(self.reward(inputs[some]).squeeze(-1), online[Columns.REWARDS][some])
            ends = online[Columns.TERMINATEDS][some]
            end = F.binary_cross_entropy_with_logits(self.end(inputs[some]).squeeze(-1), ends)
            self.optimizer.zero_grad(set_to_none=True)
            (error + reward + end).backward()
            self.optimizer.step()
            with torch.no_grad():
                self.error.copy_(torch.where(self.error > 0, self.error.lerp(error, 1.0 - _AVERAGE), error))

    @torch.no_grad()
    def forward(self, offline: dict[str, Tensor]) -> dict[str, Tensor]:
        """The columns "rewards" and "terminateds" [B] of offline decisions."""
        inputs = self._inputs(offline)
        error = (self.distilled(inputs) - self.fixed(inputs)).square().mean(-1)
        bonus = self._bonus * (error / self.error.clamp_min(1e-12) - 1.0).clamp(0.0, 1.0)
        return {
            Columns.REWARDS: self.reward(inputs).squeeze(-1) + bonus,
            Columns.TERMINATEDS: self.end(inputs).squeeze(-1).sigmoid(),
        }

    @torch.no_grad()
    def _inputs(self, rows: dict[str, Tensor]) -> Tensor:
        encoded, _ = self.observer.encode(rows[Columns.OBS])
        return torch.cat([encoded, limited(rows[Columns.ACTIONS], self._limit)], dim=-1)

    def state(self) -> dict[str, Any]:
        """Returns everything needed to resume bit-equal."""
        return {"networks": self.state_dict(), "optimizer": self.optimizer.state_dict()}

    def restore(self, state: dict[str, Any]) -> None:
        """Restores a `state`."""
        self.load_state_dict(state["networks"])
        self.optimizer.load_state_dict(state["optimizer"])
