"""The names of kinds in a config, such as methods and priors, are checked against their tables before any work.

This stands apart from `spirl_ray.pipeline.checks`, because ``spirl data import --dry-run`` checks names without RLlib.
"""

from __future__ import annotations

from collections.abc import Iterator

from spirl_ray.config import Experiment
from spirl_ray.datasets.sources import SOURCES
from spirl_ray.errors import SpirlError
from spirl_ray.metrics import EPISODE
from spirl_ray.registry import Registry
from spirl_ray.rl.heads import HEADS
from spirl_ray.rl.methods import METHODS
from spirl_ray.skills.encoders import ENCODERS
from spirl_ray.skills.priors import PRIORS

_AUTO = "auto"


def check_kinds(experiment: Experiment, origin: str = "") -> None:
    """Looks up every name of a kind that an experiment's settings hold, those of ``overrides`` included.

    Args:
        experiment: whose settings.
        origin: the file to name in the message.

    Raises:
        SpirlError: names that nobody has registered; one message says key, value and what is known of each.
    """
    lines = [
        f"  {key}: there is no {table.kind} {value!r}. Known: {', '.join(sorted(table))}"
        for key, value, table in dict.fromkeys(_names(experiment))
        if value not in table
    ]
    if lines:
        where = f" from {origin}" if origin else ""
        raise SpirlError(f"The configuration{where} is not valid:\n" + "\n".join(lines))


def _names(experiment: Experiment) -> Iterator[tuple[str, str, Registry]]:
    """Key, value and table of every name of a kind."""
    for place, source in enumerate(experiment.data.sources):
        yield f"data.sources.{place}.type", source.type, SOURCES
    for method in experiment.methods:
        yield "methods", method, METHODS
    for method in experiment.overrides:
        yield f"overrides.{method}", method, METHODS
    for name in experiment.evaluate.metrics:
        yield "evaluate.metrics", name, EPISODE
    yield from _names_of_parts(experiment)
    base = {(key, value) for key, value, _ in _names_of_parts(experiment)}
    for method in experiment.overrides:
        for key, value, table in _names_of_parts(experiment.for_method(method)):
            if (key, value) not in base:  # what it inherits has been named already
                yield f"overrides.{method}.{key}", value, table


def _names_of_parts(experiment: Experiment) -> Iterator[tuple[str, str, Registry]]:
    yield "skills.prior", experiment.skills.prior, PRIORS
    for feature, encoder in experiment.skills.encoders.items():
        yield f"skills.encoders.{feature}.kind", encoder.kind, ENCODERS
    if experiment.train.policy_head != _AUTO:
        yield "train.policy_head", experiment.train.policy_head, HEADS
