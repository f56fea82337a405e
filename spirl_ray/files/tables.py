"""CSV files, written in full or not at all."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from spirl_ray.files.atomic import write_atomically


def write_csv(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    """Writes rows of dicts atomically; the columns are the union of their keys in order of appearance."""
    columns = list(dict.fromkeys(name for row in rows for name in row))
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_atomically(path, text.getvalue().encode())
