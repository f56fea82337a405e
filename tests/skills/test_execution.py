"""Executing a skill step by step is what its decoder says."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from toy_skills import toy_model

from spirl_ray.skills.execution import SkillExecution, decision_discount
from spirl_ray.skills.model import SkillModel

LATENTS, HORIZON = 3, 5


def make_model(decoder: str, scale: float = 1.0) -> SkillModel:
    model = toy_model(decoder, prior_layers=1)
    with torch.no_grad():
        for parameter in model.codec.parameters():
            parameter.mul_(scale)
    return model.eval().requires_grad_(False)


def states_on_the_way(count: int = HORIZON) -> list[dict[str, np.ndarray]]:
    rows = np.random.default_rng(0).normal(size=(count, 4)).astype(np.float32)
    return [{"state": row, "unseen": np.zeros(3, np.float32)} for row in rows]


def test_an_open_loop_skill_is_its_plan_executed_one_by_one_whatever_the_states() -> None:
    model = make_model("open_loop")
    execution, latent = SkillExecution(model), np.array([0.3, -1.0, 2.0], np.float32)
    plan = model.decode(None, torch.from_numpy(latent).unsqueeze(0))[0].numpy()
    assert np.abs(plan).max() < 1.0
    execution.begin(latent)
    executed = np.stack([execution.action(state) for state in states_on_the_way()])
    np.testing.assert_array_equal(executed, plan)


def test_the_open_loop_decoder_runs_once_a_skill() -> None:
    model = make_model("open_loop")
    calls: list[int] = []
    model.codec.decoder.register_forward_hook(lambda *_: calls.append(1))
    execution = SkillExecution(model)
    execution.begin(np.zeros(LATENTS, np.float32))
    for state in states_on_the_way():
        execution.action(state)
    assert len(calls) == 1


def test_flow_skills_are_planned_from_the_observation_at_their_start() -> None:
    model = make_model("flow")
    execution, states = SkillExecution(model), states_on_the_way()
    latent = np.linspace(-0.3, 0.3, model.spec.latent_dim, dtype=np.float32)
    execution.begin(latent)
    executed = np.stack([execution.action(state) for state in states])
    start = {"state": torch.from_numpy(states[0]["state"]).reshape(1, 1, -1)}
    planned = model.decode(start, torch.from_numpy(latent).unsqueeze(0))[0].numpy()
    np.testing.assert_allclose(executed, planned.clip(-1.0, 1.0), atol=1e-6)
    execution.begin(latent)
    assert not np.allclose(execution.action(states[1]), executed[0], atol=1e-4)


def test_a_closed_loop_skill_decodes_the_current_state_at_every_step() -> None:
    model = make_model("closed_loop")
    execution, latent = SkillExecution(model), np.array([0.3, -1.0, 2.0], np.float32)
    execution.begin(latent)
    states = states_on_the_way()
    executed = np.stack([execution.action(state) for state in states])
    rows = torch.from_numpy(np.stack([state["state"] for state in states])).unsqueeze(0)
    together = model.decode({"state": rows}, torch.from_numpy(latent).unsqueeze(0))[0].numpy()
    np.testing.assert_allclose(executed, together, atol=1e-6)
    assert np.ptp(together, axis=0).min() > 1e-3


@pytest.mark.parametrize("decoder", ["open_loop", "closed_loop", "plan", "flow"])
def test_a_skill_is_finished_after_its_horizon_and_the_next_one_starts_anew(decoder: str) -> None:
    execution, states = SkillExecution(make_model(decoder)), states_on_the_way()
    size = execution.model.spec.latent_dim
    first, second = np.zeros(size, np.float32), np.ones(size, np.float32)
    execution.begin(first)
    seen = []
    for state in states:
        assert not execution.finished
        seen.append(execution.action(state))
    assert execution.finished
    execution.begin(second)
    assert not execution.finished
    assert not np.allclose(execution.action(states[0]), seen[0])
    execution.begin(first)  # cut short, as by the end of an episode
    np.testing.assert_array_equal(execution.action(states[0]), seen[0])


def test_actions_are_clipped_float32() -> None:
    model = make_model("closed_loop", scale=5.0)
    execution = SkillExecution(model)
    execution.begin(np.full(LATENTS, 50.0, np.float32))
    state = states_on_the_way()[0]
    row = {"state": torch.from_numpy(state["state"]).reshape(1, 1, -1)}
    raw = model.decode(row, torch.full((1, LATENTS), 50.0))[0, 0].numpy()
    assert np.abs(raw).max() > 1.0
    action = execution.action(state)
    assert action.dtype == np.float32
    np.testing.assert_array_equal(action, raw.clip(-1.0, 1.0))


def test_a_latent_limit_squashes_what_the_policy_chose() -> None:
    model = make_model("open_loop")
    limited, free = SkillExecution(model, latent_limit=2.0), SkillExecution(model)
    chosen, state = np.array([0.5, -3.0, 10.0], np.float32), states_on_the_way()[0]
    limited.begin(chosen)
    free.begin(2.0 * np.tanh(chosen))
    np.testing.assert_allclose(limited.action(state), free.action(state), atol=1e-6)


def test_a_flat_policy_executes_the_tanh_of_what_it_chose() -> None:
    execution = SkillExecution(make_model("identity"))
    execution.begin(np.array([0.5, -3.0], np.float32))
    np.testing.assert_allclose(execution.action(states_on_the_way()[0]), np.tanh([0.5, -3.0]), rtol=1e-6)
    assert execution.finished


def test_several_agents_act_at_the_same_time_as_each_would_alone() -> None:
    model, states = make_model("closed_loop"), states_on_the_way(3)
    latents = np.random.default_rng(1).normal(size=(3, LATENTS)).astype(np.float32)
    together, alone = SkillExecution(model), SkillExecution(model)
    together.begin(latents)
    actions = together.action({"state": np.stack([state["state"] for state in states])})
    assert actions.shape == (3, 2)
    for latent, state, action in zip(latents, states, actions, strict=True):
        alone.begin(latent)
        np.testing.assert_allclose(alone.action(state), action, atol=1e-6)


def test_discount_is_for_the_decision_or_for_each_primitive_step() -> None:
    assert decision_discount(0.99, 4, per_decision=True) == 0.99
    assert decision_discount(0.99, 4, per_decision=False) == pytest.approx(0.99 * 0.99 * 0.99 * 0.99)
