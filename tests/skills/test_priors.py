"""Skill priors are proper distributions, and all of them learn."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.distributions import Categorical, Independent, MixtureSameFamily, Normal
from torch.func import jacrev, vmap

from spirl_ray.config import SkillSettings
from spirl_ray.errors import SpirlError
from spirl_ray.skills.gaussian import DiagonalGaussian
from spirl_ray.skills.priors import AffineCoupling, FlowPrior, GaussianMixture, GaussianPrior, MixturePrior, SkillPrior


def sizes(width: int, flow_layers: int) -> SkillSettings:
    return SkillSettings(width=width, prior_layers=2, flow_layers=flow_layers, mixture_components=3)


def distribution(prior: SkillPrior, encoded: Tensor) -> Any:
    return prior.distribution(prior(encoded))


def lively(module: Any, seed: int = 0) -> Any:
    """Larger weights than at the start of training, so that no scale or shift is near zero."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(0.4 * torch.randn(parameter.shape, generator=generator))
    return module


def test_mixture_log_prob_is_that_of_torch_distributions() -> None:
    logits, mean, log_std = torch.randn(6, 4), torch.randn(6, 4, 3), torch.randn(6, 4, 3)
    mixture = GaussianMixture(logits, DiagonalGaussian(mean, log_std))
    reference = MixtureSameFamily(Categorical(logits=logits), Independent(Normal(mean, log_std.exp()), 1))
    values = torch.randn(6, 3)
    torch.testing.assert_close(mixture.log_prob(values), reference.log_prob(values))


@pytest.mark.parametrize("by_component", [False, True])
def test_mixture_draws_components_by_their_weights(by_component: bool) -> None:
    weights = torch.tensor([0.2, 0.5, 0.3])
    mean = torch.tensor([[-10.0, 1.0], [0.0, 2.0], [10.0, 3.0]]).expand(9000, 3, 2)
    mixture = GaussianMixture(weights.log().expand(9000, 3), DiagonalGaussian(mean, torch.full_like(mean, -3.0)))
    torch.manual_seed(0)
    samples = mixture.sample_component().sample() if by_component else mixture.sample(torch.Generator().manual_seed(0))
    component = ((samples[:, 0] + 15.0) / 10.0).long()
    torch.testing.assert_close(component.bincount(minlength=3) / 9000.0, weights, atol=0.02, rtol=0)
    torch.testing.assert_close(samples[:, 1], component + 1.0, atol=0.4, rtol=0)  # a row's own component
    assert mixture.mode()[0].tolist() == [0.0, 2.0]


@pytest.mark.parametrize("latent_dim", [2, 3, 5])
@pytest.mark.parametrize("flip", [False, True])
def test_coupling_inverts_exactly_with_the_jacobians_determinant(latent_dim: int, flip: bool) -> None:
    layer = lively(AffineCoupling(latent_dim, 4, width=16, flip=flip)).double()
    noise, features = torch.randn(8, latent_dim).double(), torch.randn(8, 4).double()
    latent = layer(noise, features)
    recovered, log_det = layer.inverse(latent, features)
    torch.testing.assert_close(recovered, noise)
    assert not torch.allclose(latent, noise)

    def inverse(value: Tensor, features: Tensor) -> Tensor:
        return layer.inverse(value, features)[0]

    jacobians = vmap(jacrev(inverse))(latent, features)
    torch.testing.assert_close(log_det, torch.linalg.slogdet(jacobians).logabsdet)


def test_flow_moves_every_dimension() -> None:
    prior = lively(FlowPrior(2, 5, sizes(8, 2)))
    flow = distribution(prior, torch.randn(3, 2))
    base, latent = flow.base.mean, flow.mode()
    assert (base != latent).all()


def test_flow_density_integrates_to_one() -> None:
    prior = lively(FlowPrior(3, 2, sizes(8, 3)), seed=1)
    side = torch.linspace(-30.0, 30.0, 2000)
    grid = torch.cartesian_prod(side, side)
    with torch.no_grad():
        density = distribution(prior, torch.tensor([[0.3, -0.7, 0.2]]).expand(len(grid), 3)).log_prob(grid).exp()
    assert float(density.sum() * (side[1] - side[0]) ** 2) == pytest.approx(1.0, abs=2e-3)


def test_flow_samples_follow_its_density() -> None:
    prior = lively(FlowPrior(3, 2, sizes(8, 3)), seed=1)
    flow = distribution(prior, torch.tensor([[0.3, -0.7, 0.2]]).expand(20_000, 3))
    with torch.no_grad():
        samples = flow.sample(torch.Generator().manual_seed(0))
        inside = (samples > flow.mode()).all(-1)
        side = torch.linspace(-30.0, 30.0, 1000)
        grid = torch.cartesian_prod(side, side)
        density = distribution(prior, torch.tensor([[0.3, -0.7, 0.2]]).expand(len(grid), 3)).log_prob(grid).exp()
    mass = density[(grid > flow.mode()[0]).all(-1)].sum() * (side[1] - side[0]) ** 2
    assert float(inside.float().mean()) == pytest.approx(float(mass), abs=0.03)


def test_flow_refuses_a_single_dimension_in_words() -> None:
    with pytest.raises(SpirlError, match=r"skills\.prior: flow needs .* at least 2 dimensions, this one has 1"):
        FlowPrior(3, 1, sizes(8, 2))


def fork(count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Two ways from every state: z = +-(1, s) with a little noise. States [B, 1], latents [B, 2]."""
    generator = torch.Generator().manual_seed(seed)
    states = 2.0 * torch.rand(count, 1, generator=generator) - 1.0
    way = 2.0 * torch.randint(0, 2, (count, 1), generator=generator) - 1.0
    latents = way * torch.cat([torch.ones_like(states), states], dim=-1)
    return states, latents + 0.1 * torch.randn(count, 2, generator=generator)


def learn_fork(prior: SkillPrior) -> tuple[float, float]:
    """Held-out NLL before and after training."""
    states, latents = fork(1000, seed=1)
    optimizer = torch.optim.Adam(prior.parameters(), lr=5e-3)

    def held_out() -> float:
        with torch.no_grad():
            return float(-distribution(prior, states).log_prob(latents).mean())

    before = held_out()
    for update in range(250):
        seen, wanted = fork(128, seed=100 + update)
        loss = -distribution(prior, seen).log_prob(wanted).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return before, held_out()


def test_every_prior_learns_and_only_the_richer_ones_see_both_modes() -> None:
    torch.manual_seed(0)
    before, gaussian = learn_fork(GaussianPrior(1, 2, sizes(32, 4)))
    assert gaussian < before - 0.2
    before, mixture = learn_fork(MixturePrior(1, 2, sizes(32, 4)))
    assert mixture < before - 0.2
    before, flow = learn_fork(FlowPrior(1, 2, sizes(32, 4)))
    assert flow < before - 0.2
    # The best Gaussian has sigma = 1 and |s|; the data has two narrow modes.
    assert mixture < gaussian - 1.0
    assert flow < gaussian - 0.5
