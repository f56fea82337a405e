"""Work on the files of a dataset, a Ray Data task for each."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import ray.data
from ray.exceptions import RayError

from spirl_ray.errors import SpirlError, user_error_in

Work = Callable[[int], dict[str, Any]]
"""A function from the number of a file to a JSON-able result."""


def run_tasks(work: Work, numbers: Sequence[int]) -> Iterator[tuple[int, dict[str, Any]]]:
    """Runs ``work`` for each number as a Ray Data task with one CPU.

    Args:
        work: what each task does.
        numbers: the numbers of the files.

    Yields:
        The number and result of each task, as they finish.

    Raises:
        SpirlError: a task raised one.
        RayError: a task failed for another reason.
    """
    if not numbers:
        return
    # One block for each number makes one task of it.
    items = [{"number": number} for number in numbers]
    rows = ray.data.from_items(items, override_num_blocks=len(items)).map(functools.partial(_answer, work), num_cpus=1)
    rows.context.enable_progress_bars = False
    rows.context.print_on_execution_start = False
    try:
        # Without prefetching, because otherwise a finished task would be noticed only when the next one is finished.
        for batch in rows.iter_batches(batch_size=None, prefetch_batches=0, batch_format="numpy"):
            for number, text in zip(batch["number"].tolist(), batch["result"].tolist(), strict=True):
                result = json.loads(text)
                if "error" in result:
                    raise SpirlError(result["error"])
                yield number, result
    except RayError as error:
        if (known := user_error_in(error)) is None:
            raise
        raise known from error


def _answer(work: Work, row: dict[str, Any]) -> dict[str, Any]:
    number = int(row["number"])
    try:
        result = work(number)
    except SpirlError as error:
        # As a value, so that Ray neither retries nor logs a traceback for an error that the user can repair.
        result = {"error": str(error)}
    return {"number": number, "result": json.dumps(result)}
