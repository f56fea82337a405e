"""Windows cover every offset of every episode and nothing else."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import chisquare
from torch import Tensor

from spirl_ray.data import windows as windows_module
from spirl_ray.data.trajectories import Episode
from spirl_ray.data.windows import WindowTable, stream_windows
from spirl_ray.errors import SpirlError

LENGTHS, HORIZON = (12, 5, 30, 4, 7), 5
"""One episode of exactly one window, one too short for any."""


def make_episodes(lengths: Sequence[int] = LENGTHS) -> list[Episode]:
    """State t of episode e is (e, t), its action (100 e + t)."""
    return [
        Episode(
            id=f"e{number}",
            states=np.stack([np.full(length + 1, number), np.arange(length + 1)], axis=1).astype(np.float32),
            actions=(100.0 * number + np.arange(length, dtype=np.float32)).reshape(-1, 1),
            rewards=np.zeros(length, np.float32),
            terminated=False,
            truncated=True,
        )
        for number, length in enumerate(lengths)
    ]


def all_windows(lengths: Sequence[int] = LENGTHS) -> set[tuple[int, int]]:
    return {(e, t) for e, length in enumerate(lengths) for t in range(length - HORIZON + 1)}


def checked(states: Tensor, actions: Tensor) -> list[tuple[int, int]]:
    """(episode, offset) of each window of a batch, each of which must be HORIZON steps on end of one episode."""
    found = []
    for window, taken in zip(states, actions, strict=True):
        episode, first = (int(value) for value in window[0])
        steps = torch.arange(first, first + HORIZON)
        assert torch.equal(window, torch.stack([torch.full((HORIZON,), episode), steps], dim=1).float())
        assert torch.equal(taken.squeeze(-1), 100.0 * episode + steps)
        found.append((episode, first))
    return found


def test_every_offset_is_one_window_within_one_episode() -> None:
    table = WindowTable(make_episodes(), HORIZON)
    found = checked(*table.rows(torch.arange(len(table))))
    assert len(found) == len(table)
    assert set(found) == all_windows()
    assert len(found) == len(set(found))


def test_the_state_after_the_last_action_is_in_no_window() -> None:
    states, _ = WindowTable(make_episodes((5,)), HORIZON).rows(torch.tensor([0]))
    assert states[0, :, 1].tolist() == [0, 1, 2, 3, 4]


def test_sampling_is_uniform_over_all_windows() -> None:
    table, generator = WindowTable(make_episodes(), HORIZON), torch.Generator().manual_seed(0)
    found = checked(*table.sample(8000, generator))
    counts = {window: 0 for window in all_windows()}
    for window in found:
        counts[window] += 1
    assert chisquare(list(counts.values())).pvalue > 1e-3


def test_sampling_repeats_with_the_generator() -> None:
    table = WindowTable(make_episodes(), HORIZON)
    (first, _), (second, _) = (table.sample(32, torch.Generator().manual_seed(4)) for _ in range(2))
    assert torch.equal(first, second)


def test_shuffled_gives_every_window_once_and_tops_up_the_rest() -> None:
    table = WindowTable(make_episodes(), HORIZON)
    batches = [checked(*batch) for batch in table.shuffled(16, torch.Generator().manual_seed(0))]
    assert {len(batch) for batch in batches} == {16}
    found = [window for batch in batches for window in batch]
    assert set(found[: len(table)]) == all_windows()
    assert len(found) - len(table) < 16
    assert found[: len(table)] != sorted(found[: len(table)])


def test_no_window_is_an_error_that_says_what_to_change() -> None:
    with pytest.raises(SpirlError, match=r"No episode has a window of 5 steps: lower skills\.horizon"):
        WindowTable(make_episodes((4, 3)), HORIZON)
    with pytest.raises(SpirlError):
        WindowTable([], HORIZON)


@pytest.mark.parametrize("buffer_bytes", [0, 500, 10**9])
def test_streaming_gives_the_windows_that_memory_holds(buffer_bytes: int) -> None:
    stream = stream_windows(make_episodes(), HORIZON, 4, torch.Generator().manual_seed(0), buffer_bytes)
    found = [window for batch in stream for window in checked(*batch)]
    assert set(found) == all_windows()
    assert len(found) < len(all_windows()) + 4 * len(LENGTHS)  # but for topping up


def test_streaming_without_a_window_ends_at_once() -> None:
    assert not list(stream_windows(make_episodes((4, 3)), HORIZON, 4, torch.Generator(), 10**9))


def test_buffers_stay_within_the_limit_but_for_an_episode_that_is_larger(monkeypatch: pytest.MonkeyPatch) -> None:
    buffers: list[list[int]] = []

    class Recorded(WindowTable):
        def __init__(self, episodes: Sequence[Episode], horizon: int, **options: Any) -> None:
            buffers.append([episode.length for episode in episodes])
            super().__init__(episodes, horizon, **options)

    monkeypatch.setattr(windows_module, "WindowTable", Recorded)
    lengths = (10, 10, 10, 60, 10, 25)

    def size(length: int) -> int:
        return 4 * (2 * (length + 1) + length)

    list(stream_windows(make_episodes(lengths), HORIZON, 4, torch.Generator().manual_seed(0), size(10) * 3))
    assert buffers == [[10, 10, 10], [60], [10], [25]]  # 10 and 25 need two states more than three times 10


def test_streaming_holds_no_more_episodes_than_a_buffer() -> None:
    read: list[str] = []

    def episodes() -> object:
        for episode in make_episodes((10,) * 20):
            read.append(episode.id)
            yield episode

    stream = stream_windows(episodes(), HORIZON, 4, torch.Generator().manual_seed(0), 2 * 4 * (2 * 11 + 10))
    next(stream)
    assert len(read) == 3  # two fill the buffer, the third shows that it is full
