"""Play data of the kitchen: every expert solves its subtask, and episodes are what their seed and metadata say."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
from opened import expert_episodes

from spirl_ray.envs.kitchen import experts as kitchen_experts
from spirl_ray.envs.kitchen.arm import OPEN, Actions, Arm, Matrix
from spirl_ray.envs.kitchen.env import GOALS, SPEC, KitchenEnv, completed_subtasks, expert_tries, joint_positions
from spirl_ray.envs.kitchen.experts import EXPERTS, HELD_OUT, generate
from spirl_ray.episodes.episode import Episode
from spirl_ray.episodes.validation import check_episode
from spirl_ray.errors import SpirlError

QUICK = "light switch"  # the shortest subtask from the start


def made(count: int, seed: int, **options: Any) -> list[Episode]:
    episodes = list(generate(range(count), seed, **options))
    assert all(episode is not None for episode in episodes)
    return [episode for episode in episodes if episode is not None]


def replace_expert(monkeypatch: pytest.MonkeyPatch, task: str, steps: int, failures: int | None = None) -> list[str]:
    """An expert that idles, always or the first ``failures`` times; the list grows with every call."""
    calls: list[str] = []
    own = EXPERTS[task]

    def moves(arm: Arm, hand: Matrix) -> Actions:
        calls.append(task)
        idle = failures is None or len(calls) <= failures
        yield from arm.hold(steps, hand, OPEN) if idle else own.moves(arm, hand)

    monkeypatch.setitem(EXPERTS, task, dataclasses.replace(own, moves=moves))
    return calls


# --- the experts ---


@pytest.mark.parametrize("task", GOALS)
def test_an_expert_solves_its_subtask_alone_and_nothing_else(task: str) -> None:
    """At most one failure in six: measured, fewer than 1 of 50 fail."""
    episodes = made(6, seed=11, tasks=[task], keep_failures=True)
    assert sum(episode.metadata["completed"] == [task] for episode in episodes) >= 5
    assert max(episode.length for episode in episodes) < 160


def test_two_demonstrators_do_not_move_alike() -> None:
    first, second = made(2, seed=4, tasks=[QUICK], action_noise=0.0)
    length = min(first.length, second.length)
    assert np.abs(first.observations["robot"][length, :7] - second.observations["robot"][length, :7]).max() > 0.05


# --- episodes ---


def test_an_episode_depends_on_seed_and_index_alone() -> None:
    _, _, among = made(3, seed=5, tasks=[QUICK])
    alone = next(generate([2], 5, tasks=[QUICK]))
    other = next(generate([2], 6, tasks=[QUICK]))
    assert alone is not None
    assert other is not None
    np.testing.assert_array_equal(joint_positions(among.observations), joint_positions(alone.observations))
    np.testing.assert_array_equal(among.actions, alone.actions)
    assert (among.id, among.metadata) == (alone.id, alone.metadata)
    assert (other.observations["robot"][0] != alone.observations["robot"][0]).any()
    assert other.id != alone.id


@pytest.mark.parametrize("action_noise", [0.0, 0.05])
def test_recorded_actions_replayed_with_the_same_noise_give_the_same_observations(action_noise: float) -> None:
    (episode,) = made(1, seed=2, tasks=[QUICK, "bottom burner"], action_noise=action_noise)
    env = KitchenEnv(tasks=tuple(GOALS))
    observation, _ = env.reset(seed=episode.metadata["environment_seed"])
    positions, rewards = [joint_positions(observation)], []
    for action in episode.actions:
        observation, reward, _, _, info = env.step(action)
        positions.append(joint_positions(observation))
        rewards.append(reward)
    np.testing.assert_array_equal(np.array(positions), joint_positions(episode.observations))
    np.testing.assert_array_equal(np.array(rewards, np.float32), episode.rewards)
    assert list(info["completed"]) == episode.metadata["completed"] == [QUICK, "bottom burner"]


def test_episodes_are_valid_data_and_tell_what_was_asked_and_done() -> None:
    for episode in made(2, seed=3, tasks=[QUICK]):
        assert check_episode(episode, SPEC.features, SPEC.action_dim) == []
        assert episode.metadata["tasks"] == [QUICK]
        assert episode.metadata["completed"] == [QUICK] == completed_subtasks(episode.observations)
        assert episode.metadata["solved"] is True
        assert episode.rewards.sum() == 1.0
        assert (episode.terminated, episode.truncated) == (False, True)


def test_action_noise_is_part_of_the_recorded_actions() -> None:
    rough = [
        np.abs(np.diff(made(1, seed=1, tasks=[QUICK], action_noise=noise)[0].actions[:, :7], axis=0)).mean()
        for noise in (0.0, 0.2)
    ]
    assert rough[1] > rough[0] + 0.1


def test_the_environments_source_generates_the_same_data() -> None:
    (ours,) = expert_episodes("spirl/Kitchen-v0", 1, seed=5, tasks=[QUICK])
    same = made(1, seed=5, tasks=[QUICK])[0]
    np.testing.assert_array_equal(ours.observations["robot"], same.observations["robot"])


# --- chains that fail ---


def test_tries_count_failed_attempts_and_no_subtask_after_the_failed_one() -> None:
    solved = {"completed": ["a", "c"], "tasks": ["c", "a"], "failed_attempts": [["c"], []]}
    assert list(expert_tries(solved)) == [("c", True), ("a", True), ("c", True), ("a", False), ("c", False)]
    kept = {"completed": ["a", "c"], "tasks": ["a", "b", "c"], "failed_attempts": []}
    assert list(expert_tries(kept)) == [("a", True), ("b", False)]
    texts = {"completed": ["kettle"], "tasks": ["move the kettle"]}  # of LeRobot
    assert list(expert_tries(texts)) == []


def test_a_subtask_that_fails_is_tried_once_more_in_the_same_episode(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = replace_expert(monkeypatch, QUICK, steps=2, failures=1)
    (episode,) = made(1, seed=0, tasks=[QUICK], keep_failures=True)
    assert episode.metadata["solved"]
    assert len(calls) == 2


def test_a_chain_that_fails_is_attempted_again_with_another_seed(monkeypatch: pytest.MonkeyPatch) -> None:
    (first,) = made(1, seed=0, tasks=[QUICK])
    replace_expert(monkeypatch, QUICK, steps=2, failures=kitchen_experts.TRIES)
    (second,) = made(1, seed=0, tasks=[QUICK])
    assert second.metadata["solved"]
    assert second.metadata["environment_seed"] != first.metadata["environment_seed"]
    assert first.metadata["failed_attempts"] == []
    assert second.metadata["failed_attempts"] == [[]]


def test_a_chain_that_fails_in_every_attempt_is_left_out_unless_failures_are_kept(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    replace_expert(monkeypatch, QUICK, steps=2)
    assert list(generate([0], 0, tasks=[QUICK, "kettle"])) == [None]
    (kept,) = made(1, seed=0, tasks=[QUICK, "kettle"], keep_failures=True)
    assert kept.metadata["solved"] is False
    assert kept.metadata["completed"] == []


def test_an_episode_ends_at_the_time_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    replace_expert(monkeypatch, QUICK, steps=1000)
    (episode,) = made(1, seed=0, tasks=[QUICK], keep_failures=True)
    assert episode.length == 280 == SPEC.max_episode_steps
    assert episode.metadata["solved"] is False


# --- the play set ---


def test_drawn_chains_hold_every_subtask_in_any_place_but_never_the_held_out_four() -> None:
    chains = [kitchen_experts._draw_chain(np.random.default_rng(seed)) for seed in range(2000)]
    assert all(len(set(chain)) == 4 for chain in chains)
    assert not any(set(chain) >= HELD_OUT for chain in chains)
    for place in range(4):
        assert {chain[place] for chain in chains} == set(GOALS)
    # All other combinations of four of seven, in nearly all of their 24 orders.
    assert len({frozenset(chain) for chain in chains}) == 34
    assert len(set(chains)) > 0.85 * 34 * 24


def test_the_held_out_four_are_the_papers_target() -> None:
    assert set(HELD_OUT) == {"microwave", "kettle", "bottom burner", "light switch"}


def test_a_play_episode_that_happens_to_complete_the_held_out_ones_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kitchen_experts, "_draw_chain", lambda rng: (QUICK,))
    assert made(1, seed=0)[0].metadata["completed"] == [QUICK]
    monkeypatch.setattr(kitchen_experts, "HELD_OUT", frozenset({QUICK}))
    assert list(generate([0], 0)) == [None]
    assert list(generate([0], 0, keep_failures=True)) == [None]
    assert made(1, seed=0, tasks=[QUICK])[0].metadata["solved"]  # asked for by name


@pytest.mark.slow
def test_play_episodes_solve_their_chains_in_time_and_never_hold_the_held_out_four() -> None:
    """Measured: 19 of 20 chains are solved in their first attempt."""
    episodes = made(20, seed=21, keep_failures=True)
    assert sum(episode.metadata["solved"] for episode in episodes) >= 16
    for episode in episodes:
        assert not set(episode.metadata["completed"]) >= HELD_OUT
        assert completed_subtasks(episode.observations) == episode.metadata["completed"]
        assert episode.length <= 280
        assert check_episode(episode, SPEC.features, SPEC.action_dim) == []
    assert len({tuple(episode.metadata["tasks"]) for episode in episodes}) > 15


@pytest.mark.slow
def test_the_target_chain_is_solved_in_the_order_asked() -> None:
    chain = ["microwave", "kettle", "bottom burner", "light switch"]
    episodes = made(10, seed=22, tasks=chain, keep_failures=True)
    assert sum(episode.metadata["completed"] == chain for episode in episodes) >= 8


# --- bad input ---


def test_options_that_make_no_sense_are_refused_at_once() -> None:
    with pytest.raises(SpirlError, match=r"unknown kitchen subtask 'toaster'; known subtasks: microwave"):
        generate([0], 0, tasks=["kettle", "toaster"])
    with pytest.raises(SpirlError, match="different subtasks"):
        generate([0], 0, tasks=["kettle", "kettle"])
    with pytest.raises(SpirlError, match="different subtasks"):
        generate([0], 0, tasks=[])
    for noise in (-0.1, float("nan")):
        with pytest.raises(SpirlError, match="action_noise"):
            generate([0], 0, action_noise=noise)
