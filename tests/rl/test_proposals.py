"""With images, the frozen prior's parameters are part of what a high-level policy sees, and where it starts."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ray.rllib.core.columns import Columns

import spirl_ray.envs as envs
from spirl_ray.rl.module import SkillPriorModule
from spirl_ray.rl.policy import Proposal, ResidualHead, SkillPolicy, load_policy, prior_policy, save_policy
from spirl_ray.rl.skill_env import SkillEnv
from spirl_ray.skills.artifact import load_skills
from spirl_ray.skills.gaussian import DiagonalGaussian

MAZE = "spirl/Maze-v0"
SMALL = {"layout_seed": 1, "size": 8, "start": None, "goal": None}
FACTS = envs.environment(MAZE)
STATE_DIM, LATENT_DIM = FACTS.state_dim, 3


def observations(count: int) -> torch.Tensor:
    """Of different episodes, so that the views differ."""
    env = envs.make(MAZE, **SMALL)
    return torch.from_numpy(np.stack([env.reset(seed=seed)[0] for seed in range(count)]))


@pytest.fixture(params=["gaussian", "mixture"])
def skills(request: pytest.FixtureRequest, make_skills: Callable[..., Path]) -> Path:
    return make_skills("open_loop", request.param, environment=MAZE)


def start_of(prior: Any) -> DiagonalGaussian:
    return prior if isinstance(prior, DiagonalGaussian) else prior.heaviest()


def test_the_input_is_the_state_and_the_priors_parameters(skills: Path) -> None:
    model, seen = load_skills(skills), observations(5)
    inputs = model.decision_input(seen, proposals=True)
    assert torch.equal(inputs[:, :STATE_DIM], seen[:, :STATE_DIM])
    assert torch.equal(model.decision_input(seen, proposals=False), seen[:, :STATE_DIM])
    prior, proposal = model.prior_distribution(seen), Proposal(model.spec)(inputs)
    latents = torch.randn(5, LATENT_DIM)
    torch.testing.assert_close(proposal.log_prob(latents), prior.log_prob(latents))
    assert start_of(prior).mean.std(0).min() > 1e-4  # the views do tell observations apart


def test_prior_and_skills_cannot_see_where_they_are(make_skills: Callable[..., Path]) -> None:
    for decoder in ("open_loop", "closed_loop", "identity"):
        model, seen = load_skills(make_skills(decoder, environment=MAZE)), observations(3)
        moved = seen.clone()
        moved[:, :2] += 5.0
        assert torch.equal(model.prior_distribution(moved).mode(), model.prior_distribution(seen).mode())
        latent = torch.randn(3, model.spec.latent_dim)
        assert torch.equal(model.decode(moved.unsqueeze(1), latent), model.decode(seen.unsqueeze(1), latent))
        faster = seen.clone()
        faster[:, 2:4] += 1.0
        assert not torch.equal(model.prior_distribution(faster).mode(), model.prior_distribution(seen).mode())


def test_a_residual_policy_starts_as_the_proposal_and_can_leave_it(skills: Path) -> None:
    model, seen = load_skills(skills), observations(4)
    policy = SkillPolicy(model, proposals=True, residual=True)
    inputs, prior = model.decision_input(seen, proposals=True), start_of(model.prior_distribution(seen))
    chosen = policy(inputs)
    torch.testing.assert_close(chosen.mean, prior.mean)
    torch.testing.assert_close(chosen.log_std, prior.log_std)
    assert isinstance(policy.head, ResidualHead)
    optimizer = torch.optim.SGD(policy.parameters(), lr=0.1)
    (policy(inputs).mean - 1.0).square().sum().backward()
    optimizer.step()
    assert (policy(inputs).mean - prior.mean).abs().max() > 1e-3


def test_the_saved_policy_acts_from_observations(skills: Path, tmp_path: Path) -> None:
    model = load_skills(skills)
    policy = SkillPolicy(model, proposals=True, residual=True)
    card = {"environment": MAZE, "env_kwargs": SMALL, "method": "spirl", "seed": 0, "latent_limit": None}
    save_policy(
        tmp_path / "policy",
        policy.state_dict(),
        skills,
        proposals=True,
        residual=True,
        env_steps=1,
        config_hash="a",
        **card,
    )
    loaded, bare = load_policy(tmp_path / "policy"), prior_policy(skills, MAZE, deterministic=True)
    for observation in observations(3).numpy():
        loaded.reset()
        bare.reset()
        np.testing.assert_array_equal(loaded.act(observation), bare.act(observation))


def test_the_skill_environment_gives_what_the_policy_decides_on(skills: Path) -> None:
    env, primitive, model = SkillEnv(MAZE, SMALL, skills, None, proposals=True), envs.make(MAZE, **SMALL), None
    model = load_skills(skills)
    inputs, _ = env.reset(seed=3)
    assert inputs.shape == env.observation_space.shape == (STATE_DIM + model.spec.proposal_dim,)
    first, _ = primitive.reset(seed=3)
    expected = model.decision_input(torch.from_numpy(first), proposals=True)
    np.testing.assert_allclose(inputs, expected.numpy(), rtol=1e-6)
    after, _, _, _, info = env.step(np.zeros(LATENT_DIM, np.float32))
    assert info["primitive_steps"] == model.spec.horizon
    assert (after[:2] != inputs[:2]).any()
    plain = SkillEnv(MAZE, SMALL, skills, None)
    assert plain.reset(seed=3)[0].shape == (STATE_DIM,)


def test_the_module_keeps_close_to_the_proposal_in_its_input(skills: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, seen = load_skills(skills), observations(6)
    inputs = model.decision_input(seen, proposals=True)
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
    space = SkillEnv(MAZE, SMALL, skills, None, proposals=True)
    module = SkillPriorModule(
        observation_space=space.observation_space, action_space=space.action_space, model_config=config
    )
    module.make_target_networks()
    batch = {
        Columns.OBS: inputs,
        Columns.NEXT_OBS: inputs.flip(0),
        Columns.ACTIONS: torch.zeros(len(inputs), LATENT_DIM),
    }
    prior: Any = model.prior_distribution(seen)
    start = start_of(prior)
    out = module.forward_train(batch)["divergence"]
    # The heaviest part of a mixture is at most as far from the whole as its weight is small.
    weight = 1.0 if isinstance(prior, DiagonalGaussian) else prior.logits.softmax(-1).max(-1).values
    assert (out <= -torch.as_tensor(weight).log() + 1e-5).all()
    with torch.no_grad():
        last: Any = module.policy.head
        last.net[-1].bias[:LATENT_DIM] += 0.5
    moved = DiagonalGaussian(start.mean + 0.5, start.log_std)
    monkeypatch.setattr(DiagonalGaussian, "sample", lambda self, generator=None: self.mean)
    found = module.forward_train(batch)["divergence"]
    at_mean = moved.log_prob(moved.mean) - prior.log_prob(moved.mean)
    expected = moved.kl(prior) if isinstance(prior, DiagonalGaussian) else at_mean
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
