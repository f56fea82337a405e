"""Stacked critics against as many separate networks."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from benchmarks.learners import state_of
from spirl_ray.rl.critics import Critics
from spirl_ray.skills.networks import mlp

STATE, LATENT, ROWS = 5, 3, 16


def stacked(count: int, *, layers: int = 2, layer_norm: bool = False) -> tuple[Critics, list[nn.Sequential]]:
    """Critics, and separate networks with the same parameters; layer norms are not at their start."""
    critics = Critics(STATE + LATENT, count=count, width=8, layers=layers, layer_norm=layer_norm)
    with torch.no_grad():
        for value in critics.norm:
            value.add_(0.3 * torch.randn_like(value))
    networks = []
    for index in range(count):
        networks.append(mlp(STATE + LATENT, 1, width=8, layers=layers, layer_norm=layer_norm))
        networks[-1].load_state_dict(state_of(critics, index))
    return critics, networks


def inputs() -> tuple[Tensor, Tensor]:
    return torch.randn(ROWS, STATE), torch.randn(ROWS, LATENT).requires_grad_()


@pytest.mark.parametrize("layer_norm", [False, True])
@pytest.mark.parametrize("layers", [1, 3])
@pytest.mark.parametrize("count", [1, 2, 10])
def test_values_and_gradients_are_those_of_separate_networks(count: int, layers: int, layer_norm: bool) -> None:
    torch.manual_seed(count)
    critics, networks = stacked(count, layers=layers, layer_norm=layer_norm)
    encoded, latents = inputs()
    weights = torch.randn(count, ROWS)
    values = critics(encoded, latents)
    expected = torch.stack([network(torch.cat([encoded, latents], -1)).squeeze(-1) for network in networks])
    torch.testing.assert_close(values, expected, rtol=1e-5, atol=1e-6)
    (weights * values).sum().backward()
    latent_gradient, latents.grad = latents.grad, None
    (weights * expected).sum().backward()
    torch.testing.assert_close(latent_gradient, latents.grad, rtol=1e-4, atol=1e-6)
    # The gradients, stacked as the parameters are, are those of the separate networks.
    with torch.no_grad():
        for parameter in critics.parameters():
            assert parameter.grad is not None
            parameter.copy_(parameter.grad)
    for index, network in enumerate(networks):
        gradients = state_of(critics, index)
        for name, parameter in network.named_parameters():
            torch.testing.assert_close(gradients[name], parameter.grad, rtol=1e-4, atol=1e-6)


def test_chosen_critics_are_asked_alone() -> None:
    critics, _ = stacked(5, layer_norm=True)
    encoded, latents = inputs()
    some = critics(encoded, latents, chosen=torch.tensor([3, 1]))
    torch.testing.assert_close(some, critics(encoded, latents)[[3, 1]])


def test_parameters_that_do_not_learn_pass_the_gradient_on_to_the_latents() -> None:
    critics, _ = stacked(2)
    encoded, latents = inputs()
    critics(encoded, latents, learn=False).sum().backward()
    assert latents.grad is not None
    assert latents.grad.abs().sum() > 0
    assert all(parameter.grad is None for parameter in critics.parameters())


def test_critics_start_different_from_each_other() -> None:
    critics, _ = stacked(2)
    encoded, latents = inputs()
    first, second = critics(encoded, latents)
    assert not torch.allclose(first, second)
