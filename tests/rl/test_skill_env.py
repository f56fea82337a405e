from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium.spaces import Box, Dict
from gymnasium.utils.env_checker import check_env
from gymnasium.vector import SyncVectorEnv
from gymnasium.wrappers.vector import DictInfoToList
from toy_skills import METHODS

import spirl_ray.envs as envs
from spirl_ray.config import EnvironmentSettings, TrainSettings
from spirl_ray.errors import SpirlError
from spirl_ray.rl.methods import method_config
from spirl_ray.rl.policy_network import PolicySpec, policy_spec
from spirl_ray.rl.skill_env import SkillEnv, last_info
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
        self.count = 0
        numbers = {name: feature.shape for name, feature in envs.environment(POINT_PADS).features.items()}
        self.observation_space = Dict(
            {name: Box(-np.inf, np.inf, shape, np.float32) for name, shape in numbers.items()}
        )
        self.action_space = Box(-1.0, 1.0, (2,), np.float32)

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        self.count = 0
        return self._observe(), {"completed": ()}

    def step(self, action: Any) -> Any:
        self.count += 1
        ended = self.count == 6
        info = {"completed": ("done",) if ended else ()}
        return self._observe(), float(self.count), ended and not self.truncate, ended and self.truncate, info

    def _observe(self) -> dict[str, np.ndarray]:
        spaces = self.observation_space.spaces
        return {name: np.full(space.shape, self.count, np.float32) for name, space in spaces.items()}


def skill_env(folder: Path, limit: float | None = None, **settings: Any) -> SkillEnv:
    skills = load_skills(folder)
    method = method_config(METHODS[skills.spec.decoder], TrainSettings(), skills.spec)
    policy = policy_spec(skills, method, envs.environment(POINT_PADS).features)
    return SkillEnv(EnvironmentSettings(id=POINT_PADS, **settings), skills, policy, limit)


@pytest.mark.parametrize("truncate", [False, True])
def test_skill_sums_its_rewards_and_is_cut_by_the_end_of_the_episode(
    make_skills: MakeSkills, monkeypatch: pytest.MonkeyPatch, truncate: bool
) -> None:
    monkeypatch.setattr(envs, "make", lambda *_, **__: CountingEnv(truncate))
    env = skill_env(make_skills(), max_episode_steps=120)
    _, info = env.reset(seed=0)
    assert (info["primitive_steps"], info["phase"]) == (0, 0.0)

    state, reward, terminated, truncated, info = env.step(LATENT)
    assert (reward, terminated, truncated) == (1 + 2 + 3 + 4, False, False)
    assert info == {"primitive_steps": 4, "phase": 0.0}
    assert state[0] == 4

    state, reward, terminated, truncated, info = env.step(LATENT)
    assert (reward, terminated, truncated) == (5 + 6, not truncate, truncate)
    assert (info["primitive_steps"], last_info(info)) == (2, {"completed": ("done",)})
    assert info["phase"] == pytest.approx(4 / 120)
    assert state[0] == 6


class TellingEnv(CountingEnv):
    """Its infos differ between environments in their shapes and types, and it writes into the same array again."""

    def __init__(self, number: int) -> None:
        super().__init__(truncate=False)
        self.number, self.visited = number, np.zeros(number)

    def step(self, action: Any) -> Any:
        self.visited[:] = self.count
        observation, reward, terminated, truncated, _ = super().step(action)
        told = {
            "visited": self.visited,
            "energy": 0 if self.number == 1 else 0.7,
            "failure": None if self.number == 1 else 2.5,
            "task": {"names": ["a"] * self.number},
            "_hidden": self.number,
            "lock": threading.Lock(),
        }
        return observation, reward, terminated, truncated, told


def test_each_environment_of_an_env_runner_keeps_its_own_last_info(
    make_skills: MakeSkills, monkeypatch: pytest.MonkeyPatch
) -> None:
    numbers = iter((1, 3))
    monkeypatch.setattr(envs, "make", lambda *_, **__: TellingEnv(next(numbers)))
    folder = make_skills()
    vector = DictInfoToList(SyncVectorEnv([lambda: skill_env(folder)] * 2))  # as RLlib makes it
    vector.reset(seed=0)
    *_, first = vector.step(np.stack([LATENT, LATENT]))
    *_, last = vector.step(np.stack([LATENT, LATENT]))
    vector.step(np.stack([LATENT, LATENT]))  # the next episode
    vector.step(np.stack([LATENT, LATENT]))
    assert first == [{"primitive_steps": 4, "phase": 0.0}] * 2
    one, three = map(last_info, last)
    assert (one["visited"].tolist(), three["visited"].tolist()) == ([5.0], [5.0] * 3)
    assert (one["energy"], three["energy"], one["failure"], three["failure"]) == (0, 0.7, None, 2.5)
    assert (one["task"], three["task"], one["_hidden"]) == ({"names": ["a"]}, {"names": ["a"] * 3}, 1)
    assert "lock" not in one  # it cannot travel to the learner


@pytest.mark.parametrize("limit", [None, 2.0])
@pytest.mark.parametrize("decoder", ["closed_loop", "open_loop", "identity", "plan", "flow"])
def test_skill_is_its_primitive_actions_executed_one_by_one(
    make_skills: MakeSkills, decoder: str, limit: float | None
) -> None:
    folder = make_skills(decoder)
    env = skill_env(folder, limit)
    latent = np.resize(LATENT, env.action_space.shape)
    primitive, execution = envs.make(POINT_PADS), SkillExecution(load_skills(folder), limit)
    seen, _ = env.reset(seed=7)
    expected = primitive.reset(seed=7)[0]
    np.testing.assert_array_equal(seen, env.observer(expected))
    for _ in range(3):
        seen, *_, info = env.step(latent)
        execution.begin(latent)
        steps = 0
        while not execution.finished:
            expected = primitive.step(execution.action(expected))[0]
            steps += 1
        np.testing.assert_array_equal(seen, env.observer(expected))
        assert info["primitive_steps"] == steps == (1 if decoder == "identity" else HORIZON)


def test_phase_follows_the_time_limit_that_the_experiment_sets(make_skills: MakeSkills) -> None:
    env = skill_env(make_skills(), max_episode_steps=10)
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
    env = skill_env(make_skills(), 2.0)
    check_env(env, skip_render_check=True)
    assert env.action_space.shape == (LATENT_DIM,)


def test_skills_that_see_something_else_are_refused(make_skills: MakeSkills) -> None:
    skills = load_skills(make_skills(environment="spirl/Kitchen-v0"))
    policy = PolicySpec(features=envs.environment(POINT_PADS).features, head="gaussian", uses_prior=False)
    with pytest.raises(SpirlError, match=f"skills and {POINT_PADS} do not fit: .*'robot'"):
        SkillEnv(EnvironmentSettings(id=POINT_PADS), skills, policy)


def test_skills_of_images_act_in_a_target_with_more_objects(make_skills: MakeSkills) -> None:
    skills = load_skills(make_skills("closed_loop", environment="spirl/BlockStacking-v0"))
    two = EnvironmentSettings(id="spirl/BlockStacking-v0", kwargs={"n_blocks": 2})
    method = method_config("spirl_cl", TrainSettings(), skills.spec)
    policy = policy_spec(skills, method, envs.observed_features(envs.make(two), envs.environment(two)))
    env = SkillEnv(two, skills, policy)
    assert env.observation_space.shape == (3 + 6 + 2 * 3 + skills.prior.param_dim,)
    try:
        seen, _ = env.reset(seed=0)
    except SpirlError as error:
        pytest.skip(str(error))
    after, *_ = env.step(np.zeros(LATENT_DIM, np.float32))
    assert np.isfinite(after).all()
    assert not np.array_equal(seen, after)
    env.close()
    with pytest.raises(SpirlError, match="camera"):
        SkillEnv(two.model_copy(update={"kwargs": {"camera": False}}), skills, policy)
