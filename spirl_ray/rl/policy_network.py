"""The high-level policy network pi(z | s)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from spirl_ray.envs.spec import ObjectSpec
from spirl_ray.rl.objects import see, seen_dim
from spirl_ray.skills.gaussian import DiagonalGaussian
from spirl_ray.skills.model import SkillModel, SkillSpec
from spirl_ray.skills.networks import mlp
from spirl_ray.skills.priors import GaussianMixture, GaussianPrior, from_parameters


class Proposal(nn.Module):
    """The frozen prior of an environment with frames: its parameters are part of the policy's input."""

    def __init__(self, spec: SkillSpec) -> None:
        super().__init__()
        self.entries, self.latent_dim = spec.proposal_dim, spec.latent_dim

    def forward(self, inputs: Tensor) -> DiagonalGaussian | GaussianMixture:
        """Inputs [..., F + P] -> p(z | s)."""
        return from_parameters(inputs[..., -self.entries :], self.latent_dim)


class ResidualHead(Proposal):
    """A policy that starts as the prior's proposal and learns how to leave it: its parameters, of a mixture each
    part's and the weights', are the proposal's plus an MLP's, which starts at zero."""

    def __init__(self, input_dim: int, spec: SkillSpec, *, width: int, layers: int) -> None:
        super().__init__(spec)
        self.net = mlp(input_dim, spec.proposal_dim, width=width, layers=layers)
        last = self.net[-1]
        assert isinstance(last, nn.Linear)
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)

    def forward(self, inputs: Tensor) -> DiagonalGaussian | GaussianMixture:
        """Inputs [..., F + P] -> pi(z | s)."""
        return from_parameters(inputs[..., -self.entries :] + self.net(inputs), self.latent_dim)


class SkillPolicy(nn.Module):
    """pi(z | s), with the skills' state normalisation; the same network shape as the skill prior.

    Where the target's states have another size than the data's, the egocentric entries alone mean the same in both:
    they are standardised by the data's statistics, and the others stay as the environment scales them. Alike objects
    are seen from the agent (`spirl_ray.rl.objects`).

    Args:
        skills: what it acts through.
        state_dim: S of the target; None is that of the data.
        proposals: its input is the state and the prior's parameters (`SkillModel.decision_input`).
        residual: it starts as that proposal, see `ResidualHead`.
        objects: what its input says of objects, if the environment declares them.
    """

    state_mean: Tensor
    state_std: Tensor

    def __init__(
        self,
        skills: SkillModel,
        state_dim: int | None = None,
        *,
        proposals: bool = False,
        residual: bool = False,
        objects: ObjectSpec | None = None,
    ) -> None:
        super().__init__()
        spec = skills.spec
        state_dim = spec.state_dim if state_dim is None else state_dim
        sizes = {"width": spec.settings.width, "layers": spec.settings.prior_layers}
        self.input_dim = seen_dim(state_dim, objects) + (spec.proposal_dim if proposals else 0)
        self.head: ResidualHead | GaussianPrior
        if residual:
            self.head = ResidualHead(self.input_dim, spec, **sizes)
        else:
            self.head = GaussianPrior(self.input_dim, spec.latent_dim, **sizes)
        mean, std = skills.state_mean.clone(), skills.state_std.clone()
        if state_dim != spec.state_dim:
            shared = list(spec.view.egocentric) if spec.view is not None else []
            mean, std = torch.zeros(state_dim), torch.ones(state_dim)
            mean[shared], std[shared] = skills.state_mean[shared], skills.state_std[shared]
        self.objects = objects
        self.register_buffer("state_mean", mean)
        self.register_buffer("state_std", std)

    def standardise(self, inputs: Tensor) -> Tensor:
        """Raw inputs [..., S] or [..., S + P] -> what networks see [..., input_dim]."""
        size = len(self.state_mean)
        states = inputs[..., :size]
        seen = (states - self.state_mean) / self.state_std
        if self.objects is not None:
            seen = torch.cat([seen[..., : self.objects.first], see(states, self.objects)], dim=-1)
        return seen if inputs.shape[-1] == size else torch.cat([seen, inputs[..., size:]], dim=-1)

    def forward(self, inputs: Tensor) -> DiagonalGaussian | GaussianMixture:
        """Raw inputs [B, S] or [B, S + P] -> a distribution over latents [B, Z]."""
        return self.head(self.standardise(inputs))

    def start_from(self, prior: GaussianPrior) -> None:
        """Copies the weights of a Gaussian skill prior; a residual policy is one from the start."""
        if isinstance(self.head, GaussianPrior):
            self.head.load_state_dict(prior.state_dict())
