"""A metric that any environment or config can name."""

from __future__ import annotations

from spirl_ray.envs.metrics import EpisodeMetric
from spirl_ray.metrics import register_metric

register_metric(
    EpisodeMetric(
        name="closest",
        meaning="Smallest distance to the target in the episode",
        unit="m",
        range=(0.0, None),
        more_is_better=False,
        of=lambda outcome: outcome.info["closest"],
    )
)
