"""A training worker's data: its shard of the dataset, drained into tensors once, or streamed."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import ray.data
import torch
from torch import Tensor

from spirl_ray.config import PretrainSettings
from spirl_ray.datasets.windows import WindowTable, stream_windows
from spirl_ray.envs import environment
from spirl_ray.episodes.dataset import Episode, read_card, table_to_episodes
from spirl_ray.errors import SpirlError
from spirl_ray.skills.collectives import sum_over_workers
from spirl_ray.skills.model import SkillSpec

MEGABYTE = 2**20
_READ_CPUS = 0.25
"""Logical CPUs of a task that reads Parquet, so that it fits beside the training workers."""
_VALIDATION_WINDOWS = 1024
"""About so many held-out windows for all workers together, so that they always fit in memory."""


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
    """Batches of windows from a worker's files, read by Ray Data; their observations are what the model sees.

    ``in_memory`` drains the shard once and indexes tensors; otherwise every pass streams the episodes through
    shuffled buffers of at most ``in_memory_limit_mb``. Held-out episodes are only in ``held``: observations [N, n, O]
    and actions [N, H, A], or None.
    """

    def __init__(self, job: PretrainJob, files: list[str], batch_size: int, *, in_memory: bool) -> None:
        self.job, self.files, self.batch_size = job, files, batch_size
        self._stream: Iterator[tuple[Tensor, Tensor]] = iter(())
        self._view = environment(read_card(job.dataset).environment).view
        kept: list[Episode] = []
        held: dict[str, tuple[Tensor, Tensor]] = {}
        moments: dict[str, np.ndarray] = {}
        looked_at = sorted(job.validation)[:_VALIDATION_WINDOWS]
        for episode in self._episodes():
            if episode.id in job.validation:
                if episode.id in looked_at and episode.length >= job.spec.horizon:
                    held[episode.id] = self._spread(episode, _VALIDATION_WINDOWS / len(looked_at))
                continue
            states = episode.states[: episode.length].astype(np.float64)
            moments[episode.id] = np.stack(
                [np.full(states.shape[1], len(states)), states.sum(0), np.square(states).sum(0)]
            )
            if in_memory:
                kept.append(episode)
        # Reading tasks finish in any order. Sorted, a resumed run draws what an unbroken one would.
        self._moments = sum((moments[i] for i in sorted(moments)), np.zeros((3, job.spec.state_dim)))
        kept.sort(key=lambda episode: episode.id)
        self._table = self._windows(kept) if in_memory else None
        windows = [held[i] for i in sorted(held)]
        self.held = (torch.cat([s for s, _ in windows]), torch.cat([a for _, a in windows])) if windows else None

    def draw(self, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Observations [B, n, O] and actions [B, H, A] for one update; n is H, or 1 (`SkillSpec.observed_steps`).

        From memory they depend on the generator alone; a stream goes on with its pass, or starts another.
        """
        if self._table is not None:
            return self._table.sample(self.batch_size, generator)
        batch = next(self._stream, None)
        if batch is None:
            order = torch.Generator().manual_seed(int(torch.randint(2**62, (), generator=generator)))
            self._stream = stream_windows(
                (episode for episode in self._episodes() if episode.id not in self.job.validation),
                self.job.spec.horizon,
                self.batch_size,
                order,
                int(self.job.in_memory_limit_mb * MEGABYTE),
                view=self._view,
                observed=self.job.spec.observed_steps,
            )
            batch = next(self._stream, None)
            if batch is None:
                raise SpirlError(f"A worker's share of {self.job.dataset} has no window of the skill's length.")
        return batch

    def state_statistics(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """Mean and deviation [S] of the training states of all workers, on the CPU."""
        count, sums, squares = sum_over_workers(torch.from_numpy(self._moments), device)
        mean = sums / count
        return mean.float(), (squares / count - mean.square()).clamp_min(0.0).sqrt().float()

    def _windows(self, episodes: list[Episode]) -> WindowTable:
        spare = self.job.in_memory_limit_mb * MEGABYTE - sum(e.nbytes for e in episodes)
        spec = self.job.spec
        return WindowTable(
            episodes, spec.horizon, view=self._view, observed=spec.observed_steps, frame_cache_bytes=spare
        )

    def _spread(self, episode: Episode, count: float) -> tuple[Tensor, Tensor]:
        """At most ``count`` windows of an episode, from the middle of equal parts: first and last are like no other."""
        table = self._windows([episode])
        number = min(len(table), math.ceil(count))
        return table.rows(((torch.arange(number, dtype=torch.float64) + 0.5) * len(table) / number).long())

    def _episodes(self) -> Iterator[Episode]:
        data = ray.data.read_parquet(self.files, num_cpus=_READ_CPUS)
        for table in data.iter_batches(batch_size=64, batch_format="pyarrow"):
            assert isinstance(table, pa.Table)
            yield from table_to_episodes(table)


def update_generator(seed: int, update: int, rank: int) -> torch.Generator:
    """Random numbers for one update of one worker: no generator state needs to be saved."""
    return torch.Generator().manual_seed(((seed * 1_000_003 + rank) * 1_000_000_007 + update) % 2**63)
