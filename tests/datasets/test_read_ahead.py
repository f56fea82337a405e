"""A thread makes the next item while the last one is used."""

from __future__ import annotations

import threading
import time
import weakref
from collections.abc import Callable, Iterator

import numpy as np
import pytest

from spirl_ray.datasets.read_ahead import read_ahead
from spirl_ray.episodes.episode import Episode

PATIENCE_S = 30.0


def make_episode(number: int, length: int = 10) -> Episode:
    zeros = np.zeros((length, 1), np.float32)
    return Episode(str(number), {}, zeros, zeros[:, 0], terminated=False, truncated=True)


class Source:
    """Episodes that notes which of them have been read, and by whom."""

    def __init__(self, count: int) -> None:
        self.episodes = [make_episode(number) for number in range(count)]
        self.read: list[str] = []
        self.threads: set[threading.Thread] = set()
        self.ended = threading.Event()

    def __iter__(self) -> Iterator[Episode]:
        try:
            for episode in self.episodes:
                self.threads.add(threading.current_thread())
                self.read.append(episode.id)
                yield episode
        finally:
            self.ended.set()


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline, "it never happened"
        time.sleep(0.005)


def test_all_items_come_in_their_order() -> None:
    source = Source(7)
    assert [episode.id for episode in read_ahead(source)] == [str(number) for number in range(7)]
    assert threading.current_thread() not in source.threads


def test_nothing_is_read_before_it_is_asked_for() -> None:
    source = Source(3)
    ahead = read_ahead(source)
    time.sleep(0.05)
    assert not source.read
    next(ahead)
    assert source.read


def test_one_item_is_made_while_the_one_before_it_is_used() -> None:
    source = Source(10)
    ahead = read_ahead(source)
    next(ahead)
    wait_for(lambda: len(source.read) == 2)
    time.sleep(0.05)
    assert len(source.read) == 2
    next(ahead)
    wait_for(lambda: len(source.read) == 3)


def test_two_items_are_in_memory_at_most() -> None:
    alive: list[weakref.ref[Episode]] = []

    def made() -> Iterator[Episode]:
        for number in range(6):
            assert sum(one() is not None for one in alive) <= 1
            episode = make_episode(number)
            alive.append(weakref.ref(episode))
            yield episode
            del episode

    for episode in read_ahead(made()):
        assert episode.id
        del episode
    assert len(alive) == 6


def test_an_error_of_reading_comes_after_what_was_read_before() -> None:
    def failing() -> Iterator[Episode]:
        yield make_episode(0)
        yield make_episode(1)
        raise OSError("the disk is gone")

    ahead = read_ahead(failing())
    assert [next(ahead).id, next(ahead).id] == ["0", "1"]
    with pytest.raises(OSError, match="the disk is gone"):
        next(ahead)


def test_reading_ends_when_nobody_wants_more() -> None:
    source = Source(100)
    ahead = read_ahead(source)
    next(ahead)
    ahead.close()  # type: ignore[attr-defined]
    assert source.ended.wait(PATIENCE_S)
    assert len(source.read) < 100
