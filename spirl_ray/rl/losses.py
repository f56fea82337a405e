"""The equations of stage 2 (paper, Algorithm 1): SAC with the divergence to the skill prior in place of the entropy."""

from __future__ import annotations

import math

import torch.nn.functional as F
from torch import Tensor

from spirl_ray.skills.gaussian import DiagonalGaussian
from spirl_ray.skills.priors import LatentDistribution

_LOG_2 = math.log(2.0)


def divergence_to_prior(policy: LatentDistribution, prior: LatentDistribution, latent: Tensor) -> Tensor:
    """The divergence D(s) = KL(pi(. | s) || p(. | s)), [B] nats (paper, Eq. 3).

    It is computed in closed form for two Gaussians; otherwise the one-sample estimate at ``latent`` ~ pi.
    """
    if isinstance(policy, DiagonalGaussian) and isinstance(prior, DiagonalGaussian):
        return policy.kl(prior)
    return policy.log_prob(latent) - prior.log_prob(latent)


def divergence_to_uniform(policy: LatentDistribution, latent: Tensor) -> Tensor:
    """The divergence of z = l tanh(u), u ~ pi, from the uniform distribution on [-l, l]^Z, estimated at ``latent`` = u,
    [B] nats.

    This is Z log(2 l) minus SAC's entropy; the half-width l cancels. log(1 - tanh(u)^2) is written in its
    stable form 2 (log 2 - u - softplus(-2 u)).
    """
    log_slope = 2.0 * (_LOG_2 - latent - F.softplus(-2.0 * latent))
    return policy.log_prob(latent) - log_slope.sum(-1) + latent.shape[-1] * _LOG_2


def critic_target(
    reward: Tensor,
    discount: Tensor,
    terminated: Tensor,
    next_value: Tensor,
    next_divergence: Tensor,
    alpha: Tensor | float,
) -> Tensor:
    """The target y = r + discount (1 - done) [min_i Q_i(s', z') - alpha D(s')], all [B] (paper, Eq. 4).

    ``reward`` is summed over the skill, ``discount`` is gamma for the whole skill (or gamma^k).
    """
    return reward + discount * (1.0 - terminated) * (next_value - alpha * next_divergence)


def critic_loss(values: Tensor, target: Tensor) -> Tensor:
    """The loss sum_i 0.5 (Q_i(s, z) - y)^2, averaged over the batch (paper, Eq. 4), of values [N, B] and y [B]."""
    return 0.5 * (values - target).square().mean(-1).sum()


def policy_loss(divergence: Tensor, value: Tensor, alpha: Tensor | float) -> Tensor:
    """The loss E[alpha D(s) - min_i Q_i(s, z)], z reparametrised (paper, Eq. 5); ``train.policy_value: mean`` takes the
    mean of Q_i."""
    return (alpha * divergence - value).mean()


def alpha_loss(log_alpha: Tensor, divergence: Tensor, target_divergence: float) -> Tensor:
    """The loss alpha (delta - D(s)) with D detached (paper, Eq. 6): descending it raises alpha while D exceeds
    delta."""
    return (log_alpha.exp() * (target_divergence - divergence.detach())).mean()


def mean_of_own(values: Tensor, phase: Tensor) -> Tensor:
    """The mean of ``values`` [B] over the agent's own decisions, whose ``phase`` [B] is not below 0, or over all where
    the batch has none of its own."""
    own = phase >= 0.0
    counted = (own | ~own.any()).to(values.dtype)
    return (counted * values).sum() / counted.sum()
