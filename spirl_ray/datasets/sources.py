"""Sources of episodes: the interface of a source, and the table of those that ``data.sources`` can name.

A kind of source has a model of its options, and a function that makes a source of them: either an `EpisodeSource`,
whose episodes have the features of the environment, or a `RecordingReader`, whose recordings
`spirl_ray.datasets.mapping` maps to episodes. Another package adds a kind by ``register_source``, or by an entry point
of the group ``spirl_ray.sources`` whose name is what ``type`` says, and whose object is a `SourceKind`::

    # my_package/tapes.py
    class TapeOptions(RecordingSettings):
        folder: Path

    def make(options: TapeOptions, spec: EnvironmentSpec | None) -> Tapes: ...

    KIND = SourceKind(TapeOptions, make)

    # pyproject.toml
    [project.entry-points."spirl_ray.sources"]
    tapes = "my_package.tapes:KIND"

A config chooses it with ``data: {sources: [{type: tapes, folder: /data/tapes}]}``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

from pydantic import Field

from spirl_ray.config import Settings, SourceSettings
from spirl_ray.config_file import validated
from spirl_ray.envs.spec import EnvironmentSpec
from spirl_ray.episodes.episode import Episode
from spirl_ray.episodes.recording import RecordingReader
from spirl_ray.errors import SpirlError
from spirl_ray.registry import Registry

NOT_FEATURES = ("action", "reward")
"""The names in ``columns`` that are no features."""
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


@runtime_checkable
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

    def refuse_renamed(self, where: str, why: str) -> None:
        """Raises `SpirlError` where ``columns`` names actions or rewards, for a format in which they have one name."""
        if renamed := sorted(set(NOT_FEATURES) & set(self.columns)):
            raise SpirlError(f"{where}: columns: {renamed[0]} {why}.")


@dataclass(frozen=True)
class SourceKind:
    """A kind of source."""

    settings: type[Settings]
    """The model of its options: what an entry of ``data.sources`` holds besides ``type``."""
    make: Callable[[Any, EnvironmentSpec | None], EpisodeSource | RecordingReader]
    """A function from the options and the environment (None: there is none) to the source; it raises `SpirlError` where
    they do not fit, and does not read data."""


_FORMATS = ("hdf5", "lerobot", "minari", "npz", "parquet", "python")
_MODULES = ("generated", "folder", *(f"formats.{name}" for name in _FORMATS))
SOURCES: Registry[SourceKind] = Registry(
    "data source",
    modules=tuple(f"spirl_ray.datasets.{name}" for name in _MODULES),
    group="spirl_ray.sources",
)


def register_source(
    name: str,
    settings: type[Settings],
    make: Callable[[Any, EnvironmentSpec | None], EpisodeSource | RecordingReader],
    *,
    replace: bool = False,
) -> None:
    """Adds a kind of source to this process.

    Args:
        name: the ``type`` of an entry of ``data.sources``.
        settings: model of the options of an entry.
        make: function that makes the source from its options and the environment.
        replace: True to replace a kind that has this name already.

    Raises:
        SpirlError: another kind has the name.
    """
    SOURCES.register(name, SourceKind(settings, make), replace=replace)


def source_options(source: SourceSettings, place: int) -> Settings:
    """The options of an entry of ``data.sources``, checked by the model of its kind.

    Raises:
        SpirlError: nobody has registered the kind, or an option is unknown, missing or wrong.
    """
    kind = SOURCES[source.type]
    return validated(kind.settings, source.model_extra or {}, f"data.sources.{place} ({source.type})")


def make_sources(
    sources: Sequence[SourceSettings], spec: EnvironmentSpec | None
) -> list[tuple[EpisodeSource | RecordingReader, Settings]]:
    """Makes the sources that the settings name, each with its options.

    Raises:
        SpirlError: there is none, or one of them is unknown or does not fit.
    """
    if not sources:
        raise SpirlError(
            "data.sources names no source. Write, for example, data: {sources: [{type: minari, "
            "id: D4RL/kitchen/complete-v2}]}."
        )
    made = []
    for place, source in enumerate(sources):
        options = source_options(source, place)
        made.append((SOURCES[source.type].make(options, spec), options))
    return made
