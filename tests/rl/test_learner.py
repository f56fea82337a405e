"""The RLModule and the Learner together, without a cluster."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from gymnasium.spaces import Box
from ray.rllib.core import DEFAULT_MODULE_ID
from ray.rllib.core.columns import Columns
from torch import Tensor
from toy_skills import random_observations

import spirl_ray.envs as envs
from spirl_ray.errors import SpirlError
from spirl_ray.metrics import learner_metrics, training_metrics
from spirl_ray.rl import losses
from spirl_ray.rl.replay import DISCOUNTS, PHASE
from spirl_ray.skills.artifact import load_skills
from spirl_ray.skills.gaussian import DiagonalGaussian
from spirl_ray.skills.model import SkillModel

LATENT_DIM, ROWS = 3, 64
PADS = envs.environment("spirl/PointPads-v0").features
MakeConfig = Callable[..., Any]
MakeSkills = Callable[..., Path]


def rows(model: SkillModel, seed: int = 0, **changes: Tensor) -> dict[str, Tensor]:
    """Decisions whose observations hold random states and the prior parameters there."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    def observations(seed: int) -> Tensor:
        states = random_observations(PADS, ROWS, seed=seed)
        with torch.no_grad():
            return torch.cat([*states.values(), model.prior_parameters(states)], dim=-1)

    return {
        Columns.OBS: observations(2 * seed + 1),
        Columns.NEXT_OBS: observations(2 * seed + 2),
        Columns.ACTIONS: normal(ROWS, LATENT_DIM),
        Columns.REWARDS: normal(ROWS),
        Columns.TERMINATEDS: torch.zeros(ROWS),
        DISCOUNTS: torch.full((ROWS,), 0.9),
        PHASE: torch.linspace(0.0, 1.0, ROWS),
    } | changes


class Built:
    """A learner, the skills that it acts through, and a batch for it."""

    def __init__(self, config: Any) -> None:
        self.skills = load_skills(config.skills_folder)
        config.validate()
        uses_prior = config.policy.uses_prior
        size = sum(feature.size for feature in PADS.values()) + uses_prior * self.skills.prior.param_dim
        spaces = {DEFAULT_MODULE_ID: tuple(Box(-math.inf, math.inf, (n,)) for n in (size, LATENT_DIM))}
        self.learner = config.build_learner(spaces=spaces)
        self.learner.build()
        self.module = self.learner.networks
        self.size = size

    def rows(self, seed: int = 0, **changes: Tensor) -> dict[str, Tensor]:
        batch = rows(self.skills, seed, **changes)
        return {name: value[:, : self.size] if name in _SEEN else value for name, value in batch.items()}

    def states(self, column: str = Columns.OBS) -> dict[str, Tensor]:
        return random_observations(PADS, ROWS, seed=1 if column == Columns.OBS else 2)

    def update(self, batch: dict[str, Tensor] | None = None) -> dict[str, float]:
        found = self.learner.step(self.rows() if batch is None else batch)
        return learner_metrics({name: value.detach() for name, value in found.items()})


_SEEN = (Columns.OBS, Columns.NEXT_OBS)


def state_of(module: Any) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in module.state_dict().items()}


def changed(before: dict[str, Tensor], module: Any) -> set[str]:
    """First parts of the names of the entries that are not what they were."""
    return {name.split(".")[0] for name, value in module.state_dict().items() if not torch.equal(value, before[name])}


def test_policy_starts_as_the_prior(make_config: MakeConfig, make_skills: MakeSkills) -> None:
    built = Built(make_config(skills=make_skills()))
    policy, prior = built.module.policy(built.rows()[Columns.OBS]), built.skills.prior_distribution(built.states())
    assert isinstance(prior, DiagonalGaussian)
    torch.testing.assert_close(policy.mean, prior.mean)
    torch.testing.assert_close(policy.log_std, prior.log_std)
    divergence = built.module.forward_train(built.rows())["divergence"]
    torch.testing.assert_close(divergence, torch.zeros(ROWS), atol=1e-5, rtol=0)


def test_policy_from_scratch_differs_from_the_prior(make_config: MakeConfig) -> None:
    built = Built(make_config(policy_init="scratch"))
    assert built.module.forward_train(built.rows())["divergence"].mean() > 0.01


@pytest.mark.parametrize(
    ("asked", "value", "expected"),
    [(4, "minimum", {0.0}), (4, "mean", {1.5}), (2, "minimum", {0.0, 1.0, 2.0}), (2, "mean", {1.5})],
)
def test_the_policy_follows_the_minimum_or_the_mean_of_the_critics(
    make_config: MakeConfig, asked: int, value: str, expected: set[float]
) -> None:
    """Critic i says i, whatever it is asked; the target takes the minimum in any case."""
    built = Built(make_config(critics=4, critics_in_minimum=asked, policy_value=value))
    with torch.no_grad():
        for critics in (built.module.critics, built.module.target_critics):
            for parameter in critics.parameters():
                parameter.zero_()
            critics.linear[-1][:] = torch.arange(4.0)[:, None, None]
    torch.manual_seed(0)
    found = [built.module.forward_train(built.rows()) for _ in range(20)]
    assert set(torch.cat([one["policy_value"] for one in found]).tolist()) == expected
    minima = {0.0} if asked == 4 else {0.0, 1.0, 2.0}
    assert set(torch.cat([one["next_value"] for one in found]).tolist()) == minima


@pytest.mark.parametrize(
    ("prior", "regulariser", "policy_init"),
    [
        ("gaussian", "prior", "prior"),
        ("gaussian", "prior", "scratch"),
        ("mixture", "prior", "prior"),
        ("mixture", "prior", "scratch"),
        ("flow", "prior", "prior"),
        ("gaussian", "uniform", "prior"),
        ("gaussian", "uniform", "scratch"),
    ],
)
def test_update_changes_everything_but_the_prior_and_the_normalisation(
    make_config: MakeConfig, make_skills: MakeSkills, prior: str, regulariser: str, policy_init: str
) -> None:
    skills = make_skills(prior=prior)
    built = Built(make_config(skills=skills, regulariser=regulariser, policy_init=policy_init))
    module = built.module
    before = state_of(module)
    metrics = [built.update() for _ in range(2)][-1]
    learned = {"policy", "critics", "target_critics", "log_alpha"}
    warmed_up = {"acts_from_prior"} if (regulariser, policy_init) == ("prior", "scratch") else set()
    assert changed(before, module) == learned | warmed_up
    normalisation = [name for name in before if name.startswith("policy.encoder.")]
    assert normalisation
    assert all(torch.equal(module.state_dict()[name], before[name]) for name in normalisation)
    assert (module.prior is not None) == (regulariser == "prior")
    computed = [metric.name for metric in training_metrics("train") if metric.of is not None]
    assert all(math.isfinite(metrics[name]) for name in computed)


def test_divergence_towards_uniform_follows_the_squashed_entropy(make_config: MakeConfig) -> None:
    built = Built(make_config(regulariser="uniform"))
    module, states = built.module, built.rows()
    torch.manual_seed(3)
    found = module.forward_train(states)["divergence"]
    torch.manual_seed(3)
    module.policy(states[Columns.NEXT_OBS]).sample()
    policy = module.policy(states[Columns.OBS])
    torch.testing.assert_close(found, losses.divergence_to_uniform(policy, policy.sample()), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("prior", ["mixture", "flow"])
def test_divergence_from_another_prior_is_taken_at_the_same_state(
    make_config: MakeConfig, make_skills: MakeSkills, prior: str
) -> None:
    built = Built(make_config(skills=make_skills(prior=prior), policy_init="scratch"))
    module, batch = built.module, built.rows()
    torch.manual_seed(3)
    found = module.forward_train(batch)
    torch.manual_seed(3)
    for name, column in (("next_divergence", Columns.NEXT_OBS), ("divergence", Columns.OBS)):
        policy = module.policy(batch[column])
        latent = policy.sample()
        expected = policy.log_prob(latent) - built.skills.prior_distribution(built.states(column)).log_prob(latent)
        torch.testing.assert_close(found[name], expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("regulariser", ["prior", "uniform"])
def test_the_divergence_before_the_first_update_is_that_of_the_update_and_draws_nothing(
    make_config: MakeConfig, regulariser: str
) -> None:
    built = Built(make_config(policy_init="scratch", regulariser=regulariser))
    torch.manual_seed(5)
    before = torch.get_rng_state()
    found = built.module.mean_divergence(built.rows()[Columns.OBS])
    assert torch.equal(torch.get_rng_state(), before)
    expected = built.module.forward_train(built.rows())["divergence"].mean().detach()
    # Only the divergence from a uniform distribution is an estimate, from another sample.
    assert found == pytest.approx(float(expected), rel=1e-4 if regulariser == "prior" else 0.5)


def test_policy_loss_reaches_the_policy_and_not_the_critics(make_config: MakeConfig) -> None:
    built = Built(make_config())
    module, forward = built.module, built.module.forward_train(built.rows())
    losses.policy_loss(forward["divergence"], forward["policy_value"], 0.5).backward()
    assert all(parameter.grad is None for parameter in module.critics.parameters())
    assert all(parameter.grad.any() for parameter in module.policy.parameters())


def test_critic_loss_reaches_the_critics_and_not_the_policy(make_config: MakeConfig) -> None:
    built = Built(make_config())
    module, forward = built.module, built.module.forward_train(built.rows())
    losses.critic_loss(forward["values"], forward["next_value"]).backward()
    assert all(parameter.grad.any() for parameter in module.critics.parameters())
    assert all(parameter.grad is None for parameter in module.policy.parameters())
    assert all(parameter.grad is None for parameter in module.target_critics.parameters())


@pytest.mark.parametrize("divergence_in_target", [True, False])
def test_logged_critic_loss_is_that_of_the_target_as_configured(
    make_config: MakeConfig, divergence_in_target: bool
) -> None:
    config = make_config(
        policy_init="scratch",
        initial_alpha=0.7,
        divergence_in_target=divergence_in_target,
    )
    built = Built(config)
    batch = built.rows(**{Columns.TERMINATEDS: (torch.arange(ROWS) % 2).float()})
    torch.manual_seed(4)
    with torch.no_grad():
        forward = built.module.forward_train(batch)
    penalty = 0.7 * forward["next_divergence"] if divergence_in_target else 0.0
    later = 0.9 * (1 - batch[Columns.TERMINATEDS]) * (forward["next_value"] - penalty)
    target = batch[Columns.REWARDS] + later
    expected = sum(0.5 * (value - target).square().mean() for value in forward["values"])
    torch.manual_seed(4)
    assert built.update(batch)["critic_loss"] == pytest.approx(float(expected), rel=1e-4)


def test_target_critics_follow_by_polyak_averaging(make_config: MakeConfig) -> None:
    built = Built(make_config(polyak=0.25, critic_lr=0.01))
    module, before = built.module, state_of(built.module.target_critics)
    built.update()
    main = module.critics.state_dict()
    for name, value in module.target_critics.state_dict().items():
        torch.testing.assert_close(value, 0.25 * main[name] + 0.75 * before[name])
        assert not torch.equal(main[name], before[name])


def test_alpha_falls_while_the_policy_is_at_the_prior_but_not_below_its_floor(make_config: MakeConfig) -> None:
    falling = Built(make_config(initial_alpha=0.5, alpha_lr=0.1))
    falling.update()
    assert falling.module.log_alpha.exp().item() < 0.48
    held = Built(make_config(initial_alpha=0.5, alpha_lr=0.1, alpha_min=0.49))
    held.update()
    assert held.module.log_alpha.exp().item() == pytest.approx(0.49)


def test_a_fixed_alpha_stays_where_it_is_whatever_the_divergence(make_config: MakeConfig) -> None:
    learner = Built(make_config(policy_init="scratch", initial_alpha=0.5, alpha_lr=0.1, fixed_alpha=0.2))
    metrics = [learner.update() for _ in range(3)][-1]
    assert metrics["alpha"] == pytest.approx(0.2)
    assert learner.module.log_alpha.exp().item() == pytest.approx(0.2)


def test_a_restored_state_keeps_the_learning_rates_and_the_fixed_alpha_of_the_config(make_config: MakeConfig) -> None:
    other = Built(make_config(actor_lr=1e-3, critic_lr=1e-3, alpha_lr=0.1))
    other.update()
    learner = Built(make_config(actor_lr=2e-4, critic_lr=3e-4, fixed_alpha=0.2))
    learner.learner.set_state(other.learner.get_state())
    rates = {
        name: learner.learner.get_optimizer(optimizer_name=name).param_groups[0]["lr"] for name in ("policy", "critic")
    }
    assert rates == {"policy": 2e-4, "critic": 3e-4}
    assert learner.module.log_alpha.exp().item() == pytest.approx(0.2)


def test_alpha_rises_while_the_divergence_exceeds_its_target(make_config: MakeConfig) -> None:
    learner = Built(make_config(policy_init="scratch", initial_alpha=0.5, alpha_lr=0.1, target_divergence=1e-4))
    learner.update()
    assert learner.module.log_alpha.exp().item() > 0.52


def test_divergence_is_logged_by_phase_of_the_episode(make_config: MakeConfig) -> None:
    learner = Built(make_config(policy_init="scratch"))
    phase = torch.tensor([0.1, 0.9]).repeat(ROWS // 2)
    module = learner.module
    divergence = module.forward_train(learner.rows())["divergence"].detach()
    metrics = learner.update(learner.rows(**{PHASE: phase}))
    assert metrics["divergence_phase_0"] == pytest.approx(float(divergence[::2].mean()), rel=1e-4)
    assert metrics["divergence_phase_2"] == pytest.approx(float(divergence[1::2].mean()), rel=1e-4)
    assert "divergence_phase_1" not in metrics
    assert metrics["divergence"] == pytest.approx(float(divergence.mean()), rel=1e-4)


def test_networks_that_stop_being_finite_stop_the_training(make_config: MakeConfig) -> None:
    built = Built(make_config())
    learner = built.learner
    learner.replay.add(built.rows() | {Columns.REWARDS: torch.full((ROWS,), math.nan)})
    with pytest.raises(SpirlError, match="diverged"):
        learner.learn(1, 1.0)


def test_env_runners_get_the_policy_alone(make_config: MakeConfig) -> None:
    learner = Built(make_config())
    state = learner.learner.get_state(components="rl_module", inference_only=True)["rl_module"][DEFAULT_MODULE_ID]
    assert {name.split(".")[0] for name in state} == {"policy"}


def test_the_published_policy_may_be_an_average(make_learner: Callable[..., Any]) -> None:
    learner = make_learner(policy_polyak=0.25)
    module = learner.networks
    start = [value.clone() for value in module.policy.parameters()]
    assert all(torch.equal(one, other) for one, other in zip(start, module.average.parameters(), strict=True))
    learner.learn(1, 1.0)
    now = [value.clone() for value in module.policy.parameters()]
    expected = [one.lerp(other, 0.25) for one, other in zip(start, now, strict=True)]
    learner.learn(1, 1.0)
    expected = [one.lerp(other, 0.25) for one, other in zip(expected, module.policy.parameters(), strict=True)]
    for one, other in zip(expected, module.average.parameters(), strict=True):
        torch.testing.assert_close(one, other)
    assert any(not torch.equal(one, other) for one, other in zip(expected, now, strict=True))
    assert {"average"} <= {name.split(".")[0] for name in module.state_dict()}
    assert not any(name.startswith("average") for name in module.get_state(inference_only=True))
    assert make_learner().networks.average is None
