"""Flow skills: the loss is flow matching, two modes stay two, and the noise of a window is found again."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from toy_skills import STATE, random_observations, toy_model, toy_spec

from spirl_ray.errors import SpirlError
from spirl_ray.skills.decoders import NoiseCodec
from spirl_ray.skills.flow import FlowCodec
from spirl_ray.skills.model import SkillModel
from spirl_ray.skills.spec import SkillSpec

HORIZON, ACTIONS, BATCH = 5, 2, 16


def codec_of(model: SkillModel) -> FlowCodec:
    assert isinstance(model.codec, FlowCodec)
    return model.codec


def test_the_loss_is_flow_matching_on_the_straight_line_from_noise_to_actions() -> None:
    model = toy_model("flow")
    codec, seen = codec_of(model), random_observations(STATE, BATCH, 1)
    actions, noise = torch.rand(BATCH, HORIZON, ACTIONS) - 0.5, torch.randn(BATCH, model.noise_dim)
    losses = model(seen, actions, noise)
    features = ((seen["state"] - model.statistics.mean["state"]) / model.statistics.std["state"])[:, 0]
    expected = []
    for row in range(BATCH):
        start, end = noise[row, :-1], actions[row].flatten()
        time = 0.5 * (1.0 + torch.erf(noise[row, -1] / 2.0**0.5))  # uniform, because the noise is standard normal
        point = (1.0 - time) * start + time * end
        angles = [2.0**wave * torch.pi * time for wave in range(4)]
        waves = torch.stack([*(angle.sin() for angle in angles), *(angle.cos() for angle in angles)])
        velocity = codec.network(torch.cat([features[row], point, waves]))
        expected.append((velocity - (end - start)).square().mean())
    torch.testing.assert_close(losses["loss"], torch.stack(expected).mean())
    assert float(losses["kl"]) == float(losses["prior"]) == 0.0


def test_the_prior_is_standard_normal_and_has_no_weights_of_its_own() -> None:
    model = toy_model("flow", prior="mixture")  # which flow skills do not have
    prior = model.prior_distribution({"state": torch.randn(3, 4)})
    value = torch.randn(3, HORIZON * ACTIONS)
    expected = torch.distributions.Normal(0.0, 1.0).log_prob(value).sum(-1)
    torch.testing.assert_close(prior.log_prob(value), expected)
    assert not list(model.prior.parameters())
    assert model.observations is codec_of(model).observations


def test_two_ways_stay_two_and_noise_chooses_between_them() -> None:
    torch.manual_seed(0)
    model = toy_model("flow", width=64)
    optimizer = torch.optim.Adam(model.parameters(), 2e-3)

    def demonstrated(count: int) -> tuple[dict[str, Tensor], Tensor]:
        """Actions of 0.5 or of -0.5 throughout, by the toss of a coin that no observation shows."""
        side = torch.where(torch.rand(count, 1, 1) < 0.5, 0.5, -0.5)
        return {"state": torch.randn(count, 1, 4)}, side + 0.05 * torch.randn(count, HORIZON, ACTIONS)

    for _ in range(600):
        loss = model(*demonstrated(256), torch.randn(256, model.noise_dim))["loss"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    with torch.no_grad():
        seen, actions = demonstrated(500)
        decoded = model.decode(seen, torch.randn(500, HORIZON * ACTIONS))
        ways = decoded.mean((1, 2))
        assert (ways.abs() - 0.5).abs().quantile(0.8) < 0.2  # not between the two
        assert 0.35 < (ways > 0).float().mean() < 0.65
        codec = codec_of(model)
        features = codec.observe(seen)
        found = codec.encode(features, actions)
        assert (codec.decode(features, found.mean) - actions).abs().mean() < 0.05
        assert found.mean.std() < 2.0
        assert (found.log_std.exp() - 0.1).abs().max() < 1e-6


@pytest.mark.parametrize(("options", "says"), [({"steps": 0}, "steps: .*1"), ({"step": 4}, "step: is unknown.*steps")])
def test_wrong_options_are_named(options: dict[str, int], says: str) -> None:
    with pytest.raises(SpirlError, match=rf"skills\.decoder_options\.{says}"):
        toy_model("flow", decoder_options=options)


# --- a policy of the user's ---


class Frozen(NoiseCodec):
    """A policy that was trained elsewhere: actions are its weight times the noise."""

    def __init__(self, spec: SkillSpec) -> None:
        super().__init__()
        self.shape = (spec.horizon, spec.action_dim)
        self.weight = nn.Parameter(torch.zeros(()), requires_grad=False)

    def load_pretrained(self) -> None:
        self.weight.fill_(0.25)

    def decode(self, features: Tensor | None, latent: Tensor) -> Tensor:
        return self.weight * latent[:, : self.shape[0] * self.shape[1]].unflatten(-1, self.shape)


def own(**options: object) -> SkillModel:
    spec = toy_spec("own", decoder_options={"codec": f"{__name__}:Frozen", **options})
    return SkillModel(spec)


def test_a_frozen_policy_takes_the_place_of_skills() -> None:
    model = own(noise_dim=12)
    model.load_pretrained()
    assert model.spec.latent_dim == 12
    noise = torch.randn(3, 12)
    torch.testing.assert_close(model.decode(random_observations(STATE, 3, 1), noise)[:, 0, 1], 0.25 * noise[:, 1])
    loss = model(random_observations(STATE, 3, 1), torch.zeros(3, HORIZON, ACTIONS), noise)["loss"]
    assert not loss.requires_grad
    assert own().spec.latent_dim == HORIZON * ACTIONS
    with pytest.raises(SpirlError, match=r"Frozen does not say.*train\.offline_fraction"):
        model.codec.encode(None, torch.zeros(3, HORIZON, ACTIONS))


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"codec": None}, r"codec: name your class"),
        ({"codec": "nowhere:Policy"}, r"codec: nowhere:Policy cannot be imported"),
        ({"codec": "builtins:dict"}, r"codec: builtins:dict is not a subclass"),
        ({"noise_dim": 0}, r"noise_dim: the size"),
    ],
)
def test_a_policy_that_cannot_be_used_is_named(options: dict[str, object], says: str) -> None:
    with pytest.raises(SpirlError, match=says):
        own(**options)
