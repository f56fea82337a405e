"""Sources of episodes: the interface of a source, and the table of those that ``data.source`` can name.

Another package adds a source by ``register_source``, or by an entry point of the group ``spirl_ray.sources``
whose name is what ``data.source`` says, and whose object is a `MakeSource`. Options of its own come from
``data.options``::

    # my_package/tapes.py
    def make(data: DataSettings, env_id: str) -> EpisodeSource:
        return Tapes(Path(data.options["folder"]))

    # pyproject.toml
    [project.entry-points."spirl_ray.sources"]
    tapes = "my_package.tapes:make"
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

from pydantic import Field

from spirl_ray.config import DataSettings, Settings
from spirl_ray.episodes.episode import Episode
from spirl_ray.errors import SpirlError
from spirl_ray.registry import Registry

Chunk = tuple[int, ...]
"""The indices of episodes within a source. Chunks may be joined, because reading depends on the indices alone."""


@dataclass(frozen=True)
class Description:
    """The description of a source, which a dataset's card repeats."""

    source: str
    licence: str
    attribution: str


@dataclass(frozen=True)
class Identity:
    """The identity of a source: two sources of equal identity have the same episodes."""

    name: str
    """A short name for people, part of the name of the dataset's folder."""
    settings: dict[str, Any]
    """Plain data (JSON) that determine the episodes, without the place of the data; hashed into the name of the
    folder."""


class EpisodeSource(Protocol):
    """The interface of a source: episodes by index, picklable, and read in any number of processes with the same
    result."""

    def chunks(self) -> list[Chunk]:
        """Returns every episode's index once, in the order of the dataset: 0, 1, 2, …"""

    def read(self, chunk: Chunk) -> Iterator[Episode]:
        """Reads the episodes with these indices, in order; an index may have none (an expert that failed)."""

    def description(self) -> Description:
        """The description for the dataset's card."""

    def identity(self) -> Identity:
        """The identity of the episodes, which is known without reading any."""

    @property
    def attempts(self) -> int:
        """The number of indices that are attempts of an expert, which may give up; 0 for recorded data."""


class RecordingSettings(Settings):
    """The options that the entries of ``data.sources`` of all recorded formats have in common."""

    columns: dict[str, str | tuple[str, ...]] = Field(default_factory=dict)
    """The recorded key of a feature, where it has another name there; several keys are joined to one vector. ``action``
    and ``reward`` can be named as well."""


MakeSource = Callable[[DataSettings, str], EpisodeSource]
"""A function from the data settings and the environment's id to the source; it raises SpirlError where they do not
fit."""
SOURCES: Registry[MakeSource] = Registry(
    "data source",
    modules=tuple(f"spirl_ray.datasets.{name}" for name in ("generated", "minari", "joined", "folder")),
    group="spirl_ray.sources",
)


def register_source(name: str, make: MakeSource, *, replace: bool = False) -> None:
    """Adds a source of episodes to this process.

    Args:
        name: the value of ``data.source``.
        make: function that makes it from the data settings and the environment's id.
        replace: True to replace a source that has this name already.

    Raises:
        SpirlError: another source has the name.
    """
    SOURCES.register(name, make, replace=replace)


def episode_source(data: DataSettings, env_id: str) -> EpisodeSource:
    """Makes the source that the data settings name.

    Raises:
        SpirlError: nobody has registered it, or the settings do not fit it.
    """
    return SOURCES[data.source](data, env_id)


def refuse_options(data: DataSettings) -> None:
    """Raises `SpirlError` if there are ``data.options``, which the package's own sources do not have."""
    if data.options:
        raise SpirlError(f"data.options: {', '.join(data.options)}: data.source {data.source!r} takes no such options.")
