"""The summary of a dataset in numbers."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from spirl_ray.episodes.dataset import DatasetCard, read_card, read_episodes
from spirl_ray.episodes.episode import Tries
from spirl_ray.episodes.features import Array, stored_features
from spirl_ray.errors import SpirlError

SATURATION = 0.99
"""The magnitude from which an action entry counts as saturated."""

Vector = npt.NDArray[np.float64]
Key = TypeVar("Key", str, tuple[str, ...])


@dataclass(frozen=True, eq=False)
class Spread:
    """The minimum, maximum, mean and (population) standard deviation of each entry, float64 [*shape]."""

    minimum: Vector
    maximum: Vector
    mean: Vector
    std: Vector


@dataclass(frozen=True, eq=False)
class DatasetSummary:
    """The summary of one dataset, made by `summarize`."""

    card: DatasetCard
    episodes: int
    steps: int
    length_min: int
    length_mean: float
    length_max: int
    terminated: int
    """The number of episodes that the task ended."""
    truncated: int
    """The number of episodes that a limit or the recording ended."""
    subtasks: dict[str, int]
    """The number of episodes in which each subtask was completed, most frequent first (from
    ``metadata["completed"]``)."""
    orders: dict[tuple[str, ...], int]
    """The number of episodes for each order of completion, most frequent first; without those that do not record it."""
    expert: dict[str, tuple[int, int]]
    """The number of times that a scripted expert solved a subtask and that it tried, failed attempts included; by
    name."""
    reward_rises: dict[int, int]
    """The number of episodes for each number of steps at which the reward rose to a positive value.

    The reward rises once for each completed subtask or reached goal, both where the source pays once for it and where
    it continues to pay.
    """
    observations: dict[str, Spread]
    """The spread of each stored feature that is not an image, by name."""
    actions: Spread
    saturated: Vector
    """The share of each action dimension's entries with a magnitude ≥ 0.99, float64 [A]."""


class _Moments:
    """Running moments of rows that do not fit in memory together (Chan et al. 1979 for the variance)."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        self.count = 0
        self.minimum = np.full(shape, np.inf)
        self.maximum = np.full(shape, -np.inf)
        self.mean = np.zeros(shape)
        self.squares = np.zeros(shape)

    def add(self, rows: Array) -> None:
        values = rows.astype(np.float64)
        mean = values.mean(axis=0)
        total = self.count + len(values)
        shift = mean - self.mean
        self.squares += ((values - mean) ** 2).sum(axis=0) + shift**2 * self.count * len(values) / total
        self.mean += shift * len(values) / total
        self.count = total
        self.minimum = np.minimum(self.minimum, values.min(axis=0))
        self.maximum = np.maximum(self.maximum, values.max(axis=0))

    def spread(self) -> Spread:
        return Spread(self.minimum, self.maximum, self.mean, np.sqrt(self.squares / self.count))


def summarize(path: str | Path, tries: Tries | None = None) -> DatasetSummary:
    """Summarizes the dataset in the folder ``path``, reading every episode once.

    Args:
        path: folder of the dataset.
        tries: function that finds an expert's tries; without it, there are none.

    Raises:
        SpirlError: the dataset cannot be read or holds no step.
    """
    card = read_card(path)
    numbers = {n: _Moments(f.shape) for n, f in stored_features(card.features).items() if not f.is_image}
    actions = _Moments((card.action_dim,))
    saturated = np.zeros(card.action_dim)
    lengths: list[int] = []
    subtasks: Counter[str] = Counter()
    orders: Counter[tuple[str, ...]] = Counter()
    tried: Counter[str] = Counter()
    solved: Counter[str] = Counter()
    rises: Counter[int] = Counter()
    terminated = truncated = 0
    for episode in read_episodes(path):
        if not episode.length:
            continue  # validation reports it
        lengths.append(episode.length)
        for name, moments in numbers.items():
            moments.add(episode.observations[name])
        actions.add(episode.actions)
        saturated += (np.abs(episode.actions) >= SATURATION).sum(axis=0)
        terminated += episode.terminated
        truncated += episode.truncated
        rose = np.diff(episode.rewards, prepend=np.float32(0)) > 0
        rises[int(np.sum(rose & (episode.rewards > 0)))] += 1
        if "completed" in episode.metadata:
            order = tuple(str(subtask) for subtask in episode.metadata["completed"])
            orders[order] += 1
            subtasks.update(set(order))
        for task, succeeded in () if tries is None else tries(episode.metadata):
            tried[task] += 1
            solved[task] += succeeded
    if not lengths:
        raise SpirlError(f"{Path(path).absolute()}: the dataset holds no step; import it again")
    return DatasetSummary(
        card=card,
        episodes=len(lengths),
        steps=sum(lengths),
        length_min=min(lengths),
        length_mean=float(np.mean(lengths)),
        length_max=max(lengths),
        terminated=terminated,
        truncated=truncated,
        subtasks=_ranked(subtasks),
        orders=_ranked(orders),
        expert={task: (solved[task], tried[task]) for task in sorted(tried)},
        reward_rises=dict(sorted(rises.items())),
        observations={name: moments.spread() for name, moments in numbers.items()},
        actions=actions.spread(),
        saturated=saturated / actions.count,
    )


def _ranked(counts: Counter[Key]) -> dict[Key, int]:
    """Sorts counts, most frequent first, then by name, so that equal datasets have equal summaries."""
    return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))
