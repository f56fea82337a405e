"""The readers of tables with one row a step, and with one row an episode."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import groupby
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from spirl_ray.datasets.formats.arrays import (
    assemble,
    errors_at,
    joined,
    joined_layout,
    missing,
    vectors,
    without_last_action,
)
from spirl_ray.datasets.formats.locations import RecordedFiles
from spirl_ray.datasets.formats.table_columns import Columns, Roles
from spirl_ray.datasets.formats.tables import TableFile, column_values, is_list
from spirl_ray.episodes.recording import KeyLayout, Recording, RecordingLayout, Values
from spirl_ray.errors import SpirlError


class _StepEpisode(NamedTuple):
    """The place of an episode whose steps are rows."""

    file: int
    name: str
    runs: tuple[tuple[int, int], ...]
    """The first row of each run of rows, and the one after its last."""


class _Window:
    """Rows of an open file; it keeps the groups of rows that the last episode needed."""

    def __init__(self, file: TableFile, columns: Sequence[str]) -> None:
        self.file, self.columns = file, list(dict.fromkeys(columns))
        self._starts = np.cumsum([0, *file.sizes()])
        self._groups: dict[int, pa.Table] = {}

    def rows(self, runs: Sequence[tuple[int, int]], where: str) -> pa.Table:
        """Reads runs of rows, in this order; ``where`` is the file and the episode, for errors."""
        pieces: list[pa.Table] = []
        used: dict[int, pa.Table] = {}
        for first, last in runs:
            group = int(np.searchsorted(self._starts, first, side="right")) - 1
            while group < len(self._starts) - 1 and self._starts[group] < last:
                if group not in used:
                    kept = self._groups.get(group)
                    used[group] = self._read(group, where) if kept is None else kept
                start = int(self._starts[group])
                offset = max(first - start, 0)
                pieces.append(used[group].slice(offset, last - start - offset))
                group += 1
        self._groups = used
        return pa.concat_tables(pieces)

    def _read(self, group: int, where: str) -> pa.Table:
        with errors_at(where, self.file.path):
            return self.file.group(group, self.columns)


def _asked(columns: Columns, keys: Sequence[str], where: str) -> tuple[str, ...]:
    """The columns to read for these keys."""
    for key in keys:
        if key not in columns.observations:
            raise missing(where, key, columns.observations)
    flags = [name for name in (columns.step, columns.terminated, columns.truncated) if name is not None]
    return (*keys, *columns.actions, *columns.rewards, *flags)


@dataclass(frozen=True)
class StepRows:
    """The reader of tables with one row a step: the observation, and the action that follows it.

    Nobody knows what followed the last action of an episode, so it is left out, and its reward is added to the one
    before, unless every key that is read also has a column of next values (``next.KEY`` or ``next_KEY``). The action
    and its reward may be null where the action is left out.
    """

    location: RecordedFiles
    roles: Roles

    @cached_property
    def _episodes(self) -> tuple[_StepEpisode, ...]:
        found: list[_StepEpisode] = []
        files: dict[str, int] = {}
        for number, path in enumerate(self.location.files):
            with TableFile(path) as file:
                columns = self.roles.columns(file)
                if columns.episode is None:
                    rows = sum(file.sizes())
                    runs = {self.location.name(path): [(0, rows)]} if rows else {}
                else:
                    runs = _runs(file, columns.episode)
                if not runs:
                    raise SpirlError(f"{path}: has no rows.")
            for name, places in runs.items():
                if name in files:
                    raise SpirlError(
                        f"{path}: episode {name} is also in {self.location.files[files[name]]}. All rows of an episode "
                        "must be in one file, and numbers must not start again in the next one; leave out the setting "
                        "episode, if every file is one episode."
                    )
                files[name] = number
                if len(places) > 1 and columns.step is None:
                    raise SpirlError(
                        f"{path}: episode {name}: its rows are in {len(places)} places, the second from row "
                        f"{places[1][0]} on. Name the column of the steps (step), if these are one episode."
                    )
                found.append(_StepEpisode(number, name, tuple(places)))
        return tuple(found)

    def layout(self) -> RecordingLayout:
        path = self.location.files[0]
        with TableFile(path) as file:
            columns = self.roles.columns(file)
            first = file.first_row((*columns.observations, *columns.actions))
        layouts = {name: _layout(first, name, f"{path}: {name}") for name in first.column_names}
        return RecordingLayout(
            {name: layouts[name] for name in columns.observations},
            joined_layout([layouts[name] for name in columns.actions]),
            rewards=bool(columns.rewards),
        )

    def chunks(self) -> list[tuple[int, ...]]:
        return [(index,) for index in range(len(self._episodes))]

    def read(self, chunk: Sequence[int], keys: Sequence[str]) -> Iterator[Recording]:
        for number, wanted in groupby((self._episodes[index] for index in chunk), key=lambda episode: episode.file):
            path = self.location.files[number]
            with TableFile(path) as file:
                columns = self.roles.columns(file)
                following = [columns.successors[key] for key in keys if key in columns.successors]
                complete = bool(columns.successors) and len(following) == len(keys)
                asked = [*_asked(columns, keys, f"{path}: table"), *(following if complete else ())]
                window = _Window(file, asked)
                for episode in wanted:
                    where = f"{path}: episode {episode.name}"
                    table = window.rows(episode.runs, where)
                    yield _steps(table, columns, keys, complete, episode.name, where)


def _runs(file: TableFile, column: str) -> dict[str, list[tuple[int, int]]]:
    """The runs of equal values of a column, by the value."""
    found: dict[str, list[tuple[int, int]]] = {}
    row = 0
    for table in file.groups([column]):
        values = table.column(0).combine_chunks()
        if pa.types.is_dictionary(values.type):
            values = values.dictionary_decode()
        if values.null_count:
            raise SpirlError(f"{file.path}: {column}: has no value (null) in {values.null_count} rows.")
        names = np.asarray(values.to_numpy(zero_copy_only=False))
        starts = [0, *(1 + np.flatnonzero(names[1:] != names[:-1])).tolist()] if len(names) else []
        for first, last in zip(starts, [*starts[1:], len(names)], strict=False):
            places = found.setdefault(str(names[first]), [])
            if places and places[-1][1] == row + first:
                places[-1] = (places[-1][0], row + last)
            else:
                places.append((row + first, row + last))
        row += len(names)
    return found


def _steps(table: pa.Table, columns: Columns, keys: Sequence[str], complete: bool, name: str, where: str) -> Recording:
    """The recording of the rows of one episode. ``complete``: there are columns of next values for all keys."""
    if columns.step is not None:
        table = table.take(_order(_values(table, columns.step, where), where, columns.step))
    steps = table.num_rows if complete else table.num_rows - 1
    observations = {key: _values(table, key, where) for key in keys}
    if complete:
        for key in keys:
            last = _values(table.slice(table.num_rows - 1), columns.successors[key], where)
            observations[key] = np.concatenate([observations[key], last])
    actions = joined([_values(table.slice(0, steps), column, where) for column in columns.actions])
    rewards = None
    if columns.rewards:
        rewards = joined([_rewards(table, column, complete, where) for column in columns.rewards])
        if not complete:
            _, rewards = without_last_action(rewards, rewards.reshape(-1))
    terminated, truncated = (
        None
        if flag is None or (not complete and _ends_null(table, flag))
        else _values(table.slice(table.num_rows - 1), flag, where)
        for flag in (columns.terminated, columns.truncated)
    )
    return assemble(where, name, observations, actions, rewards, terminated, truncated)


def _ends_null(table: pa.Table, column: str) -> bool:
    return not table.column(column)[table.num_rows - 1].is_valid


def _rewards(table: pa.Table, column: str, complete: bool, where: str) -> Values:
    """The rewards of all rows, with 0 for that of a last row that is left out and has none."""
    if complete or not _ends_null(table, column):
        return _values(table, column, where)
    return np.append(_values(table.slice(0, table.num_rows - 1), column, where), [[0]], axis=0)


def _order(steps: Values, where: str, column: str) -> npt.NDArray[np.int64]:
    steps = steps.reshape(len(steps))
    order = np.argsort(steps, kind="stable")
    twice = np.flatnonzero(np.diff(steps[order]) == 0)
    if len(twice):
        raise SpirlError(
            f"{where}: {column}: the value {steps[order][twice[0]]} is there twice; are these two episodes?"
        )
    return order


def _values(table: pa.Table, column: str, where: str) -> Values:
    return vectors(column_values(table.column(column), f"{where}: {column}"))


def _layout(row: pa.Table, column: str, where: str) -> KeyLayout:
    values = vectors(column_values(row.column(column), where))
    return KeyLayout(values.shape[1:], values.dtype)


@dataclass(frozen=True)
class EpisodeRows:
    """The reader of tables with one row an episode: a list of T + 1 observations, or of T, and one of T actions."""

    location: RecordedFiles
    roles: Roles

    @cached_property
    def _sizes(self) -> tuple[int, ...]:
        found = []
        for path in self.location.files:
            with TableFile(path) as file:
                self.roles.columns(file)
                found.append(sum(file.sizes()))
        return tuple(found)

    def layout(self) -> RecordingLayout:
        path = self.location.files[0]
        with TableFile(path) as file:
            columns = self.roles.columns(file)
            lists = tuple(name for name in columns.observations if is_list(file.columns[name]))
            for name in columns.actions:
                if not is_list(file.columns[name]):
                    raise SpirlError(
                        f"{path}: {name}: holds {file.columns[name]}; expected a list of actions in each row."
                    )
            first = file.first_row((*lists, *columns.actions))
        layouts = {}
        for name in first.column_names:
            values = vectors(_unlisted(first.column(name), f"{path}: {name}"))
            layouts[name] = KeyLayout(values.shape[1:], values.dtype)
        return RecordingLayout(
            {name: layouts[name] for name in lists},
            joined_layout([layouts[name] for name in columns.actions]),
            rewards=bool(columns.rewards),
        )

    def chunks(self) -> list[tuple[int, ...]]:
        return [(index,) for index in range(sum(self._sizes))]

    def read(self, chunk: Sequence[int], keys: Sequence[str]) -> Iterator[Recording]:
        places = [(number, row) for number, rows in enumerate(self._sizes) for row in range(rows)]
        for number, wanted in groupby((places[index] for index in chunk), key=lambda place: place[0]):
            path = self.location.files[number]
            with TableFile(path) as file:
                columns = self.roles.columns(file)
                read = keys or self._narrowest(file, columns)
                asked = _asked(columns, read, f"{path}: table")
                window = _Window(file, asked if columns.episode is None else [*asked, columns.episode])
                for _, row in wanted:
                    name = f"{self.location.name(path)}:{row:05d}"
                    table = window.rows([(row, row + 1)], f"{path}: episode {name}")
                    if columns.episode is not None:
                        name = str(table.column(columns.episode)[0].as_py())
                    yield self._recording(table, columns, read, keys, name, f"{path}: episode {name}")

    @staticmethod
    def _narrowest(file: TableFile, columns: Columns) -> Sequence[str]:
        """The observation whose lists are nested least, because observations say how long an episode is."""
        lists = [name for name in columns.observations if is_list(file.columns[name])]
        return sorted(lists, key=lambda name: str(file.columns[name]).count("<"))[:1]

    @staticmethod
    def _recording(
        table: pa.Table, columns: Columns, read: Sequence[str], keys: Sequence[str], name: str, where: str
    ) -> Recording:
        def values(column: str) -> Values:
            return _unlisted(table.column(column), f"{where}: {column}")

        ended, cut = (None if flag is None else values(flag) for flag in (columns.terminated, columns.truncated))
        return assemble(
            where,
            name,
            {key: values(key) for key in read},
            joined([values(column) for column in columns.actions]),
            joined([values(column) for column in columns.rewards]) if columns.rewards else None,
            ended,
            cut,
            keys=keys,
        )


def _unlisted(column: pa.ChunkedArray, where: str) -> Values:
    """The values of a column with a single row: [rows, *shape] of a list, and [] of a number."""
    return column_values(column, where)[0]
