"""Diagonal Gaussians agree with torch.distributions."""

from __future__ import annotations

import pytest
import torch
from torch.distributions import Independent, Normal, kl_divergence

from spirl_ray.skills.gaussian import LOG_STD_MAX, LOG_STD_MIN, DiagonalGaussian


def random_gaussian(seed: int, *shape: int) -> DiagonalGaussian:
    generator = torch.Generator().manual_seed(seed)
    mean = 2.0 * torch.randn(shape, generator=generator)
    return DiagonalGaussian(mean, torch.randn(shape, generator=generator))


def reference(gaussian: DiagonalGaussian) -> Independent:
    return Independent(Normal(gaussian.mean, gaussian.log_std.exp()), 1)


@pytest.mark.parametrize("shape", [(7, 1), (5, 10), (3, 4, 6)])
def test_kl_is_that_of_torch_distributions(shape: tuple[int, ...]) -> None:
    first, second = random_gaussian(0, *shape), random_gaussian(1, *shape)
    torch.testing.assert_close(first.kl(second), kl_divergence(reference(first), reference(second)))
    assert first.kl(second).shape == shape[:-1]


def test_kl_to_itself_is_zero() -> None:
    gaussian = random_gaussian(2, 4, 3)
    torch.testing.assert_close(gaussian.kl(gaussian), torch.zeros(4))


def test_kl_to_the_standard_normal_is_that_of_torch_distributions() -> None:
    gaussian = random_gaussian(3, 6, 5)
    standard = Independent(Normal(torch.zeros(6, 5), torch.ones(6, 5)), 1)
    torch.testing.assert_close(gaussian.kl_to_standard_normal(), kl_divergence(reference(gaussian), standard))


def test_log_prob_is_that_of_torch_distributions() -> None:
    gaussian, values = random_gaussian(4, 6, 5), torch.randn(6, 5)
    torch.testing.assert_close(gaussian.log_prob(values), reference(gaussian).log_prob(values))


def test_samples_are_reparametrised() -> None:
    mean = torch.tensor([[0.5, -1.0]], requires_grad=True)
    log_std = torch.tensor([[0.0, -1.0]], requires_grad=True)
    sample = DiagonalGaussian(mean, log_std).sample(torch.Generator().manual_seed(0))
    sample.sum().backward()
    torch.testing.assert_close(mean.grad, torch.ones(1, 2))
    # d z / d log sigma = sigma * noise = z - mean
    torch.testing.assert_close(log_std.grad, (sample - mean).detach())


def test_samples_have_the_mean_and_deviation_asked_for() -> None:
    gaussian = DiagonalGaussian(
        torch.tensor([1.0, -2.0]).expand(20_000, 2), torch.tensor([0.5, -1.5]).expand(20_000, 2)
    )
    samples = gaussian.sample(torch.Generator().manual_seed(0))
    torch.testing.assert_close(samples.mean(0), torch.tensor([1.0, -2.0]), atol=0.05, rtol=0)
    torch.testing.assert_close(samples.std(0), torch.tensor([0.5, -1.5]).exp(), atol=0, rtol=0.03)


def test_samples_repeat_with_the_generator() -> None:
    gaussian = random_gaussian(5, 4, 3)
    first, second = (gaussian.sample(torch.Generator().manual_seed(9)) for _ in range(2))
    assert torch.equal(first, second)


def test_network_outputs_are_split_and_log_sigma_is_clamped() -> None:
    outputs = torch.tensor([[1.0, 2.0, -50.0, 50.0], [3.0, 4.0, 0.5, -0.5]])
    gaussian = DiagonalGaussian.from_parameters(outputs)
    assert gaussian.mean.tolist() == [[1.0, 2.0], [3.0, 4.0]]
    assert gaussian.log_std.tolist() == [[LOG_STD_MIN, LOG_STD_MAX], [0.5, -0.5]]
    assert (LOG_STD_MIN, LOG_STD_MAX) == (-10.0, 2.0)
