"""With images, the target's states may have another size than the data's: skills see what both have in common."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium.spaces import Box
from torch import Tensor

import spirl_ray.envs as envs
from spirl_ray.errors import SpirlError
from spirl_ray.policy.policy import load_policy, prior_policy, save_policy
from spirl_ray.rl.module import SkillPriorModule
from spirl_ray.rl.policy_network import SkillPolicy
from spirl_ray.rl.skill_env import SkillEnv
from spirl_ray.skills.artifact import load_skills
from spirl_ray.skills.gaussian import DiagonalGaussian
from spirl_ray.skills.model import SkillModel

BLOCKS = "spirl/BlockStacking-v0"
FACTS = envs.environment(BLOCKS)
assert FACTS.view is not None
EGOCENTRIC, PIXELS = list(FACTS.view.egocentric), FACTS.view.pixels
TARGET, LATENT_DIM = 41, 3
assert FACTS.state_dim != TARGET


@pytest.fixture(params=["open_loop", "closed_loop"])
def skills(request: pytest.FixtureRequest, make_skills: Callable[..., Path]) -> Path:
    return make_skills(request.param, environment=BLOCKS)


def observations(count: int, state_dim: int, seed: int = 0) -> Tensor:
    """Egocentric entries and pixels are the same for all sizes, the rest of the state is not."""
    rng = torch.Generator().manual_seed(seed)
    own, pixels = torch.randn(count, 8, generator=rng), 255.0 * torch.rand(count, PIXELS, generator=rng)
    return torch.cat([own, torch.randn(count, state_dim - 8), pixels], dim=1)


def proposal(model: SkillModel, seen: Tensor) -> DiagonalGaussian:
    prior = model.prior_distribution(seen)
    assert isinstance(prior, DiagonalGaussian)
    return prior


def test_prior_and_skills_are_the_same_whatever_the_rest_of_the_state(skills: Path) -> None:
    model, latent = load_skills(skills), torch.zeros(4, LATENT_DIM)
    small, large = observations(4, FACTS.state_dim), observations(4, TARGET)
    for one, other in (
        (proposal(model, small).mean, proposal(model, large).mean),
        (model.decode(small.unsqueeze(1), latent), model.decode(large.unsqueeze(1), latent)),
    ):
        assert torch.equal(one, other)
    moved = large.clone()
    moved[:, EGOCENTRIC[-1]] += 1.0
    assert not torch.equal(proposal(model, moved).mean, proposal(model, large).mean)


def test_the_policy_decides_on_the_whole_state_of_the_target(skills: Path) -> None:
    model, seen = load_skills(skills), observations(4, TARGET)
    inputs = model.decision_input(seen, proposals=True)
    assert torch.equal(inputs[:, :TARGET], seen[:, :TARGET])
    assert torch.equal(inputs[:, TARGET : TARGET + LATENT_DIM], proposal(model, seen).mean)
    assert torch.equal(model.decision_input(seen, proposals=False), seen[:, :TARGET])


def test_only_what_means_the_same_is_standardised_by_the_datas_statistics(skills: Path) -> None:
    model = load_skills(skills)
    policy = SkillPolicy(model, TARGET, proposals=True, residual=True)
    inputs = model.decision_input(observations(4, TARGET), proposals=True)
    standardised = policy.standardise(inputs)
    others = [entry for entry in range(inputs.shape[1]) if entry not in EGOCENTRIC]
    assert torch.equal(standardised[:, others], inputs[:, others])
    expected = (inputs[:, EGOCENTRIC] - model.state_mean[EGOCENTRIC]) / model.state_std[EGOCENTRIC]
    assert torch.equal(standardised[:, EGOCENTRIC], expected)
    same = SkillPolicy(model, FACTS.state_dim, proposals=True, residual=True)
    assert torch.equal(same.state_mean, model.state_mean)


def test_objects_are_seen_from_the_agent_in_an_order_of_their_own(skills: Path) -> None:
    objects = FACTS.objects
    policy = SkillPolicy(load_skills(skills), TARGET, objects=objects)
    states = observations(4, TARGET)[:, :TARGET]
    seen = policy.standardise(states)
    assert seen.shape[1] == policy.input_dim == TARGET + 3 * 4
    alone = [entry for entry in range(8) if entry not in EGOCENTRIC]
    assert torch.equal(seen[:, alone], states[:, alone])
    places = states[:, 8:].unflatten(1, (-1, 3))
    parts = seen[:, 8:].split([TARGET - 8, 9, 3], dim=1)
    near, high = ((part * 2).sinh().unflatten(1, (-1, 3)) * objects.size for part in parts[:2])
    assert (near.norm(dim=-1).diff(dim=1) >= 0).all()
    nearest = (places - states[:, None, :3]).norm(dim=-1).argmin(dim=1)
    torch.testing.assert_close(near[:, 0] + states[:, :3], places[torch.arange(4), nearest])
    highest = places[:, :, 2].argmax(dim=1)
    torch.testing.assert_close(high[:, 0] + states[:, :3], places[torch.arange(4), highest])
    torch.testing.assert_close(parts[2] * objects.size, places[:, :, 2].sort(dim=1, descending=True).values[:, :3])
    shuffled = torch.cat([states[:, :8], places[:, torch.randperm(places.shape[1])].flatten(1)], dim=1)
    assert torch.equal(policy.standardise(shuffled), seen)
    few = SkillPolicy(load_skills(skills), 8 + 2 * 3, objects=objects)
    assert few.standardise(states[:, : 8 + 2 * 3]).shape == (4, few.input_dim) == (4, 8 + 6 + 2 * 4)


@pytest.mark.parametrize("objects", [{"first": 9}, {"agent": []}, {"agent": [99]}, {"size": 0.0}, {"up": 3}])
def test_a_card_whose_objects_do_not_fit_is_refused(skills: Path, tmp_path: Path, objects: dict[str, Any]) -> None:
    facts = {"environment": BLOCKS, "env_kwargs": {}, "method": "spirl", "seed": 0, "latent_limit": None}
    state = SkillPolicy(load_skills(skills), TARGET, objects=FACTS.objects).state_dict()
    save_policy(tmp_path, state, skills, objects=FACTS.objects, env_steps=1, config_hash="a", **facts)
    load_policy(tmp_path)
    card = json.loads((tmp_path / "policy.json").read_text())
    assert card["objects"] == {"agent": [0, 1, 2], "first": 8, "up": 2, "size": 0.08}
    (tmp_path / "policy.json").write_text(json.dumps(card | {"objects": card["objects"] | objects}))
    with pytest.raises(SpirlError, match="is not a policy card"):
        load_policy(tmp_path)


def test_a_saved_policy_knows_the_size_of_its_target(skills: Path, tmp_path: Path) -> None:
    policy = SkillPolicy(load_skills(skills), TARGET, proposals=True, residual=True)
    facts = {"environment": BLOCKS, "env_kwargs": {}, "method": "spirl", "seed": 0, "latent_limit": None}
    folder = tmp_path / "policy"
    save_policy(
        folder, policy.state_dict(), skills, proposals=True, residual=True, env_steps=1, config_hash="a", **facts
    )
    loaded, bare = load_policy(folder), prior_policy(skills, BLOCKS, deterministic=True)
    seen = observations(1, TARGET)[0].numpy()
    np.testing.assert_allclose(loaded.act(seen), bare.act(seen), rtol=1e-5)
    for size in (FACTS.state_dim, TARGET + 3):
        with pytest.raises(SpirlError, match=f"needs {TARGET + PIXELS} entries"):
            loaded.act(observations(1, size)[0].numpy())
    bare.act(observations(1, FACTS.state_dim)[0].numpy())
    with pytest.raises(SpirlError, match="has shape"):
        bare.act(np.zeros(PIXELS, np.float32))


def test_the_module_takes_the_size_from_its_observations(skills: Path) -> None:
    config = {
        "skills": str(skills),
        "regulariser": "prior",
        "policy_init": "prior",
        "proposals": True,
        "objects": None,
        "initial_alpha": 0.1,
        "critic_width": 8,
        "critic_layers": 1,
        "critic_layer_norm": False,
    }
    space = Box(-np.inf, np.inf, (TARGET + 2 * LATENT_DIM,), np.float32)
    latents = Box(-np.inf, np.inf, (LATENT_DIM,), np.float32)
    module = SkillPriorModule(observation_space=space, action_space=latents, model_config=config)
    assert module.policy.input_dim == TARGET + 2 * LATENT_DIM
    assert len(module.policy.state_mean) == TARGET


def test_the_skill_environment_has_the_targets_states(skills: Path) -> None:
    env = SkillEnv(BLOCKS, {"n_blocks": 2}, skills, None, proposals=True)
    assert env.observation_space.shape == (8 + 6 + 2 * LATENT_DIM,)
    try:
        inputs, _ = env.reset(seed=0)
    except SpirlError as error:
        pytest.skip(str(error))
    assert inputs.shape == env.observation_space.shape
    after, *_ = env.step(np.zeros(LATENT_DIM, np.float32))
    assert np.isfinite(after).all()
    env.close()


def test_an_environment_without_the_frames_that_skills_need_is_refused(skills: Path) -> None:
    with pytest.raises(SpirlError, match="without its camera"):
        SkillEnv(BLOCKS, {"camera": False}, skills, None, proposals=True)
