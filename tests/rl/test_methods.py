"""The paper's methods are one algorithm with three switches."""

from __future__ import annotations

import dataclasses
import math
from typing import Any, get_args

import pytest

from spirl_ray.config import Experiment, MethodName
from spirl_ray.envs import environment
from spirl_ray.errors import SpirlError
from spirl_ray.rl.methods import METHODS, ResolvedMethod, skill_spec
from spirl_ray.rl.methods import resolve as resolve_for


def experiment(**train: Any) -> Experiment:
    return Experiment.model_validate({"name": "test", "train": train})


def resolve(chosen: Experiment, name: MethodName, latent_dim: int) -> ResolvedMethod:
    """In an environment without images, for skills of this latent size."""
    facts = dataclasses.replace(environment("spirl/PointPads-v0"), action_dim=latent_dim)
    skills = chosen.skills.model_copy(update={"latent_dim": latent_dim})
    return resolve_for(chosen, name, skill_spec(chosen.model_copy(update={"skills": skills}), name, facts))


def test_every_method_name_has_its_preset() -> None:
    assert set(METHODS) == set(get_args(MethodName))


@pytest.mark.parametrize(
    ("name", "decoder", "regulariser", "start"),
    [
        ("spirl", "open_loop", "prior", "prior"),
        ("spirl_cl", "closed_loop", "prior", "prior"),
        ("ssp", "open_loop", "uniform", "scratch"),
        ("flat_prior", "identity", "prior", "prior"),
        ("bc_sac", "identity", "uniform", "prior"),
        ("sac", "identity", "uniform", "scratch"),
    ],
)
def test_presets_are_those_of_the_paper(name: MethodName, decoder: str, regulariser: str, start: str) -> None:
    resolved = resolve(experiment(), name, 10)
    assert METHODS[name].decoder == decoder
    assert (resolved.name, resolved.regulariser, resolved.policy_init) == (name, regulariser, start)


@pytest.mark.parametrize("name", ["spirl", "spirl_cl", "flat_prior"])
def test_target_divergence_applies_towards_a_prior(name: MethodName) -> None:
    assert resolve(experiment(), name, 10).target_divergence == 5.0
    assert resolve(experiment(target_divergence=2.0), name, 10).target_divergence == 2.0


@pytest.mark.parametrize("name", ["ssp", "bc_sac", "sac"])
def test_without_a_prior_the_target_is_sacs_entropy_rule(name: MethodName) -> None:
    # Entropy -Z of a in [-1, 1]^Z is a divergence Z log 2 + Z to the uniform distribution there.
    expected = pytest.approx(4 * math.log(2.0) + 4)
    assert resolve(experiment(), name, 4).target_divergence == expected
    assert resolve(experiment(target_divergence=2.0), name, 4).target_divergence == expected


def test_skills_are_limited_where_asked_and_wherever_entropy_is_maximised() -> None:
    assert resolve(experiment(), "spirl", 10).latent_limit is None
    assert resolve(experiment(latent_limit=3.0), "spirl", 10).latent_limit == 3.0
    assert resolve(experiment(), "ssp", 10).latent_limit == 2.0
    assert resolve(experiment(latent_limit=3.0), "ssp", 10).latent_limit == 3.0


@pytest.mark.parametrize("name", ["flat_prior", "bc_sac", "sac"])
def test_flat_methods_have_their_limit_in_the_identity_decoder(name: MethodName) -> None:
    assert resolve(experiment(latent_limit=3.0), name, 2).latent_limit is None


@pytest.mark.parametrize("start", ["prior", "scratch"])
def test_the_starting_point_can_be_ablated(start: str) -> None:
    for name in METHODS:
        assert resolve(experiment(policy_init=start), name, 2).policy_init == start


def test_skill_models_follow_from_the_method() -> None:
    chosen = Experiment.model_validate({"name": "test", "skills": {"horizon": 7, "latent_dim": 3}})
    pads = environment("spirl/PointPads-v0")
    skilled = skill_spec(chosen, "spirl_cl", pads)
    assert (skilled.decoder, skilled.horizon, skilled.latent_dim) == ("closed_loop", 7, 3)
    flat = skill_spec(chosen, "sac", pads)
    assert (flat.decoder, flat.horizon, flat.latent_dim) == ("identity", 1, 2)
    assert flat == skill_spec(chosen, "flat_prior", pads) == skill_spec(chosen, "bc_sac", pads)


@pytest.mark.parametrize(
    ("name", "proposals", "residual"),
    [
        ("spirl", True, True),
        ("ssp", False, False),
        ("flat_prior", True, True),
        ("bc_sac", True, True),
        ("sac", False, False),
    ],
)
def test_with_images_only_methods_that_use_a_prior_are_shown_it(
    name: MethodName, proposals: bool, residual: bool
) -> None:
    resolved = resolve_for(experiment(), name, skill_spec(experiment(), name, environment("spirl/Maze-v0")))
    assert (resolved.proposals, resolved.residual) == (proposals, residual)


def test_a_policy_near_the_prior_of_images_can_have_a_mixture_but_no_flow() -> None:
    chosen = Experiment.model_validate({"name": "test", "skills": {"prior": "mixture"}})
    assert resolve_for(chosen, "spirl", skill_spec(chosen, "spirl", environment("spirl/Maze-v0"))).residual
    chosen = Experiment.model_validate({"name": "test", "skills": {"prior": "flow"}})
    with pytest.raises(SpirlError, match=r"skills\.prior: flow"):
        resolve_for(chosen, "spirl", skill_spec(chosen, "spirl", environment("spirl/Maze-v0")))
