"""CSV files: what is written is read back, and errors name the file, the line and the column."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest

from spirl_ray.errors import SpirlError
from spirl_ray.files.tables import read_columns, read_csv, write_csv


def test_rows_are_read_as_they_were_written(tmp_path: Path) -> None:
    file = tmp_path / "t.csv"
    write_csv(file, [{"b": 1, "text": 'a "quoted", ü\nline'}, {"b": 2, "c": 0.5}], columns=["a", "b"])
    assert file.read_text(encoding="utf-8").startswith("a,b,text,c\n")
    first, second = read_csv(file, ["a", "c"])
    assert first.cells == {"a": "", "b": "1", "text": 'a "quoted", ü\nline', "c": ""}
    assert (second.number("b"), second.number("c"), second.line) == (2.0, 0.5, 4)
    assert math.isnan(second.number("a"))
    assert math.isnan(second.number("unknown"))


def test_columns_are_there_without_a_row(tmp_path: Path) -> None:
    write_csv(tmp_path / "t.csv", [], columns=["a", "b"])
    assert (tmp_path / "t.csv").read_text() == "a,b\n"
    assert read_csv(tmp_path / "t.csv", ["a"]) == []


def test_no_file_is_no_rows(tmp_path: Path) -> None:
    assert read_csv(tmp_path / "none.csv", ["a"]) == []
    assert read_csv(None) == []
    assert read_columns(tmp_path / "none.csv") == {}


@pytest.mark.parametrize("half", ["2", "2,", "2,3", "2,3.5"])
def test_half_a_line_at_the_end_is_left_out(tmp_path: Path, half: str) -> None:
    (tmp_path / "t.csv").write_text(f"a,b\n1,2\n{half}")
    assert [row.cells for row in read_csv(tmp_path / "t.csv")] == [{"a": "1", "b": "2"}]


def test_columns_of_numbers(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("a,b\n1,\n2,3e-1\n")
    columns = read_columns(tmp_path / "t.csv")
    assert list(columns) == ["a", "b"]
    assert columns["a"].tolist() == [1.0, 2.0]
    np.testing.assert_array_equal(columns["b"], [math.nan, 0.3])


def test_a_missing_column_is_named(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("a,b\n1,2\n")
    with pytest.raises(SpirlError, match=r"t\.csv.*'mode'.*a, b"):
        read_csv(tmp_path / "t.csv", ["a", "mode"])


def test_a_cell_that_is_no_number_is_named(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("a,b\n1,2\n1.5,much\n")
    row = read_csv(tmp_path / "t.csv")[1]
    with pytest.raises(SpirlError, match=r"t\.csv, line 3, column 'b': 'much'"):
        row.number("b")
    with pytest.raises(SpirlError, match=r"t\.csv, line 3, column 'a': '1.5'"):
        row.whole_number("a")
    with pytest.raises(SpirlError, match=r"t\.csv, line 3, column 'c': ''"):
        row.whole_number("c")


def test_a_file_that_is_no_text_is_named(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_bytes(b"a\n\xff\n")
    with pytest.raises(SpirlError, match=r"t\.csv"):
        read_csv(tmp_path / "t.csv")
