"""Reading ahead: a thread reads the next episodes while their consumer trains on earlier ones."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterable, Iterator

from spirl_ray.episodes.episode import Episode

THREAD = "read ahead"
"""The name of the threads that read."""


def read_ahead(episodes: Iterable[Episode], limit_bytes: float) -> Iterator[Episode]:
    """Yields the episodes in their order, of which a thread reads some before they are asked for.

    The thread ends when the iterator is closed or no longer referred to.

    Args:
        episodes: episodes to read; nothing is read before the first one is asked for.
        limit_bytes: the size of the episodes that wait at most. One more is in the thread's hands, and one may always
            wait, however large it is.

    Raises:
        BaseException: what reading raised, after the episodes that were read before.
    """
    shelf = _Shelf(limit_bytes)
    threading.Thread(target=shelf.fill, args=(episodes,), name=THREAD, daemon=True).start()
    try:
        while (episode := shelf.take()) is not None:
            yield episode
            del episode  # it must not stay in memory while the next one is awaited
    finally:
        shelf.close()


class _Shelf:
    """The episodes that wait, between a thread that reads and one that trains."""

    def __init__(self, limit_bytes: float) -> None:
        self._limit = limit_bytes
        self._waiting: deque[Episode] = deque()
        self._bytes = 0
        self._changed = threading.Condition()
        self._ended = self._closed = False
        self._error: BaseException | None = None

    def fill(self, episodes: Iterable[Episode]) -> None:
        """Reads until there are no more episodes, or nobody wants them."""
        try:
            for episode in episodes:
                if not self._put(episode):
                    return
        except BaseException as error:  # it is raised where the episodes are used
            self._error = error
        finally:
            with self._changed:
                self._ended = True
                self._changed.notify_all()

    def take(self) -> Episode | None:
        """Waits for the next episode; None after the last."""
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or self._ended)
            if self._waiting:
                episode = self._waiting.popleft()
                self._bytes -= episode.nbytes
                self._changed.notify_all()
                return episode
        if self._error is not None:
            raise self._error
        return None

    def close(self) -> None:
        """Ends the reading."""
        with self._changed:
            self._closed = True
            self._waiting.clear()
            self._changed.notify_all()

    def _put(self, episode: Episode) -> bool:
        with self._changed:
            self._changed.wait_for(
                lambda: self._closed or not self._waiting or self._bytes + episode.nbytes <= self._limit
            )
            if not self._closed:
                self._waiting.append(episode)
                self._bytes += episode.nbytes
                self._changed.notify_all()
            return not self._closed
