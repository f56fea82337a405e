"""Groups of rows of Parquet, Arrow and Feather files, and their columns as arrays."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from spirl_ray.episodes.recording import Values
from spirl_ray.errors import SpirlError

SUFFIXES = (".parquet", ".pq", ".arrow", ".feather", ".ipc")
_PARQUET = b"PAR1"


class TableFile:
    """An open file of a table; a context manager. The names of columns within structs are joined by dots."""

    def __init__(self, path: Path) -> None:
        """Reads the schema.

        Raises:
            SpirlError: the file is missing, damaged, or of another format.
        """
        self.path = path
        self._parquet: pq.ParquetFile | None = None
        try:
            with open(path, "rb") as stream:
                parquet = stream.read(4) == _PARQUET
            if parquet:
                self._parquet = pq.ParquetFile(path, page_checksum_verification=True)
                schema = self._parquet.schema_arrow
            else:
                schema = self._arrow(None).schema
        except (OSError, pa.ArrowException) as error:
            raise SpirlError(f"{path}: is no readable Parquet, Arrow or Feather file: {error}.") from error
        self.columns: dict[str, pa.DataType] = {}
        """The type of each column."""
        self._top: dict[str, str] = {}
        for field in schema:
            for name, kind in _leaves(field.name, field.type):
                self.columns[name], self._top[name] = kind, field.name

    def _arrow(self, columns: list[int] | None) -> Any:
        """Opens an Arrow file, or a stream that was saved as a file, and unpacks these columns only."""
        options = pa.ipc.IpcReadOptions(included_fields=columns)
        try:
            return pa.ipc.open_file(pa.memory_map(str(self.path)), options=options)
        except pa.ArrowInvalid:
            return pa.ipc.open_stream(pa.memory_map(str(self.path)), options=options)

    def __enter__(self) -> TableFile:
        return self

    def __exit__(self, *_: object) -> None:
        if self._parquet is not None:
            self._parquet.close()

    def sizes(self) -> list[int]:
        """The number of rows of each group.

        Raises:
            SpirlError: the file is damaged.
        """
        if self._parquet is not None:
            metadata = self._parquet.metadata
            return [metadata.row_group(number).num_rows for number in range(metadata.num_row_groups)]
        return [table.num_rows for table in self.groups([])]

    def groups(self, columns: Sequence[str]) -> Iterator[pa.Table]:
        """Reads these columns group by group."""
        count = self._parquet.num_row_groups if self._parquet is not None else None
        if count is not None:
            yield from (self.group(number, columns) for number in range(count))
            return
        try:
            reader = self._arrow(self._indices(columns))
            if hasattr(reader, "num_record_batches"):
                batches = (reader.get_batch(number) for number in range(reader.num_record_batches))
            else:
                batches = iter(reader)
            for batch in batches:
                yield _selected(pa.Table.from_batches([batch]), columns)
        except (OSError, pa.ArrowException) as error:
            raise self._damaged(columns, error) from error

    def group(self, number: int, columns: Sequence[str]) -> pa.Table:
        """Reads these columns of one group.

        Raises:
            SpirlError: the file is damaged.
        """
        try:
            if self._parquet is not None:
                names = list(dict.fromkeys(self._top[name] for name in columns))
                return _selected(self._parquet.read_row_group(number, columns=names), columns)
            reader = self._arrow(self._indices(columns))
            if hasattr(reader, "num_record_batches"):
                return _selected(pa.Table.from_batches([reader.get_batch(number)]), columns)
        except (OSError, pa.ArrowException) as error:
            raise self._damaged(columns, error) from error
        for index, table in enumerate(self.groups(columns)):
            if index == number:
                return table
        raise SpirlError(f"{self.path}: has no group of rows {number}; it changed while it was read.")

    def first_row(self, columns: Sequence[str]) -> pa.Table:
        """Reads these columns of the first row.

        Raises:
            SpirlError: there is none, or the file is damaged.
        """
        names = list(dict.fromkeys(columns))
        tables = self.groups(names)
        if self._parquet is not None:
            tops = list(dict.fromkeys(self._top[name] for name in names))
            batches = self._parquet.iter_batches(batch_size=1, columns=tops)
            tables = (_selected(pa.Table.from_batches([batch]), names) for batch in batches)
        try:
            for table in tables:
                if table.num_rows:
                    return table.slice(0, 1)
        except (OSError, pa.ArrowException) as error:
            raise self._damaged(names, error) from error
        raise SpirlError(f"{self.path}: has no rows.")

    def _indices(self, columns: Sequence[str]) -> list[int]:
        tops = list(dict.fromkeys(self._top.values()))
        # An empty list would mean all columns; the narrowest column counts rows.
        return sorted({tops.index(self._top[name]) for name in columns}) or [0]

    def _damaged(self, columns: Sequence[str], error: Exception) -> SpirlError:
        return SpirlError(f"{self.path}: {', '.join(columns) or 'its rows'} cannot be read: {error}.")


def _leaves(name: str, kind: pa.DataType) -> Iterator[tuple[str, pa.DataType]]:
    if pa.types.is_struct(kind):
        for number in range(kind.num_fields):
            yield from _leaves(f"{name}.{kind.field(number).name}", kind.field(number).type)
    else:
        yield name, kind


def _selected(table: pa.Table, columns: Sequence[str]) -> pa.Table:
    while any(pa.types.is_struct(field.type) for field in table.schema):
        table = table.flatten()
    return table.select(list(columns)) if columns else table


def is_list(kind: pa.DataType) -> bool:
    """True for lists of any kind."""
    return pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)


def is_number(kind: pa.DataType) -> bool:
    """True for numbers, bool, lists of them, and tensors."""
    kind = kind.storage_type if isinstance(kind, pa.BaseExtensionType) else kind
    while is_list(kind):
        kind = kind.value_type
    return pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_boolean(kind)


def column_values(column: pa.ChunkedArray | pa.Array, where: str) -> Values:
    """Makes an array [rows, *shape] of a column of numbers or of lists, nested as deeply as one likes.

    Raises:
        SpirlError: there is a null, lists differ in length, or the column holds something else; the message begins with
            ``where``.
    """
    if not is_number(column.type):
        raise SpirlError(f"{where}: holds {column.type}; expected numbers or lists of numbers.")
    array = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    shape = [len(array)]
    tensor = tuple(array.type.shape) if isinstance(array.type, pa.FixedShapeTensorType) else None
    if isinstance(array, pa.ExtensionArray):
        array = array.storage
    while is_list(array.type):
        _refuse_nulls(array, where)
        lengths = pc.unique(pc.list_value_length(array)).to_pylist()
        if len(lengths) > 1:
            raise SpirlError(f"{where}: its lists differ in length: {lengths[0]} and {lengths[1]} values.")
        shape.append(lengths[0] if lengths else 0)
        array = array.flatten()
    _refuse_nulls(array, where)
    return array.to_numpy(zero_copy_only=False).reshape([shape[0], *tensor] if tensor else shape)


def _refuse_nulls(array: pa.Array, where: str) -> None:
    if array.null_count:
        row = pc.index(array.is_null(), True).as_py()
        raise SpirlError(f"{where}: has no value (null) at {row}, and {array.null_count} in all.")
