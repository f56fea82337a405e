"""A skill decoder, a skill prior, an observation encoder and a policy head."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from spirl_ray.config import Settings, SkillSettings
from spirl_ray.rl.heads import HeadContext, ResidualHead, register_head
from spirl_ray.skills.decoders import ClosedLoopCodec, DecoderKind, register_decoder
from spirl_ray.skills.encoders import EncoderContext, FeatureEncoder, Observations, register_encoder
from spirl_ray.skills.priors import GaussianPrior, register_prior
from spirl_ray.skills.spec import SkillSpec


class LinearCodec(ClosedLoopCodec):
    """A closed-loop decoder without hidden layers."""

    def __init__(self, spec: SkillSpec) -> None:
        super().__init__(spec)
        self.decoder = nn.Sequential(nn.Linear(self.observations.outputs + spec.latent_dim, spec.action_dim))


class BoundedPrior(GaussianPrior):
    """A Gaussian prior whose means stay within ±2."""

    def __init__(self, inputs: int, latent_dim: int, settings: SkillSettings) -> None:
        super().__init__(inputs, latent_dim, settings)

    def forward(self, encoded: Tensor) -> Tensor:
        mean, log_std = self.net(encoded).chunk(2, dim=-1)
        return torch.cat([2.0 * torch.tanh(mean), log_std], dim=-1)


class WaveEncoder(FeatureEncoder):
    """Sines and cosines of a vector's entries."""

    class Options(Settings):
        waves: int = 2
        """The number of frequencies."""

    options: Options

    def __init__(self, context: EncoderContext) -> None:
        super().__init__(context)
        self.outputs = 2 * self.options.waves * context.feature.size

    def forward(self, observations: Observations) -> Tensor:
        angles = [2.0**wave * observations[self.name] for wave in range(self.options.waves)]
        return torch.cat([function(angle) for angle in angles for function in (torch.sin, torch.cos)], dim=-1)


class TimidHead(ResidualHead):
    """A residual on the prior that moves a tenth as fast."""

    def __init__(self, context: HeadContext) -> None:
        super().__init__(context)

    def forward(self, encoded: Tensor, prior_parameters: Tensor | None) -> Tensor:
        assert prior_parameters is not None
        start = self._policy_parameters(prior_parameters)
        return start + 0.1 * (super().forward(encoded, prior_parameters) - start)


def register() -> None:
    """Adds all of them; spirl-ray calls it once in every process."""
    register_decoder("linear", DecoderKind(LinearCodec, "linear skills", observes="every_step"))
    register_prior("bounded", BoundedPrior)
    register_encoder("waves", WaveEncoder)
    register_head("timid", TimidHead)
