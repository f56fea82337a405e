"""The metrics of an episode: what an environment declares of its episodes, and which metric is its score."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from pydantic import AfterValidator

from spirl_ray.errors import SpirlError
from spirl_ray.metrics import EPISODE, Metric, register_metric, training_metrics

Mode = Literal["deterministic", "sampled"]
Values = Mapping[str, float]
"""Metrics by name; a metric without a value is missing or NaN."""
SCORE = "score"
"""The name under which a sweep finds the score, beside the metric's own name."""
MODES: tuple[Mode, ...] = ("deterministic", "sampled")
"""The ways to act in an evaluation: with the mode of the policy's distribution, or with samples from it."""
_ALWAYS = ("return", "length")
_RESERVED = frozenset(
    (
        *(SCORE, "mode", "episode", "seed", "trial", "method", "status", "error", "evaluation"),
        *("policy", "skills", "config_hash", "commit", "parent"),
    )
)


@dataclass(frozen=True)
class EpisodeOutcome:
    """The outcome of an episode that has ended."""

    episode_return: float
    """The sum of the rewards, not discounted."""
    length: int
    """The number of primitive steps."""
    terminated: bool
    truncated: bool
    info: Mapping[str, Any]
    """The info of the last step."""


@dataclass(frozen=True, kw_only=True)
class EpisodeMetric(Metric):
    """A metric with one number for each episode; tables and curves show its mean over episodes."""

    of: Callable[[EpisodeOutcome], float]
    """A function from an episode's outcome to the value, which is NaN where the episode has none."""

    def value(self, outcome: EpisodeOutcome) -> float:
        """The value for an episode.

        Raises:
            SpirlError: the metric's function failed; the message names the metric.
        """
        try:
            return float(self.of(outcome))
        except Exception as error:  # whatever the function of an environment's author raises
            known = ", ".join(sorted(map(str, outcome.info))) or "nothing"
            raise SpirlError(
                f"The metric {self.name!r} cannot be computed: {type(error).__name__}: {error}. The last info of the "
                f"episode holds {known}. Repair the function of the metric, or leave the metric out."
            ) from error


@dataclass(frozen=True)
class Scores:
    """The metrics of an environment's episodes, and which of them is the score. `declare` makes it."""

    metrics: tuple[EpisodeMetric, ...]
    preferred: tuple[str, ...]
    """The score is the first of these that has a value in any episode."""

    def __getitem__(self, name: str) -> EpisodeMetric:
        """The metric with this name; an unknown name raises `SpirlError`, which lists the known ones."""
        for metric in self.metrics:
            if metric.name == name:
                return metric
        raise SpirlError(f"unknown metric {name!r}; this environment declares {', '.join(self.names)}")

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the metrics in the order of columns: return, length, then what the environment declares."""
        return tuple(metric.name for metric in self.metrics)

    def of(self, outcome: EpisodeOutcome) -> dict[str, float]:
        """The metrics of one episode by name."""
        return {metric.name: metric.value(outcome) for metric in self.metrics}

    def mean(self, episodes: Iterable[Values]) -> dict[str, float]:
        """The mean of each metric over the episodes that have a value; a metric without any value is left out."""
        columns = {name: [] for name in self.names}  # type: dict[str, list[float]]
        for values in episodes:
            for name, column in columns.items():
                if math.isfinite(value := values.get(name, math.nan)):
                    column.append(value)
        return {name: sum(column) / len(column) for name, column in columns.items() if column}

    def score_in(self, values: Iterable[Values]) -> EpisodeMetric:
        """The metric that is the score, judged by which metrics have a value in these episodes or means."""
        rows = list(values)
        for name in self.preferred:
            if any(math.isfinite(row.get(name, math.nan)) for row in rows):
                return self[name]
        return self[self.preferred[-1]]

    def with_score(self, values: Values) -> dict[str, float]:
        """These means, with the score added under the name `SCORE` where it has a value."""
        score = values.get(self.score_in([values]).name, math.nan)
        return dict(values) if math.isnan(score) else {**values, SCORE: score}

    def adding(self, names: Sequence[str], score: str | None = None) -> Scores:
        """A copy with registered metrics added, and with another score where one is given.

        Raises:
            SpirlError: a metric that is not registered, or a score that is not among the metrics.
        """
        new = [name for name in names if name not in self.names]
        return _checked((*self.metrics, *(EPISODE[name] for name in new)), (score,) if score else self.preferred)


def declare(metrics: Iterable[EpisodeMetric | str], score: str) -> Scores:
    """Makes the declaration of an environment, which may name registered metrics; return and length are always there.

    Raises:
        SpirlError: two metrics of one name, a name that is taken, or a score that is not among them.
    """
    found = [metric if isinstance(metric, EpisodeMetric) else EPISODE[metric] for metric in metrics]
    names = {metric.name for metric in found}
    return _checked((*(EPISODE[name] for name in _ALWAYS if name not in names), *found), (score,))


def undeclared() -> Scores:
    """The metrics of an environment that declares none: return, length, and success where its info reports it.

    The score is success where any episode reports it, else the return.
    """
    return _checked(tuple(EPISODE[name] for name in (*_ALWAYS, "success")), ("success", "return"))


def adapted_scores(*, subtasks: bool) -> Scores:
    """The metrics of an environment that somebody else wrote: those of `undeclared`, success at the end of the episode,
    and the number of completed subtasks where the settings say what completes them."""
    ever = replace(EPISODE["success"], meaning="1 where any step of the episode was one with success, else 0")
    own = ("success_at_end", *(("completed",) if subtasks else ()))
    metrics = (*(EPISODE[name] for name in _ALWAYS), ever, *(EPISODE[name] for name in own))
    return _checked(metrics, (*(("completed",) if subtasks else ()), "success", "return"))


def _checked(metrics: tuple[EpisodeMetric, ...], preferred: tuple[str, ...]) -> Scores:
    names = [metric.name for metric in metrics]
    taken = _RESERVED | {metric.name for stage in ("pretrain", "train") for metric in training_metrics(stage)}
    for name in names:
        if names.count(name) > 1 or name in taken:
            raise SpirlError(f"The name {name!r} is already taken by another metric; give this metric another name.")
    for name in preferred:
        if name not in names:
            raise SpirlError(f"The score {name!r} is not among the metrics {', '.join(names)}; choose one of them.")
    return Scores(metrics, preferred)


def subtasks_of(known: Iterable[str], kind: str) -> AfterValidator:
    """The check of an argument that lists subtasks: one or more, all known, all different.

    Args:
        known: the names that the environment has.
        kind: what messages call one of them, such as "kitchen subtask".
    """
    names, plural = list(known), f"{kind.split()[-1]}s"

    def check(subtasks: tuple[str, ...]) -> tuple[str, ...]:
        unknown = [name for name in subtasks if name not in names]
        if unknown:
            raise ValueError(f"unknown {kind} {', '.join(map(repr, unknown))}; known {plural}: {', '.join(names)}")
        if not subtasks or len(set(subtasks)) != len(subtasks):
            raise ValueError(f"needs one or more different {plural}")
        return subtasks

    return AfterValidator(check)


def subtask_metrics(subtasks: Sequence[str]) -> tuple[EpisodeMetric, ...]:
    """One metric, 0 or 1, for each subtask that ``info["completed"]`` may name."""
    return tuple(
        EpisodeMetric(
            name=_identifier(name),
            label=name,
            meaning=f"1 where the episode has completed {name!r}, else 0",
            range=(0.0, 1.0),
            more_is_better=True,
            of=_Completed(name),
        )
        for name in subtasks
    )


def count_of_subtasks(subtasks: Sequence[str]) -> EpisodeMetric:
    """The number of these subtasks that ``info["completed"]`` names, as a metric called ``subtasks``."""
    names = tuple(subtasks)
    return EpisodeMetric(
        name="subtasks",
        meaning=f"Number of target subtasks that the episode has completed: {', '.join(names)}",
        range=(0.0, float(len(names))),
        more_is_better=True,
        of=lambda outcome: sum(_Completed(name)(outcome) for name in names),
    )


def subtask_scores(subtasks: Sequence[str]) -> Scores:
    """The declaration of an environment whose target is a set of subtasks: their number is the score."""
    return declare([count_of_subtasks(subtasks), *subtask_metrics(subtasks)], "subtasks")


def _identifier(name: str) -> str:
    found = re.sub(r"[^a-z0-9]+", "_", name.lower()).strip("_")
    return found if found[:1].isalpha() else f"subtask_{found}"


@dataclass(frozen=True)
class _Completed:
    name: str

    def __call__(self, outcome: EpisodeOutcome) -> float:
        return float(self.name in outcome.info.get("completed", ()))


def _success(outcome: EpisodeOutcome) -> float:
    for key in ("success", "is_success"):
        if key in outcome.info:
            return float(bool(outcome.info[key]))
    return math.nan


register_metric(
    EpisodeMetric(
        name="return",
        meaning="Sum of the rewards of the episode, not discounted",
        more_is_better=True,
        of=lambda outcome: outcome.episode_return,
    )
)
register_metric(
    EpisodeMetric(
        name="length",
        meaning="Primitive steps of the episode",
        unit="steps",
        range=(0.0, None),
        of=lambda outcome: outcome.length,
    )
)
register_metric(
    EpisodeMetric(
        name="success",
        meaning="1 where the episode was a success, as info or interface.success says it, else 0",
        range=(0.0, 1.0),
        more_is_better=True,
        of=_success,
    )
)
register_metric(
    EpisodeMetric(
        name="success_at_end",
        meaning="1 where the last step of the episode is one with success, else 0",
        range=(0.0, 1.0),
        more_is_better=True,
        of=lambda outcome: float(outcome.info.get("success_now", math.nan)),
    )
)
register_metric(
    EpisodeMetric(
        name="completed",
        meaning="Number of subtasks that the episode has completed",
        range=(0.0, None),
        more_is_better=True,
        of=lambda outcome: len(outcome.info["completed"]) if "completed" in outcome.info else math.nan,
    )
)
