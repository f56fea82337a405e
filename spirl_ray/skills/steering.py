"""What latents decide: how many nats one carries beyond the prior, and how much of the decoder's error it removes.

A skill decoder can imitate without its latent. Then every latent leads to the same actions, and a policy over latents
has nothing to choose. A latent can also carry more than a prior can follow. Both are measured on windows that the model
has not been trained on, and `spirl_ray.pipeline.findings` judges them.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from spirl_ray.skills.encoders import Observations
from spirl_ray.skills.gaussian import DiagonalGaussian
from spirl_ray.skills.model import SkillModel
from spirl_ray.skills.priors import LatentDistribution

_DRAWS = 16
"""The number of latents that are drawn for each window, where there is no closed form."""


def measures_of(model: SkillModel) -> tuple[str, ...]:
    """The names of what `latent_measures` measures for such a model."""
    errors = ("error_prior_mean", "error_prior_sample")
    if model.kind.flat or not model.codec.can_encode:
        return errors
    if model.kind.noise:
        return (*errors, "error_posterior")
    return (*errors, "latent_nats", "latent_nats_standard", "error_posterior")


@torch.no_grad()
def latent_measures(model: SkillModel, observations: Observations, actions: Tensor) -> dict[str, Tensor]:
    """Measures windows; every value is a mean over windows, a scalar.

    Args:
        model: the trained model.
        observations: by name, [B, T, *observed_shape] with T = `DecoderKind.observed_steps`.
        actions: [B, H, A] in [-1, 1].

    Returns:
        ``error_prior_mean`` and ``error_prior_sample``, the squared errors of the actions decoded from the prior's mean
        latent and from latents drawn from the prior. Skills that are not flat and can encode also have
        ``error_posterior``, the squared error with the mean of q; where the latent is not noise, ``latent_nats``,
        KL(q || p(z | s)), and
        ``latent_nats_standard``, KL(q || N(0, I)).
    """
    features = model.codec.observe(observations)
    prior = model.prior_distribution({name: value[:, 0] for name, value in observations.items()})

    def error(latent: Tensor) -> Tensor:
        return (model.codec.decode(features, latent) - actions).square().mean()

    found = {
        "error_prior_mean": error(prior.mode()),
        "error_prior_sample": torch.stack([error(prior.sample()) for _ in range(_DRAWS)]).mean(),
    }
    names = measures_of(model)
    if "error_posterior" in names:
        posterior = model.codec.encode(features, actions)
        found["error_posterior"] = error(posterior.mean)
        if "latent_nats" in names:
            found["latent_nats"] = _divergence(posterior, prior).mean()
            found["latent_nats_standard"] = posterior.kl_to_standard_normal().mean()
    return found


def _divergence(posterior: DiagonalGaussian, prior: LatentDistribution) -> Tensor:
    """KL(posterior || prior), [B] nats: in closed form for two Gaussians, else estimated at samples."""
    if isinstance(prior, DiagonalGaussian):
        return posterior.kl(prior)
    latents = [posterior.sample() for _ in range(_DRAWS)]
    return torch.stack([posterior.log_prob(latent) - prior.log_prob(latent) for latent in latents]).mean(0)


def error_removed(measures: Mapping[str, float]) -> float:
    """The share of the error with the prior's mean latent that the window's own latent removes, at most 1.

    It is 0 where the prior's mean makes no error, because then there is nothing to remove.
    """
    left = measures["error_prior_mean"]
    return 1.0 - measures["error_posterior"] / left if left > 0.0 else 0.0
