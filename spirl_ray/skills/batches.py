"""A training worker's data: its shard of the dataset, drained into tensors once, or streamed."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial

import numpy as np
import pyarrow as pa
import ray.data
import torch
from torch import Tensor

from spirl_ray.config import PretrainSettings
from spirl_ray.datasets.read_ahead import read_ahead
from spirl_ray.datasets.windows import WindowTable, stream_windows
from spirl_ray.envs.spec import MakeRenderer, PositionTarget
from spirl_ray.episodes.dataset import DatasetCard, read_card, read_tables
from spirl_ray.episodes.episode import Episode
from spirl_ray.episodes.features import stored_features
from spirl_ray.episodes.table import schema, table_to_episodes
from spirl_ray.errors import SpirlError
from spirl_ray.skills.collectives import sum_over_workers
from spirl_ray.skills.decoders import DECODERS
from spirl_ray.skills.spec import SkillSpec

MEGABYTE = 2**20
_READ_CPUS = 0.25
"""The logical CPUs of a task that reads Parquet, few enough that it fits beside the training workers."""
_EPISODES_AT_A_TIME, _BYTES_AT_A_TIME = 64, 16 * MEGABYTE
"""The most episodes, and about the most bytes, that are copied at once from what those tasks have read."""
_VALIDATION_WINDOWS = 1024
"""The approximate number of held-out windows of all workers together, few enough to fit in memory."""


@dataclass(frozen=True)
class PretrainJob:
    """Everything a training worker needs; plain values that travel to other nodes."""

    dataset: str
    spec: SkillSpec
    settings: PretrainSettings
    seed: int
    validation: frozenset[str]
    """The ids of the held-out episodes."""
    in_memory_limit_mb: float
    renderers: Mapping[str, MakeRenderer] = field(default_factory=dict)
    """The renderers of the features that episodes do not store."""
    position_target: PositionTarget | None = None
    """What target-preserving augmentation needs."""


Window = tuple[dict[str, Tensor], Tensor]
"""Observations by name, [B, n, *observed_shape], and actions [B, H, A]; n is H, or 1 where one step is enough."""


class Batches:
    """Batches of windows from a worker's files, read by Ray Data; their observations hold the model's features.

    ``in_memory`` drains the shard once and indexes tensors; otherwise every pass streams the episodes through
    shuffled buffers. A buffer has half of ``in_memory_limit_mb``, and the episodes that a thread reads for the next one
    meanwhile have the other half. Held-out windows are only in ``held``, which may be None.
    """

    def __init__(self, job: PretrainJob, files: list[str], batch_size: int, *, in_memory: bool) -> None:
        self.job, self.files, self.batch_size = job, files, batch_size
        self._stream: Iterator[Window] = iter(())
        self._card = read_card(job.dataset)
        self._renderers = job.renderers
        self._observed = DECODERS[job.spec.decoder].observed_steps(job.spec.horizon)
        self._numbers = [name for name, feature in job.spec.data_features.items() if not feature.is_image]
        kept: list[Episode] = []
        held: dict[str, Window] = {}
        moments: dict[str, np.ndarray] = {}
        looked_at = sorted(job.validation)[:_VALIDATION_WINDOWS]
        for episode in self._episodes():
            if episode.id in job.validation:
                if episode.id in looked_at and episode.length >= job.spec.horizon:
                    held[episode.id] = self._spread(episode, _VALIDATION_WINDOWS / len(looked_at))
                continue
            moments[episode.id] = self._moments_of(episode)
            if in_memory:
                kept.append(episode)
        # Reading tasks finish in any order. Sorted, a resumed run draws what an unbroken one would.
        self._moments = sum((moments[i] for i in sorted(moments)), np.zeros((3, self._width)))
        kept.sort(key=lambda episode: episode.id)
        self._table = self._windows(kept) if in_memory else None
        windows = [held[i] for i in sorted(held)]
        self.held: Window | None = None
        if windows:
            observations = {name: torch.cat([o[name] for o, _ in windows]) for name in windows[0][0]}
            self.held = (observations, torch.cat([actions for _, actions in windows]))

    @property
    def _width(self) -> int:
        return sum(self.job.spec.data_features[name].size for name in self._numbers)

    def _moments_of(self, episode: Episode) -> np.ndarray:
        """The count, sums and sums of squares of all numbers of an episode, float64 [3, W]."""
        steps = episode.length
        values = [episode.observations[name][:steps].reshape(steps, -1) for name in self._numbers]
        rows = np.concatenate(values, axis=1, dtype=np.float64) if values else np.zeros((steps, 0))
        return np.stack([np.full(self._width, float(steps)), rows.sum(0), np.square(rows).sum(0)])

    def draw(self, generator: torch.Generator) -> Window:
        """Draws a batch for one update.

        In memory, the batch depends on the generator alone; a stream continues its pass, or starts another.
        """
        if self._table is not None:
            return self._table.sample(self.batch_size, generator)
        batch = next(self._stream, None)
        if batch is None:
            order = torch.Generator().manual_seed(int(torch.randint(2**62, (), generator=generator)))
            spec, half = self.job.spec, int(self.job.in_memory_limit_mb * MEGABYTE / 2)
            held = self.job.validation
            training = (episode for episode in self._episodes() if episode.id not in held)
            self._stream = stream_windows(
                read_ahead(training, half),
                spec.horizon,
                self.batch_size,
                order,
                half,
                features=spec.observed,
                renderers=self._renderers,
                observed=self._observed,
            )
            batch = next(self._stream, None)
            if batch is None:
                raise SpirlError(
                    f"A worker's share of {self.job.dataset} has no episode as long as a skill. Lower skills.horizon."
                )
        return batch

    def statistics(self, device: torch.device) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """The mean and standard deviation [*shape] by feature over the training data of all workers, on the CPU;
        without images."""
        count, sums, squares = sum_over_workers(torch.from_numpy(self._moments), device)
        mean = sums / count
        std = (squares / count - mean.square()).clamp_min(0.0).sqrt()
        return self._by_feature(mean.float()), self._by_feature(std.float())

    def _by_feature(self, flat: Tensor) -> dict[str, Tensor]:
        features = [self.job.spec.data_features[name] for name in self._numbers]
        parts = flat.split([feature.size for feature in features])
        return {
            name: part.reshape(feature.shape)
            for name, feature, part in zip(self._numbers, features, parts, strict=True)
        }

    def _windows(self, episodes: list[Episode]) -> WindowTable:
        spare = self.job.in_memory_limit_mb * MEGABYTE - sum(e.nbytes for e in episodes)
        spec = self.job.spec
        return WindowTable(
            episodes,
            spec.horizon,
            features=spec.observed,
            renderers=self._renderers,
            observed=self._observed,
            frame_cache_bytes=spare,
        )

    def _spread(self, episode: Episode, count: float) -> Window:
        """At most ``count`` windows of an episode, from the middle of equal parts, because first and last are not
        typical."""
        table = self._windows([episode])
        number = min(len(table), math.ceil(count))
        return table.rows(((torch.arange(number, dtype=torch.float64) + 0.5) * len(table) / number).long())

    def _episodes(self) -> Iterator[Episode]:
        return _read(self.files, self._card, self.job.spec, self.job.dataset)


def _read(files: list[str], card: DatasetCard, spec: SkillSpec, dataset: str) -> Iterator[Episode]:
    """Reads files by Ray Data, without images that the model does not observe.

    It is no method of `Batches`, because a thread that reads ahead refers to it, and is to end with its `Batches`.
    """
    stored = stored_features(card.features)
    features = {name: f for name, f in stored.items() if not f.is_image or name in spec.features}
    step = sum(f.size * np.dtype(f.dtype).itemsize for f in features.values()) + 4 * card.action_dim
    rows = max(1, min(int(_BYTES_AT_A_TIME * card.episodes / (card.steps * step)), _EPISODES_AT_A_TIME))
    for table in stream_tables(files, card, schema(features, card.action_dim).names, rows):
        yield from table_to_episodes(table, features, card.action_dim, where=dataset)


def stream_tables(
    files: list[str], card: DatasetCard, columns: list[str] | None = None, episodes: int = _EPISODES_AT_A_TIME
) -> Iterator[pa.Table]:
    """Reads columns of a dataset's files with Ray Data, in tables of some episodes.

    Not with `ray.data.read_parquet`, which takes names of folders for columns (``lr=0.1/``), URIs (``a#b``) and queries
    (``a?b``).
    """
    rows = ray.data.from_items([{"file": file} for file in files], override_num_blocks=len(files))
    data = rows.map_batches(
        partial(_read_tables, card, columns, episodes), batch_size=1, batch_format="pyarrow", num_cpus=_READ_CPUS
    )
    # Blocks of Ray's own size are several times as large, and the worker copies them.
    data.context.target_max_block_size = _BYTES_AT_A_TIME
    for table in data.iter_batches(batch_size=episodes, batch_format="pyarrow"):
        assert isinstance(table, pa.Table)
        yield table


def _read_tables(card: DatasetCard, columns: list[str] | None, episodes: int, rows: pa.Table) -> Iterator[pa.Table]:
    for file in rows["file"].to_pylist():
        yield from read_tables(file, card, columns, episodes)


def update_generator(seed: int, update: int, rank: int) -> torch.Generator:
    """The random generator of one update of one worker, so that no generator state needs to be saved."""
    return torch.Generator().manual_seed(((seed * 1_000_003 + rank) * 1_000_000_007 + update) % 2**63)
