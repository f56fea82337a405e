"""A source of episodes: walks that this package draws itself, as many as ``walks`` says."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from spirl_plugin.reach import Reach, walk
from spirl_ray.config import Settings
from spirl_ray.datasets.sources import Chunk, Description, Identity, SourceKind
from spirl_ray.envs.spec import EnvironmentSpec
from spirl_ray.episodes.episode import Episode


class WalkSettings(Settings):
    """The options of ``type: walks``."""

    walks: int
    """The number of walks."""


@dataclass(frozen=True)
class Walks:
    """The source of walks to the target."""

    number: int
    attempts = 0

    def chunks(self) -> list[Chunk]:
        return [(index,) for index in range(self.number)]

    def read(self, chunk: Chunk) -> Iterator[Episode]:
        env = Reach()
        for index in chunk:
            yield walk(env, index, f"walk-{index:05d}")

    def description(self) -> Description:
        return Description(f"walks:{self.number}", "Apache-2.0", "spirl-plugin")

    def identity(self) -> Identity:
        return Identity("walks", {"number": self.number})


def make(options: WalkSettings, spec: EnvironmentSpec | None) -> Walks:
    return Walks(options.walks)


KIND = SourceKind(WalkSettings, make)
