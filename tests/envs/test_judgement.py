"""What an environment says of recorded steps is what it said when they were taken."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
from opened import expert_episodes
from stored import make_episode

import spirl_ray.envs as envs
from spirl_ray.config import EnvironmentSettings
from spirl_ray.config_environment import InterfaceSettings
from spirl_ray.envs.judgement import Judgement, judge_subtasks, judged, recorded_judgement
from spirl_ray.episodes.episode import Episode
from spirl_ray.episodes.features import stack_observations
from spirl_ray.errors import SpirlError


def complete(*rows: str) -> list[np.ndarray]:
    """Whether subtasks are complete, a string of 0 and 1 for each."""
    return [np.array([letter == "1" for letter in row]) for row in rows]


def rolled_out(env_id: str, arguments: Mapping[str, Any], actions: np.ndarray) -> tuple[Episode, Judgement]:
    """An episode in which these actions are taken until it ends, and what the environment said."""
    env = envs.make(EnvironmentSettings(id=env_id, kwargs=dict(arguments)))
    observation, _ = env.reset(seed=3)
    observations, rewards, ends = [observation], [], []
    for action in actions:
        observation, reward, terminated, _, _ = env.step(action)
        observations.append(observation)
        rewards.append(reward)
        ends.append(terminated)
        if terminated:
            break
    env.close()
    episode = Episode(
        "e", stack_observations(observations), actions[: len(rewards)], np.zeros(0, np.float32), False, True
    )
    return episode, Judgement(np.array(rewards, np.float32), np.array(ends))


@pytest.mark.parametrize("targets", [["north", "east", "south", "west"], ["south", "east"], ["west"]])
def test_point_pads_judge_recorded_lamps_as_their_own_steps(targets: list[str]) -> None:
    spec = envs.environment("spirl/PointPads-v0")
    assert spec.judge is not None
    solved = 0
    for episode in expert_episodes(spec.id, 6):
        actual, said = rolled_out(spec.id, {"tasks": targets}, episode.actions)
        found = judged(spec.judge, {"tasks": targets}, actual)
        np.testing.assert_array_equal(found.rewards, said.rewards)
        np.testing.assert_array_equal(found.terminated, said.terminated)
        solved += int(said.rewards.sum())
    assert solved


@pytest.mark.slow
@pytest.mark.parametrize("in_order", [False, True])
def test_the_kitchen_judges_recorded_positions_as_its_own_steps(in_order: bool) -> None:
    spec = envs.environment("spirl/Kitchen-v0")
    assert spec.judge is not None
    [demonstration] = expert_episodes(spec.id, 1)
    chain = demonstration.metadata["completed"]
    for tasks in (chain[:2], [chain[1], chain[0]]):
        arguments = {"tasks": tasks, "enforce_order": in_order}
        actual, said = rolled_out(spec.id, arguments, demonstration.actions)
        found = judged(spec.judge, arguments, actual)
        np.testing.assert_array_equal(found.rewards, said.rewards)
        np.testing.assert_array_equal(found.terminated, said.terminated)
        assert said.rewards.sum() >= 1


def test_a_subtask_counts_once_and_the_last_one_ends_the_task() -> None:
    found = judge_subtasks(complete("001101", "000010"))
    assert found.rewards.tolist() == [0, 1, 0, 1, 0]
    assert found.terminated.tolist() == [False, False, False, True, False]
    assert not judge_subtasks(complete("001101", "000000")).terminated.any()


def test_what_is_complete_at_the_start_counts_in_the_first_step_as_in_an_environment() -> None:
    assert judge_subtasks(complete("111", "001")).rewards.tolist() == [1, 1]
    assert judge_subtasks(complete("100", "001")).rewards.tolist() == [0, 1]


def test_in_order_a_subtask_waits_for_those_before_it() -> None:
    found = judge_subtasks(complete("000010", "011011"), in_order=True)
    assert found.rewards.tolist() == [0, 0, 0, 2, 0]
    assert found.terminated.tolist() == [False, False, False, True, False]
    assert judge_subtasks(complete("000000", "011011"), in_order=True).rewards.sum() == 0


def test_a_recording_judges_itself() -> None:
    episode = make_episode(0)
    found = recorded_judgement(episode)
    assert found.rewards is episode.rewards
    assert found.terminated.tolist() == [False, False, False, True]
    assert not recorded_judgement(make_episode(1)).terminated.any()


@pytest.mark.parametrize(
    ("judge", "said"),
    [
        (lambda arguments, episode: (np.zeros(3), np.zeros(4, bool)), "rewards"),
        (lambda arguments, episode: (np.full(4, np.nan), np.zeros(4, bool)), "rewards"),
        (lambda arguments, episode: (np.zeros(4), np.zeros(1, bool)), "terminated"),
        (lambda arguments, episode: episode.observations["nothing"], "nothing"),
    ],
)
def test_a_judge_that_is_wrong_is_told_the_episode(judge: Any, said: str) -> None:
    with pytest.raises(SpirlError) as raised:
        judged(judge, {}, make_episode(0))
    assert said in str(raised.value)
    assert "episode 0" in str(raised.value)


def no_reward(arguments: Mapping[str, Any], episode: Episode) -> Judgement:
    return Judgement(np.zeros(episode.length, np.float32), np.zeros(episode.length, np.bool_))


@pytest.mark.parametrize("env_id", ["Pendulum-v1", "spirl/Maze-v0"])
def test_a_function_of_the_users_judges_where_the_environment_does_not(env_id: str) -> None:
    def described(judge: str | None) -> envs.EnvironmentSpec:
        return envs.environment(EnvironmentSettings(id=env_id, interface=InterfaceSettings(judge=judge)))

    assert described(None).judge is None
    found = described(f"{__name__}:no_reward").judge
    assert found is not None
    assert found is no_reward
    with pytest.raises(SpirlError, match=r"interface\.judge"):
        described("toy:nothing")


def test_an_environment_that_judges_itself_is_not_judged_by_another() -> None:
    settings = EnvironmentSettings(id="spirl/PointPads-v0", interface=InterfaceSettings(judge=f"{__name__}:no_reward"))
    with pytest.raises(SpirlError, match=r"interface\.judge"):
        envs.environment(settings)
