from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium.spaces import Box
from gymnasium.utils.env_checker import check_env

import spirl_ray.envs as envs
from spirl_ray.errors import SpirlError
from spirl_ray.rl.skill_env import SkillEnv
from spirl_ray.skills.artifact import load_skills
from spirl_ray.skills.execution import SkillExecution

POINT_PADS = "spirl/PointPads-v0"
HORIZON, LATENT_DIM = 4, 3
LATENT = np.array([0.5, -1.0, 1.5], np.float32)
MakeSkills = Callable[..., Path]


class CountingEnv(gymnasium.Env[Any, Any]):
    """Its n-th step is worth n; the sixth is the last."""

    def __init__(self, truncate: bool) -> None:
        self.truncate = truncate
        self.observation_space = Box(-np.inf, np.inf, (20,), np.float32)
        self.action_space = Box(-1.0, 1.0, (2,), np.float32)

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        self.count = 0
        return np.zeros(20, np.float32), {"completed": ()}

    def step(self, action: Any) -> Any:
        self.count += 1
        ended = self.count == 6
        info = {"completed": ("done",) if ended else ()}
        state = np.full(20, self.count, np.float32)
        return state, float(self.count), ended and not self.truncate, ended and self.truncate, info


@pytest.mark.parametrize("truncate", [False, True])
def test_skill_sums_its_rewards_and_is_cut_by_the_end_of_the_episode(
    make_skills: MakeSkills, monkeypatch: pytest.MonkeyPatch, truncate: bool
) -> None:
    monkeypatch.setattr(envs, "make", lambda *_, **__: CountingEnv(truncate))
    for name, value in (("episode_limit", 120), ("observation_dim", 8), ("state_dim", 8)):
        monkeypatch.setattr(envs, name, lambda env, value=value: value)
    env = SkillEnv(POINT_PADS, {}, make_skills(), None)
    _, info = env.reset(seed=0)
    assert (info["primitive_steps"], info["phase"]) == (0, 0.0)

    state, reward, terminated, truncated, info = env.step(LATENT)
    assert (reward, terminated, truncated) == (1 + 2 + 3 + 4, False, False)
    assert (info["primitive_steps"], info["phase"], info["completed"]) == (4, 0.0, ())
    assert state[0] == 4

    state, reward, terminated, truncated, info = env.step(LATENT)
    assert (reward, terminated, truncated) == (5 + 6, not truncate, truncate)
    assert (info["primitive_steps"], info["completed"]) == (2, ("done",))
    assert info["phase"] == pytest.approx(4 / 120)
    assert state[0] == 6


@pytest.mark.parametrize("limit", [None, 2.0])
@pytest.mark.parametrize("decoder", ["closed_loop", "open_loop", "identity"])
def test_skill_is_its_primitive_actions_executed_one_by_one(
    make_skills: MakeSkills, decoder: str, limit: float | None
) -> None:
    folder = make_skills(decoder)
    env = SkillEnv(POINT_PADS, {}, folder, limit)
    latent = LATENT[: env.action_space.shape[0]]
    primitive, execution = envs.make(POINT_PADS), SkillExecution(load_skills(folder), limit)
    state, _ = env.reset(seed=7)
    expected = primitive.reset(seed=7)[0][: env.observation_dim]
    np.testing.assert_array_equal(state, expected)
    for _ in range(3):
        state, *_, info = env.step(latent)
        execution.begin(latent)
        steps = 0
        while not execution.finished:
            expected = primitive.step(execution.action(expected))[0][: env.observation_dim]
            steps += 1
        np.testing.assert_array_equal(state, expected)
        assert info["primitive_steps"] == steps == (1 if decoder == "identity" else HORIZON)


def test_phase_follows_the_time_limit_that_the_experiment_sets(make_skills: MakeSkills) -> None:
    env = SkillEnv(POINT_PADS, {"max_episode_steps": 10}, make_skills(), None)
    env.reset(seed=0)
    phases, steps, truncated = [], [], False
    while not truncated:
        *_, truncated, info = env.step(LATENT)
        phases.append(info["phase"])
        steps.append(info["primitive_steps"])
    assert steps == [4, 4, 2]
    assert phases == pytest.approx([0.0, 0.4, 0.8])


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_gymnasium_accepts_the_environment(make_skills: MakeSkills) -> None:
    env = SkillEnv(POINT_PADS, {}, make_skills(), 2.0)
    check_env(env, skip_render_check=True)
    assert env.action_space.shape == (LATENT_DIM,)


def test_skills_of_another_environment_are_refused(make_skills: MakeSkills) -> None:
    with pytest.raises(SpirlError, match="were trained for spirl/Kitchen-v0"):
        SkillEnv(POINT_PADS, {}, make_skills(environment="spirl/Kitchen-v0"), None)
