"""Windows: H consecutive (state, action) pairs cut from an episode, the unlabelled samples of stage 1."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from spirl_ray.envs.spec import ViewSpec
from spirl_ray.episodes.dataset import Episode
from spirl_ray.episodes.frames import FrameArray
from spirl_ray.errors import SpirlError

_FRAMES_AT_A_TIME = 8192


class WindowTable:
    """All windows of a set of episodes, held as two flat tensors and an index of their first rows.

    Every offset of every episode is one window, T - H + 1 of them, and none crosses the end of an episode.

    Args:
        episodes: what to cut windows from.
        horizon: H, primitive steps in a window.
        view: of the environment; when given, frames follow the states, as stored or rendered from the states.
        observed: of how many steps of a window to return the observations; None is all H. Frames are costly, and an
            open-loop model sees the first alone.
        frame_cache_bytes: frames that are rendered are so once and kept if they fit, and otherwise for each batch.

    Raises:
        SpirlError: no window at all, or no frames where the view has them stored.
    """

    def __init__(
        self,
        episodes: Iterable[Episode],
        horizon: int,
        *,
        view: ViewSpec | None = None,
        observed: int | None = None,
        frame_cache_bytes: float = 0,
    ) -> None:
        states, actions, starts, row = [], [], [], 0
        lengths: list[int] = []
        metadata: list[Mapping[str, Any]] = []
        stored: list[FrameArray | None] = []
        for episode in episodes:
            length = len(episode.actions)
            states.append(episode.states[:length])
            actions.append(episode.actions)
            starts.append(np.arange(row, row + length - horizon + 1))
            lengths.append(length)
            metadata.append(episode.metadata)
            stored.append(episode.frames)
            row += length
        self.horizon = horizon
        self.starts = torch.from_numpy(np.concatenate(starts) if starts else np.zeros(0, np.int64))
        if not len(self.starts):
            raise SpirlError(
                f"No episode has a window of {horizon} steps: lower skills.horizon, or import longer episodes "
                "(a worker's share needs at least one)."
            )
        self.states = torch.from_numpy(np.concatenate(states))
        self.actions = torch.from_numpy(np.concatenate(actions))
        self._offsets = torch.arange(horizon)
        self._observed = horizon if observed is None else observed
        self._frames: _EpisodeFrames | None = None
        if view is not None:
            self._frames = _EpisodeFrames(
                view, lengths, _source(view, self.states.numpy(), lengths, metadata, stored, frame_cache_bytes)
            )

    def __len__(self) -> int:
        return len(self.starts)

    def rows(self, windows: Tensor) -> tuple[Tensor, Tensor]:
        """Windows by number [B] -> observations [B, observed, S + pixels], actions [B, H, A], float32."""
        rows = self.starts[windows].unsqueeze(1) + self._offsets
        seen = rows[:, : self._observed]
        states = self.states[seen]
        if self._frames is not None:
            states = torch.cat([states, self._frames.stacked(seen)], dim=-1)
        return states, self.actions[rows]

    def sample(self, batch_size: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Uniform over all windows, with replacement."""
        return self.rows(torch.randint(len(self), (batch_size,), generator=generator))

    def shuffled(self, batch_size: int, generator: torch.Generator) -> Iterator[tuple[Tensor, Tensor]]:
        """Every window once in random order; a short rest is topped up with random windows."""
        order = torch.randperm(len(self), generator=generator)
        for first in range(0, len(order), batch_size):
            chosen = order[first : first + batch_size]
            if len(chosen) < batch_size:
                extra = torch.randint(len(self), (batch_size - len(chosen),), generator=generator)
                chosen = torch.cat([chosen, extra])
            yield self.rows(chosen)


FrameSource = Callable[[NDArray[np.int64]], FrameArray]
"""Rows [B] of the flat states -> the frames seen there, uint8 [B, N, N]."""


class _EpisodeFrames:
    """The newest frames at any row of the flat states."""

    def __init__(self, view: ViewSpec, lengths: Sequence[int], source: FrameSource) -> None:
        self._view, self._source = view, source
        self._first = np.repeat(np.cumsum([0, *lengths[:-1]]), lengths)

    def stacked(self, rows: Tensor) -> Tensor:
        """Rows [...] -> pixels float32 [..., frames * N * N], oldest frame first; an episode's first is repeated."""
        flat = rows.numpy().ravel()
        ages = np.arange(self._view.frames - 1, -1, -1)
        wanted = np.maximum(flat[:, None] - ages, self._first[flat][:, None])
        frames = self._source(wanted.ravel())
        return torch.from_numpy(frames).reshape(*rows.shape, self._view.pixels).float()


def _source(
    view: ViewSpec,
    states: NDArray[np.float32],
    lengths: Sequence[int],
    metadata: Sequence[Mapping[str, Any]],
    stored: Sequence[FrameArray | None],
    cache_bytes: float,
) -> FrameSource:
    episode = np.repeat(np.arange(len(lengths)), lengths)
    if view.renderer is None:
        # Looked up where they are: joined into one array, they would for a moment be in memory twice.
        frames = [part[:length] for part, length in zip(stored, lengths, strict=True) if part is not None]
        if len(frames) < len(lengths):
            raise SpirlError("Episodes without their frames: the dataset is not of this environment, or was cut down.")
        offset = np.arange(len(states)) - np.repeat(np.cumsum([0, *lengths[:-1]]), lengths)
        return lambda rows: np.stack(
            [frames[e][t] for e, t in zip(episode[rows].tolist(), offset[rows].tolist(), strict=True)]
        )
    render = view.renderer(metadata)

    def rendered(rows: NDArray[np.int64]) -> NDArray[np.uint8]:
        return render(episode[rows], states[rows])

    if len(states) * view.size**2 > cache_bytes:
        return rendered
    parts = np.array_split(np.arange(len(states)), 1 + len(states) // _FRAMES_AT_A_TIME)
    kept = np.concatenate([rendered(part) for part in parts])
    return lambda rows: kept[rows]


def stream_windows(
    episodes: Iterable[Episode],
    horizon: int,
    batch_size: int,
    generator: torch.Generator,
    buffer_bytes: int,
    *,
    view: ViewSpec | None = None,
    observed: int | None = None,
) -> Iterator[tuple[Tensor, Tensor]]:
    """One pass over episodes that do not fit in memory: shuffles within buffers of at most ``buffer_bytes``.

    An episode that is larger has a buffer to itself. Every window appears once a pass, up to the topping up of each
    buffer's last batch.
    """
    buffer: list[Episode] = []
    size = 0
    for episode in episodes:
        if len(episode.actions) < horizon:
            continue
        added = episode.nbytes
        if buffer and size + added > buffer_bytes:
            table = WindowTable(buffer, horizon, view=view, observed=observed)
            buffer, size = [], 0
            yield from table.shuffled(batch_size, generator)
        buffer.append(episode)
        size += added
    if buffer:
        yield from WindowTable(buffer, horizon, view=view, observed=observed).shuffled(batch_size, generator)
