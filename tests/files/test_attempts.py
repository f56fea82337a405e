"""Only the newest attempt at a result may go on."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from spirl_ray.errors import SpirlError
from spirl_ray.files.attempts import Attempt


def test_a_newer_attempt_ends_the_older_ones_wherever_they_are_asked(tmp_path: Path) -> None:
    first = Attempt.begin(tmp_path / "result")
    first.check()
    elsewhere = Attempt(first.folder, first.number)  # as a worker has it
    second = Attempt.begin(tmp_path / "result")
    second.check()
    for stale in (first, elsewhere):
        with pytest.raises(SpirlError, match=r"result: attempt 2 at this result has begun"):
            stale.check()


def test_attempts_that_begin_at_the_same_moment_have_numbers_of_their_own(tmp_path: Path) -> None:
    with ThreadPoolExecutor(16) as threads:
        begun = list(threads.map(lambda _: Attempt.begin(tmp_path), range(64)))
    assert sorted(attempt.number for attempt in begun) == list(range(1, 65))


def test_results_do_not_fence_each_other(tmp_path: Path) -> None:
    one = Attempt.begin(tmp_path / "one")
    Attempt.begin(tmp_path / "two")
    one.check()
