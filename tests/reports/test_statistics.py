import math

import numpy as np
import pytest
from scipy import stats

from spirl_ray.errors import SpirlError
from spirl_ray.reports.statistics import bootstrap_interval, interquartile_mean


def test_interquartile_mean_agrees_with_trim_mean_where_four_divides_the_count():
    values = np.random.default_rng(0).normal(size=20)
    assert interquartile_mean(values) == pytest.approx(stats.trim_mean(values, 0.25))


def test_interquartile_mean_of_three_seeds_gives_the_outer_two_a_quarter_of_their_weight():
    assert interquartile_mean([0.0, 1.0, 5.0]) == pytest.approx((0.25 * 0.0 + 1.0 + 0.25 * 5.0) / 1.5)


def test_interquartile_mean_ignores_an_outlier_outside_the_middle_half():
    assert interquartile_mean([1.0, 1.0, 1.0, 1000.0]) == pytest.approx(1.0)


def test_interquartile_mean_works_along_any_axis():
    values = np.random.default_rng(1).normal(size=(8, 3))
    np.testing.assert_allclose(interquartile_mean(values, axis=0), stats.trim_mean(values, 0.25, axis=0))


@pytest.mark.parametrize("statistic", [np.mean, interquartile_mean])
def test_interval_lies_within_the_values_and_holds_the_statistic(statistic):
    values = [2.4, 2.9, 3.1, 2.7, 2.8]
    low, high = bootstrap_interval(values, statistic)
    assert min(values) <= low < statistic(values) < high <= max(values)


def test_interval_is_the_same_for_the_same_seed_and_another_for_another():
    values = np.random.default_rng(2).normal(size=30)
    assert bootstrap_interval(values, np.mean, seed=3) == bootstrap_interval(values, np.mean, seed=3)
    assert bootstrap_interval(values, np.mean, seed=3) != bootstrap_interval(values, np.mean, seed=4)


def test_interval_of_many_values_is_close_to_the_normal_one():
    values = np.random.default_rng(3).normal(size=400)
    half_width = 1.96 * values.std() / math.sqrt(values.size)
    low, high = bootstrap_interval(values, np.mean)
    assert (high - low) / 2 == pytest.approx(half_width, rel=0.1)


def test_higher_confidence_gives_a_wider_interval():
    values = np.random.default_rng(4).normal(size=30)
    narrow, wide = (bootstrap_interval(values, np.mean, confidence=c) for c in (0.5, 0.99))
    assert wide[0] < narrow[0] < narrow[1] < wide[1]


def test_interval_of_equal_values_is_a_point():
    assert bootstrap_interval([2.0, 2.0, 2.0], np.mean) == (2.0, 2.0)


def test_one_value_has_no_interval():
    assert all(math.isnan(end) for end in bootstrap_interval([1.5], np.mean))


def test_no_values_are_refused():
    with pytest.raises(SpirlError, match="at least one"):
        bootstrap_interval([], np.mean)
    with pytest.raises(SpirlError, match="no values"):
        interquartile_mean([])
