"""Plan skills: every action follows from the first observation and the latent, and sums of actions can count."""

from __future__ import annotations

import pytest
import torch
from toy_skills import STATE, random_observations, toy_model

from spirl_ray.errors import SpirlError
from spirl_ray.skills.plan import PlanCodec

HORIZON, ACTIONS, LATENTS, BATCH = 5, 2, 3, 16


def test_every_action_of_a_plan_depends_on_the_first_observation_and_on_the_latent() -> None:
    model = toy_model("plan")
    seen, latent = random_observations(STATE, BATCH, 1), torch.randn(BATCH, LATENTS)
    actions = model.decode(seen, latent)
    assert actions.shape == (BATCH, HORIZON, ACTIONS)
    for other in (model.decode({"state": seen["state"] + 1.0}, latent), model.decode(seen, latent + 1.0)):
        assert ((other - actions).abs().amax((0, 2)) > 1e-4).all()


def test_the_encoder_reads_every_action_and_the_first_observation() -> None:
    model = toy_model("plan")
    states = torch.randn(BATCH, 1, 4, requires_grad=True)
    actions = torch.randn(BATCH, HORIZON, ACTIONS, requires_grad=True)
    model.codec.encode(states, actions).mean.sum().backward()
    assert actions.grad is not None
    assert states.grad is not None
    assert (actions.grad.abs().sum((0, 2)) > 0).all()
    assert (states.grad.abs().sum((0, 1)) > 0).all()


@pytest.mark.parametrize("weight", [0.0, 0.5])
def test_the_loss_counts_the_errors_of_actions_and_of_their_sums(weight: float) -> None:
    model = toy_model("plan", decoder_options={"displacement_weight": weight})
    seen, latent = random_observations(STATE, BATCH, 1), torch.randn(BATCH, LATENTS)
    wrong = torch.tensor([[0.4, 0.0], [-0.4, 0.0], [0.0, 0.2], [0.0, 0.0], [0.0, 0.0]])
    features = model.codec.observe(seen)
    loss = model.codec.reconstruction_loss(features, latent, model.decode(seen, latent) - wrong)
    one_by_one, summed = 2 * 0.4**2 + 0.2**2, 0.4**2 + 3 * 0.2**2  # what is wrong and then put right hardly counts
    expected = 0.5 * (one_by_one + weight * summed) / (HORIZON * ACTIONS)
    torch.testing.assert_close(loss, torch.tensor(expected))


def test_an_embedding_is_learned_with_prior_and_divergence() -> None:
    model = toy_model("plan", beta=0.5)
    actions, noise = torch.rand(BATCH, HORIZON, ACTIONS) - 0.5, torch.randn(BATCH, model.noise_dim)
    losses = model(random_observations(STATE, BATCH, 1), actions, noise)
    assert isinstance(model.codec, PlanCodec)
    assert losses["kl"].item() > 0.0
    torch.testing.assert_close(losses["loss"], losses["reconstruction"] + 0.5 * losses["kl"] + losses["prior"])


@pytest.mark.parametrize(("options", "named"), [({"displacement_weight": -1}, "displacement_weight"), ({"a": 1}, "a")])
def test_wrong_options_are_refused_by_name(options: dict[str, float], named: str) -> None:
    with pytest.raises(SpirlError, match=rf"skills\.decoder_options.*\n *{named}:"):
        toy_model("plan", decoder_options=options)
