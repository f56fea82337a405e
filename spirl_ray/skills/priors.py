"""Skill priors p(z | s): Gaussian (the paper's), a mixture of Gaussians, a conditional flow, and N(0, I).

A prior is a network from encoded observations to *prior parameters*, and a rule that makes a distribution of them. The
parameters of one state are a vector of fixed width, so stage 2, in which the prior is frozen, can keep them in the
replay instead of the observation that they were computed from.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from spirl_ray.config import SkillSettings
from spirl_ray.errors import SpirlError
from spirl_ray.registry import Registry
from spirl_ray.skills.gaussian import LOG_STD_MIN, DiagonalGaussian
from spirl_ray.skills.networks import mlp


class LatentDistribution(Protocol):
    """The interface that training and rollouts need from a distribution over latents [..., Z]."""

    def log_prob(self, value: Tensor) -> Tensor: ...

    def sample(self, generator: torch.Generator | None = None) -> Tensor: ...

    def mode(self) -> Tensor: ...

    def sample_component(self) -> DiagonalGaussian:
        """Draws a Gaussian at random, so that a sample from it is a sample from this distribution."""
        ...


class PolicyDistribution(LatentDistribution, Protocol):
    """A distribution that a policy may have: a Gaussian or a mixture of Gaussians."""

    def as_mixture(self) -> tuple[Tensor, DiagonalGaussian]:
        """The weights [..., K] and components [..., K, Z]."""
        ...


@dataclass(frozen=True)
class GaussianMixture:
    """A mixture of K diagonal Gaussians: logits [..., K], components' tensors [..., K, Z]."""

    logits: Tensor
    components: DiagonalGaussian

    @staticmethod
    def from_parameters(parameters: Tensor, latent_dim: int) -> GaussianMixture:
        """Splits a network's outputs [..., K (1 + 2 Z)]."""
        components = parameters.shape[-1] // (1 + 2 * latent_dim)
        logits, rest = parameters.split([components, 2 * components * latent_dim], dim=-1)
        return GaussianMixture(
            logits, DiagonalGaussian.from_parameters(rest.unflatten(-1, (components, 2 * latent_dim)))
        )

    def log_prob(self, value: Tensor) -> Tensor:
        weights = torch.log_softmax(self.logits, dim=-1)
        return torch.logsumexp(weights + self.components.log_prob(value.unsqueeze(-2)), dim=-1)

    def sample(self, generator: torch.Generator | None = None) -> Tensor:
        return self._sample_component(generator).sample(generator)

    def mode(self) -> Tensor:
        """The mean of the heaviest component."""
        return self._pick(self.components.mean, self.logits.argmax(-1, keepdim=True))

    def as_mixture(self) -> tuple[Tensor, DiagonalGaussian]:
        """The weights [..., K] and components [..., K, Z]."""
        return self.logits.softmax(-1), self.components

    def sample_component(self) -> DiagonalGaussian:
        """Draws a component by its weight."""
        return self._sample_component(None)

    def _sample_component(self, generator: torch.Generator | None) -> DiagonalGaussian:
        # The argmax of w_i / e_i with e_i ~ Exp(1) has probability w_i, and needs no check that waits for a GPU.
        weights = self.logits.softmax(-1)
        chosen = (weights / torch.empty_like(weights).exponential_(generator=generator)).argmax(-1, keepdim=True)
        return DiagonalGaussian(self._pick(self.components.mean, chosen), self._pick(self.components.log_std, chosen))

    @staticmethod
    def _pick(values: Tensor, chosen: Tensor) -> Tensor:
        return values.gather(-2, chosen.unsqueeze(-1).expand(*chosen.shape, values.shape[-1])).squeeze(-2)


class SkillPrior(nn.Module):
    """A network whose outputs are the parameters of p(z | s).

    Args:
        inputs: width of the encoded observation.
        latent_dim: Z.
        settings: settings of the skills; a kind of prior reads its own options there.
    """

    param_dim: int
    """P, the number of parameters for one observation."""
    policy_param_dim: int
    """The number of parameters of the distribution from which a policy may start, see `policy_parameters`."""

    def __init__(self, inputs: int, latent_dim: int, settings: SkillSettings) -> None:
        super().__init__()
        self.latent_dim = latent_dim

    def forward(self, encoded: Tensor) -> Tensor:
        """Maps encoded observations [..., F] to prior parameters [..., P]."""
        raise NotImplementedError

    def distribution(self, parameters: Tensor) -> LatentDistribution:
        """The prior with parameters [..., P]."""
        raise NotImplementedError

    def policy_parameters(self, parameters: Tensor) -> Tensor:
        """The parameters [..., policy_param_dim] with which a policy starts as the prior: by default, the prior's."""
        return parameters

    def policy_distribution(self, parameters: Tensor) -> PolicyDistribution:
        """The Gaussian or mixture with parameters [..., policy_param_dim]."""
        raise NotImplementedError

    def auxiliary(self, parameters: Tensor) -> DiagonalGaussian | None:
        """A distribution that is fitted beside the prior, where a policy cannot start as the prior itself."""
        return None


class GaussianPrior(SkillPrior):
    """A diagonal Gaussian from an MLP, with 2 Z parameters: means and log deviations."""

    def __init__(self, inputs: int, latent_dim: int, settings: SkillSettings) -> None:
        super().__init__(inputs, latent_dim, settings)
        self.param_dim = self.policy_param_dim = 2 * latent_dim
        self.net = mlp(inputs, self.param_dim, width=settings.width, layers=settings.prior_layers)

    def forward(self, encoded: Tensor) -> Tensor:
        return self.net(encoded)

    def distribution(self, parameters: Tensor) -> DiagonalGaussian:
        return DiagonalGaussian.from_parameters(parameters)

    policy_distribution = distribution


class MixturePrior(SkillPrior):
    """A mixture of K diagonal Gaussians from an MLP, with K (1 + 2 Z) parameters, weights' logits first."""

    def __init__(self, inputs: int, latent_dim: int, settings: SkillSettings) -> None:
        super().__init__(inputs, latent_dim, settings)
        self.param_dim = self.policy_param_dim = settings.mixture_components * (1 + 2 * latent_dim)
        self.net = mlp(inputs, self.param_dim, width=settings.width, layers=settings.prior_layers)

    def forward(self, encoded: Tensor) -> Tensor:
        return self.net(encoded)

    def distribution(self, parameters: Tensor) -> GaussianMixture:
        return GaussianMixture.from_parameters(parameters, self.latent_dim)

    policy_distribution = distribution


class AffineCoupling(nn.Module):
    """One conditional coupling layer (Dinh et al. 2017): half of z scales and shifts the other half."""

    def __init__(self, latent_dim: int, features: int, *, width: int, flip: bool) -> None:
        super().__init__()
        self.kept = latent_dim // 2 if flip else latent_dim - latent_dim // 2
        self.flip = flip
        self.net = mlp(self.kept + features, 2 * (latent_dim - self.kept), width=width, layers=1)

    def _scale_shift(self, kept: Tensor, features: Tensor) -> tuple[Tensor, Tensor]:
        scale, shift = self.net(torch.cat([kept, features], dim=-1)).chunk(2, dim=-1)
        return 2.0 * torch.tanh(0.5 * scale), shift

    def forward(self, value: Tensor, features: Tensor) -> Tensor:
        """Maps noise [B, Z] to latents [B, Z]."""
        kept, moved = self._split(value)
        scale, shift = self._scale_shift(kept, features)
        return self._join(kept, moved * scale.exp() + shift)

    def inverse(self, value: Tensor, features: Tensor) -> tuple[Tensor, Tensor]:
        """Maps latents [B, Z] to noise [B, Z], and returns log |d noise / d latent| [B] as well."""
        kept, moved = self._split(value)
        scale, shift = self._scale_shift(kept, features)
        return self._join(kept, (moved - shift) * (-scale).exp()), -scale.sum(-1)

    def _split(self, value: Tensor) -> tuple[Tensor, Tensor]:
        if self.flip:
            return value[..., -self.kept :], value[..., : -self.kept]
        return value[..., : self.kept], value[..., self.kept :]

    def _join(self, kept: Tensor, moved: Tensor) -> Tensor:
        return torch.cat([moved, kept] if self.flip else [kept, moved], dim=-1)


@dataclass(frozen=True)
class ConditionalFlow:
    """A Gaussian base pushed through coupling layers, all conditioned on the state."""

    base: DiagonalGaussian
    features: Tensor
    layers: nn.ModuleList

    def _push(self, value: Tensor) -> Tensor:
        for layer in self.layers:
            value = layer(value, self.features)
        return value

    def log_prob(self, value: Tensor) -> Tensor:
        log_det = torch.zeros(value.shape[:-1], device=value.device)
        for layer in reversed(self.layers):
            assert isinstance(layer, AffineCoupling)
            value, change = layer.inverse(value, self.features)
            log_det = log_det + change
        return self.base.log_prob(value) + log_det

    def sample(self, generator: torch.Generator | None = None) -> Tensor:
        return self._push(self.base.sample(generator))

    def mode(self) -> Tensor:
        """The image of the base's mean (not the exact mode of the density)."""
        return self._push(self.base.mean)

    def sample_component(self) -> DiagonalGaussian:
        """Draws a sample and returns a Gaussian about it, as narrow as a Gaussian may be."""
        latent = self.sample()
        return DiagonalGaussian(latent, torch.full_like(latent, LOG_STD_MIN))


class FlowPrior(SkillPrior):
    """A conditional flow with width + 4 Z parameters: the features of its couplings, its base, and a Gaussian.

    A policy is a Gaussian or a mixture, which a flow is not. So a Gaussian is fitted beside it, where policies start.
    """

    def __init__(self, inputs: int, latent_dim: int, settings: SkillSettings) -> None:
        super().__init__(inputs, latent_dim, settings)
        if latent_dim < 2:
            raise SpirlError(
                f"skills.prior: flow needs a latent of at least 2 dimensions, this one has {latent_dim}. "
                "Use gaussian or mixture."
            )
        width = settings.width
        self.policy_param_dim = 2 * latent_dim
        self.param_dim = width + 2 * self.policy_param_dim
        self.trunk = mlp(inputs, self.param_dim, width=width, layers=settings.prior_layers)
        self.couplings = nn.ModuleList(
            AffineCoupling(latent_dim, width, width=width, flip=bool(i % 2)) for i in range(settings.flow_layers)
        )

    def forward(self, encoded: Tensor) -> Tensor:
        return self.trunk(encoded)

    def distribution(self, parameters: Tensor) -> ConditionalFlow:
        each = self.policy_param_dim
        features, base, _ = parameters.split([self.param_dim - 2 * each, each, each], dim=-1)
        return ConditionalFlow(DiagonalGaussian.from_parameters(base), features, self.couplings)

    def policy_parameters(self, parameters: Tensor) -> Tensor:
        return parameters[..., -self.policy_param_dim :]

    def policy_distribution(self, parameters: Tensor) -> DiagonalGaussian:
        return DiagonalGaussian.from_parameters(parameters)

    def auxiliary(self, parameters: Tensor) -> DiagonalGaussian:
        return self.policy_distribution(self.policy_parameters(parameters))


class StandardPrior(SkillPrior):
    """N(0, I) in every state, the distribution of a decoder's noise; it has neither weights nor parameters."""

    def __init__(self, inputs: int, latent_dim: int, settings: SkillSettings) -> None:
        super().__init__(inputs, latent_dim, settings)
        self.param_dim, self.policy_param_dim = 0, 2 * latent_dim

    def forward(self, encoded: Tensor) -> Tensor:
        return encoded[..., :0]

    def distribution(self, parameters: Tensor) -> DiagonalGaussian:
        return self.policy_distribution(self.policy_parameters(parameters))

    def policy_parameters(self, parameters: Tensor) -> Tensor:
        return parameters.new_zeros(*parameters.shape[:-1], self.policy_param_dim)

    def policy_distribution(self, parameters: Tensor) -> DiagonalGaussian:
        return DiagonalGaussian.from_parameters(parameters)


PriorFactory = Callable[[int, int, SkillSettings], SkillPrior]
PRIORS: Registry[PriorFactory] = Registry("skill prior")


def register_prior(name: str, factory: PriorFactory, *, replace: bool = False) -> None:
    """Adds a skill prior that ``skills.prior`` can name.

    Args:
        name: name of the prior.
        factory: builds a `SkillPrior` from the width of an encoded observation, Z and the skills' settings; a subclass
            can be given itself.
        replace: True to replace a prior of this name.
    """
    PRIORS.register(name, factory, replace=replace)


register_prior("gaussian", GaussianPrior)
register_prior("mixture", MixturePrior)
register_prior("flow", FlowPrior)
register_prior("standard", StandardPrior)
