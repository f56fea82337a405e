"""A training worker's data: its shard of the dataset, drained into tensors once, or streamed."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial

import numpy as np
import torch
from torch import Tensor

from spirl_ray.config import PretrainSettings
from spirl_ray.datasets.read_ahead import read_ahead
from spirl_ray.datasets.shard import Passes, Shard, shuffled
from spirl_ray.datasets.windows import Batch, WindowTable, step_bytes
from spirl_ray.envs.spec import MakeRenderer, PositionTarget
from spirl_ray.episodes.dataset import DatasetCard, read_card
from spirl_ray.episodes.features import Features, stored_features
from spirl_ray.errors import SpirlError
from spirl_ray.skills.collectives import sum_over_workers
from spirl_ray.skills.decoders import DECODERS
from spirl_ray.skills.spec import SkillSpec

MEGABYTE = 2**20
_VALIDATION_WINDOWS = 1024
"""The approximate number of held-out windows of all workers together."""
_LEAST_VARIANCE = 1e-12
"""The least variance of a number that changes, in its mean square; float32 distinguishes no less than 1e-14."""


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


class Batches:
    """Batches of windows from a worker's files; their observations hold the model's features.

    ``in_memory`` reads the shard once and indexes tensors. Otherwise every pass streams the episodes through buffers,
    each of which has half of `_stream_bytes`: one to train on, while a thread fills the other. Held-out windows are
    only in ``held``, which may be None.

    Raises:
        SpirlError: a file is missing or damaged, or no episode is as long as a skill.
    """

    def __init__(self, job: PretrainJob, files: list[str], batch_size: int, *, in_memory: bool) -> None:
        self.job, self.batch_size = job, batch_size
        card = read_card(job.dataset)
        self._shard = Shard.of(card, sorted(files), job.validation)
        self._features = _read_features(card, job.spec)
        self._numbers = [name for name, feature in job.spec.data_features.items() if not feature.is_image]
        self._observed = DECODERS[job.spec.decoder].observed_steps(job.spec.horizon)
        self._cut = partial(
            WindowTable,
            horizon=job.spec.horizon,
            features=job.spec.observed,
            renderers=job.renderers,
            observed=self._observed,
        )
        self._moments = self._sum_moments()
        self.held = self._held_out()
        self._stream: Iterator[Batch] = iter(())
        self._upcoming = -1
        limit, step = job.in_memory_limit_mb * MEGABYTE, step_bytes(job.spec.observed, card.features, card.action_dim)
        buffer = _stream_bytes(limit) / 2
        self._passes = Passes(self._shard, job.spec.horizon, batch_size, step, buffer, job.seed)
        chosen = self._passes.episodes
        if not len(chosen):
            raise SpirlError(
                f"A worker's share of {job.dataset} has no episode as long as a skill. Lower skills.horizon."
            )
        self._table: WindowTable | None = None
        if in_memory:
            steps = int(self._shard.lengths[chosen].sum())
            episodes = self._shard.read(chosen, self._features)
            self._table = self._cut(episodes, steps=steps, frame_cache_bytes=limit - steps * step)

    def draw(self, update: int, generator: torch.Generator) -> Batch:
        """Draws the batch of an update.

        In memory it depends on the generator alone. A stream continues after the update before, or begins at this
        one, where it gives what an unbroken stream does.
        """
        if self._table is not None:
            return self._table.sample(self.batch_size, generator)
        if update != self._upcoming:
            self._stream = self._stream_from(update)
        self._upcoming = update + 1
        return next(self._stream)

    def _stream_from(self, update: int) -> Iterator[Batch]:
        # The thread must not refer to this object, because it is to end with it.
        cut, shard, features = self._cut, self._shard, self._features
        tables = (
            (cut(shard.read(buffer.episodes, features), steps=buffer.steps), buffer)
            for buffer in self._passes.after(update)
        )
        return shuffled(read_ahead(tables), self.batch_size)

    def statistics(self, device: torch.device) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """The mean and standard deviation [*shape] by feature over the training data of all workers, on the CPU;
        without images."""
        count, sums, squares = sum_over_workers(torch.from_numpy(self._moments), device)
        mean, square = sums / count, squares / count
        variance = square - mean.square()
        # A number that never changes has a variance of about 1e-16 of its square, which rounding leaves.
        std = torch.where(variance > _LEAST_VARIANCE * square, variance, 0.0).sqrt()
        return self._by_feature(mean.float()), self._by_feature(std.float())

    def _by_feature(self, flat: Tensor) -> dict[str, Tensor]:
        features = [self.job.spec.data_features[name] for name in self._numbers]
        parts = flat.split([feature.size for feature in features])
        return {
            name: part.reshape(feature.shape)
            for name, feature, part in zip(self._numbers, features, parts, strict=True)
        }

    def _sum_moments(self) -> np.ndarray:
        """The count, sums and sums of squares of all numbers of the training episodes, float64 [3, W]."""
        width = sum(self.job.spec.data_features[name].size for name in self._numbers)
        found = np.zeros((3, width))
        numbers = {name: feature for name, feature in self._features.items() if not feature.is_image}
        for episode in self._shard.read(self._shard.training, numbers):
            steps = episode.length
            values = [episode.observations[name][:steps].reshape(steps, -1) for name in self._numbers]
            rows = np.concatenate(values, axis=1, dtype=np.float64) if values else np.zeros((steps, 0))
            found += np.stack([np.full(width, float(steps)), rows.sum(0), np.square(rows).sum(0)])
        return found

    def _held_out(self) -> Batch | None:
        """Windows of held-out episodes: few, and of no more than an eighth of the limit."""
        spec, shard = self.job.spec, self._shard
        observation = sum(math.prod(f.observed_shape) * np.dtype(f.dtype).itemsize for f in spec.observed.values())
        window = self._observed * observation + 4 * spec.horizon * spec.action_dim
        most = min(_VALIDATION_WINDOWS, self.job.in_memory_limit_mb * MEGABYTE / 8 / window)
        looked_at = set(sorted(self.job.validation)[: max(1, int(most))])
        chosen = [n for n, name in shard.held.items() if name in looked_at and shard.lengths[n] >= spec.horizon]
        found = {}
        for episode in shard.read(np.array(chosen, np.int64), self._features):
            # From the middle of equal parts, because first and last windows are not typical.
            table = self._cut([episode])
            number = min(len(table), math.ceil(most / len(looked_at)))
            middles = (torch.arange(number, dtype=torch.float64) + 0.5) * len(table) / number
            found[episode.id] = table.rows(middles.long())
        if not found:
            return None
        windows = [found[name] for name in sorted(found)]
        observations = {name: torch.cat([o[name] for o, _ in windows]) for name in spec.features}
        return observations, torch.cat([actions for _, actions in windows])


def _stream_bytes(limit: float) -> float:
    """The bytes of both buffers together: the limit without what reading takes beside them, which was measured as 80 MB
    and an eighth of the limit (``python -m benchmarks.streaming``), but at least half of it."""
    return max(limit / 2, limit * 7 / 8 - 80 * MEGABYTE)


def _read_features(card: DatasetCard, spec: SkillSpec) -> Features:
    """The features that are read: no image that the model does not observe."""
    return {n: f for n, f in stored_features(card.features).items() if not f.is_image or n in spec.features}


def update_generator(seed: int, update: int, rank: int) -> torch.Generator:
    """The random generator of one update of one worker, so that no generator state needs to be saved."""
    return torch.Generator().manual_seed(((seed * 1_000_003 + rank) * 1_000_000_007 + update) % 2**63)


def on_device(windows: Batch, device: torch.device) -> Batch:
    """The windows on the device."""
    observations, actions = windows
    return {name: sent(value, device) for name, value in observations.items()}, sent(actions, device)


def sent(values: Tensor, device: torch.device) -> Tensor:
    """The values on the device; a copy to a GPU is made from pinned memory, beside what the GPU computes."""
    return values.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else values.to(device)
