"""The format ``npz``: NumPy's archives of arrays, as OGBench, D4RL and many scripts write them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

from spirl_ray.datasets.formats.arrays import as_names, assemble, joined, joined_layout, keys_to_read, missing, per_row
from spirl_ray.datasets.formats.file_reader import FileReader
from spirl_ray.datasets.formats.flat_rows import (
    FLAGS,
    SUCCESSORS,
    FlatRows,
    array_named,
    observation_keys,
    reward_arrays,
)
from spirl_ray.datasets.formats.locations import RecordedFiles, recorded_files
from spirl_ray.datasets.formats.npz_members import NpzFile
from spirl_ray.datasets.sources import RecordingSettings, register_source
from spirl_ray.envs.spec import EnvironmentSpec
from spirl_ray.episodes.recording import NUMBERS, Recording, RecordingLayout, RecordingReader
from spirl_ray.settings import SettingPath

Layout = Literal["auto", "ogbench", "d4rl", "episodes"]
_ENDS = ("terminated", "truncated")


class NpzSettings(RecordingSettings):
    """The options of an entry ``{type: npz, path: …}``."""

    type: Literal["npz"] = "npz"
    path: SettingPath | tuple[SettingPath, ...]
    """A file, a folder of files, or a list of both; they are one source."""
    layout: Layout = "auto"
    """``ogbench`` and ``d4rl``: all episodes in flat rows. ``episodes``: one file an episode. ``auto``: by the names of
    the arrays in the first file."""


@dataclass(frozen=True)
class NpzReader(FileReader):
    """The reader of npz files, which has no more than the rows of one episode in memory."""

    layout_name: Layout = "auto"
    actions: tuple[str, ...] = ("actions",)
    """The arrays that are joined to the actions."""
    rewards: tuple[str, ...] | None = None
    """The arrays of rewards; None: ``rewards``, where there is one."""

    @cached_property
    def _reader(self) -> FlatRows | _EpisodeFiles:
        name = self.layout_name
        if name == "auto":
            with NpzFile(self.location.files[0]) as file:
                d4rl = {FLAGS[1], SUCCESSORS} & {array.partition("/")[0] for array in file.arrays}
                name = ("d4rl" if d4rl else "ogbench") if d4rl or FLAGS[0] in file.arrays else "episodes"
        if name == "episodes":
            return _EpisodeFiles(self.location, self.actions, self.rewards)
        return FlatRows(self.location, NpzFile, name == "ogbench", self.actions, self.rewards)

    def identity(self) -> dict[str, Any]:
        return self.location.identity(layout=self.layout_name, actions=self.actions, rewards=self.rewards)


@dataclass(frozen=True)
class _EpisodeFiles:
    """The reader of files that hold one episode each."""

    location: RecordedFiles
    actions: tuple[str, ...]
    rewards: tuple[str, ...] | None

    def layout(self) -> RecordingLayout:
        return self._layout

    @cached_property
    def _layout(self) -> RecordingLayout:
        with NpzFile(self.location.files[0]) as file:
            actions = [array_named(file.path, file.arrays, name) for name in self.actions]
            steps = (file.arrays[actions[0]].shape or (0,))[0]
            keys = {
                key: per_row(file.arrays[name])
                for key, name in self._keys(file).items()
                if file.arrays[name].shape[0] in (steps, steps + 1) and file.arrays[name].dtype.kind in NUMBERS
            }
            layout = joined_layout([per_row(file.arrays[name]) for name in actions])
            return RecordingLayout(keys, layout, rewards=bool(reward_arrays(file, self.rewards)))

    def chunks(self) -> list[tuple[int, ...]]:
        return [(index,) for index in range(len(self.location.files))]

    def read(self, chunk: Sequence[int], keys: Sequence[str]) -> Iterator[Recording]:
        for index in chunk:
            path = self.location.files[index]
            name = self.location.name(path)
            with NpzFile(path) as file:
                there = self._keys(file)
                for key in keys:
                    if key not in there:
                        raise missing(f"{path}: episode {name}", key, there)
                layouts = {key: file.arrays[name] for key, name in there.items() if key in self._layout.observations}
                rewards = reward_arrays(file, self.rewards)
                actions = [array_named(path, file.arrays, action) for action in self.actions]
                ended, cut = (file.values(end) if end in file.arrays else None for end in _ENDS)
                yield assemble(
                    f"{path}: episode {name}",
                    name,
                    {key: file.values(there[key]) for key in keys_to_read(keys, layouts)},
                    joined([file.values(action) for action in actions]),
                    joined([file.values(reward) for reward in rewards]) if rewards else None,
                    ended,
                    cut,
                    keys=keys,
                )

    def _keys(self, file: NpzFile) -> dict[str, str]:
        own = [array_named(file.path, file.arrays, name) for name in self.actions]
        return observation_keys(file.path, file.arrays, [*own, *reward_arrays(file, self.rewards), *_ENDS, "rewards"])


def make(settings: NpzSettings, spec: EnvironmentSpec | None) -> RecordingReader:
    """Makes the reader of an entry of type ``npz``."""
    return NpzReader(
        recorded_files("npz", settings.path, (".npz",)),
        settings.layout,
        as_names(settings.columns.get("action"), ("actions",)),
        as_names(settings.columns.get("reward")) or None,
    )


register_source("npz", NpzSettings, make)
