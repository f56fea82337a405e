"""The base of the readers of files: the files say which layout they have, and each layout has a reader."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol

from spirl_ray.datasets.formats.locations import RecordedFiles
from spirl_ray.episodes.recording import Recording, RecordingLayout


class LayoutReader(Protocol):
    """The part of `RecordingReader` that depends on how episodes lie in files."""

    def layout(self) -> RecordingLayout: ...

    def chunks(self) -> list[tuple[int, ...]]: ...

    def read(self, chunk: Sequence[int], keys: Sequence[str]) -> Iterator[Recording]: ...


@dataclass(frozen=True)
class FileReader(ABC):
    """A `RecordingReader` of files that do not say whose they are."""

    location: RecordedFiles

    @cached_property
    @abstractmethod
    def _reader(self) -> LayoutReader:
        """The reader of the layout that the files have, which is found when it is first needed."""

    def layout(self) -> RecordingLayout:
        """Looks at the first file."""
        return self._reader.layout()

    def chunks(self) -> list[tuple[int, ...]]:
        """Every episode by itself. Where a file holds several, this reads what says where each ends."""
        return self._reader.chunks()

    def read(self, chunk: Sequence[int], keys: Sequence[str]) -> Iterator[Recording]:
        """Reads episodes; see `RecordingReader.read`."""
        return self._reader.read(chunk, keys)

    def origin(self) -> str:
        return self.location.origin()

    def licence(self) -> str:
        return "unknown"

    def attribution(self) -> str:
        return "unknown"

    @abstractmethod
    def identity(self) -> dict[str, Any]:
        """Plain data that change whenever a file changes, or how it is read."""
