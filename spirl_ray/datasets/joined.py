"""Several sources in one dataset."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Iterator
from dataclasses import dataclass, fields, replace

from spirl_ray.datasets.sources import Chunk, Description, EpisodeSource, Identity
from spirl_ray.episodes.episode import Episode
from spirl_ray.errors import SpirlError


@dataclass(frozen=True)
class JoinedSource:
    """The source of the episodes of several sources, one source after the other.

    Recordings often have ids such as ``episode_000000``, so where several parts are recorded, their ids begin with the
    number of the part.

    Raises:
        SpirlError: two parts have the same episodes.
    """

    parts: tuple[EpisodeSource, ...]

    def __post_init__(self) -> None:
        identities = [part.identity().settings for part in self.parts]
        for number, identity in enumerate(identities):
            if (first := identities.index(identity)) < number:
                raise SpirlError(f"data.sources.{number} is the same data as data.sources.{first}; name it once.")

    def chunks(self) -> list[Chunk]:
        return [
            tuple(first + index for index in chunk)
            for first, part in zip(self._firsts, self.parts, strict=True)
            for chunk in part.chunks()
        ]

    def read(self, chunk: Chunk) -> Iterator[Episode]:
        ends = [*self._firsts[1:], sys.maxsize]
        numbered = sum(not part.attempts for part in self.parts) > 1
        for number, (first, end, part) in enumerate(zip(self._firsts, ends, self.parts, strict=True)):
            if own := tuple(index - first for index in chunk if first <= index < end):
                for episode in part.read(own):
                    yield replace(episode, id=f"{number}-{episode.id}") if numbered and not part.attempts else episode

    def description(self) -> Description:
        parts = [part.description() for part in self.parts]
        return Description(*(" + ".join(getattr(part, fact.name) for part in parts) for fact in fields(Description)))

    def identity(self) -> Identity:
        parts = [part.identity() for part in self.parts]
        return Identity("-".join(part.name for part in parts), {"joined": [part.settings for part in parts]})

    @property
    def attempts(self) -> int:
        return sum(part.attempts for part in self.parts)

    @property
    def _firsts(self) -> list[int]:
        """The index of each part's first episode."""
        counts = [sum(map(len, part.chunks())) for part in self.parts[:-1]]
        return list(itertools.accumulate(counts, initial=0))
