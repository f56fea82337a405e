"""The RLModule: high-level policy, frozen skill prior, twin critics, and the temperature alpha."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch
from ray.rllib.core.columns import Columns
from ray.rllib.core.distribution.torch.torch_distribution import TorchDiagGaussian
from ray.rllib.core.learner.utils import make_target_network
from ray.rllib.core.rl_module.apis import InferenceOnlyAPI, TargetNetworkAPI
from ray.rllib.core.rl_module.torch.torch_rl_module import TorchRLModule
from torch import Tensor, nn

from spirl_ray.rl.losses import divergence_to_prior, divergence_to_uniform
from spirl_ray.rl.policy_network import Proposal, SkillPolicy
from spirl_ray.skills.artifact import load_skills
from spirl_ray.skills.gaussian import DiagonalGaussian
from spirl_ray.skills.networks import mlp
from spirl_ray.skills.priors import LatentDistribution


class SkillPriorModule(TorchRLModule, InferenceOnlyAPI, TargetNetworkAPI):
    """Networks of one agent. ``model_config`` holds:

    ``skills`` (path of the skill artifact, readable on every node), ``regulariser`` ("prior" | "uniform"),
    ``policy_init`` ("prior" | "scratch"), ``proposals`` (observations carry the prior's parameters),
    ``objects`` (the environment's `ObjectSpec` or None),
    ``initial_alpha``, ``critic_width``, ``critic_layers``, ``critic_layer_norm``.
    """

    framework = "torch"
    critics: nn.ModuleList
    target_critics: nn.ModuleList
    log_alpha: nn.Parameter
    acts_from_prior: Tensor | None

    def setup(self) -> None:
        config = self.model_config
        skills = load_skills(Path(config["skills"]))
        spec = skills.spec
        proposals: bool = config["proposals"]
        residual = proposals and config["policy_init"] == "prior"
        state_dim = self.observation_space.shape[0] - (spec.proposal_dim if proposals else 0)
        how = {"proposals": proposals, "residual": residual, "objects": config["objects"]}
        self.policy = SkillPolicy(skills, state_dim, **how)
        if config["policy_init"] == "prior":
            self.policy.start_from(skills.policy_start)
        self.regulariser: str = config["regulariser"]
        # A policy from scratch explores with the prior at first, so its env runners need the prior, too.
        warms_up = self.regulariser == "prior" and config["policy_init"] == "scratch"
        self.prior: nn.Module | None = None
        if self.regulariser == "prior" and (warms_up or not self.inference_only):
            self.prior = Proposal(spec) if proposals else skills.prior.requires_grad_(False)
        # A buffer, so that it reaches the env runners with the weights, and the checkpoint. The first update ends it.
        self.register_buffer("acts_from_prior", torch.tensor(True) if warms_up else None)
        if not self.inference_only:
            self.critics = nn.ModuleList(
                mlp(
                    self.policy.input_dim + spec.latent_dim,
                    1,
                    width=config["critic_width"],
                    layers=config["critic_layers"],
                    layer_norm=config["critic_layer_norm"],
                )
                for _ in range(2)
            )
            # A parameter of the module, so that checkpoints cannot lose it.
            self.log_alpha = nn.Parameter(torch.tensor(math.log(config["initial_alpha"])))

    def train(self, mode: bool = True) -> SkillPriorModule:
        """RLlib asks for training mode before every update; there is nothing to walk through when it is on."""
        return self if self.training == mode else super().train(mode)

    # --- RLlib's interfaces ---

    def get_train_action_dist_cls(self) -> type[TorchDiagGaussian]:
        return TorchDiagGaussian

    get_exploration_action_dist_cls = get_train_action_dist_cls
    get_inference_action_dist_cls = get_train_action_dist_cls

    def get_non_inference_attributes(self) -> list[str]:
        names = ["critics", "target_critics", "log_alpha"]
        if self.regulariser == "prior" and self.model_config["policy_init"] == "prior":
            names.append("prior")
        return names

    def make_target_networks(self) -> None:
        self.target_critics = make_target_network(self.critics)

    def get_target_network_pairs(self) -> list[tuple[nn.Module, nn.Module]]:
        return [(self.critics, self.target_critics)]

    def forward_target(self, batch: dict[str, Tensor]) -> Tensor:
        """min_i of the target critics at (obs, actions): [B]."""
        states = self.policy.standardise(batch[Columns.OBS])
        return self._values(self.target_critics, states, batch[Columns.ACTIONS]).min(0).values

    def _forward(self, batch: dict[str, Tensor], **kwargs: Any) -> dict[str, Tensor]:
        chosen: Any = self.policy(batch[Columns.OBS])
        if self.prior is not None and self.acts_from_prior is not None and self.acts_from_prior:
            chosen = self.prior(self.policy.standardise(batch[Columns.OBS]))
        part = chosen.draw_part()
        return {Columns.ACTION_DIST_INPUTS: torch.cat([part.mean, part.log_std], dim=-1)}

    def _forward_train(self, batch: dict[str, Tensor], **kwargs: Any) -> dict[str, Tensor]:
        """What the losses need: values, divergences (paper, Eqs. 3-5), each [B].

        Policy and prior see s and s' in one pass. The critics' parameters take no gradient from the policy's loss, so
        that pass computes only the gradient with respect to the latent. Of a mixture policy, every component is drawn
        from and counts by its weight, which thereby learns, too.
        """
        rows = batch[Columns.OBS].shape[0]
        both = self.policy.standardise(torch.cat([batch[Columns.OBS], batch[Columns.NEXT_OBS]]))
        states, next_states = both[:rows], both[rows:]
        with torch.no_grad():
            next_policy = self.policy.head(next_states)
            next_latent = next_policy.sample()
            next_value = self._values(self.target_critics, next_states, next_latent).min(0).values
            prior = self.prior(both) if self.prior is not None else None
            next_divergence = self._divergence(next_policy, next_latent, prior, slice(rows, None))
        policy = self.policy.head(states)
        weights, parts = policy.parts()
        latents = parts.sample().flatten(0, 1)
        each = torch.arange(rows, device=states.device).repeat_interleave(weights.shape[1])
        divergence = self._divergence(_rows(policy, each), latents, prior, each)
        values = self._values(self.critics, states, batch[Columns.ACTIONS])
        self.critics.requires_grad_(False)
        policy_value = self._values(self.critics, states[each], latents).min(0).values
        self.critics.requires_grad_(True)
        return {
            "values": values,
            "next_value": next_value,
            "next_divergence": next_divergence,
            "divergence": (weights * divergence.view_as(weights)).sum(-1),
            "policy_value": (weights * policy_value.view_as(weights)).sum(-1),
            "latent_std": (weights.unsqueeze(-1) * parts.log_std.exp()).sum(-2).detach(),
        }

    def _divergence(
        self, policy: LatentDistribution, latent: Tensor, prior: LatentDistribution | None, rows: slice | Tensor
    ) -> Tensor:
        if prior is None:
            return divergence_to_uniform(policy, latent)
        return divergence_to_prior(policy, _rows(prior, rows), latent)

    @staticmethod
    def _values(critics: nn.ModuleList, states: Tensor, latents: Tensor) -> Tensor:
        """Values of both critics at standardised states and latents: [2, B]."""
        inputs = torch.cat([states, latents], dim=-1)
        return torch.stack([critic(inputs).squeeze(-1) for critic in critics])


def _rows(distribution: Any, rows: slice | Tensor) -> LatentDistribution:
    """The same distribution for some of its states."""
    parts = {
        name: _rows(value, rows)
        if isinstance(value, DiagonalGaussian)
        else value[rows]
        if isinstance(value, Tensor)
        else value
        for name, value in vars(distribution).items()
    }
    return type(distribution)(**parts)
