"""Demonstrations of block stacking: they succeed, depend on seed and index alone, and show what they say."""

from __future__ import annotations

import numpy as np
import pytest

from spirl_ray.envs.blocks import expert as blocks_expert
from spirl_ray.envs.blocks.env import DATA_BLOCKS, DATA_STEPS, SPEC
from spirl_ray.envs.blocks.world import BLOCK_HALF, BLOCK_SIDE, REACH, BlockWorld
from spirl_ray.episodes.episode import Episode
from spirl_ray.episodes.validation import check_episode
from spirl_ray.errors import SpirlError

ATTEMPTS = 8


@pytest.fixture(scope="module")
def attempts() -> list[Episode | None]:
    try:
        return list(blocks_expert.generate(range(ATTEMPTS), 0))
    except SpirlError as error:
        pytest.skip(str(error))


def test_most_attempts_succeed(attempts: list[Episode | None]) -> None:
    assert sum(episode is not None for episode in attempts) >= 0.8 * ATTEMPTS


def test_episodes_are_valid_and_short_enough(attempts: list[Episode | None]) -> None:
    for episode in filter(None, attempts):
        assert check_episode(episode, SPEC.features, SPEC.action_dim) == []
        assert episode.length <= DATA_STEPS


def test_two_blocks_more_are_on_the_tower_at_the_end(attempts: list[Episode | None]) -> None:
    for episode in filter(None, attempts):
        tower, done = episode.metadata["tower"], episode.metadata["done"]
        first, last = (episode.observations["blocks"][row, tower] for row in (0, -1))
        height = BLOCK_HALF + BLOCK_SIDE * np.arange(len(tower))
        np.testing.assert_allclose(first[: done + 1, 2], height[: done + 1], atol=0.02)
        assert first[-1, 2] < BLOCK_SIDE
        np.testing.assert_allclose(last[:, 2], height, atol=0.01)
        assert np.ptp(last[:, 1]) < 2 * BLOCK_HALF
        assert len(tower) == done + 3
        assert episode.metadata["completed"] == [f"height {done + 2}", f"height {done + 3}"]


def test_nothing_is_recorded_after_the_last_block_is_let_go(attempts: list[Episode | None]) -> None:
    for episode in filter(None, attempts):
        hand = episode.observations["hand"][-1]
        block = episode.observations["blocks"][-1, episode.metadata["tower"][-1]]
        assert abs(hand[1] - block[1]) < 2 * BLOCK_HALF
        assert hand[2] - block[2] < blocks_expert.TIP_BELOW_HAND + BLOCK_HALF
        assert np.isin(episode.actions[-2:, 2], blocks_expert.OPEN).all()


def test_the_hand_rises_before_a_tower_once_the_camera_sees_it() -> None:
    world = BlockWorld(4)
    tower, start = 0.8, -0.8
    world.arrange(
        [(tower, BLOCK_HALF + BLOCK_SIDE * level) for level in range(3)] + [(start, BLOCK_HALF)], (start, 0.4)
    )
    path = []
    for move in blocks_expert._Builder(world, np.random.default_rng(0), 0.0).stack(3, 2):
        world.advance(np.array(move))
        path.append((tower - world.hand[1], world.hand[2]))
    distance, height = np.array(path).T
    seen = blocks_expert.SIDEWAYS + blocks_expert.AHEAD
    carrying = np.arange(len(path)) > np.flatnonzero(distance > 1.5).max()
    passing = 3 * BLOCK_SIDE + blocks_expert.TIP_BELOW_HAND + BLOCK_HALF
    assert height[carrying & (distance > seen + 0.1)].max() < passing - BLOCK_SIDE
    assert height[carrying & (distance < 2 * BLOCK_HALF)].max() > passing
    assert world.touches().levels == (1, 2, 3, 4)


def test_demonstrations_begin_anywhere_and_with_a_block_in_the_hand_or_without() -> None:
    world, rng = BlockWorld(DATA_BLOCKS), np.random.default_rng(0)
    heights, openings, held = [], [], []
    for _ in range(40):
        order, done = blocks_expert._begin(world, rng)
        heights.append(world.hand[2])
        openings.append(world.observe()["gripper"][5])
        grasped = world.touches().grasped
        held.append(grasped[order[done + 1]])
        assert sum(grasped) <= 1
        assert not any(grasped[block] for block in order[: done + 1])
    lowest, highest = blocks_expert.HAND_STARTS
    assert min(heights) < lowest
    assert max(heights) > highest
    assert 0 < sum(held) < len(held)
    assert min(np.array(openings)[~np.array(held)]) < 0.1
    assert max(openings) > 0.9


def test_a_hand_astray_may_be_at_the_tables_end_wherever_the_blocks_are() -> None:
    """Agents that see no block there must have been shown to turn round."""
    rng = np.random.default_rng(0)
    sides = np.array([blocks_expert._astray(rng, [-0.3, 0.3])[0] for _ in range(200)])
    assert (sides.min(), sides.max()) == (-REACH, REACH)


def test_sideways_the_hand_goes_no_further_in_a_skill_than_the_camera_sees(attempts: list[Episode | None]) -> None:
    for episode in filter(None, attempts):
        side = episode.observations["hand"][:, 1]
        moved = np.abs(side[10:] - side[:-10]).max()
        assert moved < blocks_expert.SIDEWAYS + blocks_expert.AHEAD


def test_tasks_differ(attempts: list[Episode | None]) -> None:
    kept = list(filter(None, attempts))
    assert len({tuple(episode.metadata["tower"]) for episode in kept}) > 1
    assert len({episode.metadata["done"] for episode in kept}) > 1


def test_an_episode_depends_on_seed_and_index_alone(attempts: list[Episode | None]) -> None:
    index = next(i for i, episode in enumerate(attempts) if i > 0 and episode is not None)
    together, alone = attempts[index], next(blocks_expert.generate([index], 0))
    assert together is not None
    assert alone is not None
    np.testing.assert_array_equal(together.actions, alone.actions)
    assert set(together.observations) == {"hand", "gripper", "blocks", "camera"}
    for name, values in alone.observations.items():
        np.testing.assert_array_equal(together.observations[name], values)
    other = next(blocks_expert.generate([index], 1))
    assert other is None or (other.observations["blocks"][0] != alone.observations["blocks"][0]).any()


def test_an_expert_that_fails_has_no_episode(monkeypatch: pytest.MonkeyPatch, attempts: list[Episode | None]) -> None:
    monkeypatch.setattr(blocks_expert, "DATA_STEPS", 10)
    assert list(blocks_expert.generate(range(1), 0)) == [None]


@pytest.mark.parametrize(
    "options", [{"subgoal_noise": -0.1}, {"subgoal_noise": 0.5}, {"subgoal_noise": float("nan")}, {"action_noise": 2.0}]
)
def test_options_out_of_range_are_refused(options: dict[str, float]) -> None:
    with pytest.raises(SpirlError, match=next(iter(options))):
        next(blocks_expert.generate([0], 0, **options))
