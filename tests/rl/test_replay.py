from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from ray.rllib.core.columns import Columns
from ray.rllib.env.single_agent_episode import SingleAgentEpisode
from scipy.stats import chisquare

from spirl_ray.rl.replay import DISCOUNTS, PHASE, DecisionReplay, decisions


def rows(first: int, count: int) -> dict[str, np.ndarray]:
    """Rows whose every entry tells their number."""
    number = np.arange(first, first + count, dtype=np.float32)
    wide = np.repeat(number[:, None], 2, axis=1)
    return {
        Columns.OBS: wide,
        Columns.NEXT_OBS: wide + 0.5,
        Columns.ACTIONS: -number[:, None],
        Columns.REWARDS: number,
        Columns.TERMINATEDS: number,
        DISCOUNTS: number,
        PHASE: number,
    }


def replay(capacity: int = 10, seed: int = 0) -> DecisionReplay:
    return DecisionReplay(capacity, observation_dim=2, latent_dim=1, seed=seed)


def kept(buffer: DecisionReplay) -> list[float]:
    return sorted(buffer.columns[Columns.REWARDS][: len(buffer)].tolist())


def test_full_buffer_overwrites_the_oldest_rows() -> None:
    buffer = replay()
    for first in range(0, 24, 4):
        buffer.add(rows(first, 4))
    assert len(buffer) == 10
    assert kept(buffer) == list(range(14, 24))
    np.testing.assert_array_equal(buffer.columns[Columns.NEXT_OBS][:, 0], buffer.columns[Columns.REWARDS] + 0.5)


def test_more_rows_than_the_capacity_keep_the_newest() -> None:
    buffer = replay()
    buffer.add(rows(0, 3))
    buffer.add(rows(3, 25))
    assert kept(buffer) == list(range(18, 28))


def test_buffer_grows_without_losing_rows() -> None:
    buffer = replay(capacity=20_000)
    small = len(buffer._rows)
    for first in range(0, 10_000, 1000):
        buffer.add(rows(first, 1000))
    assert small < 10_000 <= len(buffer._rows) <= 20_000
    assert kept(buffer) == list(range(10_000))


def test_rows_are_drawn_uniformly_and_whole() -> None:
    buffer = replay()
    buffer.add(rows(0, 13))
    drawn = {name: tensor.numpy() for name, tensor in buffer.sample(20_000).items()}
    counts = np.bincount(drawn[Columns.REWARDS].astype(int), minlength=13)
    assert counts[:3].sum() == 0
    assert chisquare(counts[3:]).pvalue > 1e-3
    np.testing.assert_array_equal(drawn[Columns.ACTIONS][:, 0], -drawn[Columns.REWARDS])
    np.testing.assert_array_equal(drawn[Columns.OBS][:, 1], drawn[Columns.REWARDS])


def test_rows_that_come_as_tensors_are_those_that_come_as_arrays() -> None:
    buffer, other = replay(), replay()
    buffer.add(rows(0, 4))
    other.add({name: torch.from_numpy(values) for name, values in rows(0, 4).items()})
    for name, values in buffer.columns.items():
        assert torch.equal(values, other.columns[name])


def test_restored_buffer_goes_on_bit_equal() -> None:
    buffer, other = replay(seed=3), replay(seed=4)
    buffer.add(rows(0, 13))
    buffer.sample(5)
    other.restore(buffer.state())
    for both in (buffer, other):
        both.add(rows(13, 2))
    assert kept(other) == kept(buffer) == list(range(5, 15))
    drawn, again = buffer.sample(50), other.sample(50)
    for name in drawn:
        np.testing.assert_array_equal(drawn[name], again[name])


def test_buffer_of_another_capacity_is_refused() -> None:
    buffer = replay()
    buffer.add(rows(0, 3))
    with pytest.raises(ValueError, match="capacity"):
        replay(capacity=11).restore(buffer.state())


def episode(steps: list[int], *, terminated: bool = False, truncated: bool = False) -> SingleAgentEpisode:
    """One decision for each entry, which is its number of primitive steps; observations count up."""
    count = len(steps)
    before = [sum(steps[:i]) for i in range(count)]
    infos: list[dict[str, Any]] = [{"primitive_steps": 0, "phase": 0.0}]
    infos += [{"primitive_steps": k, "phase": b / 100} for k, b in zip(steps, before, strict=True)]
    return SingleAgentEpisode(
        observations=[np.full(2, i, np.float32) for i in range(count + 1)],
        actions=[np.full(1, 10 + i, np.float32) for i in range(count)],
        rewards=[float(i) for i in range(count)],
        infos=infos,
        terminated=terminated,
        truncated=truncated,
        len_lookback_buffer=0,
    )


def turned(*episodes: SingleAgentEpisode, **kwargs: Any) -> dict[str, np.ndarray]:
    return decisions(episodes, **{"gamma": 0.9, "per_decision": True, "timeout_is_terminal": False, **kwargs})


def test_rows_join_state_latent_reward_and_next_state() -> None:
    found = turned(episode([10, 10, 10]))
    np.testing.assert_array_equal(found[Columns.OBS][:, 0], [0, 1, 2])
    np.testing.assert_array_equal(found[Columns.NEXT_OBS][:, 0], [1, 2, 3])
    np.testing.assert_array_equal(found[Columns.ACTIONS][:, 0], [10, 11, 12])
    np.testing.assert_array_equal(found[Columns.REWARDS], [0, 1, 2])
    np.testing.assert_allclose(found[PHASE], [0.0, 0.1, 0.2])
    assert all(values.dtype == np.float32 for values in found.values())


@pytest.mark.parametrize(
    ("flags", "timeout_is_terminal", "last"),
    [
        ({}, True, 0.0),
        ({"terminated": True}, False, 1.0),
        ({"truncated": True}, False, 0.0),
        ({"truncated": True}, True, 1.0),
    ],
)
def test_only_the_end_of_the_episode_is_terminal(
    flags: dict[str, bool], timeout_is_terminal: bool, last: float
) -> None:
    found = turned(episode([10, 4], **flags), timeout_is_terminal=timeout_is_terminal)
    np.testing.assert_array_equal(found[Columns.TERMINATEDS], [0.0, last])


def test_discount_is_gamma_for_each_decision_or_gamma_to_the_steps_of_a_cut_skill() -> None:
    cut = episode([10, 4], truncated=True)
    np.testing.assert_allclose(turned(cut)[DISCOUNTS], [0.9, 0.9], rtol=1e-6)
    np.testing.assert_allclose(turned(cut, per_decision=False)[DISCOUNTS], [0.9**10, 0.9**4], rtol=1e-6)


def test_pieces_of_an_episode_lose_no_transition_and_repeat_none() -> None:
    whole = episode([10, 10, 10, 4, 3], terminated=True)
    first = SingleAgentEpisode(
        id_=whole.id_,
        observations=whole.get_observations()[:3],
        actions=whole.get_actions()[:2],
        rewards=whole.get_rewards()[:2],
        infos=whole.get_infos()[:3],
        len_lookback_buffer=0,
    )
    second = first.cut(len_lookback_buffer=1)
    for i in range(2, 5):
        second.add_env_step(
            whole.get_observations(i + 1),
            whole.get_actions(i),
            whole.get_rewards(i),
            whole.get_infos(i + 1),
            terminated=i == 4,
        )
    expected = turned(whole)
    for name, values in turned(first.to_numpy(), second.to_numpy()).items():
        np.testing.assert_array_equal(values, expected[name])


def test_a_piece_without_a_decision_gives_no_rows() -> None:
    assert turned(episode([])) == {}
