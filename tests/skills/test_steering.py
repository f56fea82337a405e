"""What a latent decides, against models of which it is known."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from toy_skills import STATE, random_observations, toy_model

from spirl_ray.skills.decoders import SkillCodec
from spirl_ray.skills.gaussian import DiagonalGaussian
from spirl_ray.skills.model import SkillModel
from spirl_ray.skills.priors import GaussianMixture, LatentDistribution
from spirl_ray.skills.steering import error_removed, latent_measures, measures_of

BATCH, HORIZON, STD = 512, 5, 0.5


class ShiftCodec(SkillCodec):
    """A decoder that repeats ``gain`` times the latent; the encoder knows the first action."""

    def __init__(self, gain: float) -> None:
        super().__init__()
        self.gain = gain

    def encode(self, features: Tensor | None, actions: Tensor) -> DiagonalGaussian:
        return DiagonalGaussian(actions[:, 0], torch.full_like(actions[:, 0], math.log(STD)))

    def decode(self, features: Tensor | None, latent: Tensor) -> Tensor:
        return self.gain * latent.unsqueeze(1).expand(-1, HORIZON, -1)


def hand_made(gain: float, prior: LatentDistribution) -> SkillModel:
    model = toy_model(latent_dim=2)
    model.codec = ShiftCodec(gain)
    model.prior_distribution = lambda observations: prior  # type: ignore[method-assign]
    return model


def windows() -> Tensor:
    """Actions [B, H, 2] that do not change within a window."""
    one = 2.0 * torch.rand(BATCH, 1, 2, generator=torch.Generator().manual_seed(0)) - 1.0
    return one.expand(-1, HORIZON, -1)


def measured(model: SkillModel, actions: Tensor) -> dict[str, float]:
    torch.manual_seed(0)
    observations = random_observations(model.spec.observed, BATCH, HORIZON)
    return {name: float(value) for name, value in latent_measures(model, observations, actions).items()}


STANDARD = DiagonalGaussian(torch.zeros(BATCH, 2), torch.zeros(BATCH, 2))


def test_a_latent_that_decides_all_removes_all_of_the_error() -> None:
    actions = windows()
    found = measured(hand_made(1.0, STANDARD), actions)
    squares = float(actions.square().mean())
    nats = float((0.5 * (STD**2 + actions[:, 0].square() - 1.0) - math.log(STD)).sum(-1).mean())
    assert found["error_posterior"] == 0.0
    assert found["error_prior_mean"] == pytest.approx(squares)
    assert found["error_prior_sample"] == pytest.approx(squares + 1.0, rel=0.05)
    assert error_removed(found) == 1.0
    assert found["latent_nats"] == found["latent_nats_standard"] == pytest.approx(nats)


def test_a_latent_that_the_decoder_ignores_removes_nothing() -> None:
    found = measured(hand_made(0.0, STANDARD), windows())
    assert found["error_posterior"] == found["error_prior_mean"] == pytest.approx(found["error_prior_sample"])
    assert error_removed(found) == 0.0


def test_a_prior_that_knows_the_latent_leaves_nothing_to_carry() -> None:
    actions = windows()
    prior = DiagonalGaussian(actions[:, 0], torch.full((BATCH, 2), math.log(STD)))
    found = measured(hand_made(1.0, prior), actions)
    assert found["latent_nats"] == pytest.approx(0.0, abs=1e-6)
    assert found["latent_nats_standard"] > 0.5
    assert found["error_prior_mean"] == 0.0
    assert error_removed(found) == 0.0


def test_a_divergence_without_a_closed_form_is_estimated() -> None:
    actions = windows()
    mixture = GaussianMixture(
        torch.zeros(BATCH, 1), DiagonalGaussian(torch.zeros(BATCH, 1, 2), torch.zeros(BATCH, 1, 2))
    )
    exact, found = measured(hand_made(1.0, STANDARD), actions), measured(hand_made(1.0, mixture), actions)
    assert found["latent_nats"] == pytest.approx(exact["latent_nats"], rel=0.05)
    assert found["latent_nats"] != exact["latent_nats"]


@pytest.mark.parametrize("decoder", ["open_loop", "closed_loop"])
@pytest.mark.parametrize("prior", ["gaussian", "mixture", "flow"])
def test_every_kind_of_skills_is_measured(decoder: str, prior: str) -> None:
    model = toy_model(decoder, prior=prior)
    steps = model.kind.observed_steps(HORIZON)
    found = latent_measures(model, random_observations(STATE, 8, steps), windows()[:8])
    assert all(value.ndim == 0 and value.isfinite() for value in found.values())
    assert len(found) == 5


def test_noise_has_errors_and_no_nats() -> None:
    model = toy_model("flow")
    found = latent_measures(model, random_observations(STATE, 8, 1), windows()[:8])
    assert set(found) == {"error_prior_mean", "error_prior_sample", "error_posterior"} == set(measures_of(model))
    assert found["error_posterior"] < found["error_prior_mean"] < found["error_prior_sample"]


def test_of_an_action_prior_only_its_errors_are_measured() -> None:
    model = toy_model("identity")
    found = latent_measures(model, random_observations(STATE, 8, 1), windows()[:8, :1])
    assert set(found) == {"error_prior_mean", "error_prior_sample"}
