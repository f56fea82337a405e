"""Windows: H consecutive (state, action) pairs cut from an episode, the unlabelled samples of stage 1."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np
import torch
from torch import Tensor

from spirl_ray.data.trajectories import Episode
from spirl_ray.errors import SpirlError


class WindowTable:
    """All windows of a set of episodes, held as two flat tensors and an index of their first rows.

    Every offset of every episode is one window, T - H + 1 of them, and none crosses the end of an episode.
    """

    def __init__(self, episodes: Iterable[Episode], horizon: int) -> None:
        states, actions, starts, row = [], [], [], 0
        for episode in episodes:
            length = len(episode.actions)
            states.append(episode.states[:length])
            actions.append(episode.actions)
            starts.append(np.arange(row, row + length - horizon + 1))
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

    def __len__(self) -> int:
        return len(self.starts)

    def rows(self, windows: Tensor) -> tuple[Tensor, Tensor]:
        """Windows by number [B] -> states [B, H, S], actions [B, H, A], float32."""
        rows = self.starts[windows].unsqueeze(1) + self._offsets
        return self.states[rows], self.actions[rows]

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


def stream_windows(
    episodes: Iterable[Episode], horizon: int, batch_size: int, generator: torch.Generator, buffer_bytes: int
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
        added = episode.states.nbytes + episode.actions.nbytes
        if buffer and size + added > buffer_bytes:
            table = WindowTable(buffer, horizon)
            buffer, size = [], 0
            yield from table.shuffled(batch_size, generator)
        buffer.append(episode)
        size += added
    if buffer:
        yield from WindowTable(buffer, horizon).shuffled(batch_size, generator)
