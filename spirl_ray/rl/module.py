"""The RLModule: high-level policy, frozen skill prior, N critics, and the temperature."""

from __future__ import annotations

import math
from typing import Any

import torch
from ray.rllib.core.columns import Columns
from ray.rllib.core.distribution.torch.torch_distribution import TorchDiagGaussian
from ray.rllib.core.learner.utils import make_target_network
from ray.rllib.core.rl_module.apis import InferenceOnlyAPI, TargetNetworkAPI
from ray.rllib.core.rl_module.torch.torch_rl_module import TorchRLModule
from torch import Tensor, nn

from spirl_ray.config import TrainSettings
from spirl_ray.rl.critics import Critics
from spirl_ray.rl.losses import divergence_to_prior, divergence_to_uniform
from spirl_ray.rl.methods import MethodConfig
from spirl_ray.rl.policy_network import PolicyNetwork, PolicySpec
from spirl_ray.skills.artifact import load_skills
from spirl_ray.skills.priors import LatentDistribution, SkillPrior


class SkillPriorModule(TorchRLModule, InferenceOnlyAPI, TargetNetworkAPI):
    """The networks of one agent.

    ``model_config`` holds ``skills`` (path of the skill artifact, readable on every node), ``method`` (a
    `MethodConfig`), ``policy`` (a `PolicySpec`) and ``settings`` (a `TrainSettings`), all as plain values.
    Observations are policy observations [B, D], see `spirl_ray.rl.policy_network`.
    """

    framework = "torch"
    critics: Critics
    target_critics: Critics
    average: PolicyNetwork | None
    """The average of the policy over updates, where ``train.policy_polyak`` asks for one."""
    log_alpha: nn.Parameter
    acts_from_prior: Tensor | None

    def setup(self) -> None:
        method = MethodConfig.model_validate(self.model_config["method"])
        settings = TrainSettings.model_validate(self.model_config["settings"])
        skills = load_skills(self.model_config["skills"])
        self.latent_dim = skills.spec.latent_dim
        self.in_minimum = settings.critics_in_minimum or settings.critics
        self.follows_mean = settings.policy_value == "mean"
        spec = PolicySpec.model_validate(self.model_config["policy"])
        self.policy = PolicyNetwork(spec, skills)
        if method.policy_init == "prior":
            self.policy.start_from(skills)
        # A policy from scratch explores with the prior at first, so its env runners need the prior, too.
        warms_up = method.regulariser == "prior" and method.policy_init == "scratch"
        self.prior: SkillPrior | None = None
        if method.regulariser == "prior" and (warms_up or not self.inference_only):
            self.prior = skills.prior.requires_grad_(False)
        # A buffer, so that it reaches the env runners with the weights, and the checkpoint. The first update clears it.
        self.register_buffer("acts_from_prior", torch.tensor(True) if warms_up else None)
        self.average = None
        if not self.inference_only:
            if settings.policy_polyak < 1.0:
                self.average = PolicyNetwork(spec, skills).requires_grad_(False)
                self.average.load_state_dict(self.policy.state_dict())
            self.critics = Critics(
                self.policy.input_dim + self.latent_dim,
                count=settings.critics,
                width=settings.critic_width,
                layers=settings.critic_layers,
                layer_norm=settings.critic_layer_norm,
            )
            # A parameter of the module, so that checkpoints cannot lose it.
            self.log_alpha = nn.Parameter(torch.tensor(math.log(settings.initial_alpha)))

    def train(self, mode: bool = True) -> SkillPriorModule:
        """Sets the mode; RLlib sets training mode before every update, so nothing is done where it is already on."""
        return self if self.training == mode else super().train(mode)

    # --- RLlib's interfaces ---

    def get_train_action_dist_cls(self) -> type[TorchDiagGaussian]:
        return TorchDiagGaussian

    get_exploration_action_dist_cls = get_train_action_dist_cls
    get_inference_action_dist_cls = get_train_action_dist_cls

    def get_non_inference_attributes(self) -> list[str]:
        names = ["critics", "target_critics", "log_alpha"]
        if self.average is not None:
            names.append("average")
        if self.prior is not None and self.acts_from_prior is None:
            names.append("prior")
        return names

    def make_target_networks(self) -> None:
        self.target_critics = make_target_network(self.critics)

    def get_target_network_pairs(self) -> list[tuple[nn.Module, nn.Module]]:
        return [(self.critics, self.target_critics)]

    def forward_target(self, batch: dict[str, Tensor]) -> Tensor:
        """The minimum of the target critics at (obs, actions), [B]."""
        encoded, _ = self.policy.encode(batch[Columns.OBS])
        return self.target_critics(encoded, batch[Columns.ACTIONS]).min(0).values

    def _forward(self, batch: dict[str, Tensor], **kwargs: Any) -> dict[str, Tensor]:
        encoded, prior_parameters = self.policy.encode(batch[Columns.OBS])
        chosen: LatentDistribution
        if self.prior is not None and self.acts_from_prior is not None and self.acts_from_prior:
            assert prior_parameters is not None
            chosen = self.prior.distribution(prior_parameters)
        else:
            chosen = self.policy.head.distribution(self.policy.head(encoded, prior_parameters))
        component = chosen.sample_component()
        return {Columns.ACTION_DIST_INPUTS: torch.cat([component.mean, component.log_std], dim=-1)}

    def _forward_train(self, batch: dict[str, Tensor], **kwargs: Any) -> dict[str, Tensor]:
        """Computes what the losses need: values [N, B], and for the rest [B] (paper, Eqs. 3-5).

        The critics' parameters take no gradient from the policy's loss, so that pass computes only the gradient with
        respect to the latent. For a mixture policy, a sample of every component counts by the component's weight, which
        is thereby learned, too. Of more than two critics, ``critics_in_minimum`` random ones may give the value of the
        target (Chen et al. 2021, REDQ). The policy follows the minimum of the same ones, or the mean of all, as there.
        """
        head, rows = self.policy.head, batch[Columns.OBS].shape[0]
        both, both_priors = self.policy.encode(torch.cat([batch[Columns.OBS], batch[Columns.NEXT_OBS]]))
        encoded, next_encoded = both[:rows], both[rows:]
        prior, next_prior = (None, None) if both_priors is None else (both_priors[:rows], both_priors[rows:])
        chosen = None
        if self.in_minimum < self.critics.count:
            chosen = torch.rand(self.critics.count, device=encoded.device).topk(self.in_minimum).indices
        with torch.no_grad():
            next_policy = head.distribution(head(next_encoded, next_prior))
            next_latent = next_policy.sample()
            next_value = self.target_critics(next_encoded, next_latent, chosen=chosen).min(0).values
            next_divergence = self._divergence(next_policy, next_latent, next_prior)
        parameters = head(encoded, prior)
        weights, components = head.distribution(parameters).as_mixture()
        latents = components.sample().flatten(0, 1)
        values = self.critics(encoded, batch[Columns.ACTIONS])
        count = weights.shape[1]
        divergence = self._divergence(
            head.distribution(_repeated(parameters, count)), latents, None if prior is None else _repeated(prior, count)
        )
        asked = None if self.follows_mean else chosen
        policy_values = self.critics(_repeated(encoded, count), latents, chosen=asked, learn=False)
        policy_value = policy_values.mean(0) if self.follows_mean else policy_values.min(0).values
        return {
            "values": values,
            "next_value": next_value,
            "next_divergence": next_divergence,
            "divergence": (weights * divergence.view_as(weights)).sum(-1),
            "policy_value": (weights * policy_value.view_as(weights)).sum(-1),
            "latent_std": (weights.unsqueeze(-1) * components.log_std.exp()).sum(-2).detach(),
        }

    @torch.no_grad()
    def mean_divergence(self, observations: Tensor) -> float:
        """The mean divergence (nats) of the policy at policy observations [B, D]; leaves random numbers as they are."""
        with torch.random.fork_rng([observations.device] if observations.is_cuda else []):
            encoded, prior_parameters = self.policy.encode(observations)
            policy = self.policy.head.distribution(self.policy.head(encoded, prior_parameters))
            return float(self._divergence(policy, policy.sample(), prior_parameters).mean())

    def _divergence(self, policy: LatentDistribution, latent: Tensor, prior_parameters: Tensor | None) -> Tensor:
        if self.prior is None:
            return divergence_to_uniform(policy, latent)
        assert prior_parameters is not None
        return divergence_to_prior(policy, self.prior.distribution(prior_parameters), latent)


def _repeated(rows: Tensor, count: int) -> Tensor:
    """Repeats every row ``count`` times in succession: [B, F] -> [B count, F]."""
    return rows if count == 1 else rows.repeat_interleave(count, dim=0)
