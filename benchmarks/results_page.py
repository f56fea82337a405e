"""Writes docs/results.md, and the table of results in README.md, from the CSV files in benchmarks/results/.

    python -m benchmarks.results_page

The prose is in ``benchmarks/results_page.md.j2``. Every figure of a table is looked up in a CSV file and must be there
exactly once, so a file that changes changes the page, and a row that is gone stops the command. A test compares both
pages with what this command would write.
"""

from __future__ import annotations

from pathlib import Path
from statistics import mean
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from benchmarks.collect import RESULTS
from spirl_ray.errors import SpirlError
from spirl_ray.files.atomic import write_atomically
from spirl_ray.files.tables import CsvRow, read_csv

HERE = Path(__file__).parent
PAGE = HERE.parent / "docs" / "results.md"
README = HERE.parent / "README.md"
BEGIN, END = "<!-- written by python -m benchmarks.results_page -->\n", "<!-- end -->"
MODES = ("deterministic", "sampled")
_TOLERANCE = 0.02
"""How far the steps of a snapshot may be from the number that a table names, because a round is not cut short."""


def value(file: str, column: str, *, steps: float | None = None, **cells: Any) -> float:
    """Looks up one number.

    Args:
        file: name of the CSV file, without its ending.
        column: the column that holds the number.
        steps: primitive steps of the snapshot, within two in a hundred; None looks at all rows.
        cells: values of other columns, as the file writes them.

    Raises:
        SpirlError: no row of the file has these values, or more than one has them.
    """
    rows = _rows(file, steps, cells)
    if len(rows) != 1:
        asked = ", ".join(f"{name}={wanted}" for name, wanted in {"steps": steps, **cells}.items())
        path = RESULTS / f"{file}.csv"
        raise SpirlError(f"{path}: {len(rows)} rows have {asked}, and one is needed. Mend {path.name} or the template.")
    return rows[0].number(column)


def _rows(file: str, steps: float | None, cells: dict[str, Any]) -> list[CsvRow]:
    return [row for row in read_csv(RESULTS / f"{file}.csv") if _fits(row, steps, cells)]


def _fits(row: CsvRow, steps: float | None, cells: dict[str, Any]) -> bool:
    if steps is not None and abs(row.number("env_steps") - steps) > _TOLERANCE * steps:
        return False
    return all(row.cells.get(name, "") == str(wanted) for name, wanted in cells.items())


def both(file: str, column: str, **cells: Any) -> str:
    """The deterministic and the sampled value of one evaluation, ``4.00 / 3.96``."""
    return " / ".join(f"{value(file, column, mode=mode, **cells):.2f}" for mode in MODES)


def seeds(file: str, column: str, mode: str, **cells: Any) -> str:
    """The values of seeds 0, 1 and 2."""
    return ", ".join(f"{value(file, column, mode=mode, seed=seed, **cells):.2f}" for seed in range(3))


def average(file: str, column: str, mode: str, **cells: Any) -> float:
    """The mean of seeds 0, 1 and 2."""
    return mean(value(file, column, mode=mode, seed=seed, **cells) for seed in range(3))


def least(file: str, column: str, **cells: Any) -> float:
    """The lowest number of the rows with these values."""
    return min(row.number(column) for row in _rows(file, None, cells))


def distinct(file: str, column: str, **cells: Any) -> list[str]:
    """The values of a column in the rows with some values, each once, in order of appearance."""
    return list(dict.fromkeys(row.cells[column] for row in _rows(file, None, cells)))


def latest(file: str, column: str) -> float:
    """The number in the last row, in files to which every measurement adds a row."""
    return read_csv(RESULTS / f"{file}.csv")[-1].number(column)


def _render(template: str) -> str:
    pages = Environment(
        loader=FileSystemLoader(HERE), undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True, autoescape=False
    )
    pages.globals |= {
        "value": value,
        "both": both,
        "seeds": seeds,
        "average": average,
        "least": least,
        "distinct": distinct,
        "latest": latest,
    }
    return pages.get_template(template).render() + "\n"


def results_page() -> str:
    """The text of docs/results.md."""
    return _render("results_page.md.j2")


def readme(text: str) -> str:
    """The text of README.md with the table of results made anew.

    Raises:
        SpirlError: the two marks between which the table stands are missing.
    """
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end):
        raise SpirlError(f"README.md: the table of results must stand between {BEGIN.strip()} and {END}.")
    return before + begin + _render("results_summary.md.j2") + end + after


def main() -> None:
    """Entry point."""
    write_atomically(PAGE, results_page())
    write_atomically(README, readme(README.read_text()))
    print(f"wrote {PAGE} and the table in {README}")


if __name__ == "__main__":
    main()
