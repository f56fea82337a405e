"""The metrics of an experiment's episodes."""

from __future__ import annotations

import spirl_ray.envs as envs
from spirl_ray.config import Experiment
from spirl_ray.envs.metrics import Scores
from spirl_ray.errors import SpirlError


def experiment_scores(experiment: Experiment) -> Scores:
    """The metrics that the environment declares, with those and the score that ``evaluate`` asks for.

    Raises:
        SpirlError: a metric is not registered, or the score is not among the metrics.
    """
    evaluate = experiment.evaluate
    declared = envs.declared_scores(experiment.environment)
    try:
        return declared.adding(evaluate.metrics, evaluate.score)
    except SpirlError as error:
        raise SpirlError(f"evaluate.metrics, evaluate.score: {error}") from error
