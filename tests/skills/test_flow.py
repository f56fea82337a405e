"""Flow skills: the loss is flow matching, two modes stay two, and the noise of a window is found again."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from toy_skills import STATE, random_observations, toy_model, toy_spec

from spirl_ray.errors import SpirlError
from spirl_ray.registry import TRUSTED_CODECS
from spirl_ray.skills.decoders import DECODERS, NoiseCodec
from spirl_ray.skills.encoders import Observations
from spirl_ray.skills.flow import FlowCodec
from spirl_ray.skills.model import SkillModel
from spirl_ray.skills.own_codec import trust
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
    assert model.observation_encoder is codec_of(model).observations


def test_a_kind_and_its_class_agree_that_the_latent_is_noise(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, noise in (("flow", False), ("plan", True)):
        monkeypatch.setitem(DECODERS._entries, name, dataclasses.replace(DECODERS[name], noise=noise))
        with pytest.raises(SpirlError, match=f"'{name}' has noise={noise}"):
            toy_model(name)


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


@pytest.mark.parametrize(
    ("options", "says"), [({"steps": 1}, "steps: .*2"), ({"step": 4}, "step: unknown key. Known here: steps")]
)
def test_wrong_options_are_named(options: dict[str, int], says: str) -> None:
    with pytest.raises(SpirlError, match=rf"skills\.decoder_options is not valid:\n  {says}"):
        toy_model("flow", decoder_options=options)


# --- a policy of the user's ---


class Frozen(NoiseCodec):
    """A policy that was trained elsewhere: actions are its weight times the noise."""

    def __init__(self, spec: SkillSpec) -> None:
        super().__init__()
        self.shape = (spec.horizon, spec.action_dim)
        self.weight = nn.Parameter(torch.zeros(()))  # the model freezes it, because there is no loss to learn it by

    def load_pretrained(self) -> None:
        self.weight.fill_(0.25)

    def decode(self, features: Tensor | None, latent: Tensor) -> Tensor:
        return self.weight * latent[:, : self.shape[0] * self.shape[1]].unflatten(-1, self.shape)


class Short(Frozen):
    """A policy whose actions are one too few."""

    def decode(self, features: Tensor | None, latent: Tensor) -> Tensor:
        return super().decode(features, latent)[:, 1:]


class Broken(Frozen):
    """A policy that needs a feature that is not there."""

    def observe(self, observations: Observations) -> Tensor:
        return observations["camera"]


class Late(Frozen):
    """A policy that makes a network only when its weights are loaded."""

    def load_pretrained(self) -> None:
        self.late = nn.Linear(2, 2)


def own(codec: str = "Frozen", target_kl: float | None = None, **options: object) -> SkillModel:
    options = {"codec": f"{__name__}:{codec}", **options}
    return SkillModel(toy_spec("own", decoder_options=options, target_kl=target_kl))


def test_a_frozen_policy_takes_the_place_of_skills() -> None:
    model = own(noise_dim=12, path="weights")
    model.try_out()
    assert model.load_pretrained() == {"codec.weight": torch.tensor(0.25)}
    assert model.spec.latent_dim == 12
    noise = torch.randn(3, 12)
    torch.testing.assert_close(model.decode(random_observations(STATE, 3, 1), noise)[:, 0, 1], 0.25 * noise[:, 1])
    loss = model(random_observations(STATE, 3, 1), torch.zeros(3, HORIZON, ACTIONS), noise)["loss"]
    assert not loss.requires_grad
    assert not hasattr(own(target_kl=0.5), "log_beta")
    assert own().spec.latent_dim == HORIZON * ACTIONS
    with pytest.raises(SpirlError, match=r"Frozen does not say.*train\.offline_fraction"):
        model.codec.encode(None, torch.zeros(3, HORIZON, ACTIONS))


@pytest.mark.parametrize(
    ("codec", "says"),
    [
        ("Short", r"Short decodes to \[1, 4, 2\], which must be finite actions of the shape \[1, 5, 2\]"),
        ("Broken", r"The frozen policy Broken cannot decode: KeyError: 'camera'"),
        ("Late", r"codec\.late\.bias: make the networks of a codec in its constructor"),
    ],
)
def test_a_policy_that_does_not_fit_is_refused_before_any_work(codec: str, says: str) -> None:
    model = own(codec)
    with pytest.raises(SpirlError, match=says):
        (model.load_pretrained if codec == "Late" else model.try_out)()


def test_a_class_is_imported_where_a_config_names_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv(TRUSTED_CODECS, "")
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "somebodys_policy.py").write_text(f"from {__name__} import Frozen\n")
    spec = toy_spec("own", decoder_options={"codec": "somebodys_policy:Frozen"})
    with pytest.raises(SpirlError, match=f"{TRUSTED_CODECS}=somebodys_policy:Frozen"):
        SkillModel(spec)
    trust(spec.settings)
    assert type(SkillModel(spec).codec).__name__ == "Frozen"


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"codec": None}, r"codec: name your class"),
        ({"codec": "os:Policy"}, r"codec: os:Policy cannot be imported"),
        ({"codec": "builtins:dict"}, r"codec: builtins:dict is not a subclass"),
        ({"noise_dim": 0}, r"noise_dim: the size"),
    ],
)
def test_a_policy_that_cannot_be_used_is_named(options: dict[str, object], says: str) -> None:
    with pytest.raises(SpirlError, match=says):
        SkillModel(toy_spec("own", decoder_options={"codec": f"{__name__}:Frozen", **options}))
