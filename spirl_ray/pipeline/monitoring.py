"""Rows of metrics as gauges of Ray's metrics endpoint, which Prometheus scrapes and Grafana draws.

Every gauge is tagged by run (the experiment's name), trial (method and seed) and stage. On the endpoint its name
starts with ``ray_``: ``ray_spirl_divergence{run="kitchen_human", trial="spirl_cl-s0", stage="train"}``.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import cache
from typing import Any, Literal

from ray.util.metrics import Gauge

TAGS = ("run", "trial", "stage")
Stage = Literal["pretrain", "train"]

_PRETRAIN = {
    "update": ("spirl_pretrain_updates", "Stage 1: gradient updates so far"),
    "train_loss": ("spirl_pretrain_loss", "Stage 1: training loss (all terms are means over dimensions)"),
    "train_reconstruction": ("spirl_pretrain_reconstruction", "Stage 1: reconstruction loss, nats a dimension"),
    "train_kl": ("spirl_pretrain_kl", "Stage 1: KL(q || N(0, I)), nats a dimension"),
    "train_prior": ("spirl_pretrain_prior_loss", "Stage 1: loss of the skill prior, nats a dimension"),
    "validation_loss": ("spirl_pretrain_validation_loss", "Stage 1: loss of held-out windows"),
    "windows_per_s": ("spirl_windows_per_second", "Stage 1: windows of all workers in a second"),
}
_TRAIN = {
    "env_steps": ("spirl_env_steps", "Stage 2: primitive environment steps so far"),
    "divergence": ("spirl_divergence", "Stage 2: mean divergence to the prior, nats a decision"),
    "divergence_p90": ("spirl_divergence_p90", "Stage 2: 90th percentile of the divergence, nats a decision"),
    "alpha": ("spirl_alpha", "Stage 2: weight of the divergence"),
    "critic_loss": ("spirl_critic_loss", "Stage 2: loss of the critics"),
    "policy_loss": ("spirl_policy_loss", "Stage 2: loss of the policy"),
    "episode_return": ("spirl_episode_return", "Stage 2: mean return of the last 50 training episodes"),
    "subtasks": ("spirl_subtasks", "Stage 2: mean completed subtasks of the last 50 training episodes"),
    "evaluation_deterministic": ("spirl_evaluation_subtasks", "Stage 2: completed subtasks, newest evaluation"),
    "env_steps_per_s": ("spirl_env_steps_per_second", "Stage 2: primitive environment steps in a second"),
    "updates_per_s": ("spirl_updates_per_second", "Stage 2: gradient updates in a second"),
}
GAUGES: Mapping[Stage, Mapping[str, tuple[str, str]]] = {"pretrain": _PRETRAIN, "train": _TRAIN}
"""For each stage, the columns of its rows that are shown: the gauge's name and what it means, with the unit."""


@cache
def _gauge(name: str, description: str) -> Gauge:
    """Ray wants one object for each name in a process."""
    return Gauge(name, description=description, tag_keys=TAGS)


class Monitor:
    """The gauges of one stage of one trial; Ray must be connected.

    Args:
        run: the experiment's name.
        trial: method and seed, for example ``spirl_cl-s0``.
        stage: which columns to expect.
    """

    def __init__(self, run: str, trial: str, stage: Stage) -> None:
        self._columns = GAUGES[stage]
        self._tags = {"run": run, "trial": trial, "stage": stage}

    def show(self, row: Mapping[str, Any]) -> None:
        """Sets the gauges that the row has a finite number for; the others keep what they show."""
        for column, (name, description) in self._columns.items():
            value = row.get(column)
            if isinstance(value, int | float) and math.isfinite(value):
                _gauge(name, description).set(float(value), self._tags)
