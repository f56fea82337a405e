"""Reading ahead: a thread makes the next item while its consumer uses the last one."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from typing import TypeVar

THREAD = "read ahead"
"""The beginning of the names of the threads that read."""
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
    source, pool = iter(items), ThreadPoolExecutor(1, THREAD)

    def make() -> list[Item]:
        """The next item, in a list that is emptied where the item is used; an empty list after the last."""
        return list(islice(source, 1))

    try:
        coming = pool.submit(make)
        while waiting := coming.result():
            coming = pool.submit(make)
            yield waiting.pop()
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
