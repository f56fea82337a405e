"""A training worker's data: its shard of the dataset, drained into tensors once, or streamed."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import ray.data
import torch
import torch.distributed
from torch import Tensor

from spirl_ray.config import PretrainSettings
from spirl_ray.data.trajectories import Episode, table_to_episodes
from spirl_ray.data.windows import WindowTable, stream_windows
from spirl_ray.errors import SpirlError
from spirl_ray.skills.model import SkillSpec

MEGABYTE = 2**20
_READ_CPUS = 0.25
"""Logical CPUs of a task that reads Parquet, so that it fits beside the training workers."""
_VALIDATION_WINDOWS = 1024
"""At most so many held-out windows for each worker."""


@dataclass(frozen=True)
class PretrainJob:
    """Everything a training worker needs; plain values that travel to other nodes."""

    dataset: str
    spec: SkillSpec
    settings: PretrainSettings
    seed: int
    validation: frozenset[str]
    """Ids of the held-out episodes."""
    in_memory_limit_mb: float


class Batches:
    """Batches of windows from a worker's files, read by Ray Data.

    ``in_memory`` drains the shard once and indexes tensors; otherwise every epoch streams the episodes through
    shuffled buffers of at most ``in_memory_limit_mb``. Held-out episodes are only in ``held``.
    """

    def __init__(self, job: PretrainJob, files: list[str], batch_size: int, rank: int, *, in_memory: bool) -> None:
        self.job, self.files, self.batch_size, self.rank = job, files, batch_size, rank
        self._table: WindowTable | None = None
        self._stream: Iterator[tuple[Tensor, Tensor]] = iter(())
        self._epoch = 0
        kept: list[Episode] = []
        held: list[Episode] = []
        moments = np.zeros((3, job.spec.state_dim))
        for episode in self._episodes():
            if episode.id in job.validation:
                held.append(episode)
                continue
            states = episode.states[: episode.length].astype(np.float64)
            moments += np.stack([np.full(states.shape[1], len(states)), states.sum(0), np.square(states).sum(0)])
            if in_memory:
                kept.append(episode)
        self._moments = moments
        if in_memory:
            self._table = WindowTable(kept, job.spec.horizon)
        self.held = _held_windows(held, job.spec.horizon)

    def at(self, update: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """States [B, H, S] and actions [B, H, A] for an update.

        From memory they depend on (seed, update, rank) alone, so a resumed run sees what an unbroken one
        would. A stream starts a new pass instead.
        """
        if self._table is not None:
            return self._table.sample(self.batch_size, generator)
        batch = next(self._stream, None)
        if batch is None:
            self._epoch += 1
            self._stream = stream_windows(
                self._training_episodes(),
                self.job.spec.horizon,
                self.batch_size,
                update_generator(self.job.seed, self._epoch, self.rank),
                int(self.job.in_memory_limit_mb * MEGABYTE),
            )
            batch = next(self._stream, None)
            if batch is None:
                raise SpirlError(f"A worker's share of {self.job.dataset} has no window of the skill's length.")
        return batch

    def state_statistics(self) -> tuple[Tensor, Tensor]:
        """Mean and deviation [S] of the training states of all workers."""
        count, sums, squares = sum_over_workers(torch.from_numpy(self._moments))
        mean = sums / count
        return mean.float(), (squares / count - mean.square()).clamp_min(0.0).sqrt().float()

    def _episodes(self) -> Iterator[Episode]:
        data = ray.data.read_parquet(self.files, ray_remote_args={"num_cpus": _READ_CPUS})
        for table in data.iter_batches(batch_size=64, batch_format="pyarrow"):
            assert isinstance(table, pa.Table)
            yield from table_to_episodes(table)

    def _training_episodes(self) -> Iterator[Episode]:
        return (episode for episode in self._episodes() if episode.id not in self.job.validation)


def update_generator(seed: int, update: int, rank: int) -> torch.Generator:
    """Random numbers for one update of one worker: no generator state needs to be saved."""
    return torch.Generator().manual_seed((seed * 1_000_003 + rank) * 1_000_000_007 + update)


def sum_over_workers(values: Tensor) -> Tensor:
    """All-reduce in float64 as far as the device has it; the values themselves with one worker."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        values = values.clone()
        torch.distributed.all_reduce(values)
    return values


def _held_windows(episodes: list[Episode], horizon: int) -> tuple[Tensor, Tensor] | None:
    long_enough = [episode for episode in episodes if episode.length >= horizon]
    if not long_enough:
        return None
    table = WindowTable(long_enough, horizon)
    count = min(len(table), _VALIDATION_WINDOWS)
    return table.rows(torch.linspace(0, len(table) - 1, count).long())
