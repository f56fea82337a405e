"""The commands that inspect and check datasets: ``spirl data inspect`` and ``spirl data validate``."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import numpy as np
import typer
from rich.markup import escape
from rich.table import Table

from spirl_ray.cli.arguments import readable_errors
from spirl_ray.cli.terminal import console, print_next, print_table, shown
from spirl_ray.errors import SpirlError
from spirl_ray.files import layout

if TYPE_CHECKING:
    from spirl_ray.episodes.features import Feature
    from spirl_ray.episodes.summary import DatasetSummary, Spread

data_app = typer.Typer(no_args_is_help=True, help="Import, inspect and validate offline trajectories.")
DatasetFolder = Annotated[
    Path, typer.Argument(help=f"A dataset folder, with a {layout.DATASET_CARD}.", show_default=False)
]
_ORDERS = 10
"""The most rows of the table of orders, which shows the most frequent first."""


@data_app.command("inspect")
def inspect_data(
    datasets: Annotated[
        list[Path],
        typer.Argument(help=f"Dataset folders, each with a {layout.DATASET_CARD}.", show_default=False),
    ],
    sheet: Annotated[
        Path | None, typer.Option(help="Write a contact sheet here: a PNG with some episodes of each.")
    ] = None,
) -> None:
    """Shows what datasets hold: episodes, lengths, features, subtasks and their order, ranges of numbers."""
    with readable_errors():
        summaries = [summary_of(dataset) for dataset in datasets]
        _print_overview(datasets, summaries)
        _print_subtasks(datasets, summaries)
        print_expert(datasets, summaries)
        for name in dict.fromkeys(name for summary in summaries for name in summary.observations):
            _print_ranges(name, datasets, [summary.observations.get(name) for summary in summaries])
        _print_ranges("actions", datasets, [summary.actions for summary in summaries])
        if sheet is not None:
            from spirl_ray.reports.contact_sheet import write_contact_sheet

            write_contact_sheet(datasets, sheet)
            console.print(f"Contact sheet: {escape(shown(sheet))}")
        print_next(["spirl", "data", "validate", str(datasets[0])], "check every value and hash")


def summary_of(dataset: Path) -> DatasetSummary:
    """Summarizes a dataset, with the tries of its environment's scripted expert."""
    from spirl_ray.envs.recorded import recorded_tries
    from spirl_ray.episodes.dataset import read_card
    from spirl_ray.episodes.summary import summarize

    return summarize(dataset, recorded_tries(read_card(dataset)))


def _columns(title: str, first: str, datasets: Sequence[Path]) -> Table:
    """Makes a table with a column for each dataset."""
    return Table(first, *(escape(dataset.name) for dataset in datasets), title=title)


def _print_overview(datasets: Sequence[Path], summaries: Sequence[DatasetSummary]) -> None:
    table = _columns("Datasets", "", datasets)
    for name in ("environment", "source", "licence"):
        table.add_row(name, *(escape(str(getattr(summary.card, name))) for summary in summaries))
    table.add_row(
        "episodes", *(f"{s.episodes:,} ({s.terminated} terminated, {s.truncated} truncated)" for s in summaries)
    )
    sizes = [sum(file.bytes for file in summary.card.files.values()) for summary in summaries]
    table.add_row(
        "steps", *(f"{s.steps:,} of {size / s.steps:,.0f} bytes" for s, size in zip(summaries, sizes, strict=True))
    )
    for name in dict.fromkeys(name for summary in summaries for name in summary.card.features):
        known = [summary.card.features.get(name) for summary in summaries]
        table.add_row(escape(name), *("" if feature is None else _feature(feature) for feature in known))
    table.add_row("length", *(f"{s.length_min} to {s.length_max}, mean {s.length_mean:.1f}" for s in summaries))
    table.add_row("saturated actions", *(f"{100 * s.saturated.mean():.1f} %" for s in summaries))
    print_table(table)


def _print_subtasks(datasets: Sequence[Path], summaries: Sequence[DatasetSummary]) -> None:
    names = list(dict.fromkeys(name for summary in summaries for name in summary.subtasks))
    if not names:
        return
    table = _columns("Episodes that complete a subtask", "subtask", datasets)
    for name in names:
        table.add_row(escape(name), *(str(summary.subtasks.get(name, 0)) for summary in summaries))
    print_table(table)
    counts: dict[tuple[str, ...], int] = {}
    for summary in summaries:
        for order, count in summary.orders.items():
            counts[order] = counts.get(order, 0) + count
    table = _columns("Orders of completion", "order", datasets)
    ranked = sorted(counts, key=lambda order: -counts[order])
    for order in ranked[:_ORDERS]:
        table.add_row(escape(" > ".join(order)) or "none", *(str(s.orders.get(order, 0)) for s in summaries))
    if rest := ranked[_ORDERS:]:
        table.add_row(f"{len(rest)} others", *(str(sum(s.orders.get(order, 0) for order in rest)) for s in summaries))
    print_table(table)


def print_expert(datasets: Sequence[Path], summaries: Sequence[DatasetSummary]) -> None:
    """Prints how reliable the scripted expert is at each subtask, and nothing for recorded data."""
    names = sorted({name for summary in summaries for name in summary.expert})
    if not names:
        return
    table = _columns("Success of the scripted expert, failed attempts included", "subtask", datasets)
    for name in names:
        cells = [summary.expert.get(name) for summary in summaries]
        table.add_row(escape(name), *(f"{100 * c[0] / c[1]:.1f} % of {c[1]} tries" if c else "" for c in cells))
    print_table(table)


def _print_ranges(name: str, datasets: Sequence[Path], spreads: Sequence[Spread | None]) -> None:
    """Prints a row for each entry that one of the datasets has; None means a dataset without the feature."""
    table = _columns(f"{escape(name)}: from … to (mean ± deviation)", "entry", datasets)
    cells = [dict(_entries(spread)) if spread is not None else {} for spread in spreads]
    for entry in dict.fromkeys(entry for column in cells for entry in column):
        table.add_row(f"{name} {', '.join(map(str, entry))}", *(column.get(entry, "") for column in cells))
    print_table(table)


def _entries(spread: Spread) -> Iterator[tuple[tuple[int, ...], str]]:
    for entry in np.ndindex(spread.mean.shape):
        lowest, highest, mean, std = (x[entry] for x in (spread.minimum, spread.maximum, spread.mean, spread.std))
        yield entry, f"{lowest:.3f} … {highest:.3f} ({mean:.3f} ± {std:.3f})"


def _feature(feature: Feature) -> str:
    kind = "RGB" if feature.shape[-1] == 3 else "grey"
    size = " x ".join(map(str, feature.shape))
    if not feature.is_image:
        return f"{size}, {feature.role}"
    height, width, _ = feature.shape
    return f"{width} x {height} {kind} image, {'stored' if feature.stored else 'rendered'}"


@data_app.command("validate")
def validate_data(
    dataset: DatasetFolder,
) -> None:
    """Checks every file's hash and every episode's lengths, shapes and values."""
    from spirl_ray.episodes.validation import validate_dataset

    with readable_errors():
        problems = validate_dataset(dataset)
        if problems:
            listing = "\n".join(f"  {problem}" for problem in problems[:20])
            more = f"\n  … and {len(problems) - 20} more" if len(problems) > 20 else ""
            raise SpirlError(
                f"{dataset} has {len(problems)} problem(s):\n{listing}{more}\n"
                "Import it again, with --set data.skip_bad=true to leave bad episodes out."
            )
        console.print(f"[green]{escape(str(dataset))} is valid.[/green]")
        console.print("It can be trained on: see [bold]spirl pretrain --help[/bold].")
