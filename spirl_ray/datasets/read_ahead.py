"""Reading ahead: a thread makes the next item while its consumer uses the last one."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator
from typing import Generic, TypeVar

THREAD = "read ahead"
"""The name of the threads that read."""
Item = TypeVar("Item")


def read_ahead(items: Iterable[Item]) -> Iterator[Item]:
    """Yields the items in their order; a thread makes each of them while the one before it is used.

    So two are in memory at most, if the consumer forgets one before it asks for the next. The thread ends when the
    iterator is closed or no longer referred to.

    Args:
        items: items to make; none is made before the first one is asked for.

    Raises:
        BaseException: what making an item raised, after the items before it.
    """
    shelf: _Shelf[Item] = _Shelf()
    threading.Thread(target=shelf.fill, args=(items,), name=THREAD, daemon=True).start()
    try:
        while (waiting := shelf.take()) is not None:
            yield waiting.pop()
    finally:
        shelf.close()


class _Shelf(Generic[Item]):
    """The place of one item, between a thread that makes it and one that uses it."""

    def __init__(self) -> None:
        self._waiting: list[Item] = []
        self._changed = threading.Condition()
        self._ended = self._closed = False
        self._error: BaseException | None = None

    def fill(self, items: Iterable[Item]) -> None:
        """Makes items until there are no more, or nobody wants them."""
        try:
            for item in items:
                with self._changed:
                    self._waiting = [item]
                    del item  # it is the consumer's now, who may forget it
                    self._changed.notify_all()
                    self._changed.wait_for(lambda: self._closed or not self._waiting)
                    if self._closed:
                        return
        except BaseException as error:  # it is raised where the items are used
            self._error = error
        finally:
            with self._changed:
                self._ended = True
                self._changed.notify_all()

    def take(self) -> list[Item] | None:
        """Waits for the next item, which comes in a list that may be emptied; None after the last."""
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or self._ended)
            if self._waiting:
                waiting, self._waiting = self._waiting, []
                self._changed.notify_all()
                return waiting
        if self._error is not None:
            raise self._error
        return None

    def close(self) -> None:
        """Ends the making."""
        with self._changed:
            self._closed = True
            self._waiting = []
            self._changed.notify_all()
