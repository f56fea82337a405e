"""The tables of a report, with one row for each method, prior or evaluation point."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from spirl_ray.envs.metrics import MODES, EpisodeMetric, Scores
from spirl_ray.files.tables import read_columns
from spirl_ray.metrics import deciding_metrics
from spirl_ray.reports.records import (
    DecidingRecord,
    EpisodeValues,
    EvaluationPoint,
    ExperimentRecord,
    PriorRecord,
    TrialRecord,
    read_episodes,
    read_evaluations,
)
from spirl_ray.reports.statistics import bootstrap_interval, interquartile_mean

Interval = tuple[float, float]


@dataclass(frozen=True)
class TrialResults:
    """A trial with the contents of its files, each read once."""

    record: TrialRecord
    metrics: dict[str, np.ndarray]
    evaluations: list[EvaluationPoint]
    final_episodes: list[EpisodeValues]

    def curve(self, mode: str, metric: str) -> tuple[np.ndarray, np.ndarray]:
        """The evaluation curve: env_steps float64 [n] and the metric's means float64 [n]."""
        chosen = [point for point in self.evaluations if point.mode == mode and metric in point.metrics]
        columns = np.array([(p.env_steps, p.metrics[metric]) for p in chosen], dtype=np.float64).reshape(-1, 2)
        return columns[:, 0], columns[:, 1]


@dataclass(frozen=True)
class SeedScore:
    """The score of one trained policy."""

    seed: int
    value: float
    """The mean of the score."""
    metrics: dict[str, float]
    """The means of all metrics, by name."""
    episodes: int
    env_steps: int
    wall_clock_s: float


@dataclass(frozen=True)
class MethodScore:
    """The summary of the scores of one method's seeds; intervals are NaN for a single seed."""

    method: str
    mode: str
    final: bool
    """True for the final evaluation, False for the last evaluation during training."""
    mean: float
    mean_interval: Interval
    interquartile_mean: float
    interquartile_interval: Interval
    seeds: tuple[SeedScore, ...]

    @property
    def episodes(self) -> int:
        """The number of evaluation episodes of all seeds together."""
        return sum(score.episodes for score in self.seeds)


@dataclass(frozen=True)
class MetricMeans:
    """The means of every metric over evaluation episodes; those without a value are left out."""

    label: str
    mode: str
    episodes: int
    means: dict[str, float]


@dataclass(frozen=True)
class PriorScore:
    """The score of one bare prior, with an interval over its episodes."""

    record: PriorRecord
    episodes: int
    mean: float
    mean_interval: Interval


@dataclass(frozen=True)
class BarePrior:
    """The score of the priors of one kind, over their seeds."""

    skill_label: str
    augmentation: str
    mode: str
    mean: float
    seeds: int


def load_trials(trials: Sequence[TrialRecord], scores: Scores) -> list[TrialResults]:
    """Reads the files of every trial; those that do not exist yet are empty.

    Raises:
        SpirlError: a file is not what it should be.
    """
    return [
        TrialResults(
            record=trial,
            metrics=read_columns(trial.metrics_csv),
            evaluations=read_evaluations(trial.evaluations_csv, scores),
            final_episodes=read_episodes(trial.final_episodes_csv, scores),
        )
        for trial in trials
    ]


def by_method(trials: Iterable[TrialResults]) -> dict[str, list[TrialResults]]:
    """Groups trials by method, methods in the order of their first appearance, seeds rising."""
    methods: dict[str, list[TrialResults]] = {}
    for trial in trials:
        methods.setdefault(trial.record.method, []).append(trial)
    return {name: sorted(group, key=lambda t: t.record.seed) for name, group in methods.items()}


def chosen_score(experiment: ExperimentRecord, trials: Iterable[TrialResults]) -> EpisodeMetric:
    """The metric by which the report compares: the score, judged by what has a value in any episode."""
    values = [point.metrics for trial in trials for point in trial.evaluations]
    values += [episode.metrics for trial in trials for episode in trial.final_episodes]
    values += [episode.metrics for prior in experiment.priors for episode in prior_episodes(prior, experiment.scores)]
    return experiment.scores.score_in(values)


def method_scores(trials: Iterable[TrialResults], scores: Scores, score: EpisodeMetric) -> list[MethodScore]:
    """Makes one row for each method and mode, the best deterministic method first.

    Final evaluations and evaluations during training are never mixed in a row: where any seed has a final
    evaluation in that mode, only such seeds count.
    """
    rows = []
    for method, group in by_method(trials).items():
        for mode in MODES:
            found = [one for trial in group if (one := _final_score(trial, mode, scores, score))]
            final = bool(found)
            if not final:
                found = [one for trial in group if (one := _last_score(trial, mode, score))]
            if found:
                values = [one.value for one in found]
                rows.append(
                    MethodScore(
                        method=method,
                        mode=mode,
                        final=final,
                        mean=float(np.mean(values)),
                        mean_interval=bootstrap_interval(values, np.mean),
                        interquartile_mean=float(interquartile_mean(values)),
                        interquartile_interval=bootstrap_interval(values, interquartile_mean),
                        seeds=tuple(found),
                    )
                )
    best: dict[str, float] = {}
    for row in rows:
        best.setdefault(row.method, row.mean)
    return sorted(rows, key=lambda row: -score.sign * best[row.method])


def _final_score(trial: TrialResults, mode: str, scores: Scores, score: EpisodeMetric) -> SeedScore | None:
    episodes = [episode.metrics for episode in trial.final_episodes if episode.mode == mode]
    means, record = scores.mean(episodes), trial.record
    if score.name not in means:
        return None
    return SeedScore(record.seed, means[score.name], means, len(episodes), record.env_steps, record.wall_clock_s)


def _last_score(trial: TrialResults, mode: str, score: EpisodeMetric) -> SeedScore | None:
    points = [point for point in trial.evaluations if point.mode == mode and score.name in point.metrics]
    if not points:
        return None
    last = points[-1]
    value = last.metrics[score.name]
    return SeedScore(trial.record.seed, value, last.metrics, last.episodes, last.env_steps, last.wall_clock_s)


def prior_scores(priors: Iterable[PriorRecord], scores: Scores, score: EpisodeMetric) -> list[PriorScore]:
    """Makes one row for each bare prior that has episodes.

    Raises:
        SpirlError: a file is not what it should be.
    """
    rows = []
    for prior in priors:
        found = [
            episode.metrics[score.name] for episode in prior_episodes(prior, scores) if score.name in episode.metrics
        ]
        if found:
            rows.append(PriorScore(prior, len(found), float(np.mean(found)), bootstrap_interval(found, np.mean)))
    return rows


def prior_episodes(prior: PriorRecord, scores: Scores) -> list[EpisodeValues]:
    """Reads the episodes of a bare prior; of a file shared by several modes, those of the record's mode."""
    return [episode for episode in read_episodes(prior.episodes_csv, scores) if episode.mode == prior.mode]


def best_prior(rows: Iterable[PriorScore], score: EpisodeMetric) -> BarePrior | None:
    """Finds the best mean over seeds among the priors of one skill model, augmentation and mode each."""
    groups: dict[tuple[str, str, str], list[float]] = {}
    for row in rows:
        record = row.record
        groups.setdefault((record.skill_label, record.augmentation, record.mode), []).append(row.mean)
    means = [BarePrior(*key, float(np.mean(values)), len(values)) for key, values in groups.items()]
    return max(means, key=lambda prior: score.sign * prior.mean, default=None)


def metric_means(experiment: ExperimentRecord, trials: Iterable[TrialResults]) -> list[MetricMeans]:
    """Makes the means of each method and mode over the final episodes of its seeds, then those of the priors."""
    pools: dict[tuple[str, str], list[EpisodeValues]] = {}
    for method, group in by_method(trials).items():
        for mode in MODES:
            pools[method, mode] = [e for trial in group for e in trial.final_episodes if e.mode == mode]
    for prior in experiment.priors:
        kind = f"bare prior · {prior.skill_label} · augmentation {prior.augmentation}"
        pools.setdefault((kind, prior.mode), []).extend(prior_episodes(prior, experiment.scores))
    return [
        MetricMeans(label, mode, len(episodes), experiment.scores.mean(episode.metrics for episode in episodes))
        for (label, mode), episodes in pools.items()
        if episodes
    ]


def result_columns(scores: Scores) -> list[str]:
    """The columns of `result_rows`, in their order."""
    first = ("method", "seed", "env_steps", "mode", "evaluation", "episodes")
    deciding = [row.name for stage in ("pretrain", "train") for row in deciding_metrics(stage)]
    return [*first, *scores.names, "wall_clock_s", "config_hash", "commit", *deciding]


def result_rows(
    trials: Iterable[TrialResults], scores: Scores, deciding: Iterable[DecidingRecord] = ()
) -> list[dict[str, Any]]:
    """Makes a row for every evaluation point of every trial, then one for each mode of its final evaluation.

    ``evaluation`` is ``training`` or ``final``. The final evaluation is that of the published policy, whichever
    snapshot that is; its ``env_steps`` are those of the whole training, because choosing a snapshot took all of them.
    The values that decide are the same in all rows of a trial.
    """
    decided = {
        (record.method, record.seed): {name: f"{value:.6g}" for name, value in record.metrics.items()}
        for record in deciding
    }
    rows: list[dict[str, Any]] = []
    for trial in trials:
        record = trial.record
        points = [("training", point) for point in trial.evaluations]
        for mode in MODES:
            episodes = [episode.metrics for episode in trial.final_episodes if episode.mode == mode]
            if means := scores.mean(episodes):
                final = EvaluationPoint(record.env_steps, mode, len(episodes), means, record.wall_clock_s)
                points.append(("final", final))
        for evaluation, point in points:
            row: dict[str, Any] = {"method": record.method, "seed": record.seed}
            row |= {"env_steps": point.env_steps, "mode": point.mode}
            row |= {"evaluation": evaluation, "episodes": point.episodes}
            row |= {name: f"{value:.6g}" for name, value in point.metrics.items()}
            row |= {"wall_clock_s": "" if math.isnan(point.wall_clock_s) else f"{point.wall_clock_s:.1f}"}
            row |= {"config_hash": record.config_hash, "commit": record.commit}
            rows.append(row | decided.get((record.method, record.seed), {}))
    return rows


def numbers_of_tables(
    experiment: ExperimentRecord,
    verdict: str,
    score: EpisodeMetric,
    methods: Sequence[MethodScore],
    means: Sequence[MetricMeans],
    priors: Sequence[PriorScore],
) -> dict[str, Any]:
    """The numbers of the report's tables as a JSON-able dict; what is undefined is None."""

    def interval(ends: tuple[float, float]) -> list[float] | None:
        return None if math.isnan(ends[0]) else list(ends)

    return {
        "format_version": 2,
        "name": experiment.name,
        "environment": experiment.environment,
        "score": score.name,
        "metrics": {
            metric.name: {"meaning": metric.meaning, "unit": metric.unit} for metric in experiment.scores.metrics
        },
        "verdict": verdict,
        "methods": [
            {
                "method": row.method,
                "mode": row.mode,
                "evaluation": "final" if row.final else "last during training",
                "mean": row.mean,
                "mean_interval_95": interval(row.mean_interval),
                "interquartile_mean": row.interquartile_mean,
                "interquartile_mean_interval_95": interval(row.interquartile_interval),
                "episodes": row.episodes,
                "seeds": [
                    {
                        "seed": one.seed,
                        "metrics": one.metrics,
                        "episodes": one.episodes,
                        "env_steps": one.env_steps,
                        "wall_clock_s": None if math.isnan(one.wall_clock_s) else one.wall_clock_s,
                    }
                    for one in row.seeds
                ],
            }
            for row in methods
        ],
        "snapshots": [
            {
                "method": trial.method,
                "seed": trial.seed,
                **trial.trained.model_dump(mode="json", include={"publish", "best", "last"}),
            }
            for trial in experiment.trials
            if trial.trained is not None
        ],
        "deciding": [
            {
                "method": record.method,
                "seed": record.seed,
                "metrics": record.metrics,
                "findings": [{"text": finding.text, "warning": finding.warning} for finding in record.findings],
            }
            for record in experiment.deciding
        ],
        "means": [
            {"label": row.label, "mode": row.mode, "episodes": row.episodes, "means": row.means} for row in means
        ],
        "priors": [
            {
                "skill": row.record.skill_label,
                "augmentation": row.record.augmentation,
                "seed": row.record.seed,
                "mode": row.record.mode,
                "episodes": row.episodes,
                "mean": row.mean,
                "interval_95": interval(row.mean_interval),
            }
            for row in priors
        ],
        "hardware": experiment.hardware,
        "versions": experiment.versions,
    }
