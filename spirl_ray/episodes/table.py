"""Episodes as Arrow tables: one row an episode, one column a stored feature.

The column of the feature ``hand`` is ``observation.hand``: a list with a value for each of the T + 1 observations.
Numbers are rows of float32; an image is a binary of height · width · channels bytes. Successive images are much alike,
so what the file format compresses anyway is enough.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from typing import TypeVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from spirl_ray.episodes.episode import Episode, FloatArray, metadata_json
from spirl_ray.episodes.features import Array, Feature, Features, stored_features
from spirl_ray.errors import SpirlError

Number = TypeVar("Number", bound=np.generic)


def column_name(feature: str) -> str:
    """The column that holds a feature."""
    return f"observation.{feature}"


def schema(features: Features, action_dim: int) -> pa.Schema:
    """The Arrow schema of a dataset file."""
    return pa.schema(
        [
            ("episode_id", pa.string()),
            ("length", pa.int32()),
            *((column_name(name), pa.list_(_value_type(f))) for name, f in stored_features(features).items()),
            ("actions", pa.list_(pa.list_(pa.float32(), action_dim))),
            ("rewards", pa.list_(pa.float32())),
            ("terminated", pa.bool_()),
            ("truncated", pa.bool_()),
            ("metadata", pa.string()),
        ]
    )


def episodes_to_table(episodes: Sequence[Episode], features: Features, action_dim: int) -> pa.Table:
    """Converts episodes to a table, one row an episode, in the given order.

    Args:
        episodes: the episodes to convert.
        features: features of the dataset; episodes hold those that are stored.
        action_dim: width of an action.

    Raises:
        SpirlError: an episode has other features or arrays of another shape or type, or metadata that are not
            JSON-able.
    """
    stored = stored_features(features)
    for episode in episodes:
        if set(episode.observations) != set(stored):
            raise SpirlError(
                f"episode {episode.id!r}: has the features {', '.join(sorted(episode.observations)) or 'none'}, "
                f"expected {', '.join(sorted(stored))}"
            )
        for name, feature in stored.items():
            values = episode.observations[name]
            if values.shape[1:] != feature.shape or values.dtype != feature.dtype:
                raise SpirlError(
                    f"episode {episode.id!r}: {name} is {values.dtype} {list(values.shape)}, expected "
                    f"{np.dtype(feature.dtype)} {_any_length(feature.shape)}"
                )
        if episode.actions.ndim != 2 or episode.actions.shape[1] != action_dim:
            raise SpirlError(
                f"episode {episode.id!r}: actions have shape {list(episode.actions.shape)}, "
                f"expected {_any_length((action_dim,))}"
            )
    columns = [
        pa.array([e.id for e in episodes], pa.string()),
        pa.array([e.length for e in episodes], pa.int32()),
        *(_joined([e.observations[name] for e in episodes], feature) for name, feature in stored.items()),
        _joined([e.actions for e in episodes], Feature(shape=(action_dim,))),
        _joined([e.rewards for e in episodes], None),
        pa.array([bool(e.terminated) for e in episodes], pa.bool_()),
        pa.array([bool(e.truncated) for e in episodes], pa.bool_()),
        pa.array([metadata_json(e) for e in episodes], pa.string()),
    ]
    return pa.Table.from_arrays(columns, schema=schema(features, action_dim))


def table_to_episodes(
    table: pa.Table, features: Features, action_dim: int, *, where: str = "table", copy: bool = True
) -> list[Episode]:
    """Converts a table to episodes, the inverse of `episodes_to_table`, also for sliced, filtered or concatenated
    tables.

    Args:
        table: table with every column of `schema`, and no other.
        features: features of the dataset.
        action_dim: width of an action.
        where: name of the table in an error, such as the file that it was read from.
        copy: False gives arrays that cannot be written to, and that keep the table in memory.

    Raises:
        SpirlError: a column is missing, has another type, does not belong there, or holds nulls.
    """
    check_schema(table.schema, features, action_dim, where=where)
    columns = {name: _one_array(table, name, where) for name in table.column_names}
    observations = {
        name: _cut((_images if feature.is_image else _numbers)(columns[column], feature.shape), columns[column], copy)
        for name, feature in stored_features(features).items()
        for column in [column_name(name)]
    }
    actions = _cut(_numbers(columns["actions"], (action_dim,)), columns["actions"], copy)
    rewards = _cut(_numbers(columns["rewards"], ()), columns["rewards"], copy)
    terminated, truncated = columns["terminated"].to_pylist(), columns["truncated"].to_pylist()
    metadata = columns["metadata"].to_pylist()
    episodes = []
    for row, identifier in enumerate(columns["episode_id"].to_pylist()):
        try:
            parsed = json.loads(metadata[row])
        except (ValueError, RecursionError) as error:
            raise SpirlError(f"{where}: metadata of episode {identifier!r} is not JSON: {error}") from error
        if not isinstance(parsed, dict):
            raise SpirlError(f"{where}: metadata of episode {identifier!r} is not a JSON object")
        episodes.append(
            Episode(
                id=identifier,
                observations={name: values[row] for name, values in observations.items()},
                actions=actions[row],
                rewards=rewards[row],
                terminated=terminated[row],
                truncated=truncated[row],
                metadata=parsed,
            )
        )
    return episodes


def check_schema(found: pa.Schema, features: Features, action_dim: int, *, where: str) -> None:
    """Compares column types with those of a dataset.

    Other columns are refused, because Ray Data has a column type that holds pickles.

    Raises:
        SpirlError: a column does not fit; the message names file, column, and the expected and found type.
    """
    expected = schema(features, action_dim)
    for wanted in expected:
        index = found.get_field_index(wanted.name)
        if index < 0:
            raise SpirlError(
                f"{where}: column {wanted.name!r} is missing or occurs twice; found: {', '.join(found.names)}"
            )
        if not _same_type(found.field(index).type, wanted.type):
            raise SpirlError(
                f"{where}: column {wanted.name!r} must be {_plain(wanted.type)}, "
                f"found {_plain(found.field(index).type)}"
            )
    if unknown := sorted(set(found.names) - set(expected.names)):
        raise SpirlError(f"{where}: column {unknown[0]!r} does not belong in a dataset")


def _value_type(feature: Feature) -> pa.DataType:
    return pa.binary(feature.size) if feature.is_image else pa.list_(pa.float32(), feature.size)


def _joined(arrays: Sequence[Array], feature: Feature | None) -> pa.ListArray:
    """The column from an array [·, *shape] of each episode; plain numbers [·] without a feature."""
    offsets = pa.array(np.concatenate([[0], np.cumsum([len(array) for array in arrays])]).astype(np.int32))
    dtype = np.float32 if feature is None else feature.dtype
    flat = np.concatenate([np.ravel(array) for array in arrays]) if arrays else np.empty(0)
    flat = np.ascontiguousarray(flat, dtype)
    if feature is None:
        rows = pa.array(flat)
    elif feature.is_image:
        count = len(flat) // feature.size
        rows = pa.FixedSizeBinaryArray.from_buffers(pa.binary(feature.size), count, [None, pa.py_buffer(flat)])
    else:
        rows = pa.FixedSizeListArray.from_arrays(pa.array(flat), feature.size)
    return pa.ListArray.from_arrays(offsets, rows)


def _numbers(column: pa.Array, shape: tuple[int, ...]) -> FloatArray:
    """All rows of a column of numbers [·, *shape], the inverse of `_joined`, also of a slice."""
    rows = column.flatten()
    return (rows.flatten() if _is_row(rows.type) else rows).to_numpy().reshape(-1, *shape)


def _images(column: pa.Array, shape: tuple[int, ...]) -> Array:
    """All rows of a column of images, as `_numbers`."""
    rows, size = column.flatten(), math.prod(shape)
    data = np.frombuffer(rows.buffers()[1] or b"", np.uint8)
    return data[rows.offset * size : (rows.offset + len(rows)) * size].reshape(-1, *shape)


def _cut(values: npt.NDArray[Number], column: pa.Array, copy: bool) -> list[npt.NDArray[Number]]:
    """The part of each episode."""
    lengths = column.value_lengths().to_pylist()
    ends = np.cumsum(lengths, dtype=np.int64).tolist()
    parts = [values[end - length : end] for end, length in zip(ends, lengths, strict=True)]
    return [part.copy() for part in parts] if copy else parts


def _one_array(table: pa.Table, name: str, where: str) -> pa.Array:
    column = table.column(name).combine_chunks()
    if isinstance(column, pa.ChunkedArray):
        column = pa.concat_arrays(column.chunks) if column.chunks else pa.array([], column.type)
    try:
        column.validate(full=True)  # offsets within the data, text that is UTF-8
    except pa.ArrowInvalid as error:
        raise SpirlError(f"{where}: column {name!r} is damaged: {error}") from error
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


def _same_type(found: pa.DataType, expected: pa.DataType) -> bool:
    """True for types that are equal except for the offsets' width and the names of list elements, which libraries
    change on the way."""
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
    """The name of a type as ``list<float[9]>`` rather than Arrow's ``list<item: fixed_size_list<item: float>[9]>``."""
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        return f"list<{_plain(kind.value_type)}>"
    if _is_row(kind):
        return f"{_plain(kind.value_type)}[{kind.list_size}]"
    return str(kind)


def _any_length(shape: tuple[int, ...]) -> str:
    return f"[{', '.join(['·', *map(str, shape)])}]"
