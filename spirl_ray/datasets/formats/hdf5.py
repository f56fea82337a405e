"""The format ``hdf5``: files of D4RL and of robomimic."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

from spirl_ray.datasets.formats.arrays import as_names
from spirl_ray.datasets.formats.file_reader import FileReader
from spirl_ray.datasets.formats.flat_rows import FlatRows
from spirl_ray.datasets.formats.hdf5_file import Hdf5File
from spirl_ray.datasets.formats.locations import recorded_files
from spirl_ray.datasets.formats.robomimic import DATA, RobomimicFiles
from spirl_ray.datasets.sources import RecordingSettings, register_source
from spirl_ray.envs.spec import EnvironmentSpec
from spirl_ray.episodes.recording import RecordingReader
from spirl_ray.errors import SpirlError
from spirl_ray.settings import SettingPath

Layout = Literal["auto", "d4rl", "robomimic"]


class Hdf5Settings(RecordingSettings):
    """The options of an entry ``{type: hdf5, path: …}``."""

    type: Literal["hdf5"] = "hdf5"
    path: SettingPath | tuple[SettingPath, ...]
    """A file, a folder of files, or a list of both; they are one source."""
    layout: Layout = "auto"
    """``d4rl``: all episodes in flat rows. ``robomimic``: a group for each demonstration. ``auto``: robomimic where the
    first file has a group ``data``."""
    filter: str | None = None
    """The name of a robomimic mask, such as ``train``; only its demonstrations are read."""


@dataclass(frozen=True)
class Hdf5Reader(FileReader):
    """The reader of HDF5 files, which give any rows without those before them."""

    layout_name: Layout = "auto"
    filter: str | None = None
    actions: tuple[str, ...] = ("actions",)
    """The datasets that are joined to the actions."""
    rewards: tuple[str, ...] | None = None
    """The datasets of rewards; None: ``rewards``, where there is one."""

    @cached_property
    def _reader(self) -> FlatRows | RobomimicFiles:
        name, first = self.layout_name, self.location.files[0]
        if name == "auto":
            with Hdf5File(first) as file:
                name = "d4rl" if file.names(DATA) is None else "robomimic"
        if name == "robomimic":
            return RobomimicFiles(self.location, self.filter, self.actions, self.rewards)
        if self.filter is not None:
            raise SpirlError(f"{first}: filter is {self.filter!r}, but only robomimic files have filters.")
        return FlatRows(self.location, Hdf5File, False, self.actions, self.rewards)

    def identity(self) -> dict[str, Any]:
        options = {"layout": self.layout_name, "filter": self.filter, "actions": self.actions, "rewards": self.rewards}
        return self.location.identity(**options)


def make(settings: Hdf5Settings, spec: EnvironmentSpec | None) -> RecordingReader:
    """Makes the reader of an entry of type ``hdf5``."""
    return Hdf5Reader(
        recorded_files("hdf5", settings.path, (".hdf5", ".h5")),
        settings.layout,
        settings.filter,
        as_names(settings.columns.get("action"), ("actions",)),
        as_names(settings.columns.get("reward")) or None,
    )


register_source("hdf5", Hdf5Settings, make)
