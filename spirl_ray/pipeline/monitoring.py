"""Metrics as gauges of Ray's metrics endpoint, which Prometheus scrapes and Grafana draws.

The endpoint drops a gauge that is not set again within two of Ray's report intervals (20 s), so a stage sets its own
again for as long as it is at work, and what is on the endpoint is at work.

Every gauge is tagged by run (the experiment's name), trial (method and seed) and stage. On the endpoint its name
starts with ``ray_``: ``ray_spirl_divergence{run="kitchen_human", trial="spirl_cl-s0", stage="train"}``. What an
environment declares of its episodes is one gauge, tagged by the metric and by which episodes it is the mean of.
"""

from __future__ import annotations

import contextlib
import math
import shutil
import threading
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

from ray.util.metrics import Gauge

from spirl_ray.envs.metrics import Scores
from spirl_ray.metrics import Stage, training_metrics

_AGAIN_S = 5.0
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
        folder: a folder on the disk whose used share is shown; None shows no disk.
    """

    def __init__(
        self, run: str, trial: str, stage: Stage, scores: Scores | None = None, folder: Path | None = None
    ) -> None:
        self._metrics = training_metrics(stage)
        self._folder = folder
        self._scores = scores
        self._tags = {"run": run, "trial": trial, "stage": stage}
        self._shown: dict[tuple[Any, ...], tuple[Gauge, float, dict[str, str]]] = {}
        self._lock = threading.Lock()

    @contextlib.contextmanager
    def at_work(self, start: Mapping[str, Any]) -> Iterator[None]:
        """Keeps the gauges on the endpoint until the block ends.

        Args:
            start: what is known at the start, so that a stage without any progress is seen as well.
        """
        self.show(start)
        ended = threading.Event()
        thread = threading.Thread(target=self._set_again, args=(ended,), daemon=True, name="monitor")
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()

    def _set_again(self, ended: threading.Event) -> None:
        while not ended.wait(_AGAIN_S):
            with self._lock:
                for gauge, value, tags in self._shown.values():
                    gauge.set(value, tags)

    def show(self, row: Mapping[str, Any], evaluated: Mapping[str, Mapping[str, Any]] | None = None) -> None:
        """Sets the gauges that have a finite value, and that of the disk; the others keep their value.

        Args:
            row: a row of ``metrics.csv``, or any of its values.
            evaluated: the newest means of an evaluation, by mode.
        """
        values = {"disk_used": _used(self._folder), **row}
        for metric in self._metrics:
            description = f"{metric.meaning} [{metric.unit}]" if metric.unit else metric.meaning
            self._set(_gauge(metric.gauge, description, TAGS), values.get(metric.name), self._tags)
        for name in self._scores.names if self._scores is not None else ():
            for episodes, means in {TRAINING_EPISODES: row, **(evaluated or {})}.items():
                gauge = _gauge(EPISODE_GAUGE, "Mean of a metric over episodes", EPISODE_TAGS)
                self._set(gauge, means.get(name), {**self._tags, "metric": name, "episodes": episodes})

    def _set(self, gauge: Gauge, value: Any, tags: dict[str, str]) -> None:
        if isinstance(value, int | float) and math.isfinite(value):
            with self._lock:
                self._shown[gauge, *tags.values()] = gauge, float(value), tags
                gauge.set(float(value), tags)


def _used(folder: Path | None) -> float | None:
    """Returns the share of a folder's disk that is in use, as ``df`` counts it; None where no disk answers."""
    if folder is not None:
        with contextlib.suppress(OSError):
            disk = shutil.disk_usage(folder)
            return disk.used / max(1, disk.used + disk.free)
    return None
