"""Statistics over a handful of seeds: interquartile mean and bootstrap intervals.

Follows Agarwal et al., "Deep Reinforcement Learning at the Edge of the Statistical Precipice" (NeurIPS 2021).
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats

from spirl_ray.errors import SpirlError


def interquartile_mean(x: ArrayLike, axis: int = -1) -> float | np.ndarray:
    """Computes the mean of the middle half of the values along an axis.

    It equals ``scipy.stats.trim_mean(x, 0.25)`` where 4 divides the count. That function drops whole values and
    so drops none of three seeds; here the values on the edge of the middle half count in part.

    Args:
        x: Real numbers, at least one along the axis.
        axis: The axis to average over.

    Raises:
        SpirlError: there are no values.
    """
    values = np.sort(np.asarray(x, dtype=np.float64), axis=axis)
    count = values.shape[axis] if values.ndim else 0
    if count == 0:
        raise SpirlError("the interquartile mean of no values is undefined")
    edges = np.linspace(0.0, 1.0, count + 1)
    weights = np.maximum(np.minimum(edges[1:], 0.75) - np.maximum(edges[:-1], 0.25), 0.0)
    mean = np.moveaxis(values, axis, -1) @ (weights / weights.sum())
    return float(mean) if mean.ndim == 0 else mean


def bootstrap_interval(
    values: ArrayLike,
    statistic: Callable[..., float | np.ndarray],
    confidence: float = 0.95,
    samples: int = 2000,
    seed: int = 0,
) -> tuple[float, float]:
    """Computes the percentile bootstrap interval of a statistic of independent runs.

    Args:
        values: One number a run (a seed's mean, say), shape [n].
        statistic: `numpy.mean`, `interquartile_mean` or any function with their ``axis`` argument.
        confidence: Share of the bootstrap distribution inside the interval, between 0 and 1.
        samples: Number of resamples.
        seed: Seed of the resampling, so that a report can be made again to the last digit.

    Returns:
        Low and high end. Both are NaN for a single value: one run says nothing about the spread between runs.

    Raises:
        SpirlError: there are no values.
    """
    runs = np.asarray(values, dtype=np.float64).ravel()
    if runs.size == 0:
        raise SpirlError("a bootstrap interval needs at least one value")
    if runs.size == 1:
        return float("nan"), float("nan")
    interval = stats.bootstrap(
        (runs,),
        statistic,
        n_resamples=samples,
        confidence_level=confidence,
        method="percentile",
        vectorized=True,
        rng=np.random.default_rng(seed),
    ).confidence_interval
    return float(interval.low), float(interval.high)
