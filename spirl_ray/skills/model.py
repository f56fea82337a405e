"""The skill model: skill encoder q(z | s, a), skill decoder, skill prior p(z | s), and their joint loss."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeVar

import torch
from torch import Tensor, nn

from spirl_ray.errors import SpirlError
from spirl_ray.skills.decoders import DECODERS, NoiseCodec, SkillCodec
from spirl_ray.skills.encoders import FeatureEncoder, ObservationEncoder, Observations
from spirl_ray.skills.gaussian import DiagonalGaussian
from spirl_ray.skills.priors import PRIORS, LatentDistribution, SkillPrior
from spirl_ray.skills.spec import SkillSpec

Value = TypeVar("Value")

_RELATIVE_FLOOR = 0.01
"""The least deviation of an entry, as a share of the largest in its feature."""


class Statistics(nn.Module):
    """The mean and standard deviation of every feature of the data except images, saved with the weights."""

    def __init__(self, spec: SkillSpec) -> None:
        super().__init__()
        self.names = [name for name, feature in spec.data_features.items() if not feature.is_image]
        for name in self.names:
            shape = spec.data_features[name].shape
            self.register_buffer(_key("mean", name), torch.zeros(shape))
            self.register_buffer(_key("std", name), torch.ones(shape))

    @property
    def mean(self) -> dict[str, Tensor]:
        """The means [*shape] by feature."""
        return {name: getattr(self, _key("mean", name)) for name in self.names}

    @property
    def std(self) -> dict[str, Tensor]:
        """The deviations [*shape] by feature, with the floor of the skills' settings applied."""
        return {name: getattr(self, _key("std", name)) for name in self.names}


def _key(kind: str, feature: str) -> str:
    """The name of a buffer, which may not contain a dot, while names of features may."""
    return f"{kind}/{feature.replace('.', '/')}"


class SkillModel(nn.Module):
    """Skill embedding and skill prior, trained together (paper, Eq. 2)."""

    def __init__(self, spec: SkillSpec) -> None:
        super().__init__()
        self.spec = spec
        self.kind = DECODERS[spec.decoder]
        self.codec: SkillCodec = self.kind.build(spec)
        if self.kind.noise != isinstance(self.codec, NoiseCodec):
            raise SpirlError(
                f"The skill decoder {spec.decoder!r} has noise={self.kind.noise}, which is True for subclasses of "
                f"NoiseCodec alone: correct its DecoderKind, or the class {type(self.codec).__name__}."
            )
        if not self.codec.learns:
            self.codec.requires_grad_(False)
        own = spec.observation_encoder()  # where it is not needed, too, because a seed then gives the same networks
        if self.kind.noise:  # N(0, I) trains no encoder
            own.requires_grad_(False)
        self.observations = own if self.codec.shared_encoder() is None else None
        prior = PRIORS[self.kind.prior(spec.settings)]
        self.prior: SkillPrior = prior(self.observation_encoder.outputs, spec.latent_dim, spec.settings)
        self.statistics = Statistics(spec)
        if spec.settings.target_kl is not None and not self.kind.noise:
            self.log_beta = nn.Parameter(torch.tensor(spec.settings.beta).clamp_min(1e-8).log())

    @property
    def observation_encoder(self) -> ObservationEncoder:
        """The encoder by which the prior observes, and policies observe images: the codec's, where it shares one."""
        found = self.codec.shared_encoder() or self.observations
        assert found is not None
        return found

    def set_normalisation(self, mean: Mapping[str, Tensor], std: Mapping[str, Tensor]) -> None:
        """Sets statistics [*shape] of the training data by feature; deviations are at least ``state_std_floor``, or a
        hundredth of the largest in the same feature."""
        for name in self.statistics.names:
            floor = self.spec.settings.state_std_floor or _RELATIVE_FLOOR * float(std[name].max())
            self.statistics.mean[name].copy_(mean[name])
            # A feature that never changes has no deviation that could be a measure.
            self.statistics.std[name].copy_(std[name].clamp_min(floor) if floor else torch.ones_like(std[name]))
        for module in self.modules():
            if isinstance(module, ObservationEncoder):
                module.set_normalisation(self.statistics.mean, self.statistics.std)

    def load_pretrained(self) -> dict[str, Tensor]:
        """Loads the weights that encoders and codec take from files, once, before stage 1 trains.

        Returns:
            The tensors that this has changed, by their names, for a model on a node that has no such files.

        Raises:
            SpirlError: a file is missing or does not fit; the message names it.
        """
        before = {name: value.clone() for name, value in self.state_dict().items()}
        try:
            for module in self.modules():
                if isinstance(module, FeatureEncoder | SkillCodec):
                    module.load_pretrained()
        except SpirlError:
            raise
        except Exception as error:  # whatever a codec of the user's raises
            name = type(self.codec).__name__
            raise SpirlError(f"The weights of {name} cannot be loaded: {type(error).__name__}: {error}.") from error
        after = self.state_dict()
        if before.keys() != after.keys():
            odd = sorted(before.keys() ^ after.keys())[0]
            raise SpirlError(f"{odd}: make the networks of a codec in its constructor, and load only their weights.")
        return {name: value for name, value in after.items() if not torch.equal(value, before[name])}

    def try_out(self) -> None:
        """Decodes one observation of zeros where the decoder is a frozen policy, and does nothing for other kinds.

        Raises:
            SpirlError: the codec raises, or does not give finite actions of the right shape.
        """
        if self.codec.learns:
            return
        spec, name = self.spec, type(self.codec).__name__
        wanted = [1, spec.horizon, spec.action_dim]
        seen = {
            feature: torch.zeros(1, 1, *value.observed_shape, dtype=torch.uint8 if value.is_image else torch.float32)
            for feature, value in spec.observed.items()
        }
        try:
            with torch.no_grad():
                actions = self.decode(seen, torch.zeros(1, spec.latent_dim))
            shape, finite = list(actions.shape), bool(actions.isfinite().all())
        except Exception as error:  # whatever a codec of the user's raises
            raise SpirlError(f"The {self.kind.label} {name} cannot decode: {type(error).__name__}: {error}.") from error
        if shape != wanted or not finite:
            raise SpirlError(
                f"The {self.kind.label} {name} decodes to {shape}, which must be finite actions of the shape {wanted}."
            )

    @property
    def noise_dim(self) -> int:
        """The number of standard normal numbers that the loss of a window needs."""
        return self.spec.latent_dim + self.codec.extra_noise

    def select(self, observations: Mapping[str, Value]) -> dict[str, Value]:
        """Selects the features of skills and prior from observations that may hold more."""
        return {name: observations[name] for name in self.spec.features}

    def prior_parameters(self, observations: Observations) -> Tensor:
        """The parameters [B, P] of p(z | s) for observations [B, *observed_shape] by name."""
        return self.prior(self.observation_encoder(observations))

    def prior_distribution(self, observations: Observations) -> LatentDistribution:
        """The prior p(z | s) for observations [B, *observed_shape] by name."""
        return self.prior.distribution(self.prior_parameters(observations))

    def decode(self, observations: Observations | None, latent: Tensor) -> Tensor:
        """Decodes actions [B, T, A] from observations [B, T, *observed_shape] by name and latents [B, Z].

        An open-loop decoder needs no observations and returns [B, H, A].
        """
        features = None if observations is None else self.codec.observe(observations)
        return self.codec.decode(features, latent)

    def forward(
        self,
        observations: Observations,
        actions: Tensor,
        noise: Tensor,
        perturbed: tuple[Observations, Tensor] | None = None,
    ) -> dict[str, Tensor]:
        """The stage-1 loss (paper, Eq. 2), every term averaged over batch and dimensions.

        Args:
            observations: by name, [B, T, *observed_shape] with T = `DecoderKind.observed_steps`.
            actions: [B, H, A] in [-1, 1].
            noise: standard normal [B, `noise_dim`], the draw from the posterior.
            perturbed: the window after augmentation, with the same shapes; decoder and prior learn from it.

        Returns:
            Scalars ``loss``, ``reconstruction``, ``kl`` (nats per dimension), ``prior``, ``beta``. A codec whose
            latent is noise has the first two alone, and the others are 0.
        """
        settings = self.spec.settings
        shown, encoded_actions, targets = observations, actions, actions
        if perturbed is not None:
            shown = perturbed[0]
            encoded_actions, targets = self.codec.relabelled(actions, perturbed[1])
        features = self.codec.observe(shown)
        if self.kind.noise:
            assert isinstance(self.codec, NoiseCodec)
            loss, zero = self.codec.noise_loss(features, targets, noise), torch.zeros((), device=noise.device)
            return {"loss": loss, "reconstruction": loss, "kl": zero, "prior": zero, "beta": zero}
        encoded_features = features if perturbed is None else self.codec.observe(observations)
        posterior = self.codec.encode(encoded_features, encoded_actions)
        latent = posterior.mean + posterior.log_std.exp() * noise
        reconstruction = self.codec.reconstruction_loss(features, latent, targets)
        kl = posterior.kl_to_standard_normal().mean() / self.spec.latent_dim
        first = {name: value[:, 0] for name, value in shown.items()}
        prior = self._prior_loss(first, posterior.detach(), latent.detach())
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

    def _prior_loss(self, first: Observations, posterior: DiagonalGaussian, latent: Tensor) -> Tensor:
        """The loss L_prior, in which the posterior is detached, so that the prior never shapes the embedding."""
        parameters = self.prior_parameters(first)
        loss = self._divergence_from(self.prior.distribution(parameters), posterior, latent)
        beside = self.prior.auxiliary(parameters)
        if beside is not None:
            loss = loss + self._divergence_from(beside, posterior, latent)
        return loss.mean() / self.spec.latent_dim

    def _divergence_from(self, prior: LatentDistribution, posterior: DiagonalGaussian, latent: Tensor) -> Tensor:
        if self.spec.settings.prior_loss == "nll":
            return -prior.log_prob(latent)
        if isinstance(prior, DiagonalGaussian):
            return posterior.kl(prior)
        return posterior.log_prob(latent) - prior.log_prob(latent)
