"""The numbers of a report: one row a method, a prior or an evaluation point."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from spirl_ray.reports.records import (
    EpisodeOutcome,
    EvaluationPoint,
    ExperimentRecord,
    PriorRecord,
    TrialRecord,
    read_columns,
    read_episodes,
    read_evaluations,
)
from spirl_ray.reports.statistics import bootstrap_interval, interquartile_mean

MODES = ("deterministic", "sampled")
CSV_COLUMNS = (
    *("method", "seed", "env_steps", "mode", "subtasks", "episodes", "wall_clock_s"),
    *("config_hash", "commit"),
)

Interval = tuple[float, float]


@dataclass(frozen=True)
class TrialResults:
    """A trial with the contents of its files, each read once."""

    record: TrialRecord
    metrics: dict[str, np.ndarray]
    evaluations: list[EvaluationPoint]
    final_episodes: list[EpisodeOutcome]

    def curve(self, mode: str) -> tuple[np.ndarray, np.ndarray]:
        """Evaluation curve: env_steps float64 [n] and subtasks float64 [n]."""
        points = [(point.env_steps, point.subtasks) for point in self.evaluations if point.mode == mode]
        columns = np.array(points, dtype=np.float64).reshape(-1, 2)
        return columns[:, 0], columns[:, 1]


@dataclass(frozen=True)
class Score:
    """Subtasks completed by one trained policy."""

    seed: int
    subtasks: float
    episodes: int
    env_steps: int
    wall_clock_s: float


@dataclass(frozen=True)
class MethodScore:
    """Scores of one method's seeds, summed up; intervals are NaN for a single seed."""

    method: str
    mode: str
    final: bool
    """From the final evaluation; else from the last evaluation during training."""
    mean: float
    mean_interval: Interval
    interquartile_mean: float
    interquartile_interval: Interval
    seeds: tuple[Score, ...]

    @property
    def episodes(self) -> int:
        """Evaluation episodes of all seeds together."""
        return sum(score.episodes for score in self.seeds)


@dataclass(frozen=True)
class CompletionShares:
    """Share of evaluation episodes, between 0 and 1, in which each subtask was completed."""

    label: str
    mode: str
    episodes: int
    shares: dict[str, float]


@dataclass(frozen=True)
class PriorScore:
    """Subtasks completed by one bare prior, with an interval over its episodes."""

    record: PriorRecord
    episodes: int
    mean: float
    mean_interval: Interval


@dataclass(frozen=True)
class BarePrior:
    """Subtasks completed by the priors of one kind, over their seeds."""

    skill_label: str
    augmentation: str
    mode: str
    mean: float
    seeds: int


def load_trials(trials: Sequence[TrialRecord]) -> list[TrialResults]:
    """Reads the files of every trial; those that do not exist yet are empty.

    Raises:
        SpirlError: a file is not what it should be.
    """
    return [
        TrialResults(
            record=trial,
            metrics=read_columns(trial.metrics_csv),
            evaluations=read_evaluations(trial.evaluations_csv),
            final_episodes=read_episodes(trial.final_episodes_csv),
        )
        for trial in trials
    ]


def by_method(trials: Iterable[TrialResults]) -> dict[str, list[TrialResults]]:
    """Trials by method, methods in the order of their first appearance, seeds rising."""
    methods: dict[str, list[TrialResults]] = {}
    for trial in trials:
        methods.setdefault(trial.record.method, []).append(trial)
    return {name: sorted(group, key=lambda t: t.record.seed) for name, group in methods.items()}


def method_scores(trials: Iterable[TrialResults]) -> list[MethodScore]:
    """One row for each method and mode, the best deterministic method first.

    Final evaluations and evaluations during training are never mixed in a row: where any seed has a final
    evaluation in that mode, only such seeds count.
    """
    rows = []
    for method, group in by_method(trials).items():
        for mode in MODES:
            scores = [score for trial in group if (score := _final_score(trial, mode))]
            final = bool(scores)
            if not final:
                scores = [score for trial in group if (score := _last_score(trial, mode))]
            if scores:
                values = [score.subtasks for score in scores]
                rows.append(
                    MethodScore(
                        method=method,
                        mode=mode,
                        final=final,
                        mean=float(np.mean(values)),
                        mean_interval=bootstrap_interval(values, np.mean),
                        interquartile_mean=float(interquartile_mean(values)),
                        interquartile_interval=bootstrap_interval(values, interquartile_mean),
                        seeds=tuple(scores),
                    )
                )
    best: dict[str, float] = {}
    for row in rows:
        best.setdefault(row.method, row.mean)
    return sorted(rows, key=lambda row: -best[row.method])


def _final_score(trial: TrialResults, mode: str) -> Score | None:
    outcomes = [outcome.subtasks for outcome in trial.final_episodes if outcome.mode == mode]
    if not outcomes:
        return None
    record = trial.record
    return Score(record.seed, float(np.mean(outcomes)), len(outcomes), record.env_steps, record.wall_clock_s)


def _last_score(trial: TrialResults, mode: str) -> Score | None:
    points = [point for point in trial.evaluations if point.mode == mode]
    if not points:
        return None
    last = points[-1]
    return Score(trial.record.seed, last.subtasks, last.episodes, last.env_steps, last.wall_clock_s)


def prior_scores(priors: Iterable[PriorRecord]) -> list[PriorScore]:
    """One row for each bare prior that has episodes.

    Raises:
        SpirlError: a file is not what it should be.
    """
    rows = []
    for prior in priors:
        subtasks = [outcome.subtasks for outcome in prior_episodes(prior)]
        if subtasks:
            interval = bootstrap_interval(subtasks, np.mean)
            rows.append(PriorScore(prior, len(subtasks), float(np.mean(subtasks)), interval))
    return rows


def prior_episodes(prior: PriorRecord) -> list[EpisodeOutcome]:
    """The episodes of a bare prior; of a file shared by several modes, those of the record's mode."""
    outcomes = read_episodes(prior.episodes_csv)
    return [outcome for outcome in outcomes if outcome.mode == prior.mode]


def best_prior(scores: Iterable[PriorScore]) -> BarePrior | None:
    """The best mean over seeds among the priors of one skill model, augmentation and mode each."""
    groups: dict[tuple[str, str, str], list[float]] = {}
    for score in scores:
        record = score.record
        groups.setdefault((record.skill_label, record.augmentation, record.mode), []).append(score.mean)
    means = [BarePrior(*key, float(np.mean(values)), len(values)) for key, values in groups.items()]
    return max(means, key=lambda prior: prior.mean, default=None)


def completion_shares(
    experiment: ExperimentRecord, trials: Iterable[TrialResults]
) -> tuple[tuple[str, ...], list[CompletionShares]]:
    """Column names and rows: each method and mode over the final episodes of its seeds, then the priors.

    The columns are the target's subtasks, then any other name that turned up.
    """
    pools: list[tuple[str, str, list[EpisodeOutcome]]] = []
    for method, group in by_method(trials).items():
        for mode in MODES:
            pools.append((method, mode, [o for t in group for o in t.final_episodes if o.mode == mode]))
    kinds: dict[tuple[str, str], list[EpisodeOutcome]] = {}
    for prior in experiment.priors:
        kind = f"bare prior · {prior.skill_label} · augmentation {prior.augmentation}"
        kinds.setdefault((kind, prior.mode), []).extend(prior_episodes(prior))
    pools += [(kind, mode, outcomes) for (kind, mode), outcomes in kinds.items()]
    seen = {name: None for _, _, outcomes in pools for outcome in outcomes for name in outcome.completed}
    columns = tuple(dict.fromkeys([*experiment.subtasks, *seen]))
    rows = [
        CompletionShares(
            label=label,
            mode=mode,
            episodes=len(outcomes),
            shares={name: sum(name in outcome.completed for outcome in outcomes) / len(outcomes) for name in columns},
        )
        for label, mode, outcomes in pools
        if outcomes
    ]
    return columns, rows


def results_csv(trials: Iterable[TrialResults]) -> str:
    """CSV text: a row for every evaluation point of every trial, then one for each mode of its final one."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(CSV_COLUMNS)
    for trial in trials:
        record = trial.record
        points = list(trial.evaluations)
        for mode in MODES:
            if score := _final_score(trial, mode):
                points.append(
                    EvaluationPoint(score.env_steps, mode, score.episodes, score.subtasks, score.wall_clock_s)
                )
        for point in points:
            wall_clock = "" if math.isnan(point.wall_clock_s) else f"{point.wall_clock_s:.1f}"
            writer.writerow(
                [
                    *(record.method, record.seed, point.env_steps, point.mode, f"{point.subtasks:.6g}"),
                    *(point.episodes, wall_clock, record.config_hash, record.commit),
                ]
            )
    return text.getvalue()


def numbers_of_tables(
    experiment: ExperimentRecord,
    verdict: str,
    scores: Sequence[MethodScore],
    shares: Sequence[CompletionShares],
    priors: Sequence[PriorScore],
) -> dict[str, Any]:
    """The numbers of the report's tables as a JSON-able dict; what is undefined is None."""

    def interval(ends: tuple[float, float]) -> list[float] | None:
        return None if math.isnan(ends[0]) else list(ends)

    return {
        "format_version": 1,
        "name": experiment.name,
        "environment": experiment.environment,
        "subtasks": list(experiment.subtasks),
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
                        "seed": score.seed,
                        "subtasks": score.subtasks,
                        "episodes": score.episodes,
                        "env_steps": score.env_steps,
                        "wall_clock_s": None if math.isnan(score.wall_clock_s) else score.wall_clock_s,
                    }
                    for score in row.seeds
                ],
            }
            for row in scores
        ],
        "completion": [
            {"label": row.label, "mode": row.mode, "episodes": row.episodes, "shares": row.shares} for row in shares
        ],
        "priors": [
            {
                "label": row.record.label,
                "skill": row.record.skill_label,
                "augmentation": row.record.augmentation,
                "seed": row.record.seed,
                "mode": row.record.mode,
                "episodes": row.episodes,
                "subtasks": row.mean,
                "interval_95": interval(row.mean_interval),
            }
            for row in priors
        ],
        "hardware": experiment.hardware,
        "versions": experiment.versions,
    }
