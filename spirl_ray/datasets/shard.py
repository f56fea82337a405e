"""A training worker's share of a dataset: which episodes its files hold, and the order in which a stream reads them."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import groupby

import numpy as np
import torch
from numpy.typing import NDArray

from spirl_ray.datasets.windows import Batch, WindowTable
from spirl_ray.episodes.dataset import DatasetCard, group_sizes, read_tables
from spirl_ray.episodes.episode import Episode
from spirl_ray.episodes.features import Features
from spirl_ray.episodes.table import schema, table_to_episodes

Numbers = NDArray[np.int64]


@dataclass(frozen=True)
class Shard:
    """The episodes of some files of a dataset, numbered in the order of the files; a few bytes for each in memory."""

    card: DatasetCard
    files: Sequence[str]
    groups: Sequence[tuple[str, int]]
    """The file and the number in it of each row group."""
    group: Numbers
    """The row group of each episode."""
    lengths: Numbers
    """The number of actions of each episode."""
    held: Mapping[int, str]
    """The id of each episode that is held out, by its number."""

    @classmethod
    def of(cls, card: DatasetCard, files: Sequence[str], held: Collection[str]) -> Shard:
        """Looks at files, of which it reads no more than names and lengths.

        Raises:
            SpirlError: a file is missing or damaged.
        """
        groups: list[tuple[str, int]] = []
        out: dict[int, str] = {}
        group, lengths = [np.zeros(0, np.int64)], [np.zeros(0, np.int64)]
        known = 0
        for file in files:
            for number, size in enumerate(group_sizes(file, card)):
                group.append(np.full(size, len(groups)))
                groups.append((file, number))
            for table in read_tables(file, card, ["episode_id", "length"]):
                ids = enumerate(table["episode_id"].to_pylist(), known)
                out.update({place: identifier for place, identifier in ids if identifier in held})
                lengths.append(table["length"].to_numpy().astype(np.int64))
                known += len(table)
        return cls(card, files, groups, np.concatenate(group), np.concatenate(lengths), out)

    @cached_property
    def training(self) -> Numbers:
        """The episodes that are not held out."""
        kept = np.ones(len(self.lengths), np.bool_)
        kept[list(self.held)] = False
        return np.flatnonzero(kept)

    def read(self, episodes: Numbers, features: Features, *, copy: bool = False) -> Iterator[Episode]:
        """Reads episodes by number, with these features alone, in the order of the files.

        Row groups that have none of them are not read.

        Args:
            episodes: their numbers.
            features: the features that are read.
            copy: False gives arrays that cannot be written to, and an episode that is kept keeps those that were read
                with it in memory.

        Raises:
            SpirlError: a file is missing or damaged.
        """
        wanted, width = set(episodes.tolist()), self.card.action_dim
        groups = np.unique(self.group[episodes]).tolist()
        columns = schema(features, width).names
        for file, members in groupby(groups, key=lambda group: self.groups[group][0]):
            of_file = list(members)
            numbers = iter(np.flatnonzero(np.isin(self.group, of_file)).tolist())
            for table in read_tables(file, self.card, columns, groups=[self.groups[group][1] for group in of_file]):
                found = table_to_episodes(table, features, width, where=file, copy=copy)
                del table
                for episode in found:
                    if next(numbers, None) in wanted:
                        yield episode
                del found, episode  # the table must not be in memory with the next one


@dataclass(frozen=True)
class Buffer:
    """Episodes that are in memory together, whose windows are shuffled."""

    episodes: Numbers
    steps: int
    batches: int
    """The number of batches that their windows make; the rest of the last one is topped up."""
    seed: int
    """The seed of the order of the windows."""
    skip: int = 0
    """The number of batches that have been drawn already."""


@dataclass(frozen=True)
class Passes:
    """The order in which a stream goes through a shard, pass after pass.

    A pass shuffles the row groups of all files, and puts episodes into buffers in that order. So a buffer mixes windows
    of row groups from anywhere in the shard, and every window comes once a pass. The order follows from the seed alone,
    so a stream can begin at any batch and continue as an unbroken one does.
    """

    shard: Shard
    horizon: int
    batch_size: int
    step_bytes: float
    """The memory of one step."""
    buffer_bytes: float
    """The memory of a buffer at most; an episode that is larger has a buffer to itself."""
    seed: int
    episodes: Numbers = field(init=False)
    """The episodes that are long enough, and not held out."""

    def __post_init__(self) -> None:
        training = self.shard.training
        object.__setattr__(self, "episodes", training[self.shard.lengths[training] >= self.horizon])

    @cached_property
    def _buffer_steps(self) -> float:
        """The number of steps of a buffer at most: fewer than fit where that makes the buffers of a pass alike."""
        lengths = self.shard.lengths[self.episodes]
        total, largest, most = lengths.sum(), lengths.max(), self.buffer_bytes / self.step_bytes
        count = np.ceil(total / max(most - largest, largest))
        return float(min(most, total / count + largest))

    def buffers(self, number: int) -> list[Buffer]:
        """The buffers of a pass in their order."""
        rng = np.random.default_rng([self.seed % 2**64, number])
        place = np.empty(len(self.shard.groups), np.int64)
        place[rng.permutation(len(place))] = np.arange(len(place))
        order = self.episodes[np.argsort(place[self.shard.group[self.episodes]], kind="stable")]
        lengths = self.shard.lengths[order]
        ends = np.cumsum(lengths)
        found: list[Buffer] = []
        first = 0
        while first < len(order):
            before = ends[first] - lengths[first]
            last = max(first + 1, int(np.searchsorted(ends, before + self._buffer_steps, side="right")))
            windows = int((lengths[first:last] - self.horizon + 1).sum())
            batches = -(-windows // self.batch_size)
            steps = int(ends[last - 1] - before)
            found.append(Buffer(order[first:last], steps, batches, int(rng.integers(2**62))))
            first = last
        return found

    def after(self, batches: int) -> Iterator[Buffer]:
        """The buffers that follow on a number of batches, without end; none where no episode is long enough."""
        number = 0
        while len(self.episodes):
            for buffer in self.buffers(number):
                if batches < buffer.batches:
                    yield replace(buffer, skip=batches)
                batches = max(0, batches - buffer.batches)
            number += 1


def shuffled(tables: Iterable[tuple[WindowTable, Buffer]], batch_size: int) -> Iterator[Batch]:
    """The batches of buffers; a buffer's windows are forgotten before the next ones are asked for."""
    for table, buffer in tables:
        yield from table.shuffled(batch_size, torch.Generator().manual_seed(buffer.seed), skip=buffer.skip)
        del table
