"""Windows cover every offset of every episode and nothing else."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy.stats import chisquare
from torch import Tensor

from spirl_ray.datasets import windows as windows_module
from spirl_ray.datasets.windows import WindowTable, stream_windows
from spirl_ray.envs.spec import Frames, ViewSpec
from spirl_ray.episodes.dataset import Episode
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


# --- frames ---

SIDE = 2


def renderer(metadata: Sequence[Mapping[str, Any]]) -> Frames:
    """A frame's pixels are its episode's brightness plus the step's number, so that any mix-up shows."""
    brightness = np.array([facts["brightness"] for facts in metadata])

    def frames(episodes: NDArray[np.int64], states: NDArray[np.float32]) -> NDArray[np.uint8]:
        values = brightness[episodes] + states[:, 1].astype(np.int64)
        return np.broadcast_to(values[:, None, None], (len(values), SIDE, SIDE)).astype(np.uint8)

    return frames


def seen_episodes() -> list[Episode]:
    return [dataclasses.replace(e, metadata={"brightness": 50 * n}) for n, e in enumerate(make_episodes())]


VIEW = ViewSpec(frames=2, size=SIDE, egocentric=(), renderer=renderer)


@pytest.mark.parametrize("cache", [0, 10**6])
@pytest.mark.parametrize("observed", [1, None])
def test_frames_of_the_step_before_and_of_now_follow_the_states(cache: int, observed: int | None) -> None:
    table = WindowTable(seen_episodes(), HORIZON, view=VIEW, observed=observed, frame_cache_bytes=cache)
    observations, actions = table.rows(torch.arange(len(table)))
    plain, same = WindowTable(make_episodes(), HORIZON).rows(torch.arange(len(table)))
    steps = observed or HORIZON
    assert observations.shape == (len(table), steps, 2 + 2 * SIDE * SIDE)
    assert torch.equal(actions, same)
    assert torch.equal(observations[..., :2], plain[:, :steps])
    episode, step = observations[..., 0], observations[..., 1]
    older, newer = observations[..., 2:].chunk(2, dim=-1)
    assert (newer == (50 * episode + step).unsqueeze(-1)).all()
    assert (older == (50 * episode + (step - 1).clamp_min(0)).unsqueeze(-1)).all()


STORED = ViewSpec(frames=2, size=SIDE, egocentric=())


def with_stored_frames() -> list[Episode]:
    """Episodes that hold what `renderer` would render, and one frame more for the last state."""
    render = renderer([episode.metadata for episode in seen_episodes()])
    return [
        dataclasses.replace(e, frames=render(np.full(len(e.states), number), e.states))
        for number, e in enumerate(seen_episodes())
    ]


@pytest.mark.parametrize("observed", [1, None])
def test_stored_frames_are_those_that_rendering_gives(observed: int | None) -> None:
    stored = WindowTable(with_stored_frames(), HORIZON, view=STORED, observed=observed)
    rendered = WindowTable(seen_episodes(), HORIZON, view=VIEW, observed=observed)
    every = torch.arange(len(stored))
    for found, expected in zip(stored.rows(every), rendered.rows(every), strict=True):
        assert torch.equal(found, expected)


def test_a_view_without_its_stored_frames_is_refused() -> None:
    with pytest.raises(SpirlError, match="without their frames"):
        WindowTable(seen_episodes(), HORIZON, view=STORED)


def test_stored_frames_count_towards_a_buffer(monkeypatch: pytest.MonkeyPatch) -> None:
    buffers: list[int] = []

    class Recorded(WindowTable):
        def __init__(self, episodes: Sequence[Episode], horizon: int, **options: Any) -> None:
            buffers.append(len(episodes))
            super().__init__(episodes, horizon, **options)

    monkeypatch.setattr(windows_module, "WindowTable", Recorded)
    pair = [dataclasses.replace(e, frames=np.zeros((11, SIDE, SIDE), np.uint8)) for e in make_episodes((10, 10))]
    without_frames = sum(e.states.nbytes + e.actions.nbytes for e in pair)
    list(stream_windows(pair, HORIZON, 4, torch.Generator().manual_seed(0), without_frames, view=STORED))
    assert buffers == [1, 1]


def test_streamed_windows_have_frames_too() -> None:
    generator = torch.Generator().manual_seed(0)
    for observations, _ in stream_windows(seen_episodes(), HORIZON, 4, generator, 200, view=VIEW, observed=1):
        assert (observations[:, 0, -1] == 50 * observations[:, 0, 0] + observations[:, 0, 1]).all()
