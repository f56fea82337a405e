"""Commands that look at a dataset: ``spirl data inspect`` and ``spirl data validate``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape
from rich.table import Table

from spirl_ray.errors import SpirlError
from spirl_ray.terminal import console, print_facts, print_next, print_table, readable_errors

data_app = typer.Typer(no_args_is_help=True, help="Import, inspect and validate offline trajectories.")
DatasetFolder = Annotated[Path, typer.Argument(help="A dataset folder (it holds card.json).", show_default=False)]


@data_app.command("inspect")
def inspect_data(
    dataset: DatasetFolder,
) -> None:
    """Shows what a dataset holds: episodes, lengths, subtasks and their order, ranges."""
    from spirl_ray.data.inspecting import summarize

    with readable_errors():
        summary = summarize(dataset)
        card = summary.card
        facts = {
            "environment": card.environment,
            "source": card.source,
            "licence": card.licence,
            "episodes": f"{summary.episodes:,} ({summary.terminated} terminated, {summary.truncated} truncated)",
            "steps": f"{summary.steps:,}",
            "length": f"{summary.length_min} to {summary.length_max}, mean {summary.length_mean:.1f}",
        }
        print_facts(escape(str(dataset)), facts)
        if summary.subtasks:
            table = Table("subtask", "episodes", title="Completed subtasks")
            for name, count in summary.subtasks.items():
                table.add_row(escape(name), str(count))
            print_table(table)
            table = Table("order", "episodes", title="Orders of completion")
            for order, count in list(summary.orders.items())[:10]:
                table.add_row(escape(" > ".join(order)) or "none", str(count))
            print_table(table)
        for name, spread in (("state", summary.states), ("action", summary.actions)):
            table = Table("dimension", "min", "max", "mean", "std", title=f"{name.capitalize()} ranges")
            for i, values in enumerate(zip(spread.minimum, spread.maximum, spread.mean, spread.std, strict=True)):
                table.add_row(f"{name} {i}", *(f"{value:.3f}" for value in values))
            print_table(table)
        console.print(f"Saturated action entries: {100 * summary.saturated.mean():.1f} %")
        print_next(["spirl", "data", "validate", str(dataset)], "check every value and hash")


@data_app.command("validate")
def validate_data(
    dataset: DatasetFolder,
) -> None:
    """Checks every file's hash and every episode's lengths, shapes and values."""
    from spirl_ray.data.validation import validate_dataset

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
