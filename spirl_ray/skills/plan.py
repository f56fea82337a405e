"""Plan skills: an open-loop decoder that also gets the observation with which the skill starts.

All H actions are fixed when the skill starts, as in the paper, but the latent need not hold what the observation says:
where the robot is, and what the first actions must do about it.
"""

from __future__ import annotations

import torch
from pydantic import Field
from torch import Tensor

from spirl_ray.config import Settings
from spirl_ray.config_file import validated
from spirl_ray.skills.decoders import DecoderKind, SkillCodec, register_decoder
from spirl_ray.skills.encoders import Observations
from spirl_ray.skills.gaussian import DiagonalGaussian
from spirl_ray.skills.networks import mlp
from spirl_ray.skills.spec import SkillSpec


class PlanOptions(Settings):
    """The settings that `skills.decoder_options` may hold for plan skills."""

    displacement_weight: float = Field(default=0.0, ge=0.0)
    """The weight of the error of summed actions, for actions that are velocities or displacements."""


class PlanCodec(SkillCodec):
    """A codec of two MLPs: q(z | s_t, H actions), and H actions from s_t and z."""

    def __init__(self, spec: SkillSpec) -> None:
        super().__init__()
        settings = spec.settings
        self.shape = (spec.horizon, spec.action_dim)
        options = validated(PlanOptions, settings.decoder_options, "skills.decoder_options")
        self.displacement_weight = options.displacement_weight
        self.observations = spec.observation_encoder()
        seen, plan = self.observations.outputs, spec.horizon * spec.action_dim
        width, layers = settings.width, settings.decoder_layers
        self.encoder = mlp(seen + plan, 2 * spec.latent_dim, width=width, layers=layers)
        self.decoder = mlp(seen + spec.latent_dim, plan, width=width, layers=layers)

    def observe(self, observations: Observations) -> Tensor:
        return self.observations(observations)

    def encode(self, features: Tensor | None, actions: Tensor) -> DiagonalGaussian:
        assert features is not None
        return DiagonalGaussian.from_parameters(self.encoder(torch.cat([features[:, 0], actions.flatten(1)], dim=-1)))

    def decode(self, features: Tensor | None, latent: Tensor) -> Tensor:
        """Decodes latents [B, Z] as actions [B, H, A], given features [B, 1, F] of the skill's start."""
        assert features is not None
        return self.decoder(torch.cat([features[:, 0], latent], dim=-1)).unflatten(-1, self.shape)

    def reconstruction_loss(self, features: Tensor | None, latent: Tensor, actions: Tensor) -> Tensor:
        """The NLL of a unit Gaussian around the decoded actions and, weighted, around their sums, Eq. (8) of
        docs/methods.md.

        A demonstrator corrects at each step what the last one got wrong, so a plan must match where the
        demonstration leads rather than each of its actions.
        """
        error = self.decode(features, latent) - actions
        loss = 0.5 * error.square().mean()
        if self.displacement_weight:
            loss = loss + 0.5 * self.displacement_weight * error.cumsum(1).square().mean()
        return loss


register_decoder("plan", DecoderKind(PlanCodec, "plan skills", observes="start", takes_options=True))
