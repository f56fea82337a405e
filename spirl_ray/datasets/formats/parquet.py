"""The format ``parquet``: tables with one row a step or one row an episode, in Parquet, Arrow or Feather files."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from functools import cached_property
from typing import Any, Literal

from spirl_ray.datasets.formats.arrays import as_names
from spirl_ray.datasets.formats.file_reader import FileReader
from spirl_ray.datasets.formats.locations import recorded_files
from spirl_ray.datasets.formats.table_columns import Roles
from spirl_ray.datasets.formats.table_rows import EpisodeRows, StepRows
from spirl_ray.datasets.formats.tables import SUFFIXES
from spirl_ray.datasets.sources import RecordingSettings, register_source
from spirl_ray.envs.spec import EnvironmentSpec
from spirl_ray.episodes.recording import RecordingReader
from spirl_ray.errors import SpirlError
from spirl_ray.settings import SettingPath


class ParquetSettings(RecordingSettings):
    """The options of an entry ``{type: parquet, path: …, rows: …}``."""

    type: Literal["parquet"] = "parquet"
    path: SettingPath | tuple[SettingPath, ...]
    """A Parquet, Arrow or Feather file, a folder of them, or a list of both; they are one source."""
    rows: Literal["step", "episode"]
    """What a row is: one step, or an episode with lists in its columns."""
    episode: str | None = None
    """The column that names the episode. None: with one row a step, a file is an episode; with one row an episode, the
    name is made of the file and the row."""
    step: str | None = None
    """The column by which the steps of an episode are sorted; None: they are in order."""
    terminated: str | None = None
    """The column that is true where the task ended the episode; None: ``terminated``, where there is one."""
    truncated: str | None = None
    """The column that is true where a time limit ended it; None: ``truncated``, where there is one."""


@dataclass(frozen=True)
class ParquetReader(FileReader):
    """The reader of tables.

    The layout comes from the columns of the first file and its first row, because lists have no length in the schema.
    The row groups of an episode are in memory at once, with the columns that were asked for; ascending indices read
    each group once.
    """

    rows: Literal["step", "episode"]
    roles: Roles = field(default_factory=Roles)

    @cached_property
    def _reader(self) -> StepRows | EpisodeRows:
        return (StepRows if self.rows == "step" else EpisodeRows)(self.location, self.roles)

    def identity(self) -> dict[str, Any]:
        return self.location.identity(rows=self.rows, columns=asdict(self.roles))


def make(settings: ParquetSettings, spec: EnvironmentSpec | None) -> RecordingReader:
    """Makes the reader of an entry of type ``parquet``.

    Raises:
        SpirlError: a step column is named where a row is an episode.
    """
    if settings.rows == "episode" and settings.step is not None:
        raise SpirlError(
            f"parquet: step is {settings.step!r}, but where a row is an episode there are no steps to sort."
        )
    roles = Roles(
        as_names(settings.columns.get("action")),
        as_names(settings.columns.get("reward")),
        settings.episode,
        settings.step,
        settings.terminated,
        settings.truncated,
    )
    return ParquetReader(recorded_files("parquet", settings.path, SUFFIXES), settings.rows, roles)


register_source("parquet", ParquetSettings, make)
