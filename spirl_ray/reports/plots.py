"""Figures of a report, each one panel as inline SVG that takes its colours from the page."""

from __future__ import annotations

import io
import itertools
import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import matplotlib
import numpy as np
from markupsafe import Markup, escape
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, FuncFormatter, LogLocator, MaxNLocator, NullLocator

from spirl_ray.envs.metrics import MODES, Scores
from spirl_ray.files.tables import read_columns
from spirl_ray.metrics import Metric, Stage, TrainingMetric, training_metrics
from spirl_ray.reports.records import SkillRecord
from spirl_ray.reports.statistics import bootstrap_interval
from spirl_ray.reports.tables import BarePrior, TrialResults, by_method

Run = tuple[np.ndarray, np.ndarray]
"""The curve of one seed: x and y, both float64 [n]."""

SERIES_COLOURS = 6
"""The number of series whose colours --series-0 … the page defines; further series repeat them with dashes."""
MUTED = -1
"""The colour of a series that is drawn for comparison."""

_MAX_POINTS = 200
# Stand-ins that the page's colours take the place of in the SVG text, so that dark mode works.
_INK, _GRID, _MUTED = "#010101", "#020202", "#030303"
_SERIES = tuple(f"#0400{index:02x}" for index in range(SERIES_COLOURS))


NBSP = "\N{NO-BREAK SPACE}"
ENV_STEPS = "primitive environment steps"
_STYLES = ("solid", "dashed", "dotted", "dashdot")


@dataclass(frozen=True)
class Series:
    """The runs (seeds) of one thing, drawn as their mean in front of each run as a thin line."""

    label: str
    runs: Sequence[Run]
    colour: int = 0
    """The index of a series colour, or `MUTED`."""
    style: str = "solid"
    band: bool = False
    """True to draw the 95% bootstrap interval of the mean as well, for two runs or more."""
    seeds: bool = True
    """True to draw the single runs as well."""


@dataclass(frozen=True)
class Panel:
    """One pair of axes; its title and legend are text of the page, not part of the drawing."""

    title: str
    series: Sequence[Series]
    x_label: str
    y_label: str = ""
    y_range: tuple[float, float] | None = None
    log_y: bool = False
    """True for a logarithmic axis, where the values span more than a factor of ten."""
    from_zero: bool = False
    """True for an axis that starts at 0, so that small changes look small."""
    level: float | None = None
    """The height of a horizontal line for comparison."""
    size: tuple[float, float] = field(default=(4.4, 2.7))
    """The size in inches at 72 points per inch; the page scales it."""

    @property
    def empty(self) -> bool:
        """True where no series has a finite value."""
        return not any(np.isfinite(y).any() for series in self.series for _, y in series.runs)


def learning_curves(
    trials: Sequence[TrialResults],
    colours: dict[str, int],
    score: Metric,
    bare_prior: BarePrior | None,
) -> list[Panel]:
    """Makes the panels of the score over environment steps, a panel for each mode that has been evaluated."""
    low, high = score.range
    panels = []
    for mode in MODES:
        series = [
            Series(method, runs, colours[method], band=True)
            for method, group in by_method(trials).items()
            if (runs := [curve for trial in group if (curve := trial.curve(mode, score.name))[0].size])
        ]
        if series:
            bounded = low is not None and high is not None and high > low
            panels.append(
                Panel(
                    title="Deterministic policy" if mode == "deterministic" else "Sampled actions",
                    series=series,
                    x_label=ENV_STEPS,
                    y_label=f"{score.label} [{score.unit}]" if score.unit else score.label,
                    y_range=(low - 0.02 * (high - low), high + 0.03 * (high - low)) if bounded else None,  # type: ignore[operator]
                    level=bare_prior.mean if bare_prior else None,
                    size=(4.8, 3.2),
                )
            )
    return panels


def diagnostics(trials: Sequence[TrialResults], colour: int, scores: Scores) -> list[Panel]:
    """Makes small panels of one method's training; quantities that were not recorded have no panel."""
    tables = [trial.metrics for trial in trials]
    panels = _panels("train", tables, "env_steps", colour)
    for metric in scores.metrics:
        series = [Series(metric.label, _runs(tables, "env_steps", metric.name), colour)]
        title, from_zero = f"{metric.label}, training episodes", metric.range[0] == 0.0
        panels.append(Panel(title, series, ENV_STEPS, metric.unit, from_zero=from_zero))
    return [panel for panel in panels if not panel.empty]


def skill_panels(skill: SkillRecord) -> list[Panel]:
    """Makes the panels of losses and speed of a skill model's training.

    Raises:
        SpirlError: the metrics are malformed.
    """
    panels = _panels("pretrain", [read_columns(skill.metrics_csv)], "update", 0)
    return [panel for panel in panels if not panel.empty]


def _panels(stage: Stage, tables: Sequence[dict[str, Any]], x: str, colour: int) -> list[Panel]:
    """The panels of a stage's metrics, in the order of their table; counters have none."""
    groups: dict[str, list[TrainingMetric]] = {}
    for metric in training_metrics(stage):
        if metric.panel and not metric.counter:
            groups.setdefault(metric.panel, []).append(metric)
    panels = []
    for title, metrics in groups.items():
        found = [(metric, runs) for metric in metrics if (runs := _runs(tables, x, metric.name))]
        series = [
            Series(metric.label, runs, colour, style, seeds=len(metrics) == 1)
            for (metric, runs), style in zip(found, itertools.cycle(_STYLES), strict=False)
        ]
        first, label = metrics[0], ENV_STEPS if stage == "train" else "gradient updates"
        panels.append(Panel(title, series, label, first.unit, log_y=first.log, from_zero=first.range[0] == 0.0))
    return panels


def _runs(tables: Iterable[dict[str, Any]], x: str, y: str) -> list[tuple[Any, Any]]:
    return [(table[x], table[y]) for table in tables if x in table and y in table]


def mean_curve(runs: Sequence[Run]) -> Run:
    """Computes the mean over runs where all of them have values; runs are interpolated between their points.

    Returns:
        x and mean, float64 [n], empty where the runs have no stretch in common.
    """
    x, matrix = _aligned(runs)
    return x, matrix.mean(axis=0) if x.size else x


def draw(panel: Panel) -> Markup:
    """Draws the panel as one ``<svg>`` element without ids of its own making, scripts or addresses."""
    # Text stays text, so that it takes the page's font; the salt makes the same figure the same SVG.
    settings: Any = {"svg.fonttype": "none", "svg.hashsalt": "spirl-ray", "font.family": "sans-serif"}
    with matplotlib.rc_context(settings):
        figure = Figure(figsize=panel.size, layout="constrained")
        axes = figure.add_subplot()
        _frame(axes, panel)
        if panel.level is not None:
            axes.axhline(panel.level, color=_MUTED, linewidth=1.2, linestyle=(0, (1, 2)))
        for series in panel.series:
            _draw_series(axes, series)
        if panel.from_zero:
            low, high = axes.get_ylim()
            axes.set_ylim(min(0.0, low), high + 0.08 * (high - min(0.0, low)))
        if panel.y_range is not None:
            axes.set_ylim(*panel.y_range)
        svg = io.StringIO()
        nothing: dict[str, str | None] = dict.fromkeys(("Creator", "Date", "Format", "Type"))
        figure.savefig(svg, format="svg", transparent=True, metadata=nothing)
    return _inline(svg.getvalue(), alternative_text(panel))


def alternative_text(panel: Panel) -> str:
    """Describes the panel in words: the last value of each series' mean."""
    ends = []
    for series in panel.series:
        _, mean = mean_curve(series.runs)
        if mean.size:
            count = len(series.runs)
            ends.append(f"{series.label} ends at {mean[-1]:.3g} ({count} seed{'s' if count != 1 else ''})")
    shown = "; ".join(ends) if ends else "no values in common"
    return f"{panel.title}, {panel.y_label or 'value'} over {panel.x_label}: {shown}."


def _frame(axes: Axes, panel: Panel) -> None:
    axes.set_xlabel(panel.x_label, color=_INK)
    axes.set_ylabel(panel.y_label, color=_INK)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set_color(_GRID)
    axes.tick_params(colors=_INK, length=0, labelsize=9)
    axes.grid(axis="y", color=_GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.margins(x=0.02, y=0.08)
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True, steps=[1, 2, 2.5, 5, 10]))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: short_count(value)))
    values = [y[np.isfinite(y)] for series in panel.series for _, y in series.runs]
    flat = np.concatenate(values) if values else np.empty(0)
    if panel.log_y and flat.size and flat.min() > 0 and flat.max() / flat.min() > 10:
        axes.set_yscale("log")
        subs = (1.0,) if flat.max() / flat.min() > 300 else (1.0, 3.0)
        axes.yaxis.set_major_locator(LogLocator(subs=subs))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.yaxis.set_minor_locator(NullLocator())
    else:
        axes.yaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 2.5, 5, 10]))
        if flat.size and np.abs(flat).max() >= 10_000:
            axes.yaxis.set_major_formatter(EngFormatter(sep=""))


def _draw_series(axes: Axes, series: Series) -> None:
    colour = _MUTED if series.colour == MUTED else _SERIES[series.colour % SERIES_COLOURS]
    style = "dashed" if series.style == "solid" and series.colour >= SERIES_COLOURS else series.style
    x, matrix = _aligned(series.runs)
    if series.band and len(series.runs) > 1 and x.size:
        low, high = np.transpose([bootstrap_interval(column, np.mean) for column in matrix.T])
        axes.fill_between(x, low, high, color=colour, alpha=0.16, linewidth=0)
    if series.seeds and len(series.runs) > 1:
        for run in series.runs:
            axes.plot(*_thinned(run), color=colour, linewidth=0.8, alpha=0.45)
    alone = x.size == 1
    axes.plot(
        x,
        matrix.mean(axis=0) if x.size else x,
        color=colour,
        linewidth=2,
        linestyle=style,
        marker="o" if alone else None,
        solid_capstyle="round",
    )


def _aligned(runs: Sequence[Run]) -> tuple[np.ndarray, np.ndarray]:
    """Returns x [n] where every run has values, and the runs' values there [runs, n]."""
    thinned = [run for run in map(_thinned, runs) if run[0].size]
    if not thinned:
        return np.empty(0), np.empty((0, 0))
    low, high = max(x[0] for x, _ in thinned), min(x[-1] for x, _ in thinned)
    if low > high:
        return np.empty(0), np.empty((0, 0))
    grid = np.unique(np.concatenate([x for x, _ in thinned]))
    grid = grid[(grid >= low) & (grid <= high)]
    if grid.size > _MAX_POINTS:
        grid = np.linspace(low, high, _MAX_POINTS)
    return grid, np.array([np.interp(grid, x, y) for x, y in thinned])


def _thinned(run: Run) -> Run:
    """Returns the finite points by rising x, and the last where x is equal; averaged in equal groups where they are too
    many to distinguish."""
    x, y = np.asarray(run[0], dtype=np.float64), np.asarray(run[1], dtype=np.float64)
    finite = np.isfinite(x) & np.isfinite(y)
    order = np.argsort(x[finite], kind="stable")
    x, y = x[finite][order], y[finite][order]
    last = np.append(np.diff(x) > 0.0, True)[: x.size]
    x, y = x[last], y[last]
    if x.size <= _MAX_POINTS:
        return x, y
    groups = math.ceil(x.size / _MAX_POINTS)
    parts = np.arange(0, x.size, groups)
    sizes = np.diff(np.append(parts, x.size))
    return np.add.reduceat(x, parts) / sizes, np.add.reduceat(y, parts) / sizes


def short_count(value: float) -> str:
    """Formats 1300000 as "1.3 M", 20000 as "20 k", with a space that does not break."""
    for size, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:.3g}{NBSP}{unit}"
    return f"{value:.3g}"


def _inline(svg: str, description: str) -> Markup:
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r"<g id=\"[^\"]*\"", "<g", svg)
    width, height = re.findall(r"viewBox=\"0 0 ([\d.]+) ([\d.]+)\"", svg)[0]
    opening = f'<svg viewBox="0 0 {width} {height}" role="img" aria-label="{escape(description)}">'
    svg = opening + svg[svg.index(">") + 1 :]
    colours = {_INK: "currentColor", _GRID: "var(--line)", _MUTED: "var(--muted)"}
    colours |= {stand_in: f"var(--series-{index})" for index, stand_in in enumerate(_SERIES)}
    for stand_in, colour in colours.items():
        svg = svg.replace(stand_in, colour)
    # The drawing is ours, its one text from outside is escaped above.
    return Markup(svg)
