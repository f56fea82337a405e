"""CSV files: written as a whole or not at all, read with errors that name the file, line and column."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from spirl_ray.errors import SpirlError
from spirl_ray.files.atomic import write_atomically


def write_csv(path: Path, rows: Sequence[Mapping[str, Any]], columns: Sequence[str] = ()) -> None:
    """Writes rows atomically.

    Args:
        path: of the file.
        rows: values by column; a missing one becomes an empty cell.
        columns: the first columns, which exist even without a row. Others follow in order of appearance.
    """
    names = list(dict.fromkeys([*columns, *(name for row in rows for name in row)]))
    text = io.StringIO()
    writer = csv.DictWriter(text, names, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_atomically(path, text.getvalue())


@dataclass(frozen=True)
class CsvRow:
    """One row of a CSV file, with its place in the file."""

    path: Path
    line: int
    """The number of the row's line in the file; the header is in line 1."""
    cells: dict[str, str]
    """The text by column; a column is missing where the row is too short for it."""

    def number(self, column: str) -> float:
        """Reads the number in a cell; NaN where the cell is empty or missing.

        Raises:
            SpirlError: the cell holds something else.
        """
        text = self.cells.get(column)
        try:
            return float(text) if text else math.nan
        except ValueError:
            raise self.error(column, "is not a number") from None

    def whole_number(self, column: str) -> int:
        """Reads the whole number in a cell.

        Raises:
            SpirlError: the cell is empty or holds something else.
        """
        number = self.number(column)
        if not number.is_integer():
            raise self.error(column, "is not a whole number")
        return int(number)

    def error(self, column: str, what: str) -> SpirlError:
        """Makes an error about a cell that names the file, the line and the column."""
        return SpirlError(f"{self.path}, line {self.line}, column {column!r}: {self.cells.get(column, '')!r} {what}")


def read_csv(path: Path | None, required: Sequence[str] = ()) -> list[CsvRow]:
    """Reads the rows of a CSV file in their order; no file is no rows.

    A last line without its end is left out, because a program that is still running, or was killed, may leave half a
    line.

    Args:
        path: of the file.
        required: columns that the file must have.

    Raises:
        SpirlError: the file cannot be read, or lacks a column.
    """
    if path is None or not path.exists():
        return []
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise SpirlError(f"{path}: cannot read it: {error}") from error
    reader = csv.DictReader(io.StringIO(text[: text.rfind("\n") + 1]))
    missing = [name for name in required if name not in (reader.fieldnames or required)]
    if missing:
        raise SpirlError(f"{path}: no column {missing[0]!r}; the columns are {', '.join(reader.fieldnames or ())}")
    return [
        # The csv module uses None as the name of surplus cells, and as the value of missing ones.
        CsvRow(path, reader.line_num, {name: cell for name, cell in row.items() if None not in (name, cell)})
        for row in reader
    ]


def read_columns(path: Path | None) -> dict[str, NDArray[np.float64]]:
    """Reads the columns of a CSV file of numbers as float64 [rows]; an empty cell is NaN; no file is no columns.

    Raises:
        SpirlError: see `read_csv`; also a cell that is not a number.
    """
    rows = read_csv(path)
    names = list(rows[0].cells) if rows else []
    return {name: np.array([row.number(name) for row in rows]) for name in names}
