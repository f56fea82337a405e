"""Skill priors p(z | s): Gaussian (the paper's), a mixture of Gaussians, and a conditional flow.

All share one interface: calling a prior with standardised states [B, S] gives a distribution with
``log_prob(z) -> [B]``, ``sample() -> [B, Z]`` and ``mode() -> [B, Z]``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from spirl_ray.errors import SpirlError
from spirl_ray.skills.gaussian import LOG_STD_MIN, DiagonalGaussian
from spirl_ray.skills.networks import mlp


class LatentDistribution(Protocol):
    """What training and rollouts need of p(. | s)."""

    def log_prob(self, value: Tensor) -> Tensor: ...

    def sample(self, generator: torch.Generator | None = None) -> Tensor: ...

    def mode(self) -> Tensor: ...

    def draw_part(self) -> DiagonalGaussian:
        """A Gaussian, drawn so that what is drawn from it is drawn from this distribution."""
        ...


class GaussianPrior(nn.Module):
    """A diagonal Gaussian from an MLP. The high-level policy has the same shape, so it can start from it."""

    def __init__(self, state_dim: int, latent_dim: int, *, width: int, layers: int) -> None:
        super().__init__()
        self.net = mlp(state_dim, 2 * latent_dim, width=width, layers=layers)

    def forward(self, states: Tensor) -> DiagonalGaussian:
        return DiagonalGaussian.from_parameters(self.net(states))


@dataclass(frozen=True)
class GaussianMixture:
    """K diagonal Gaussians: logits [B, K], components' tensors [B, K, Z]."""

    logits: Tensor
    components: DiagonalGaussian

    @staticmethod
    def from_parameters(parameters: Tensor, latent_dim: int) -> GaussianMixture:
        """From a network's outputs [..., K (1 + 2 Z)]."""
        components = parameters.shape[-1] // (1 + 2 * latent_dim)
        logits, rest = parameters.split([components, 2 * components * latent_dim], dim=-1)
        return GaussianMixture(
            logits, DiagonalGaussian.from_parameters(rest.unflatten(-1, (components, 2 * latent_dim)))
        )

    def log_prob(self, value: Tensor) -> Tensor:
        weights = torch.log_softmax(self.logits, dim=-1)
        return torch.logsumexp(weights + self.components.log_prob(value.unsqueeze(-2)), dim=-1)

    def sample(self, generator: torch.Generator | None = None) -> Tensor:
        chosen = torch.multinomial(self.logits.softmax(-1), 1, generator=generator)
        return self._pick(self.components.sample(generator), chosen)

    def mode(self) -> Tensor:
        """The mean of the heaviest component."""
        return self._pick(self.components.mean, self.logits.argmax(-1, keepdim=True))

    def parts(self) -> tuple[Tensor, DiagonalGaussian]:
        """Weights [..., K] and components [..., K, Z]."""
        return self.logits.softmax(-1), self.components

    def draw_part(self) -> DiagonalGaussian:
        """A component, by its weight."""
        chosen = torch.multinomial(self.logits.softmax(-1), 1)
        return DiagonalGaussian(self._pick(self.components.mean, chosen), self._pick(self.components.log_std, chosen))

    @staticmethod
    def _pick(values: Tensor, chosen: Tensor) -> Tensor:
        return values.gather(-2, chosen.unsqueeze(-1).expand(*chosen.shape, values.shape[-1])).squeeze(-2)


class MixturePrior(nn.Module):
    def __init__(self, state_dim: int, latent_dim: int, *, width: int, layers: int, components: int) -> None:
        super().__init__()
        self.latent_dim = latent_dim
        self.net = mlp(state_dim, components * (1 + 2 * latent_dim), width=width, layers=layers)

    def forward(self, states: Tensor) -> GaussianMixture:
        return GaussianMixture.from_parameters(self.net(states), self.latent_dim)


def from_parameters(parameters: Tensor, latent_dim: int) -> DiagonalGaussian | GaussianMixture:
    """The distribution whose parameters a prior's network gave: 2 Z of a Gaussian, or K (1 + 2 Z) of a mixture."""
    if parameters.shape[-1] == 2 * latent_dim:
        return DiagonalGaussian.from_parameters(parameters)
    return GaussianMixture.from_parameters(parameters, latent_dim)


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
        """Noise to latent."""
        kept, moved = self._split(value)
        scale, shift = self._scale_shift(kept, features)
        return self._join(kept, moved * scale.exp() + shift)

    def inverse(self, value: Tensor, features: Tensor) -> tuple[Tensor, Tensor]:
        """Latent to noise, with log |d noise / d latent| as [B]."""
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

    def draw_part(self) -> DiagonalGaussian:
        """A draw, as narrow as a Gaussian may be."""
        latent = self.sample()
        return DiagonalGaussian(latent, torch.full_like(latent, LOG_STD_MIN))


class FlowPrior(nn.Module):
    def __init__(self, state_dim: int, latent_dim: int, *, width: int, layers: int, couplings: int) -> None:
        super().__init__()
        if latent_dim < 2:
            raise SpirlError(
                f"skills.prior: flow needs a latent of at least 2 dimensions, this one has {latent_dim}. "
                "Use gaussian or mixture."
            )
        self.latent_dim = latent_dim
        self.trunk = mlp(state_dim, width + 2 * latent_dim, width=width, layers=layers - 1)
        self.couplings = nn.ModuleList(
            AffineCoupling(latent_dim, width, width=width, flip=bool(i % 2)) for i in range(couplings)
        )

    def forward(self, states: Tensor) -> ConditionalFlow:
        out = self.trunk(states)
        features, base = out.split([out.shape[-1] - 2 * self.latent_dim, 2 * self.latent_dim], dim=-1)
        return ConditionalFlow(DiagonalGaussian.from_parameters(base), features, self.couplings)
