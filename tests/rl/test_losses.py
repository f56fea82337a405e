from __future__ import annotations

import math

import pytest
import torch
from torch.distributions import (
    AffineTransform,
    Independent,
    Normal,
    TanhTransform,
    TransformedDistribution,
    kl_divergence,
)

from spirl_ray.rl import losses
from spirl_ray.skills.gaussian import DiagonalGaussian
from spirl_ray.skills.priors import GaussianMixture


def gaussian(batch: int, dims: int, seed: int) -> DiagonalGaussian:
    generator = torch.Generator().manual_seed(seed)
    return DiagonalGaussian(
        torch.randn(batch, dims, generator=generator), 0.5 * torch.randn(batch, dims, generator=generator)
    )


def as_torch(distribution: DiagonalGaussian) -> Independent:
    return Independent(Normal(distribution.mean, distribution.log_std.exp()), 1)


def test_divergence_to_a_gaussian_prior_is_the_kl_of_torch_distributions() -> None:
    policy, prior = gaussian(7, 4, 0), gaussian(7, 4, 1)
    found = losses.divergence_to_prior(policy, prior, policy.sample())
    torch.testing.assert_close(found, kl_divergence(as_torch(policy), as_torch(prior)))


def test_sampled_divergence_to_another_prior_is_unbiased() -> None:
    policy, prior = gaussian(1, 3, 0), gaussian(1, 3, 1)
    exact = policy.kl(prior).item()
    mixture = GaussianMixture(torch.zeros(1, 1), DiagonalGaussian(prior.mean.unsqueeze(1), prior.log_std.unsqueeze(1)))
    torch.manual_seed(0)
    count = 100_000
    many = DiagonalGaussian(policy.mean.expand(count, -1), policy.log_std.expand(count, -1))
    found = losses.divergence_to_prior(many, mixture, many.sample())
    assert abs(found.mean().item() - exact) < 4.0 * found.std().item() / math.sqrt(count)


@pytest.mark.parametrize("limit", [0.5, 1.0, 2.0])
def test_divergence_to_uniform_is_log_volume_minus_the_entropy_of_the_squashed_policy(limit: float) -> None:
    policy = DiagonalGaussian(*(part.double() for part in vars(gaussian(500, 4, 0)).values()))
    torch.manual_seed(0)
    latent = policy.mean + policy.log_std.exp() * torch.randn(500, 4, dtype=torch.double)
    squashed = TransformedDistribution(
        Normal(policy.mean, policy.log_std.exp()), [TanhTransform(), AffineTransform(0.0, limit)]
    )
    entropy = -squashed.log_prob(limit * torch.tanh(latent)).sum(-1)
    found = losses.divergence_to_uniform(policy, latent)
    torch.testing.assert_close(found, 4 * math.log(2 * limit) - entropy, rtol=1e-5, atol=1e-5)


def test_divergence_to_uniform_stays_finite_where_tanh_saturates() -> None:
    latent = torch.tensor([[40.0, -40.0]], requires_grad=True)
    found = losses.divergence_to_uniform(DiagonalGaussian(torch.zeros(1, 2), torch.full((1, 2), 2.0)), latent)
    found.sum().backward()
    assert found.isfinite().all()
    assert latent.grad is not None
    assert latent.grad.isfinite().all()


def test_critic_target_bootstraps_unless_the_episode_terminated() -> None:
    target = losses.critic_target(
        reward=torch.tensor([1.0, 1.0]),
        discount=torch.tensor([0.9, 0.9]),
        terminated=torch.tensor([0.0, 1.0]),
        next_value=torch.tensor([5.0, 5.0]),
        next_divergence=torch.tensor([2.0, 2.0]),
        alpha=0.5,
    )
    torch.testing.assert_close(target, torch.tensor([1.0 + 0.9 * (5.0 - 0.5 * 2.0), 1.0]))


def test_critic_loss_is_half_the_squared_error_of_both_critics() -> None:
    values = torch.tensor([[10.0, 0.0], [0.0, 2.0]])
    assert losses.critic_loss(values, torch.zeros(2)).item() == pytest.approx(0.5 * (100 + 4) / 2)


@pytest.mark.parametrize(("divergence", "rises"), [(6.0, True), (4.0, False)])
def test_alpha_rises_above_the_target_divergence_and_falls_below_it(divergence: float, rises: bool) -> None:
    log_alpha = torch.nn.Parameter(torch.tensor(-1.0))
    optimiser = torch.optim.Adam([log_alpha], lr=0.1)
    seen = torch.full((8,), divergence, requires_grad=True)
    losses.alpha_loss(log_alpha, seen, target_divergence=5.0).backward()
    optimiser.step()
    assert (log_alpha.item() > -1.0) == rises
    assert seen.grad is None


def test_policy_loss_weighs_divergence_against_value() -> None:
    found = losses.policy_loss(torch.tensor([2.0, 4.0]), torch.tensor([1.0, 0.0]), 0.5)
    assert found.item() == pytest.approx((0.5 * 2 - 1 + 0.5 * 4) / 2)


def test_a_mean_over_the_agents_own_decisions_leaves_the_demonstrations_out() -> None:
    values, phase = torch.tensor([1.0, 10.0, 3.0]), torch.tensor([0.0, -1.0, 0.9])
    assert float(losses.mean_of_own(values, phase)) == 2.0
    only_theirs = losses.mean_of_own(values, torch.full((3,), -1.0))
    assert float(only_theirs) == pytest.approx(14.0 / 3.0)
