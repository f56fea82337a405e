"""The paper's methods are one algorithm with three switches."""

from __future__ import annotations

import math
from typing import Any

import pytest

from spirl_ray.config import SkillSettings, TrainSettings
from spirl_ray.episodes.features import Feature, Features
from spirl_ray.errors import SpirlError
from spirl_ray.rl.methods import METHODS, MethodConfig, method_config, skill_spec

PADS: Features = {"state": Feature(shape=(8,))}


def configured(name: str, latent_dim: int = 10, **train: Any) -> MethodConfig:
    """The method with settings of stage 2, for skills of this latent size."""
    spec = skill_spec(SkillSettings(latent_dim=latent_dim), name, PADS, latent_dim)
    return method_config(name, TrainSettings(**train), spec)


@pytest.mark.parametrize(
    ("name", "decoder", "regulariser", "start"),
    [
        ("spirl", "open_loop", "prior", "prior"),
        ("spirl_cl", "closed_loop", "prior", "prior"),
        ("ssp", "open_loop", "uniform", "scratch"),
        ("flat_prior", "identity", "prior", "prior"),
        ("bc_sac", "identity", "uniform", "prior"),
        ("sac", "identity", "uniform", "scratch"),
        ("spirl_offline", "closed_loop", "prior", "prior"),
        ("supe", "closed_loop", "none", "scratch"),
        ("rlpd", "identity", "none", "scratch"),
        ("dsrl", "own", "none", "scratch"),
        ("spirl_plan", "plan", "prior", "prior"),
        ("flow", "flow", "prior", "prior"),
        ("flow_offline", "flow", "prior", "prior"),
    ],
)
def test_presets_are_those_of_the_papers(name: str, decoder: str, regulariser: str, start: str) -> None:
    resolved = configured(name)
    assert METHODS[name].decoder == decoder
    assert (resolved.name, resolved.regulariser, resolved.policy_init) == (name, regulariser, start)


def test_offline_decisions_are_a_switch_that_presets_set() -> None:
    assert configured("spirl_cl").offline_fraction == 0.0
    assert configured("spirl_cl", offline_fraction=0.3).offline_fraction == 0.3
    assert configured("supe").offline_fraction == 0.5
    assert configured("supe", offline_fraction=0.0).offline_fraction == 0.0


def test_updates_without_a_step_are_for_methods_with_offline_decisions_and_known_labels() -> None:
    assert configured("spirl_offline", offline_updates=100).offline_updates == 100
    assert configured("spirl_offline", offline_updates=100, offline_fraction=0.0).offline_updates == 0
    assert configured("spirl_cl", offline_updates=100).offline_updates == 0
    with pytest.raises(ValueError, match="offline_updates need offline decisions"):
        MethodConfig.model_validate({**configured("spirl_cl").model_dump(), "offline_updates": 100})
    with pytest.raises(ValueError, match="offline_labels: learned has none"):
        configured("spirl_offline", offline_updates=100, offline_labels="learned")


@pytest.mark.parametrize(("batch_size", "fraction"), [(4, 0.95), (4, 0.1), (1, 0.5)])
def test_a_share_of_all_or_nothing_is_refused(batch_size: int, fraction: float) -> None:
    with pytest.raises(SpirlError, match=r"train\.offline_fraction.*train\.batch_size"):
        configured("spirl_cl", batch_size=batch_size, offline_fraction=fraction)


def test_the_regulariser_is_a_switch_that_presets_set() -> None:
    bounded = configured("spirl_cl", regulariser="none")
    assert (bounded.regulariser, bounded.latent_limit, bounded.divergence_counts) == ("none", 2.0, False)
    assert bounded.target_divergence == configured("ssp").target_divergence
    assert configured("supe", regulariser="prior", target_divergence=3.0).target_divergence == 3.0
    assert configured("supe", regulariser="prior").latent_limit is None


@pytest.mark.parametrize("name", ["spirl", "spirl_cl", "flat_prior"])
def test_target_divergence_applies_towards_a_prior(name: str) -> None:
    assert configured(name).target_divergence == 5.0
    assert configured(name, 10, target_divergence=2.0).target_divergence == 2.0


@pytest.mark.parametrize("name", ["ssp", "bc_sac", "sac"])
def test_without_a_prior_the_target_is_sacs_entropy_rule(name: str) -> None:
    # Entropy -Z of a in [-1, 1]^Z is a divergence Z log 2 + Z to the uniform distribution there.
    expected = pytest.approx(4 * math.log(2.0) + 4)
    assert configured(name, 4).target_divergence == expected
    assert configured(name, 4, target_divergence=2.0).target_divergence == expected


def test_skills_are_limited_where_asked_and_wherever_entropy_is_maximised() -> None:
    assert configured("spirl", 10).latent_limit is None
    assert configured("spirl", 10, latent_limit=3.0).latent_limit == 3.0
    assert configured("ssp", 10).latent_limit == 2.0
    assert configured("ssp", 10, latent_limit=3.0).latent_limit == 3.0


@pytest.mark.parametrize("name", ["flat_prior", "bc_sac", "sac"])
def test_flat_methods_have_their_limit_in_the_identity_decoder(name: str) -> None:
    assert configured(name, 2, latent_limit=3.0).latent_limit is None


@pytest.mark.parametrize("start", ["prior", "scratch"])
def test_the_starting_point_can_be_ablated(start: str) -> None:
    for name in METHODS:
        assert configured(name, 2, policy_init=start).policy_init == start


def test_skill_models_follow_from_the_method() -> None:
    settings = SkillSettings(horizon=7, latent_dim=3)
    skilled = skill_spec(settings, "spirl_cl", PADS, 2)
    assert (skilled.decoder, skilled.horizon, skilled.latent_dim) == ("closed_loop", 7, 3)
    flat = skill_spec(settings, "sac", PADS, 2)
    assert (flat.decoder, flat.horizon, flat.latent_dim) == ("identity", 1, 2)
    flow = skill_spec(settings, "flow", PADS, 2)
    assert (flow.decoder, flow.horizon, flow.latent_dim) == ("flow", 7, 14)
    assert flat == skill_spec(settings, "flat_prior", PADS, 2) == skill_spec(settings, "bc_sac", PADS, 2)


def test_a_method_wants_skills_of_its_own_kind() -> None:
    with pytest.raises(SpirlError, match="method spirl needs skills with the decoder open_loop"):
        method_config("spirl", TrainSettings(), skill_spec(SkillSettings(), "spirl_cl", PADS, 2))


def test_a_method_that_nobody_knows_is_refused_with_those_that_there_are() -> None:
    with pytest.raises(
        SpirlError, match="unknown method 'magic'; known are bc_sac, dsrl, flat_prior, flow, flow_offline, rlpd"
    ):
        skill_spec(SkillSettings(), "magic", PADS, 2)


def test_skills_can_be_told_what_to_see_but_never_a_goal() -> None:
    features = {**PADS, "goal": Feature(shape=(2,), role="goal"), "more": Feature(shape=(1,))}
    assert skill_spec(SkillSettings(), "spirl", features, 2).features == ("state", "more")
    assert skill_spec(SkillSettings(features=("more",)), "spirl", features, 2).features == ("more",)
    with pytest.raises(SpirlError, match=r"skills\.features: 'goal' is a goal"):
        skill_spec(SkillSettings(features=("state", "goal")), "spirl", features, 2)
    with pytest.raises(SpirlError, match=r"skills\.features: 'els' is not a feature .* state, goal"):
        skill_spec(SkillSettings(features=("els",)), "spirl", features, 2)
