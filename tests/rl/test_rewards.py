"""The scale of rewards: where it comes from, when it is settled, what it is applied to."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from ray.rllib.core.columns import Columns
from stored import ACTION_DIM, FEATURES, make_episode, write_dataset

import spirl_ray.envs as envs
from spirl_ray.config import TrainSettings
from spirl_ray.rl.replay import DISCOUNTS, PHASE
from spirl_ray.rl.rewards import (
    RewardScale,
    RewardsSeen,
    discounted_returns,
    rewards_of_demonstrations,
    scale_for,
)

GAMMA, DECISIONS, HORIZON = 0.99, 20, 10


class Piece:
    """What `RewardScale` reads of a piece of an episode."""

    def __init__(self, name: str, length: int, done: bool) -> None:
        self.id_, self.length, self.is_done = name, length, done

    def __len__(self) -> int:
        return self.length


def observe(scale: RewardScale, rewards: list[float], *, name: str = "a", first: int = 0, done: bool = False) -> None:
    """Gives it a piece of an episode of `DECISIONS` decisions; ``first`` is the number of its first decision."""
    count = len(rewards)
    rows: dict[str, npt.NDArray[np.float32]] = {
        Columns.REWARDS: np.asarray(rewards, np.float32),
        DISCOUNTS: np.full(count, GAMMA, np.float32),
        PHASE: (np.arange(first, first + count) / DECISIONS).astype(np.float32),
    }
    scale.observe([Piece(name, count, done)], rows)


def end_warm_up(scale: RewardScale, recorded: RewardsSeen | None = None) -> None:
    scale.recorded, scale.warmed_up = recorded or RewardsSeen(), True
    scale._settle()


def automatic(**settings: Any) -> RewardScale:
    return RewardScale(TrainSettings(**settings), HORIZON)


@pytest.mark.parametrize(
    ("value", "scale"),
    [
        *((0.0, 1.0), (1.0, 5.0), (-1.0, 5.0), (2.0, 2.0), (4.0, 1.0), (5.0, 1.0), (5.1, 0.5), (182.0, 0.02)),
        *((500.0, 0.01), (1000.0, 0.005), (0.004, 1000.0), (2.5e-3, 2000.0)),
    ],
)
def test_the_scale_is_the_largest_round_one_that_brings_values_to_five(value: float, scale: float) -> None:
    assert scale_for(value) == scale


def test_returns_are_discounted_sums_to_the_end() -> None:
    np.testing.assert_allclose(discounted_returns([1.0, 2.0, 4.0], [0.5, 0.5, 0.9]), [3.0, 4.0, 4.0])


def test_minus_one_a_step_is_scaled_after_the_first_decisions() -> None:
    scale = automatic()
    never = 10.0 * (1.0 - GAMMA**DECISIONS) / (1.0 - GAMMA)
    observe(scale, [-10.0, -10.0])
    assert scale.expected_value == pytest.approx(never)
    assert scale.factor == 0.02
    end_warm_up(scale)
    assert not scale.settled
    observe(scale, [-10.0] * (DECISIONS - 2), first=2, done=True)
    assert scale.settled
    assert scale.seen.largest_return == pytest.approx(-never)
    assert (scale.factor, scale.seen.mean, scale.seen.largest) == (0.02, -10.0, -10.0)


def test_a_success_that_no_warm_up_sees_settles_the_scale_when_its_episode_ends() -> None:
    scale = automatic()
    observe(scale, [0.0] * DECISIONS, done=True)
    end_warm_up(scale)
    assert (scale.factor, scale.settled) == (1.0, False)
    observe(scale, [0.0, 0.0, 0.0], name="b")
    observe(scale, [0.0, 1.0], name="b", first=3, done=True)
    assert (scale.factor, scale.settled) == (5.0, True)
    observe(scale, [500.0], name="c", done=True)
    assert scale.factor == 5.0
    assert scale.expected_value == 500.0


def test_until_then_the_scale_follows_the_rewards_of_the_running_episode() -> None:
    scale = automatic()
    end_warm_up(scale)
    observe(scale, [10.0])
    assert (scale.factor, scale.settled) == (0.5, False)
    observe(scale, [10.0] * 9, first=1)
    assert (scale.factor, scale.settled) == (0.02, False)
    observe(scale, [10.0], first=10, done=True)
    assert (scale.factor, scale.settled) == (0.02, True)


def test_pieces_of_an_episode_count_as_the_whole() -> None:
    rewards = np.random.default_rng(0).normal(size=DECISIONS).tolist()
    whole, pieces = automatic(), automatic()
    observe(whole, rewards, done=True)
    for first, last in ((0, 7), (7, 8), (8, DECISIONS)):
        observe(pieces, rewards[first:last], first=first, done=last == DECISIONS)
    returns = discounted_returns(rewards, [GAMMA] * DECISIONS)
    assert whole.seen.largest_return == pytest.approx(returns[np.abs(returns).argmax()], rel=1e-5)
    assert pieces.seen.decisions == whole.seen.decisions == DECISIONS
    assert pieces.seen.rewarded == pieces.seen.episodes == 1
    assert pieces.seen.total == pytest.approx(whole.seen.total)


def test_a_discount_for_each_primitive_step_shortens_the_episode() -> None:
    scale = automatic(discount_per="primitive_step")
    scale.seen.decisions_in_episode = 1e6
    assert scale.discounted_decisions == pytest.approx(1.0 / (1.0 - GAMMA**HORIZON))
    endless = automatic(discount=1.0)
    endless.seen.decisions_in_episode = 30.0
    assert endless.discounted_decisions == 30.0


def test_a_number_fixes_the_scale_whatever_is_seen() -> None:
    scale = automatic(reward_scale=2)
    end_warm_up(scale)
    observe(scale, [100.0], done=True)
    assert (scale.factor, scale.settled, scale.expected_value) == (2.0, True, 100.0)
    scale.restore({**automatic().state(), "settled": 0.5})
    assert scale.factor == 2.0


def test_rewards_of_the_demonstrations_settle_the_scale(tmp_path: Path) -> None:
    episodes = [make_episode(0, length=15), make_episode(1, length=4)]
    for episode in episodes:
        episode.rewards[:] = 0.0
    episodes[0].rewards[[3, 12, 14]] = 1.0
    dataset = write_dataset(tmp_path / "d", [episodes], FEATURES, ACTION_DIM)
    scale = automatic()
    here = replace(envs.environment("spirl/PointPads-v0"), id="spirl/Test-v0", judge=None)
    found = scale.in_decisions(rewards_of_demonstrations(str(dataset), here, None))
    assert (found.decisions, found.episodes, found.rewarded, found.total) == (3, 2, 1, 3.0)
    assert found.largest_return == pytest.approx(1.0 + GAMMA * 2.0)
    end_warm_up(scale, found)
    assert (scale.factor, scale.settled) == (1.0, True)
    elsewhere, judge = replace(here, id="spirl/Other-v0"), envs.environment("spirl/PointPads-v0").judge
    for folder, environment in ((str(dataset), elsewhere), (str(dataset), replace(here, judge=judge)), (None, here)):
        assert not list(rewards_of_demonstrations(folder, environment, None))
    assert not list(rewards_of_demonstrations(str(dataset), here, None, replaced=True))
    scale.end_warm_up(0.5, rewards_of_demonstrations(str(dataset), here, None))
    assert (scale.recorded, scale.starting_divergence) == (found, 0.5)


def test_a_restored_scale_is_the_one_that_was_saved() -> None:
    scale = automatic()
    observe(scale, [0.1, -0.3], done=True)
    end_warm_up(scale)
    scale.starting_divergence = 0.7
    other = automatic()
    observe(other, [50.0])
    other.restore(scale.state())
    assert other.state() == scale.state()
    assert other.numbers() == scale.numbers()
    observe(other, [1.0], done=True)
    assert other.seen.decisions == 3
