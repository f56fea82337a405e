"""Data of episodes that a function makes, for tests of the import."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from opened import given
from ray import cloudpickle

from spirl_ray.datasets.opened import OpenedData
from spirl_ray.datasets.sources import Chunk, Description, Identity
from spirl_ray.envs.spec import EnvironmentSpec
from spirl_ray.episodes.dataset import read_episodes
from spirl_ray.episodes.episode import Episode
from spirl_ray.episodes.features import Feature

# Ray's workers cannot import this file.
cloudpickle.register_pickle_by_value(sys.modules[__name__])


FEATURES = {"place": Feature(shape=(2,)), "camera": Feature(shape=(3, 4, 3), role="image")}
ACTION_DIM = 2


def good(index: int) -> Episode:
    rng = np.random.default_rng(index)
    length = 3 + index % 4
    return Episode(
        id=f"e{index:03d}",
        observations={
            "place": rng.normal(size=(length + 1, 2)).astype(np.float32),
            "camera": rng.integers(0, 256, (length + 1, 3, 4, 3), dtype=np.uint8),
        },
        actions=rng.uniform(-1, 1, (length, ACTION_DIM)).astype(np.float32),
        rewards=np.zeros(length, np.float32),
        terminated=True,
        truncated=False,
        metadata={"index": index},
    )


def with_nan(index: int) -> Episode:
    episode = good(index)
    episode.observations["place"][1, 0] = np.nan
    return episode


@dataclass(frozen=True)
class MadeSource:
    """Episodes made by a function of the index."""

    count: int
    make: Callable[[int], Episode | None] = good
    name: str = "made"

    def chunks(self) -> list[Chunk]:
        return [(index,) for index in range(self.count)]

    def read(self, chunk: Chunk) -> Iterator[Episode]:
        for index in chunk:
            episode = self.make(index)
            if episode is not None:
                yield episode

    def description(self) -> Description:
        return Description(self.name, "none", "nobody")

    def identity(self) -> Identity:
        return Identity(self.name, {"count": self.count})

    @property
    def attempts(self) -> int:
        return 0


def some_bad(index: int) -> Episode:
    return with_nan(index) if index in (2, 5) else good(index)


SPEC = EnvironmentSpec(id="spirl/Test-v0", features=FEATURES, action_dim=ACTION_DIM, max_episode_steps=9)


def made(count: int, make: Callable[[int], Episode | None] = good) -> OpenedData:
    return given(MadeSource(count, make), SPEC)


def load_all(folder: Path) -> dict[str, Episode]:
    return {episode.id: episode for episode in read_episodes(folder)}
