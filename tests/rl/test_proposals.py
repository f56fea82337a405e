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
from spirl_ray.policy.policy import load_policy, prior_policy, save_policy
from spirl_ray.rl.module import SkillPriorModule
from spirl_ray.rl.policy_network import Proposal, ResidualHead, SkillPolicy
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


def assert_same(one: Any, other: Any) -> None:
    for mine, theirs in zip(spread(one), spread(other), strict=True):
        torch.testing.assert_close(mine, theirs)


def spread(distribution: Any) -> tuple[torch.Tensor, ...]:
    weights, parts = distribution.parts()
    return weights, parts.mean, parts.log_std


def test_the_input_is_the_state_and_the_priors_parameters(skills: Path) -> None:
    model, seen = load_skills(skills), observations(5)
    inputs = model.decision_input(seen, proposals=True)
    assert torch.equal(inputs[:, :STATE_DIM], seen[:, :STATE_DIM])
    assert torch.equal(model.decision_input(seen, proposals=False), seen[:, :STATE_DIM])
    prior = model.prior_distribution(seen)
    assert_same(Proposal(model.spec)(inputs), prior)
    assert prior.mode().std(0).min() > 1e-4  # the views do tell observations apart


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
    inputs, prior = model.decision_input(seen, proposals=True), model.prior_distribution(seen)
    assert_same(policy(inputs), prior)
    assert isinstance(policy.head, ResidualHead)
    optimizer = torch.optim.SGD(policy.parameters(), lr=0.1)
    policy(inputs).log_prob(torch.ones(4, LATENT_DIM)).sum().backward()
    optimizer.step()
    for now, before in zip(spread(policy(inputs)), spread(prior), strict=True):
        assert (now - before).abs().max() > 1e-3 or now.shape[-1] == 1  # a Gaussian's weight is one


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


@pytest.fixture
def module(skills: Path) -> SkillPriorModule:
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
    made = SkillPriorModule(
        observation_space=space.observation_space, action_space=space.action_space, model_config=config
    )
    made.make_target_networks()
    return made


def test_the_module_keeps_close_to_the_proposal_in_its_input(
    skills: Path, module: SkillPriorModule, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, seen = load_skills(skills), observations(6)
    inputs = model.decision_input(seen, proposals=True)
    batch = {
        Columns.OBS: inputs,
        Columns.NEXT_OBS: inputs.flip(0),
        Columns.ACTIONS: torch.zeros(len(inputs), LATENT_DIM),
    }
    prior: Any = model.prior_distribution(seen)
    assert module.forward_train(batch)["divergence"].abs().max() < 1e-5
    head: Any = module.policy.head
    with torch.no_grad():
        head.net[-1].bias += torch.linspace(0.0, 0.5, model.spec.proposal_dim)
    monkeypatch.setattr(DiagonalGaussian, "sample", lambda self, generator=None: self.mean)
    out, policy = module.forward_train(batch), module.policy(inputs)
    weights, parts = policy.parts()
    if isinstance(prior, DiagonalGaussian):
        divergence = policy.kl(prior)
    else:
        at = parts.mean.unbind(1)
        divergence = sum(
            weight * (policy.log_prob(mean) - prior.log_prob(mean)) for weight, mean in zip(weights.T, at, strict=True)
        )
        assert weights.min() > 0.01  # every part counts
    torch.testing.assert_close(out["divergence"], divergence, rtol=1e-4, atol=1e-5)
    states = module.policy.standardise(inputs)
    values = [module._values(module.critics, states, mean).min(0).values for mean in parts.mean.unbind(1)]
    torch.testing.assert_close(out["policy_value"], (weights * torch.stack(values, 1)).sum(1), rtol=1e-4, atol=1e-5)


def test_a_mixture_policy_learns_which_part_to_take(skills: Path, module: SkillPriorModule) -> None:
    model = load_skills(skills)
    inputs = model.decision_input(observations(6), proposals=True)
    batch = {Columns.OBS: inputs, Columns.NEXT_OBS: inputs, Columns.ACTIONS: torch.zeros(len(inputs), LATENT_DIM)}
    head: Any = module.policy.head
    (gradient,) = torch.autograd.grad(module.forward_train(batch)["policy_value"].sum(), head.net[-1].bias)
    assert (gradient != 0).all()
    # It explores with one of its parts.
    chosen = module.forward_exploration(batch)[Columns.ACTION_DIST_INPUTS].unsqueeze(1)
    _, parts = module.policy(inputs).parts()
    found = (chosen - torch.cat([parts.mean, parts.log_std], dim=-1)).abs().amax(-1)
    assert (found.min(1).values < 1e-6).all()
