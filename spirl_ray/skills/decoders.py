"""Skill decoders with the encoders that belong to them: open loop, closed loop, the identity of flat methods, and the
interface of those that decode noise."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from spirl_ray.config import SkillSettings
from spirl_ray.errors import SpirlError
from spirl_ray.registry import Registry
from spirl_ray.skills.encoders import ObservationEncoder, Observations
from spirl_ray.skills.gaussian import DiagonalGaussian
from spirl_ray.skills.networks import RecurrentActionDecoder, mlp
from spirl_ray.skills.spec import SkillSpec

_MAX_ACTION = 0.999
"""The magnitude to which actions are clamped before atanh, which is infinite at 1."""
_FLAT_STD = 0.1
"""The deviation of the flat case's posterior, in latent units; near 0, where tanh has slope 1, a tenth of full
action."""


class RecurrentEncoder(nn.Module):
    """q(z | window): a one-layer LSTM whose last output gives a diagonal Gaussian."""

    def __init__(self, inputs: int, latent_dim: int, width: int) -> None:
        super().__init__()
        self.lstm = nn.LSTM(inputs, width, batch_first=True)
        self.head = nn.Linear(width, 2 * latent_dim)

    def forward(self, sequence: Tensor) -> DiagonalGaussian:
        outputs, _ = self.lstm(sequence)
        return DiagonalGaussian.from_parameters(self.head(outputs[:, -1]))


class SkillCodec(nn.Module):
    """The skill encoder q(z | window) and the skill decoder of one kind.

    Windows have T steps: H, or 1 where the kind uses the first observation alone.
    """

    extra_noise = 0
    """The number of standard normal numbers for each window that the loss needs besides the Z of the latent."""

    @property
    def learns(self) -> bool:
        """True where stage 1 trains it."""
        return True

    @property
    def can_encode(self) -> bool:
        """True where `encode` gives latents."""
        return True

    def shared_encoder(self) -> ObservationEncoder | None:
        """The codec's own encoder by which policies observe images, too; None where the model makes another one."""
        return None

    def load_pretrained(self) -> None:
        """Loads weights from files that `skills.decoder_options` names, once, before stage 1 trains."""

    def observe(self, observations: Observations) -> Tensor | None:
        """Encodes observations [B, T, *observed_shape] into features [B, T, F]; None where no features are needed."""
        return None

    def encode(self, features: Tensor | None, actions: Tensor) -> DiagonalGaussian:
        """Encodes a window: q(z | window) [B, Z] from features [B, T, F] and actions [B, H, A]."""
        raise NotImplementedError

    def decode(self, features: Tensor | None, latent: Tensor) -> Tensor:
        """Decodes actions [B, T, A] (open loop: [B, H, A]) from features [B, T, F] and latents [B, Z]."""
        raise NotImplementedError

    def reconstruction_loss(self, features: Tensor | None, latent: Tensor, actions: Tensor) -> Tensor:
        """The NLL of a unit Gaussian around the decoded actions, without its constant, as a mean over batch and
        dimensions."""
        return 0.5 * (self.decode(features, latent) - actions).square().mean()

    def relabelled(self, actions: Tensor, perturbed: Tensor) -> tuple[Tensor, Tensor]:
        """The actions to encode and the actions to decode after augmentation has perturbed a window, both [B, H, A].

        By default the skill is encoded from the demonstration itself, so that latents do not carry the perturbation.
        """
        return actions, perturbed


class OpenLoopCodec(SkillCodec):
    """A codec that encodes and decodes actions alone, so the plan is fixed when the skill starts."""

    def __init__(self, spec: SkillSpec) -> None:
        super().__init__()
        width = spec.settings.width
        self.horizon = spec.horizon
        self.encoder = RecurrentEncoder(spec.action_dim, spec.latent_dim, width)
        self.decoder = RecurrentActionDecoder(spec.latent_dim, spec.action_dim, width)

    def encode(self, features: Tensor | None, actions: Tensor) -> DiagonalGaussian:
        return self.encoder(actions)

    def decode(self, features: Tensor | None, latent: Tensor) -> Tensor:
        return self.decoder(latent, self.horizon)

    def relabelled(self, actions: Tensor, perturbed: Tensor) -> tuple[Tensor, Tensor]:
        """Returns the perturbed actions twice, because a plan from a displaced start has to begin with the way back."""
        return perturbed, perturbed


class ClosedLoopCodec(SkillCodec):
    """A codec whose decoder is a policy a(s_t, z) that gets the current observation at every primitive step."""

    def __init__(self, spec: SkillSpec) -> None:
        super().__init__()
        settings = spec.settings
        self.observations = spec.observation_encoder()
        inputs = self.observations.outputs
        self.encoder = RecurrentEncoder(spec.action_dim + inputs, spec.latent_dim, settings.width)
        self.decoder = mlp(
            inputs + spec.latent_dim, spec.action_dim, width=settings.width, layers=settings.decoder_layers
        )

    def observe(self, observations: Observations) -> Tensor:
        return self.observations(observations)

    def encode(self, features: Tensor | None, actions: Tensor) -> DiagonalGaussian:
        assert features is not None
        return self.encoder(torch.cat([actions, features], dim=-1))

    def decode(self, features: Tensor | None, latent: Tensor) -> Tensor:
        assert features is not None
        repeated = latent.unsqueeze(1).expand(-1, features.shape[1], -1)
        return self.decoder(torch.cat([features, repeated], dim=-1))


class IdentityCodec(SkillCodec):
    """The flat case: the latent is the action itself before a tanh, so its prior is behaviour cloning.

    An action prior of demonstrations that hardly vary would be so narrow that no policy stays close to it, because the
    divergence of a policy that is off by d grows with (d / sigma)^2. So the posterior has the deviation `_FLAT_STD`.
    """

    def encode(self, features: Tensor | None, actions: Tensor) -> DiagonalGaussian:
        mean = torch.atanh(actions[:, 0].clamp(-_MAX_ACTION, _MAX_ACTION))
        return DiagonalGaussian(mean, torch.full_like(mean, math.log(_FLAT_STD)))

    def decode(self, features: Tensor | None, latent: Tensor) -> Tensor:
        return torch.tanh(latent).unsqueeze(1)

    def relabelled(self, actions: Tensor, perturbed: Tensor) -> tuple[Tensor, Tensor]:
        """Returns the perturbed actions twice, because the latent is the action."""
        return perturbed, perturbed


class NoiseCodec(SkillCodec):
    """A codec whose latent is the noise of a generative policy over H actions, so that its prior is N(0, I).

    Stage 1 trains it with `noise_loss`, and learns no embedding and no prior. A class without a `noise_loss` of its own
    is a policy that was trained elsewhere: its parameters are frozen, and stage 1 only computes the statistics of the
    data.
    """

    def noise_loss(self, features: Tensor | None, actions: Tensor, noise: Tensor) -> Tensor:
        """The loss, a mean over batch and dimensions, from features [B, T, F], actions [B, H, A] and standard normal
        noise [B, Z + extra_noise]. By default, the squared error of what the noise decodes to, from which nothing
        can be learned."""
        return self.reconstruction_loss(features, noise, actions)

    def shared_encoder(self) -> ObservationEncoder | None:
        """The attribute ``observations``, if the class has one."""
        found = getattr(self, "observations", None)
        return found if isinstance(found, ObservationEncoder) else None

    @property
    def learns(self) -> bool:
        """True where the class has a `noise_loss` of its own."""
        return type(self).noise_loss is not NoiseCodec.noise_loss

    @property
    def can_encode(self) -> bool:
        """True where the class has an `encode` of its own."""
        return type(self).encode is not NoiseCodec.encode

    def encode(self, features: Tensor | None, actions: Tensor) -> DiagonalGaussian:
        """The noise that decodes to a window, as a narrow Gaussian [B, Z]; offline decisions need it.

        Raises:
            SpirlError: this kind cannot invert its decoder.
        """
        raise cannot_encode(self)


def cannot_encode(codec: SkillCodec) -> SpirlError:
    """Makes the error about a codec without an `encode` of its own."""
    return SpirlError(
        f"{type(codec).__name__} does not say which noise decodes to given actions, which offline decisions need. "
        "Set train.offline_fraction to 0, or write its `encode`."
    )


@dataclass(frozen=True)
class DecoderKind:
    """A kind of skill decoder, with what the rest of the program must know about it."""

    build: Callable[[SkillSpec], SkillCodec]
    label: str
    """The name of skills of this kind in tables and figures."""
    observes: Literal["nothing", "start", "every_step"]
    """The observations that the decoder gets: none, the one with which the skill starts, or that of every primitive
    step."""
    flat: bool = False
    """True where a skill is one primitive action."""
    noise: bool = False
    """True where the latent is noise (`NoiseCodec`): the skill prior is N(0, I), whatever ``skills.prior`` says."""
    latent_dim: Callable[[SkillSettings, int], int] | None = None
    """The size of a latent, from the settings and the width of an action; None is ``skills.latent_dim``."""
    takes_options: bool = False
    """True where ``skills.decoder_options`` has an effect."""
    user_class: Callable[[SkillSettings], str | None] | None = None
    """The ``module:Class`` of the user's of which such skills are made; None where the settings are all."""

    @property
    def closed_loop(self) -> bool:
        """True where the decoder runs at every primitive step, on the current observation."""
        return self.observes == "every_step"

    def prior(self, settings: SkillSettings) -> str:
        """The name of the skill prior of such skills."""
        return "standard" if self.noise else settings.prior

    def observed_steps(self, horizon: int) -> int:
        """The number of steps of a window that the model observes; a decoder that is not closed-loop needs only the
        first."""
        return horizon if self.closed_loop else 1


DECODERS: Registry[DecoderKind] = Registry(
    "skill decoder", modules=("spirl_ray.skills.plan", "spirl_ray.skills.flow", "spirl_ray.skills.own_codec")
)


def register_decoder(name: str, kind: DecoderKind, *, replace: bool = False) -> None:
    """Adds a kind of skill decoder that a method can name.

    Args:
        name: name of the kind.
        kind: how such a decoder is built.
        replace: True to replace a kind of this name.
    """
    DECODERS.register(name, kind, replace=replace)


register_decoder("open_loop", DecoderKind(OpenLoopCodec, "open-loop skills", observes="nothing"))
register_decoder("closed_loop", DecoderKind(ClosedLoopCodec, "closed-loop skills", observes="every_step"))
register_decoder(
    "identity",
    DecoderKind(
        lambda spec: IdentityCodec(),
        "action prior (flat)",
        observes="nothing",
        flat=True,
        latent_dim=lambda settings, action_dim: action_dim,
    ),
)
