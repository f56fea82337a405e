"""Episodes, and the folder of Parquet files and one ``card.json`` that they are stored in."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import BaseModel, ConfigDict, ValidationError, field_validator

from spirl_ray.episodes.frames import FRAMES, FrameArray, frame_rows, frame_type, split_frames, stored_size
from spirl_ray.errors import SpirlError
from spirl_ray.files.untrusted import CARD_LIMIT_BYTES, parse_json, read_plain_file

FORMAT_VERSION = 1
CARD = "card.json"
_ROWS_AT_A_TIME = 64

FloatArray = npt.NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class Episode:
    """One trajectory: T actions between T + 1 states."""

    id: str
    """Unique within its dataset."""
    states: FloatArray
    """float32 [T+1, S]; the last row is the state after the last action."""
    actions: FloatArray
    """float32 [T, A] in [-1, 1]."""
    rewards: FloatArray
    """float32 [T], as the source recorded them."""
    terminated: bool
    """The task ended the episode."""
    truncated: bool
    """A time limit or the recording ended it."""
    metadata: dict[str, Any] = field(default_factory=dict)
    """JSON-able facts; ``completed``, where present, lists the subtasks in the order of completion."""
    frames: FrameArray | None = None
    """uint8 [T+1, N, N], what the agent saw at each state, where that is not rendered from the states."""

    @property
    def length(self) -> int:
        """Number of actions T."""
        return len(self.actions)

    @property
    def nbytes(self) -> int:
        """Bytes of states, actions and frames."""
        return self.states.nbytes + self.actions.nbytes + (self.frames.nbytes if self.frames is not None else 0)


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class FileEntry(_Frozen):
    """What the card says of one Parquet file."""

    sha256: str
    bytes: int
    rows: int


class DatasetCard(_Frozen):
    """``card.json``: what a dataset holds, where it comes from and what its files must hash to."""

    format_version: int = FORMAT_VERSION
    environment: str
    """spirl id of the environment that the episodes belong to."""
    state_dim: int
    action_dim: int
    frame_size: int | None = None
    """Pixels N of a stored frame's side; None where episodes hold no frames."""
    episodes: int
    steps: int
    """Actions in all episodes together."""
    source: str
    licence: str
    attribution: str
    content_sha256: str
    """Hash of the episodes themselves, whatever the number, order and compression of the files."""
    files: dict[str, FileEntry]
    created_by: str

    @field_validator("files")
    @classmethod
    def _plain_names(cls, files: dict[str, FileEntry]) -> dict[str, FileEntry]:
        for name in files:
            if name != Path(name).name or name.startswith("."):
                raise ValueError(f"{name!r} is not a plain file name")
        return files


class EpisodeEntry(NamedTuple):
    """One line of a dataset's index."""

    id: str
    length: int
    """Number of actions T."""
    file: str
    """Absolute path of the Parquet file that holds the episode."""


def schema(state_dim: int, action_dim: int, frame_size: int | None = None) -> pa.Schema:
    """Arrow schema of a dataset file: one row an episode. Frames have a column only where they are stored."""
    frames = [(FRAMES, frame_type(frame_size))] if frame_size is not None else []
    return pa.schema(
        [
            ("episode_id", pa.string()),
            ("length", pa.int32()),
            ("states", pa.list_(pa.list_(pa.float32(), state_dim))),
            ("actions", pa.list_(pa.list_(pa.float32(), action_dim))),
            ("rewards", pa.list_(pa.float32())),
            ("terminated", pa.bool_()),
            ("truncated", pa.bool_()),
            ("metadata", pa.string()),
            *frames,
        ]
    )


def episodes_to_table(
    episodes: list[Episode], state_dim: int, action_dim: int, frame_size: int | None = None
) -> pa.Table:
    """One row an episode, in the given order.

    Raises:
        SpirlError: an array does not have the width that the dataset has, or metadata is not JSON-able.
    """
    for episode in episodes:
        for name, array, width in (
            ("states", episode.states, state_dim),
            ("actions", episode.actions, action_dim),
        ):
            if array.ndim != 2 or array.shape[1] != width:
                raise SpirlError(
                    f"episode {episode.id!r}: {name} have shape {list(array.shape)}, expected [·, {width}]"
                )
    columns = [
        pa.array([e.id for e in episodes], pa.string()),
        pa.array([e.length for e in episodes], pa.int32()),
        _rows([e.states for e in episodes], state_dim),
        _rows([e.actions for e in episodes], action_dim),
        _rows([e.rewards for e in episodes], None),
        pa.array([bool(e.terminated) for e in episodes], pa.bool_()),
        pa.array([bool(e.truncated) for e in episodes], pa.bool_()),
        pa.array([metadata_json(e) for e in episodes], pa.string()),
    ]
    if frame_size is not None:
        columns.append(frame_rows([_frames_of(e, frame_size) for e in episodes], frame_size))
    return pa.Table.from_arrays(columns, schema=schema(state_dim, action_dim, frame_size))


def metadata_json(episode: Episode) -> str:
    """Metadata in the one form that is stored and hashed.

    Raises:
        SpirlError: it is not JSON-able.
    """
    try:
        return json.dumps(episode.metadata, sort_keys=True, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise SpirlError(f"episode {episode.id!r}: metadata is not JSON-able: {error}") from error


def table_to_episodes(table: pa.Table, *, where: str = "table") -> list[Episode]:
    """Inverse of `episodes_to_table`, also for sliced, filtered or concatenated tables.

    Args:
        table: has every column of `schema`; the widths are those of its types.
        where: what to call the table in an error, e.g. the file that it was read from.

    Raises:
        SpirlError: a column is missing, has another type, or holds nulls.
    """
    widths = [_width(table.schema, name) for name in ("states", "actions")]
    frame_size = stored_size(table.schema)
    check_schema(table.schema, widths[0], widths[1], frame_size, where=where)
    columns = {name: _one_array(table, name, where) for name in schema(1, 1, frame_size).names}
    states, actions, rewards = (_split(columns[name]) for name in ("states", "actions", "rewards"))
    ids, metadata = columns["episode_id"].to_pylist(), columns["metadata"].to_pylist()
    terminated, truncated = columns["terminated"].to_pylist(), columns["truncated"].to_pylist()
    frames: Sequence[FrameArray | None] = [None] * len(ids)
    if frame_size is not None:
        frames = split_frames(columns[FRAMES], frame_size)
    episodes = []
    for row, identifier in enumerate(ids):
        try:
            facts = json.loads(metadata[row])
        except (ValueError, RecursionError) as error:
            raise SpirlError(f"{where}: metadata of episode {identifier!r} is not JSON: {error}") from error
        episodes.append(
            Episode(
                id=identifier,
                states=states[row],
                actions=actions[row],
                rewards=rewards[row],
                terminated=terminated[row],
                truncated=truncated[row],
                metadata=facts,
                frames=frames[row],
            )
        )
    return episodes


def check_schema(
    found: pa.Schema, state_dim: int | None, action_dim: int | None, frame_size: int | None = None, *, where: str
) -> None:
    """Compare column types with those of a dataset; a width of None means that no right one was found.

    Other columns are refused: Ray Data has a column type that holds pickles.

    Raises:
        SpirlError: names the file, the column, what was expected and what was found.
    """
    for expected in schema(state_dim or 0, action_dim or 0, frame_size):
        index = found.get_field_index(expected.name)
        if index < 0:
            raise SpirlError(
                f"{where}: column {expected.name!r} is missing (or there twice); found: {', '.join(found.names)}"
            )
        if not _same_type(found.field(index).type, expected.type):
            raise SpirlError(
                f"{where}: column {expected.name!r} must be {_plain(expected.type).replace('[0]', '[·]')}, "
                f"found {_plain(found.field(index).type)}"
            )
    if unknown := sorted(set(found.names) - set(schema(1, 1, 1).names)):
        raise SpirlError(f"{where}: column {unknown[0]!r} does not belong into a dataset")


def read_card(path: str | Path) -> DatasetCard:
    """The card of the dataset in folder `path`.

    Raises:
        SpirlError: no such folder, no card, or a card that this version cannot read.
    """
    folder = Path(path).absolute()
    file = folder / CARD
    if not folder.is_dir():
        raise SpirlError(f"{folder}: no such dataset folder; import or generate the data first")
    if not file.exists():
        raise SpirlError(f"{folder}: not a dataset, it has no {CARD}")
    values = parse_json(read_plain_file(file, CARD_LIMIT_BYTES), file)
    if values.get("format_version") != FORMAT_VERSION:
        raise SpirlError(
            f"{file}: format_version is {values.get('format_version')!r}, this version of spirl-ray reads "
            f"{FORMAT_VERSION}; import the data again or use the version that wrote it "
            f"({values.get('created_by', 'unknown')})"
        )
    try:
        return DatasetCard.model_validate(values)
    except ValidationError as error:
        faults = "; ".join(
            f"{'.'.join(str(part) for part in fault['loc'])}: {fault['msg']}" for fault in error.errors()
        )
        raise SpirlError(f"{file}: {faults}") from error


def dataset_files(path: str | Path) -> list[str]:
    """Absolute paths of the dataset's Parquet files, in order.

    Raises:
        SpirlError: as `read_card`, or a file that the card names is missing or a symbolic link.
    """
    folder = Path(path).absolute()
    files = [folder / name for name in sorted(read_card(folder).files)]
    for file in files:
        if file.is_symlink():
            raise SpirlError(f"{file}: is a symbolic link; a dataset consists of plain files: refused")
        if not file.is_file():
            raise SpirlError(f"{file}: missing, but named in {folder / CARD}; import the data again")
    return [str(file) for file in files]


def episode_index(path: str | Path) -> list[EpisodeEntry]:
    """Id, length and file of every episode, in the order of `read_episodes`, without reading the arrays.

    Raises:
        SpirlError: as `read_episodes`.
    """
    card = read_card(path)
    entries = []
    for file in dataset_files(path):
        for table in read_tables(file, card, columns=["episode_id", "length"]):
            pairs = zip(table["episode_id"].to_pylist(), table["length"].to_pylist(), strict=True)
            entries += [EpisodeEntry(identifier, length, file) for identifier, length in pairs]
    return entries


def read_episodes(path: str | Path) -> Iterator[Episode]:
    """Every episode, file after file, a few at a time in memory.

    Raises:
        SpirlError: missing folder, card or file; corrupt Parquet; columns that are not what the card says.
    """
    card = read_card(path)
    for file in dataset_files(path):
        for table in read_tables(file, card):
            yield from table_to_episodes(table, where=file)


def read_tables(file: str, card: DatasetCard, columns: list[str] | None = None) -> Iterator[pa.Table]:
    """Rows of one dataset file as tables of a few episodes each.

    Raises:
        SpirlError: the file is missing or corrupt, or its columns are not what the card says.
    """
    try:
        with pq.ParquetFile(file, page_checksum_verification=True) as parquet:
            check_schema(parquet.schema_arrow, card.state_dim, card.action_dim, card.frame_size, where=file)
            for batch in parquet.iter_batches(_ROWS_AT_A_TIME, columns=columns, use_threads=False):
                yield pa.Table.from_batches([batch])
    except FileNotFoundError:
        raise SpirlError(f"{file}: missing, but named in the dataset's {CARD}") from None
    except (pa.ArrowException, OSError) as error:
        raise SpirlError(f"{file}: not readable as Parquet (damaged or cut short): {error}") from error


def _frames_of(episode: Episode, size: int) -> FrameArray:
    frames = episode.frames
    if frames is None or frames.shape[1:] != (size, size):
        found = "no frames" if frames is None else f"frames have shape {list(frames.shape)}"
        raise SpirlError(f"episode {episode.id!r}: {found}, expected [·, {size}, {size}]")
    return frames


def _rows(arrays: list[FloatArray], width: int | None) -> pa.ListArray:
    """List array of float32 rows: one element an episode, `width` values a row (None: plain values)."""
    offsets = np.concatenate([[0], np.cumsum([len(array) for array in arrays])]).astype(np.int32)
    flat = np.concatenate([np.ravel(array) for array in arrays]) if arrays else np.empty(0)
    values = pa.array(np.ascontiguousarray(flat, dtype=np.float32))
    rows = values if width is None else pa.FixedSizeListArray.from_arrays(values, width)
    return pa.ListArray.from_arrays(pa.array(offsets), rows)


def _split(column: pa.Array) -> list[FloatArray]:
    """Inverse of `_rows`; every array owns its memory and may be written to."""
    ends = np.cumsum(column.value_lengths().to_numpy(zero_copy_only=False))
    rows = column.flatten()
    if pa.types.is_fixed_size_list(rows.type):
        values = rows.flatten().to_numpy().reshape(-1, rows.type.list_size)
    else:
        values = rows.to_numpy()
    starts = np.concatenate([[0], ends[:-1]]) if len(ends) else ends
    return [values[start:end].copy() for start, end in zip(starts, ends, strict=True)]


def _one_array(table: pa.Table, name: str, where: str) -> pa.Array:
    column = table.column(name).combine_chunks()
    if isinstance(column, pa.ChunkedArray):
        column = pa.concat_arrays(column.chunks) if column.chunks else pa.array([], column.type)
    if column.null_count or _nulls_within(column):
        raise SpirlError(f"{where}: column {name!r} holds nulls")
    return column


def _nulls_within(column: pa.Array) -> bool:
    while pa.types.is_list(column.type) or pa.types.is_large_list(column.type) or _is_row(column.type):
        column = column.flatten()
        if column.null_count:
            return True
    return False


def _is_row(kind: pa.DataType) -> bool:
    return pa.types.is_fixed_size_list(kind)


def _width(found: pa.Schema, name: str) -> int | None:
    index = found.get_field_index(name)
    if index < 0:
        return None
    kind = found.field(index).type
    if not (pa.types.is_list(kind) or pa.types.is_large_list(kind)):
        return None
    return kind.value_type.list_size if _is_row(kind.value_type) else None


def _same_type(found: pa.DataType, expected: pa.DataType) -> bool:
    """Equal but for the offsets' width and the names of list elements, which libraries change on the way."""
    if pa.types.is_list(expected):
        listed = pa.types.is_list(found) or pa.types.is_large_list(found)
        return listed and _same_type(found.value_type, expected.value_type)
    if _is_row(expected):
        return (
            _is_row(found)
            and found.list_size == expected.list_size
            and _same_type(found.value_type, expected.value_type)
        )
    if pa.types.is_string(expected):
        return pa.types.is_string(found) or pa.types.is_large_string(found)
    return found == expected


def _plain(kind: pa.DataType) -> str:
    """``list<float[9]>`` rather than Arrow's ``list<item: fixed_size_list<item: float>[9]>``."""
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        return f"list<{_plain(kind.value_type)}>"
    if _is_row(kind):
        return f"{_plain(kind.value_type)}[{kind.list_size}]"
    return str(kind)
