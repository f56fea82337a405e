"""The results of a sweep: a table of its trials, a figure, and the best configuration."""

from __future__ import annotations

import io
import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from spirl_ray.config_file import to_yaml
from spirl_ray.envs.metrics import MODES
from spirl_ray.files import layout
from spirl_ray.files.atomic import write_atomically
from spirl_ray.files.tables import write_csv
from spirl_ray.sweeps.ledger import Ledger, TrialRecord
from spirl_ray.sweeps.sweep_file import Dimension, Parameters, Sweep

_ORIGIN = ("config_hash", "commit", "policy", "skills")
"""The columns that say where the numbers of a trial come from."""
_MEASURED = ("env_steps", "wall_clock_s", *_ORIGIN)
_BINS = 6
"""The number of cells of a heat map along a range."""
_COLOURS = "viridis"
Row = dict[str, Any]


@dataclass(frozen=True)
class Setting:
    """One point of the space, with the finished trials that differ by their seeds only."""

    parameters: Parameters
    """The parameters, without the seeds if these are searched."""
    records: list[TrialRecord]
    score: float
    """The mean of the metric."""


def settings(sweep: Sweep, ledger: Ledger) -> list[Setting]:
    """The points of the space with finished trials, the best first.

    Points that lack a seed come last, whatever their mean, because a single lucky seed must not win.
    """
    return _grouped(sweep, [(record, record.result or {}) for record in ledger.with_status("finished")])


def compared(sweep: Sweep, ledger: Ledger) -> list[Setting]:
    """The points of the space by the first evaluation at which ASHA compares all trials, after
    ``scheduler.grace_steps``, also where the trial was stopped there."""
    grace = sweep.file.scheduler.grace_steps
    reached = (
        (record, next((row for row in record.reports if row["env_steps"] >= grace), {}))
        for record in ledger.with_status("finished", "stopped")
    )
    return _grouped(sweep, reached)


def _grouped(sweep: Sweep, measured: Iterable[tuple[TrialRecord, Row]]) -> list[Setting]:
    """The settings of trials with these metrics, the mean over seeds for each; those without the metric are left
    out."""
    groups: dict[str, list[tuple[TrialRecord, float]]] = {}
    for record, row in measured:
        if not math.isnan(value := row.get(sweep.file.metric, math.nan)):
            groups.setdefault(json.dumps(_without_seeds(record.parameters), sort_keys=True), []).append((record, value))
    found = []
    for group in groups.values():
        records, values = zip(*group, strict=True)
        found.append(Setting(_without_seeds(records[0].parameters), list(records), float(np.mean(values))))
    sign = -1.0 if sweep.file.mode == "max" else 1.0
    return sorted(found, key=lambda setting: (-len(setting.records), sign * setting.score))


def _without_seeds(parameters: Parameters) -> Parameters:
    return {key: value for key, value in parameters.items() if key != "seeds"}


def write_results(sweep: Sweep, ledger: Ledger) -> Path:
    """Writes ``results.csv``: a row for each trial, in the order of their numbers."""
    modes = tuple(f"{mode}_" for mode in MODES)
    metrics = [name for record in ledger.records for name in record.newest if name.startswith(modes)]
    columns = dict.fromkeys([*(metrics or [sweep.file.metric]), *_MEASURED])
    rows = []
    for record in sorted(ledger.records, key=lambda record: record.number):
        row: Row = {"trial": record.number, "status": record.status}
        row |= {key: json.dumps(v) if isinstance(v, list | dict) else v for key, v in record.parameters.items()}
        row |= {name: record.newest.get(name, "") for name in columns}
        rows.append(row | {"error": " ".join((record.error or "").split())})
    write_csv(sweep.folder / layout.SWEEP_RESULTS, rows)
    return sweep.folder / layout.SWEEP_RESULTS


def write_evaluations(sweep: Sweep, ledger: Ledger) -> Path:
    """Writes ``evaluations.csv``: a row for each evaluation during a trial, by which schedulers compare."""
    rows = [
        {"trial": record.number, **{name: value for name, value in row.items() if name not in (*_ORIGIN, "parent")}}
        for record in sorted(ledger.records, key=lambda record: record.number)
        for row in record.reports
    ]
    write_csv(sweep.folder / layout.EVALUATIONS, rows)
    return sweep.folder / layout.EVALUATIONS


def write_best(sweep: Sweep, ledger: Ledger) -> Path | None:
    """Writes ``best.yaml``, the experiment of the best setting; None when no trial has finished.

    The experiment has the base's name and folder, so ``spirl run`` finds what the trials have trained.
    """
    ranked = settings(sweep, ledger)
    if not ranked:
        return None
    best = ranked[0]
    parameters = dict(best.parameters)
    if "seeds" in sweep.space:
        seeds: list[int] = []
        for record in best.records:
            given = record.parameters["seeds"]
            seeds += given if isinstance(given, list) else [given]
        parameters["seeds"] = sorted(set(seeds))
    numbers = ", ".join(str(record.number) for record in best.records)
    lines = [
        f"The best of {len(ranked)} settings in the sweep {sweep.file.name} ({sweep.origin}):",
        f"{sweep.file.metric} {best.score:g}, trial {numbers}.",
        *(f"  {key}: {_plain(value)}" for key, value in best.parameters.items()),
    ]
    if any(record.changes for record in best.records):
        lines += [
            "These are the last settings of a population's member, which had others before. Its policy is",
            f"{layout.POLICIES}/{best.records[0].newest.get('policy')}; spirl run trains one with these settings",
            "from the start.",
        ]
    header = "".join(f"# {line}\n" for line in lines)
    write_atomically(sweep.folder / layout.BEST, header + to_yaml(sweep.experiment(parameters)))
    return sweep.folder / layout.BEST


# --- the figure ---


def write_figure(sweep: Sweep, ledger: Ledger) -> Path | None:
    """Writes ``results.png``: a heat map for two keys, a curve for one, parallel coordinates for more.

    Seeds are averaged over. With ASHA, which stops most trials early, a heat map has a second one beside it, of all
    trials where they are first compared. It returns None when no trial has finished.
    """
    found = settings(sweep, ledger)
    keys = [key for key in sweep.space if key != "seeds"] or ["seeds"]
    if keys == ["seeds"]:
        found = [Setting(r.parameters, [r], r.newest[sweep.file.metric]) for s in found for r in s.records]
    if not found:
        return None
    mapped = sweep.file.heat_map or (keys if len(keys) == 2 else None)
    first = compared(sweep, ledger) if mapped and sweep.file.scheduler.kind == "asha" else []
    figure = Figure(figsize=(11.0 if first else 7.0, 4.6), layout="constrained")
    *before, axes = figure.subplots(1, 2 if first else 1, squeeze=False)[0]
    if mapped:
        across, up = mapped
        drawn = [setting.score for setting in [*first, *found]]
        limits = (min(drawn), max(drawn)) if first else None  # one scale of colours for both
        for panel in before:
            _heat_map(panel, sweep, first, across, up, limits)
            steps = f"{sweep.file.scheduler.grace_steps:,} steps"
            panel.set_title(f"after {steps}, {_counted(first)}", fontsize=10, loc="left")
        _heat_map(axes, sweep, found, across, up, limits)
    elif len(keys) == 1:
        _curve(axes, sweep, found, keys[0])
    else:
        _parallel(axes, sweep, found, keys)
    title = f"{sweep.file.name}: {_metric(sweep)}"
    if before:
        figure.suptitle(title, fontsize=10)
        axes.set_title(f"at the end, {_counted(found)}", fontsize=10, loc="left")
    else:
        axes.set_title(f"{title}, {_counted(found)}", fontsize=10, loc="left")
    image = io.BytesIO()
    figure.savefig(image, dpi=150, format="png")
    write_atomically(sweep.folder / layout.SWEEP_FIGURE, image.getvalue())
    return sweep.folder / layout.SWEEP_FIGURE


def _metric(sweep: Sweep) -> str:
    mode = sweep.file.metric.partition("_")[0]
    metric = sweep.metric
    unit = f" [{metric.unit}]" if metric.unit else ""
    return f"{metric.label}{unit} ({'deterministic policy' if mode == 'deterministic' else 'sampled actions'})"


def _counted(found: Sequence[Setting]) -> str:
    trials = sum(len(setting.records) for setting in found)
    return f"{trials} trial" if trials == 1 else f"{trials} trials"


class _Scale:
    """The positions 0, 1, 2, … along an axis of every value of a grid or choice, or of equal parts of a range."""

    def __init__(self, dimension: Dimension) -> None:
        self.dimension = dimension
        if dimension.values is not None:
            ordered = _sorted_values(dimension.values)
            self.labels = [_plain(value) for value in ordered]
            self._places = {json.dumps(value): place for place, value in enumerate(ordered)}
            return
        self.edges = self._spread(_BINS)
        self.labels = [f"{_short(low)} – {_short(high)}" for low, high in zip(self.edges, self.edges[1:], strict=False)]

    def _spread(self, parts: int) -> list[float]:
        low, high = self.dimension.bounds
        if self.dimension.loguniform is not None:
            return [float(edge) for edge in np.geomspace(low, high, parts + 1)]
        return [float(edge) for edge in np.linspace(low, high, parts + 1)]

    def place(self, value: Any) -> int:
        """The index of the cell of a value."""
        if self.dimension.values is not None:
            return self._places[json.dumps(value)]
        return int(np.clip(np.searchsorted(self.edges, value, side="right") - 1, 0, _BINS - 1))

    def share(self, value: Any) -> float:
        """The place of a value along the axis, from 0 at the first value to 1 at the last."""
        if self.dimension.values is not None:
            return 0.5 if len(self.labels) == 1 else self.place(value) / (len(self.labels) - 1)
        low, high = self.dimension.bounds
        if self.dimension.loguniform is not None:
            return math.log(value / low) / math.log(high / low)
        return (value - low) / (high - low)


def _heat_map(
    axes: Axes,
    sweep: Sweep,
    found: Sequence[Setting],
    across: str,
    up: str,
    limits: tuple[float, float] | None = None,
) -> None:
    """Draws the mean of the metric in each cell; other keys are averaged over, and cells without a trial stay blank.

    ``limits`` are the values of the first and the last colour; None takes the least and the largest of the cells.
    """
    columns = _Scale(sweep.space[across])
    rows = _Scale(sweep.space[up])
    cells: dict[tuple[int, int], list[Setting]] = {}
    for setting in found:
        cell = (rows.place(setting.parameters[up]), columns.place(setting.parameters[across]))
        cells.setdefault(cell, []).append(setting)
    values = np.full((len(rows.labels), len(columns.labels)), np.nan)
    for cell, ours in cells.items():
        values[cell] = np.mean([setting.score for setting in ours])
    least, most = limits or (None, None)
    shown = np.ma.masked_invalid(values)
    image = axes.imshow(shown, origin="lower", aspect="auto", cmap=_COLOURS, vmin=least, vmax=most)
    low, high = image.get_clim()
    for (row, column), ours in cells.items():
        bright = high > low and (values[row, column] - low) / (high - low) > 0.6
        count = sum(len(setting.records) for setting in ours)
        text = f"{values[row, column]:.3g}" + (f"\nn = {count}" if count > 1 else "")
        axes.text(column, row, text, ha="center", va="center", fontsize=9, color="black" if bright else "white")
    axes.set_xticks(range(len(columns.labels)), columns.labels, rotation=20 if len(columns.labels) > 4 else 0)
    axes.set_yticks(range(len(rows.labels)), rows.labels)
    axes.set_xlabel(across)
    axes.set_ylabel(up)
    assert axes.figure is not None
    axes.figure.colorbar(image, ax=axes, label=_metric(sweep))


def _curve(axes: Axes, sweep: Sweep, found: Sequence[Setting], key: str) -> None:
    """Draws the mean over the key's values, with every trial as a point."""
    dimension = sweep.space[key]
    scale = _Scale(dimension)
    listed = dimension.values is not None
    ordered = sorted(found, key=lambda s: scale.place(s.parameters[key]) if listed else s.parameters[key])
    positions = [scale.place(s.parameters[key]) if listed else s.parameters[key] for s in ordered]
    colour = colormaps[_COLOURS](0.3)
    axes.plot(positions, [s.score for s in ordered], "-o" if listed else "o", color=colour, markersize=7)
    for position, setting in zip(positions, ordered, strict=True):
        scores = [record.newest[sweep.file.metric] for record in setting.records]
        if len(scores) > 1:
            axes.plot([position] * len(scores), scores, "o", color=colour, alpha=0.4, markersize=4)
    if listed:
        axes.set_xticks(range(len(scale.labels)), scale.labels)
        axes.set_xlim(-0.4, len(scale.labels) - 0.6)
    elif dimension.loguniform is not None:
        axes.set_xscale("log")
    axes.set_xlabel(key)
    axes.set_ylabel(_metric(sweep))
    if sweep.metric.range[0] == 0.0:
        axes.set_ylim(0.0, 1.05 * max(1.0, axes.dataLim.y1))
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)


def _parallel(axes: Axes, sweep: Sweep, found: Sequence[Setting], keys: Sequence[str]) -> None:
    """Draws a line for each setting through an axis for each key, coloured by the metric; the best are drawn last."""
    scales = [_Scale(sweep.space[key]) for key in keys]
    scores = [setting.score for setting in found]
    low, high = min(scores), max(scores)
    for setting in sorted(found, key=lambda s: s.score, reverse=sweep.file.mode == "min"):
        share = 0.5 if high == low else (setting.score - low) / (high - low)
        heights = [scale.share(setting.parameters[key]) for key, scale in zip(keys, scales, strict=True)]
        axes.plot(range(len(keys) + 1), [*heights, share], color=colormaps[_COLOURS](share), alpha=0.85, linewidth=1.8)
    for place, scale in enumerate(scales):
        axes.axvline(place, color="0.4", linewidth=0.8)
        values = scale.dimension.values
        marks = _sorted_values(values) if values is not None else scale.dimension.bounds
        for value in marks:
            axes.text(place + 0.03, scale.share(value), f" {_plain(value)}", fontsize=8, va="center")
    axes.axvline(len(keys), color="0.4", linewidth=0.8)
    for value, share in ((low, 0.0), (high, 1.0)) if high > low else ((low, 0.5),):
        axes.text(len(keys) + 0.03, share, f" {value:.3g}", fontsize=8, va="center")
    axes.set_xticks(
        range(len(keys) + 1), [key.replace(".", ".\n", 1) for key in [*keys, sweep.file.metric]], fontsize=8
    )
    axes.set_xlim(-0.1, len(keys) + 0.35)
    axes.set_yticks([])
    axes.spines[:].set_visible(False)


def _sorted_values(values: Sequence[Any]) -> list[Any]:
    """Sorts numbers by size, and leaves other values in their order."""
    numbers = all(isinstance(value, int | float) and not isinstance(value, bool) for value in values)
    return sorted(values) if numbers else list(values)


def _plain(value: Any) -> str:
    if isinstance(value, float):
        return _short(value)
    return ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


def _short(value: float) -> str:
    return f"{value:.3g}"
