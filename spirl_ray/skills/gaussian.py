"""Diagonal Gaussians, for the posterior over skills, the skill prior and the high-level policy."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

LOG_STD_MIN, LOG_STD_MAX = -10.0, 2.0
_LOG_2PI = math.log(2.0 * math.pi)


@dataclass(frozen=True)
class DiagonalGaussian:
    """The distribution N(mean, diag(exp(log_std))^2); both tensors are [..., Z]."""

    mean: Tensor
    log_std: Tensor

    @staticmethod
    def from_parameters(parameters: Tensor) -> DiagonalGaussian:
        """Splits network outputs [..., 2 Z], of at least float32 then, and clamps log sigma to [-10, 2]."""
        precise = torch.promote_types(parameters.dtype, torch.float32)
        mean, log_std = parameters.to(precise).chunk(2, dim=-1)
        return DiagonalGaussian(mean, log_std.clamp(LOG_STD_MIN, LOG_STD_MAX))

    def mode(self) -> Tensor:
        return self.mean

    def sample_component(self) -> DiagonalGaussian:
        """Returns the Gaussian itself, because it is the only component."""
        return self

    def as_mixture(self) -> tuple[Tensor, DiagonalGaussian]:
        """The Gaussian as a mixture of one: weights [..., 1] and components [..., 1, Z]."""
        one = DiagonalGaussian(self.mean.unsqueeze(-2), self.log_std.unsqueeze(-2))
        return torch.ones_like(self.mean[..., :1]), one

    def sample(self, generator: torch.Generator | None = None) -> Tensor:
        """Draws a reparametrised sample [..., Z]."""
        noise = torch.randn(self.mean.shape, generator=generator, device=self.mean.device)
        return self.mean + self.log_std.exp() * noise

    def log_prob(self, value: Tensor) -> Tensor:
        """The log density, summed over the last dimension: [...]."""
        scaled = (value - self.mean) * (-self.log_std).exp()
        return -(0.5 * scaled.square() + self.log_std + 0.5 * _LOG_2PI).sum(-1)

    def kl(self, other: DiagonalGaussian) -> Tensor:
        """The divergence KL(self || other) in closed form, summed over the last dimension: [...] nats."""
        variance_ratio = (2.0 * (self.log_std - other.log_std)).exp()
        distance = (self.mean - other.mean) * (-other.log_std).exp()
        return 0.5 * (variance_ratio + distance.square() - 1.0).sum(-1) - (self.log_std - other.log_std).sum(-1)

    def kl_to_standard_normal(self) -> Tensor:
        """The divergence KL(self || N(0, I)), summed over the last dimension: [...] nats."""
        return 0.5 * ((2.0 * self.log_std).exp() + self.mean.square() - 1.0).sum(-1) - self.log_std.sum(-1)

    def detach(self) -> DiagonalGaussian:
        return DiagonalGaussian(self.mean.detach(), self.log_std.detach())
