"""Flow skills: a decoder that turns noise and the observation at a skill's start into H actions.

It is trained by conditional flow matching (Lipman et al. 2023, arXiv 2210.02747) and decodes in a few Euler steps. The
latent is the noise itself, so its prior is N(0, I) and nothing else is learned in stage 1. The policy of stage 2
chooses the noise (as in Wagenmaker et al. 2025, DSRL, arXiv 2506.15799, where the decoder is a diffusion policy).
"""

from __future__ import annotations

import math

import torch
from pydantic import Field
from torch import Tensor

from spirl_ray.config import Settings
from spirl_ray.config_file import validated
from spirl_ray.errors import SpirlError
from spirl_ray.skills.decoders import DecoderKind, NoiseCodec, register_decoder
from spirl_ray.skills.encoders import Observations
from spirl_ray.skills.gaussian import DiagonalGaussian
from spirl_ray.skills.networks import mlp
from spirl_ray.skills.spec import SkillSpec

_INVERSE_STD = 0.1
"""The deviation of q(z | window) about the noise that decodes to the window, in units of the prior's."""
_MOST_NOISE = 3.0
"""The largest entry of that noise. Where the flow is narrow, actions beside it would need noise that is never drawn."""
_FIXED_POINT_STEPS = 5
"""The iterations that invert one Euler step; each reduces the error by the step's size times the velocity's slope."""
_WAVES = 4
"""The frequencies by which the network observes the time."""


class FlowOptions(Settings):
    """The settings that `skills.decoder_options` may hold for flow skills."""

    steps: int = Field(default=10, ge=2, le=1000)
    """The number of Euler steps from noise to actions. One step would decode any noise to the mean of the actions."""


class FlowCodec(NoiseCodec):
    """A velocity v(x, t | s) from noise at t = 0 to the H actions at t = 1, x [B, H A] and t in [0, 1]."""

    extra_noise = 1

    def __init__(self, spec: SkillSpec) -> None:
        super().__init__()
        settings = spec.settings
        self.shape = (spec.horizon, spec.action_dim)
        if spec.latent_dim != spec.horizon * spec.action_dim:
            raise SpirlError(
                f"The noise of flow skills has {spec.horizon * spec.action_dim} entries, not {spec.latent_dim}."
            )
        self.steps = validated(FlowOptions, settings.decoder_options, "skills.decoder_options").steps
        self.observations = spec.observation_encoder()
        inputs = self.observations.outputs + spec.latent_dim + 2 * _WAVES
        self.network = mlp(inputs, spec.latent_dim, width=settings.width, layers=settings.decoder_layers)

    def observe(self, observations: Observations) -> Tensor:
        return self.observations(observations)

    def velocity(self, features: Tensor, value: Tensor, time: Tensor) -> Tensor:
        """The velocity [B, H A] at points [B, H A] and times [B], given features [B, F] of the skill's start."""
        angles = time.unsqueeze(-1) * torch.pi * 2.0 ** torch.arange(_WAVES, device=time.device)
        return self.network(torch.cat([features, value, angles.sin(), angles.cos()], dim=-1))

    def noise_loss(self, features: Tensor | None, actions: Tensor, noise: Tensor) -> Tensor:
        """The flow-matching loss, Eq. (7) of docs/methods.md.

        It is the mean of (v(x_t, t | s) - (a - w))^2 over batch and dimensions, at points x_t = (1 - t) w + t a of the
        straight line from noise w to actions a.

        Args:
            features: [B, 1, F] of the skill's start.
            actions: [B, H, A].
            noise: standard normal [B, H A + 1]; its last entry gives the time, uniform in [0, 1].
        """
        assert features is not None
        noise, time = noise[:, :-1], torch.special.ndtr(noise[:, -1])
        target = actions.flatten(1)
        points = torch.lerp(noise, target, time.unsqueeze(-1))
        return (self.velocity(features[:, 0], points, time) - (target - noise)).square().mean()

    def decode(self, features: Tensor | None, latent: Tensor) -> Tensor:
        """Decodes noise [B, H A] as actions [B, H, A], given features [B, 1, F] of the skill's start."""
        assert features is not None
        value = latent
        for step in range(self.steps):
            value = value + self._change(features[:, 0], value, step)
        return value.unflatten(-1, self.shape)

    def encode(self, features: Tensor | None, actions: Tensor) -> DiagonalGaussian:
        """A narrow Gaussian about the noise that decodes to these actions; each Euler step is inverted by fixed-point
        iteration."""
        assert features is not None
        value = actions.flatten(1)
        for step in reversed(range(self.steps)):
            before = value
            for _ in range(_FIXED_POINT_STEPS):
                before = value - self._change(features[:, 0], before, step)
            value = before
        mean = value.nan_to_num().clamp(-_MOST_NOISE, _MOST_NOISE)
        return DiagonalGaussian(mean, torch.full_like(mean, math.log(_INVERSE_STD)))

    def _change(self, features: Tensor, value: Tensor, step: int) -> Tensor:
        time = torch.full_like(value[:, 0], step / self.steps)
        return self.velocity(features, value, time) / self.steps


register_decoder(
    "flow",
    DecoderKind(
        FlowCodec,
        "flow skills",
        observes="start",
        noise=True,
        latent_dim=lambda settings, action_dim: settings.horizon * action_dim,
        takes_options=True,
    ),
)
