"""Several sources in one dataset."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Iterator
from dataclasses import dataclass, fields

from spirl_ray.datasets.sources import Chunk, Description, EpisodeSource, Identity
from spirl_ray.episodes.episode import Episode


@dataclass(frozen=True)
class JoinedSource:
    """The source of the episodes of several sources, one source after the other."""

    parts: tuple[EpisodeSource, ...]

    def chunks(self) -> list[Chunk]:
        return [
            tuple(first + index for index in chunk)
            for first, part in zip(self._firsts, self.parts, strict=True)
            for chunk in part.chunks()
        ]

    def read(self, chunk: Chunk) -> Iterator[Episode]:
        for first, end, part in zip(self._firsts, [*self._firsts[1:], sys.maxsize], self.parts, strict=True):
            if own := tuple(index - first for index in chunk if first <= index < end):
                yield from part.read(own)

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
