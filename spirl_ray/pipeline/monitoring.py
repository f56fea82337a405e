"""Metrics as gauges of Ray's metrics endpoint, which Prometheus scrapes and Grafana draws.

Every gauge is tagged by run (the experiment's name), trial (method and seed) and stage. On the endpoint its name
starts with ``ray_``: ``ray_spirl_divergence{run="kitchen_human", trial="spirl_cl-s0", stage="train"}``. What an
environment declares of its episodes is one gauge, tagged by the metric and by which episodes it is the mean of.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import cache
from typing import Any

from ray.util.metrics import Gauge

from spirl_ray.envs.metrics import Scores
from spirl_ray.metrics import Stage, training_metrics

TAGS = ("run", "trial", "stage")
EPISODE_TAGS = (*TAGS, "metric", "episodes")
EPISODE_GAUGE = "spirl_episode_metric"
TRAINING_EPISODES = "training"
"""The value of the tag ``episodes`` for the newest training episodes; for those of an evaluation it is their mode."""


@cache
def _gauge(name: str, description: str, tags: tuple[str, ...]) -> Gauge:
    """Returns the gauge of a name, of which Ray wants one object in a process."""
    return Gauge(name, description=description, tag_keys=tags)


class Monitor:
    """The gauges of one stage of one trial; Ray must be connected.

    Args:
        run: the experiment's name.
        trial: method and seed, for example ``spirl_cl-s0``.
        stage: the stage whose metrics are shown.
        scores: the metrics of the environment's episodes, where the stage runs episodes.
    """

    def __init__(self, run: str, trial: str, stage: Stage, scores: Scores | None = None) -> None:
        self._metrics = training_metrics(stage)
        self._scores = scores
        self._tags = {"run": run, "trial": trial, "stage": stage}

    def show(self, row: Mapping[str, Any], evaluated: Mapping[str, Mapping[str, Any]] | None = None) -> None:
        """Sets the gauges that have a finite value; the others keep their value.

        Args:
            row: a row of ``metrics.csv``.
            evaluated: the newest means of an evaluation, by mode.
        """
        for metric in self._metrics:
            description = f"{metric.meaning} [{metric.unit}]" if metric.unit else metric.meaning
            _set(_gauge(metric.gauge, description, TAGS), row.get(metric.name), self._tags)
        for name in self._scores.names if self._scores is not None else ():
            for episodes, means in {TRAINING_EPISODES: row, **(evaluated or {})}.items():
                gauge = _gauge(EPISODE_GAUGE, "Mean of a metric over episodes", EPISODE_TAGS)
                _set(gauge, means.get(name), {**self._tags, "metric": name, "episodes": episodes})


def _set(gauge: Gauge, value: Any, tags: dict[str, str]) -> None:
    if isinstance(value, int | float) and math.isfinite(value):
        gauge.set(float(value), tags)
