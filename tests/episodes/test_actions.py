"""Ranges of actions: those of spaces and those that people write are equal where they are meant to be."""

from __future__ import annotations

import numpy as np

from spirl_ray.episodes.actions import ActionRange


def test_the_range_of_a_float32_space_is_the_one_that_is_written() -> None:
    low, high = np.array([-0.05, 0.0], np.float32), np.array([0.05, 80.1], np.float32)
    assert ActionRange.around(low.tolist(), high.tolist()) == ActionRange.around([-0.05, 0.0], [0.05, 80.1])


def test_ends_that_a_decimal_would_move_stay() -> None:
    low, high = float(np.float32(1000.1)), float(np.float32(1000.101))
    found = ActionRange.around([low, 0.123456789012], [high, 1e300])
    assert found is not None
    assert (found.low, found.high) == ((low, 0.123456789012), (high, 1e300))
