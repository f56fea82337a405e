"""The report of an experiment: one self-contained HTML page, with its numbers as CSV and JSON."""

from __future__ import annotations

import base64
import json
import math
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import quote

from jinja2 import Environment, PackageLoader, StrictUndefined

from spirl_ray import __version__
from spirl_ray.envs.metrics import MODES, EpisodeMetric
from spirl_ray.files import layout
from spirl_ray.files.atomic import write_atomically, write_json
from spirl_ray.files.tables import write_csv
from spirl_ray.metrics import TrainingMetric, deciding_metrics
from spirl_ray.pipeline.status import duration, number
from spirl_ray.reports.plots import (
    ENV_STEPS,
    NBSP,
    SERIES_COLOURS,
    diagnostics,
    draw,
    learning_curves,
    short_count,
    skill_panels,
)
from spirl_ray.reports.records import DecidingRecord, ExperimentRecord, ExplorationRecord
from spirl_ray.reports.tables import (
    MethodScore,
    PriorScore,
    best_prior,
    by_method,
    chosen_score,
    load_trials,
    method_scores,
    metric_means,
    numbers_of_tables,
    prior_scores,
    result_columns,
    result_rows,
)

VIDEO_LIMIT_BYTES = 40 * 1024 * 1024


@dataclass(frozen=True)
class ReportFiles:
    """The files of a report."""

    html: Path
    csv: Path
    json: Path


@dataclass(frozen=True)
class Video:
    """A video of the page: inside it as a data address, beside it as a relative path, or missing (None)."""

    caption: str
    source: str | None
    embedded: bool


def write_report(out: Path, experiment: ExperimentRecord, video_limit_bytes: int = VIDEO_LIMIT_BYTES) -> ReportFiles:
    """Writes report.html, results.csv and results.json; the page names whatever is missing.

    Args:
        out: Folder of the three files, made if need be.
        experiment: The record; its files are read, never changed.
        video_limit_bytes: Bytes of base64 video that the page may hold. Videos that do not fit are linked by
            their path relative to `out`.

    Raises:
        SpirlError: a file of the record is malformed, or `out` cannot be written.
    """
    trials = load_trials(experiment.trials, experiment.scores)
    score = chosen_score(experiment, trials)
    scores = method_scores(trials, experiment.scores, score)
    priors = prior_scores(experiment.priors, experiment.scores, score)
    means = metric_means(experiment, trials)
    verdict = verdict_in_words(experiment, score, scores, priors)
    colours = {method: index for index, method in enumerate(by_method(trials))}
    bare_prior = best_prior(priors, score)
    page = (
        _environment()
        .get_template("report.html.j2")
        .render(
            experiment=experiment,
            verdict=verdict,
            version=__version__,
            made_at=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
            score=score,
            highest=_highest(score),
            bounded=None not in score.range and score.range[0] != score.range[1],
            modes=MODES,
            snapshots=[trial for trial in experiment.trials if trial.trained is not None],
            scores=scores,
            bare_prior=bare_prior,
            final=bool(scores) and all(score.final for score in scores),
            means=means,
            measured=[m for m in experiment.scores.metrics if any(m.name in row.means for row in means)],
            priors=priors,
            colours=colours,
            curves=learning_curves(trials, colours, score, bare_prior),
            diagnostics={
                method: diagnostics(group, colours[method], experiment.scores)
                for method, group in by_method(trials).items()
            },
            skills=[(skill, skill_panels(skill)) for skill in experiment.skills],
            deciding=[(record, _deciding_table(record)) for record in experiment.deciding],
            exploration=experiment.exploration,
            exploration_figure=_embedded(experiment.exploration),
            videos=_videos(out, experiment, scores, video_limit_bytes),
            missing=[_relative(path, out) for path in _listed_files(experiment) if not path.exists()],
            files=[(_relative(p, out), p.stat().st_size) for p in _listed_files(experiment) if p.is_file()],
        )
    )
    numbers = numbers_of_tables(experiment, verdict, score, scores, means, priors)
    files = ReportFiles(out / layout.REPORT, out / layout.REPORT_TABLE, out / layout.REPORT_NUMBERS)
    rows = result_rows(trials, experiment.scores, experiment.deciding)
    write_csv(files.csv, rows, result_columns(experiment.scores))
    write_json(files.json, numbers, allow_nan=False)
    write_atomically(files.html, page)
    return files


def _deciding_table(record: DecidingRecord) -> list[tuple[TrainingMetric, str]]:
    """The metrics that decide with their values as text, in the order of the table of metrics."""
    rows = [row for stage in ("pretrain", "train") for row in deciding_metrics(stage)]
    return [(row, number(record.metrics[row.name])) for row in rows if row.name in record.metrics]


def _highest(score: EpisodeMetric) -> str:
    """The text after a value of the score: the highest value, where it counts up to that, or the unit."""
    low, high = score.range
    if low == 0.0 and high is not None and not score.is_share:
        return f"of {high:g}"
    return score.unit


def verdict_in_words(
    experiment: ExperimentRecord, score: EpisodeMetric, scores: Sequence[MethodScore], priors: Sequence[PriorScore]
) -> str:
    """One paragraph: the best method, what it scores with either policy, and the bare prior beside it."""
    bare, highest = best_prior(priors, score), f" {_highest(score)}".rstrip()
    bare_words = (
        f"The best bare prior, without any reinforcement learning, scores {bare.mean:.2f}{highest} "
        f"({'sampled latents' if bare.mode == 'sampled' else 'mean latent'} of {bare.skill_label}, "
        f"augmentation {bare.augmentation}, {_seeds(bare.seeds)})."
        if bare
        else "There are no rollouts of the bare prior to compare with."
    )
    if not scores:
        begun = "No policy has been evaluated yet" if experiment.trials else "No policy has been trained yet"
        return f"{begun}, so there is no result. {bare_words}"
    best = scores[0]
    rows = {row.mode: row for row in scores if row.method == best.method}
    results = [
        f"{row.mean:.2f}{highest}{_interval_words(row)} with "
        + ("its deterministic policy" if mode == "deterministic" else "sampled actions")
        for mode, row in rows.items()
    ]
    steps = max(one.env_steps for one in best.seeds)
    count = f"{_seeds(len(best.seeds))}, {best.episodes} episodes" + " for each policy" * (len(rows) > 1)
    others = [row for row in scores if row.method != best.method and row.mode == best.mode]
    opening = f"{best.method} scores best" if others else f"{best.method} scores"
    words = [f"{opening}: {score.label} {' and '.join(results)}, after {short_count(steps)} {ENV_STEPS} ({count})."]
    if others:
        words.append(f"Next comes {others[0].method} with {others[0].mean:.2f}.")
        (low, high), (rival_low, rival_high) = best.mean_interval, others[0].mean_interval
        if rival_high >= low and rival_low <= high:
            words.append("Their 95% intervals overlap, so the order of the two is not settled.")
    words.append(bare_words)
    if len(best.seeds) == 1:
        words.append("With a single seed nothing can be said about the spread between runs.")
    if not best.final:
        words.append("These are evaluations made during training; the final evaluation is still to come.")
    return " ".join(words)


def _seeds(count: int) -> str:
    return f"{count} seeds" if count > 1 else "a single seed"


def _interval_words(row: MethodScore) -> str:
    low, high = row.mean_interval
    return "" if math.isnan(low) else f" (95% interval {low:.2f} to {high:.2f})"


def _embedded(exploration: ExplorationRecord | None) -> str | None:
    """The exploration figure as a data URL."""
    if exploration is None or not exploration.figure.is_file():
        return None
    return "data:image/png;base64," + base64.b64encode(exploration.figure.read_bytes()).decode("ascii")


def _videos(out: Path, experiment: ExperimentRecord, scores: Sequence[MethodScore], limit: int) -> list[Video]:
    order = {method: rank for rank, method in enumerate(dict.fromkeys(score.method for score in scores))}
    best_first = sorted(experiment.trials, key=lambda t: (order.get(t.method, len(order)), t.seed))
    listed = [(path, f"{t.method} · seed {t.seed}") for t in best_first for path in t.videos]
    listed += [(path, f"bare prior · {p.skill_label} · seed {p.seed}") for p in experiment.priors for path in p.videos]
    listed += [(path, "demonstrations") for path in experiment.demonstrations]
    videos, used = [], 0
    for path, label in listed:
        caption = label if path.stem == label else f"{label} · {path.stem}"
        if not path.is_file():
            videos.append(Video(caption, None, False))
            continue
        size = 4 * math.ceil(path.stat().st_size / 3)
        if used + size <= limit:
            used += size
            data = base64.b64encode(path.read_bytes()).decode("ascii")
            videos.append(Video(caption, f"data:video/mp4;base64,{data}", True))
        else:
            videos.append(Video(caption, quote(_relative(path, out)), False))
    return videos


def _listed_files(experiment: ExperimentRecord) -> list[Path]:
    paths: list[Path | None] = [*experiment.demonstrations]
    paths += [skill.metrics_csv for skill in experiment.skills]
    for prior in experiment.priors:
        paths += [prior.episodes_csv, *prior.videos]
    for trial in experiment.trials:
        paths += [trial.metrics_csv, trial.evaluations_csv, trial.final_episodes_csv, *trial.videos]
    return list(dict.fromkeys(path for path in paths if path is not None))


def _relative(path: Path, out: Path) -> str:
    return Path(os.path.relpath(path, out)).as_posix()


def _environment() -> Environment:
    # StrictUndefined: a name that the page uses and nobody gives is a mistake here, not a blank in a report.
    environment = Environment(
        loader=PackageLoader("spirl_ray.reports"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    filters: dict[str, Callable[..., Any]] = {
        "count": short_count,
        "duration": duration,
        "size": lambda size: f"{short_count(size)}{'' if size >= 1000 else NBSP}B",
        "interval": lambda ends: "" if math.isnan(ends[0]) else f"{ends[0]:.2f} to {ends[1]:.2f}",
        "plot": draw,
        "value": _value,
    }
    environment.filters |= filters
    environment.globals["series_colours"] = SERIES_COLOURS
    return environment


def _value(value: Any) -> str:
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}"
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
