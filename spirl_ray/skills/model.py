"""The skill model: skill encoder q(z | s, a), skill decoder, skill prior p(z | s), and their joint loss."""

from __future__ import annotations

import math
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from spirl_ray.config import Settings, SkillSettings
from spirl_ray.skills.gaussian import DiagonalGaussian
from spirl_ray.skills.networks import RecurrentActionDecoder, ViewEncoder, mlp
from spirl_ray.skills.priors import FlowPrior, GaussianPrior, LatentDistribution, MixturePrior

DecoderKind = Literal["closed_loop", "open_loop", "identity"]
_MAX_ACTION = 0.999
"""Actions are clamped to this before atanh, which is infinite at 1."""
_FLAT_STD = 0.1
"""Deviation of the flat case's posterior, in latent units; near 0, where tanh has slope 1, a tenth of full action."""


class ViewShape(Settings):
    """What networks must know of an environment's images, see `spirl_ray.envs.ViewSpec`."""

    frames: int = Field(ge=1)
    size: int = Field(ge=8)
    egocentric: tuple[int, ...]


class SkillSpec(Settings):
    """Everything that is needed to build a skill model."""

    decoder: DecoderKind
    state_dim: int = Field(ge=1)
    """S in the data. With a view, the target's states may have another size: skills see their egocentric entries."""
    action_dim: int = Field(ge=1)
    view: ViewShape | None = None
    settings: SkillSettings

    @property
    def pixels(self) -> int:
        """Of all frames of an observation, which are its last entries."""
        return self.view.frames * self.view.size**2 if self.view is not None else 0

    @property
    def egocentric(self) -> list[int]:
        """State entries that skills and prior see beside frames."""
        return list(self.view.egocentric) if self.view is not None and self.settings.egocentric_state else []

    @property
    def observed_steps(self) -> int:
        """Of how many steps of a window the model looks at frames: only a closed-loop decoder goes past the first."""
        return 1 if self.view is not None and self.decoder == "open_loop" else self.horizon

    @property
    def horizon(self) -> int:
        """H in primitive steps. A flat method is a skill of length 1."""
        return 1 if self.decoder == "identity" else self.settings.horizon

    @property
    def latent_dim(self) -> int:
        return self.action_dim if self.decoder == "identity" else self.settings.latent_dim

    @property
    def proposal_dim(self) -> int:
        """Parameters of the prior at one state, see `SkillModel.decision_input`."""
        each = 2 * self.latent_dim
        return self.settings.mixture_components * (1 + each) if self.settings.prior == "mixture" else each


class Perception(nn.Module):
    """What skills and prior make of what they see: the state itself, or features of the frames."""

    def __init__(self, spec: SkillSpec) -> None:
        super().__init__()
        self.pixels = spec.pixels
        self.frames: ViewEncoder | None = None
        self.features = spec.state_dim
        if spec.view is not None:
            width = spec.settings.width
            self.frames = ViewEncoder(spec.view.frames, spec.view.size, spec.settings.view_channels, width)
            self.features = width + len(spec.egocentric)

    def forward(self, seen: Tensor) -> Tensor:
        """What `SkillModel.standardise` gives -> features [..., F]."""
        if self.frames is None:
            return seen
        own, pixels = seen[..., : -self.pixels], seen[..., -self.pixels :]
        return torch.cat([self.frames(pixels), own], dim=-1)


class RecurrentEncoder(nn.Module):
    """q(z | window): a one-layer LSTM whose last output gives a diagonal Gaussian."""

    def __init__(self, inputs: int, latent_dim: int, width: int) -> None:
        super().__init__()
        self.lstm = nn.LSTM(inputs, width, batch_first=True)
        self.head = nn.Linear(width, 2 * latent_dim)

    def forward(self, sequence: Tensor) -> DiagonalGaussian:
        outputs, _ = self.lstm(sequence)
        return DiagonalGaussian.from_parameters(self.head(outputs[:, -1]))


class OpenLoopCodec(nn.Module):
    """Actions in, actions out: the plan is fixed when the skill starts."""

    closed_loop = False

    def __init__(self, spec: SkillSpec) -> None:
        super().__init__()
        width = spec.settings.width
        self.horizon = spec.horizon
        self.encoder = RecurrentEncoder(spec.action_dim, spec.latent_dim, width)
        self.decoder = RecurrentActionDecoder(spec.latent_dim, spec.action_dim, width)

    def perceive(self, seen: Tensor) -> Tensor:
        return seen

    def encode(self, features: Tensor, actions: Tensor) -> DiagonalGaussian:
        return self.encoder(actions)

    def decode(self, features: Tensor, latent: Tensor) -> Tensor:
        return self.decoder(latent, self.horizon)


class ClosedLoopCodec(nn.Module):
    """The decoder is a policy a(s_t, z) that looks at the current state at every primitive step."""

    closed_loop = True

    def __init__(self, spec: SkillSpec) -> None:
        super().__init__()
        width = spec.settings.width
        self.perception = Perception(spec)
        seen = self.perception.features
        self.encoder = RecurrentEncoder(spec.action_dim + seen, spec.latent_dim, width)
        self.decoder = mlp(
            seen + spec.latent_dim,
            spec.action_dim,
            width=width,
            layers=spec.settings.decoder_layers,
        )

    def perceive(self, seen: Tensor) -> Tensor:
        """Of what is seen at every step of a window: features [B, T, F] for encoder and decoder."""
        return self.perception(seen)

    def encode(self, features: Tensor, actions: Tensor) -> DiagonalGaussian:
        return self.encoder(torch.cat([actions, features], dim=-1))

    def decode(self, features: Tensor, latent: Tensor) -> Tensor:
        repeated = latent.unsqueeze(1).expand(-1, features.shape[1], -1)
        return self.decoder(torch.cat([features, repeated], dim=-1))


class IdentityCodec(nn.Module):
    """The flat case: the latent is the action itself before a tanh, so its prior is behaviour cloning.

    An action prior of demonstrations that hardly vary would be so narrow that no policy stays close to it: the
    divergence of a policy that is off by d grows with (d / sigma)^2. So actions are known to `_FLAT_STD` only.
    """

    closed_loop = True

    def perceive(self, seen: Tensor) -> Tensor:
        return seen

    def encode(self, features: Tensor, actions: Tensor) -> DiagonalGaussian:
        mean = torch.atanh(actions[:, 0].clamp(-_MAX_ACTION, _MAX_ACTION))
        return DiagonalGaussian(mean, torch.full_like(mean, math.log(_FLAT_STD)))

    def decode(self, features: Tensor, latent: Tensor) -> Tensor:
        return torch.tanh(latent).unsqueeze(1).expand(-1, features.shape[1], -1)


def _make_codec(spec: SkillSpec) -> OpenLoopCodec | ClosedLoopCodec | IdentityCodec:
    if spec.decoder == "open_loop":
        return OpenLoopCodec(spec)
    if spec.decoder == "closed_loop":
        return ClosedLoopCodec(spec)
    return IdentityCodec()


def _make_prior(spec: SkillSpec, features: int) -> nn.Module:
    s = spec.settings
    sizes = {"width": s.width, "layers": s.prior_layers}
    if s.prior == "mixture":
        return MixturePrior(features, spec.latent_dim, components=s.mixture_components, **sizes)
    if s.prior == "flow":
        return FlowPrior(features, spec.latent_dim, couplings=s.flow_layers, **sizes)
    return GaussianPrior(features, spec.latent_dim, **sizes)


class SkillModel(nn.Module):
    """Skill embedding and skill prior, trained together (paper, Eq. 2)."""

    state_mean: Tensor
    state_std: Tensor

    def __init__(self, spec: SkillSpec) -> None:
        super().__init__()
        self.spec = spec
        self.register_buffer("state_mean", torch.zeros(spec.state_dim))
        self.register_buffer("state_std", torch.ones(spec.state_dim))
        self.codec = _make_codec(spec)
        self.perception = Perception(spec)
        self.prior = _make_prior(spec, self.perception.features)
        # A policy is Gaussian. Where the prior is not, a Gaussian fitted beside it is where policies start.
        self.gaussian: GaussianPrior | None = None
        if spec.settings.prior != "gaussian":
            self.gaussian = GaussianPrior(
                self.perception.features,
                spec.latent_dim,
                width=spec.settings.width,
                layers=spec.settings.prior_layers,
            )
        if spec.settings.target_kl is not None:
            self.log_beta = nn.Parameter(torch.tensor(spec.settings.beta).clamp_min(1e-8).log())

    @property
    def policy_start(self) -> GaussianPrior:
        """The Gaussian network that a high-level policy is initialised with."""
        start = self.gaussian if self.gaussian is not None else self.prior
        assert isinstance(start, GaussianPrior)
        return start

    def set_normalisation(self, mean: Tensor, std: Tensor) -> None:
        """Statistics of the training states [S]; deviations are floored by ``state_std_floor``."""
        self.state_mean.copy_(mean)
        self.state_std.copy_(std.clamp_min(self.spec.settings.state_std_floor))

    def standardise(self, observations: Tensor) -> Tensor:
        """What skills and prior see of observations [..., O]: the state by the data's statistics.

        Of an environment with frames they see none of the state but its egocentric entries (if they are asked for),
        and the pixels, from 0..255 to [-1, 1].
        """
        if self.spec.view is None:
            return (observations - self.state_mean) / self.state_std
        own = self.spec.egocentric
        seen = (observations[..., own] - self.state_mean[own]) / self.state_std[own]
        return torch.cat([seen, observations[..., -self.spec.pixels :] / 127.5 - 1.0], dim=-1)

    def prior_distribution(self, observations: Tensor) -> LatentDistribution:
        """p(z | s) for raw observations [B, O]."""
        return self.prior(self.perception(self.standardise(observations)))

    def decision_input(self, observations: Tensor, *, proposals: bool) -> Tensor:
        """What a high-level policy decides on, from raw observations [B, O].

        The raw state [B, S] of the target; with ``proposals`` then the P parameters of the prior, a Gaussian or a
        mixture of them [B, S + P]. It is frozen by then, so nothing in stage 2 needs to look at frames again.
        """
        states = observations[..., : observations.shape[-1] - self.spec.pixels]
        if not proposals:
            return states
        assert isinstance(self.prior, GaussianPrior | MixturePrior)
        return torch.cat([states, self.prior.net(self.perception(self.standardise(observations)))], dim=-1)

    def decode(self, states: Tensor, latent: Tensor) -> Tensor:
        """Raw observations [B, T, O] and latents [B, Z] -> actions [B, T, A] (open loop: [B, H, A])."""
        return self.codec.decode(self.codec.perceive(self.standardise(states)), latent)

    def forward(
        self, states: Tensor, actions: Tensor, noise: Tensor, perturbed: tuple[Tensor, Tensor] | None = None
    ) -> dict[str, Tensor]:
        """The stage-1 loss (paper, Eq. 2), every term averaged over batch and dimensions.

        Args:
            states: raw observations [B, H, O]; [B, 1, O] where `SkillSpec.observed_steps` is 1.
            actions: [B, H, A] in [-1, 1].
            noise: standard normal [B, Z], the draw from the posterior.
            perturbed: the window after augmentation, same shapes. Decoder and prior learn from it; the encoder
                recognises the skill in the demonstration itself, so that latents do not carry the perturbation.

        Returns:
            Scalars ``loss``, ``reconstruction``, ``kl`` (nats per dimension), ``prior``, ``beta``.
        """
        settings = self.spec.settings
        seen, targets = perturbed if perturbed is not None else (states, actions)
        if isinstance(self.codec, IdentityCodec):
            actions = targets  # the latent is the action, so it is relabelled, too
        elif not self.codec.closed_loop:
            targets = actions  # a plan cannot react to a displacement
        seen = self.standardise(seen)
        features = self.codec.perceive(seen)
        recognised = features if perturbed is None else self.codec.perceive(self.standardise(states))
        posterior = self.codec.encode(recognised, actions)
        latent = posterior.mean + posterior.log_std.exp() * noise
        # NLL of a unit Gaussian around the decoded action, without its constant.
        reconstruction = 0.5 * (self.codec.decode(features, latent) - targets).square().mean()
        kl = posterior.kl_to_standard_normal().mean() / self.spec.latent_dim
        prior = self._prior_loss(seen[:, 0], posterior.detach(), latent.detach())
        if settings.target_kl is None:
            beta = torch.tensor(settings.beta, device=kl.device)
            loss = reconstruction + beta * kl + prior
        else:
            # Dual gradient: beta rises while the divergence exceeds its target.
            beta = self.log_beta.exp()
            loss = reconstruction + beta.detach() * kl + prior
            loss = loss - self.log_beta * (kl.detach() - settings.target_kl)
        return {
            "loss": loss,
            "reconstruction": reconstruction,
            "kl": kl,
            "prior": prior,
            "beta": beta.detach(),
        }

    def _prior_loss(self, first: Tensor, posterior: DiagonalGaussian, latent: Tensor) -> Tensor:
        """L_prior: the posterior is detached, so the prior never shapes the embedding."""
        seen = self.perception(first)
        loss = self._divergence_from(self.prior(seen), posterior, latent)
        if self.gaussian is not None:
            loss = loss + self._divergence_from(self.gaussian(seen), posterior, latent)
        return loss.mean() / self.spec.latent_dim

    def _divergence_from(self, prior: LatentDistribution, posterior: DiagonalGaussian, latent: Tensor) -> Tensor:
        if self.spec.settings.prior_loss == "nll":
            return -prior.log_prob(latent)
        if isinstance(prior, DiagonalGaussian):
            return posterior.kl(prior)
        return posterior.log_prob(latent) - prior.log_prob(latent)
