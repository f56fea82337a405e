"""The rows of metrics that training workers send to the driver while they train."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator

import ray
from ray.util.queue import Queue

_LISTEN_S = 0.5
Row = dict[str, float]


@contextlib.contextmanager
def listening(queue: Queue, on_row: Callable[[Row], None] | None) -> Iterator[None]:
    """Passes the workers' metrics to ``on_row`` while the trainer runs; an error that it raises is raised again at the
    end."""
    finished = threading.Event()
    errors: list[Exception] = []

    def drain() -> None:
        last = False
        while not last and ray.is_initialized():
            last = finished.wait(_LISTEN_S)
            for row in _waiting_rows(queue):
                if on_row is not None and not errors:
                    try:
                        on_row(row)
                    except Exception as error:
                        errors.append(error)

    thread = threading.Thread(target=drain, daemon=True)
    thread.start()
    try:
        yield
    finally:
        finished.set()
        thread.join(timeout=60.0)
        queue.shutdown(force=True)
    if errors:
        raise errors[0]


def _waiting_rows(queue: Queue) -> Iterator[Row]:
    """The rows that are in the queue now; none where it, or Ray, has ended meanwhile, as after Ctrl-C."""
    with contextlib.suppress(Exception):
        for _ in range(queue.qsize()):  # asking an empty queue is a failed task in the dashboard
            yield queue.get_nowait()
