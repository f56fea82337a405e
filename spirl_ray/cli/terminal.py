"""The output of the command line: stages with their progress, tables, files, the next command.

On a terminal there are bars; in a pipe or a log file whole lines, which are never wrapped.
"""

from __future__ import annotations

import os
import shlex
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Column, Table

from spirl_ray.metrics import training_metrics

_FILE_WIDTH = 160
"""The width in characters of tables that are not printed on a terminal."""
_SECONDS_BETWEEN_LINES = 60.0
console = Console(highlight=False, soft_wrap=True)


def error_console() -> Console:
    """A console for messages on stderr, wherever that points to now."""
    return Console(stderr=True, highlight=False, soft_wrap=True)


def say_waiting(target: Path) -> None:
    """Prints which result another process is working on."""
    console.print(f"[yellow]waiting[/yellow] for another process that works on {escape(shown(target))} …")


def run_stage(title: str, work: Callable[[Any], Any]) -> Any:
    """Runs one stage under a progress bar and prints its result; without a terminal, it prints a line now and then."""
    columns = (
        TextColumn("{task.description}", markup=False, table_column=Column(no_wrap=True)),
        BarColumn(bar_width=20),
        TextColumn("{task.percentage:>3.0f} %", table_column=Column(no_wrap=True)),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn(
            "{task.fields[facts]}", style="dim", markup=False, table_column=Column(no_wrap=True, overflow="ellipsis")
        ),
    )
    last_tenth, last_time = 0, time.monotonic()
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task(title, total=None, facts="starting")

        def progress(done: float, total: float, facts: dict[str, Any]) -> None:
            nonlocal last_tenth, last_time
            done, text = min(done, total), _brief(facts)
            bar.update(task, completed=done, total=total, facts=text)
            tenth, now = int(10 * done / total), time.monotonic()
            if not console.is_terminal and (tenth > last_tenth or now - last_time > _SECONDS_BETWEEN_LINES):
                last_tenth, last_time = tenth, now
                console.print(f"  {title}: {100 * done / total:.0f} %  {text}".rstrip(), markup=False)

        result = work(progress)
    facts = _brief(result.facts)
    if not result.ran:
        console.print(f"[dim]there already  {escape(title)}  {facts}\n      {escape(shown(result.folder))}[/dim]")
        return result
    console.print(f"[green]done[/green]  {escape(title)}  [dim]{facts}[/dim]")
    console.print(f"      {escape(shown(result.folder))}: {escape(_listing(result.folder))}")
    return result


def _listing(folder: Path) -> str:
    """The names in a folder; Parquet files are counted."""
    entries = [path for path in sorted(folder.iterdir()) if not path.name.startswith(".")]
    tables = [path for path in entries if path.suffix == ".parquet"]
    names = [f"{path.name}/" if path.is_dir() else path.name for path in entries if path not in tables]
    return ", ".join(names + ([f"{len(tables)} Parquet files"] if tables else []))


_OF_THE_DATA = {"steps": "steps", "skipped": "left out", "success_rate": "share of the expert's attempts"}


def _brief(facts: dict[str, Any]) -> str:
    """The metrics of a stage that are shown in its line, by their brief names in the table of metrics."""
    names = {metric.name: metric.brief for stage in ("pretrain", "train") for metric in training_metrics(stage)}
    names |= _OF_THE_DATA
    found = {name: facts[key] for key, name in names.items() if name and isinstance(facts.get(key), int | float)}
    found |= facts.get("scores", {})
    parts = [f"{name} {_number(value)}" for name, value in found.items()]
    for mode, means in facts.get("modes", {}).items():
        if (score := means.get(facts["score"])) is not None:
            parts.append(f"{mode} {facts['score'].replace('_', ' ')} {score:.2f}")
    return " · ".join(parts)


def _number(value: float) -> str:
    """Formats a number with three digits, or all of those before the point."""
    if isinstance(value, int) or abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.3g}"


def print_scores(title: str, summaries: dict[str, dict[str, Any]]) -> None:
    """Prints the score and the other metrics of every agent, by mode.

    Args:
        title: title of the table.
        summaries: the contents of ``summary.json`` by the agent's name.
    """
    rows = [
        (name, mode, summary["score"], means)
        for name, summary in summaries.items()
        for mode, means in summary["modes"].items()
    ]
    scores = dict.fromkeys(score for _, _, score, _ in rows)
    columns = list(dict.fromkeys([*scores, *(metric for *_, means in rows for metric in means)]))
    table = Table("agent", "mode", *(column.replace("_", " ") for column in columns), title=title)
    for name, mode, _, means in rows:
        table.add_row(name, mode, *(_cell(means.get(column)) for column in columns))
    print_table(table)


def _cell(value: float | None) -> str:
    return "" if value is None else str(value) if isinstance(value, int) else f"{value:.2f}"


def print_exploration(rows: list[dict[str, Any]]) -> None:
    """Prints what each explorer has covered; the last column compares the skill prior with it."""
    table = Table("explorer", "coverage", "cells an episode", "reached the goal", "skill prior covers")
    for row in rows:
        table.add_row(
            row["explorer"],
            f"{100 * row['coverage']:.1f} %",
            f"{row['cells_per_episode']:.1f}",
            f"{100 * row['reached_goal']:.1f} %",
            f"{row['prior_over_this']:.2f} x",
        )
    print_table(table)


def print_facts(title: str, facts: dict[str, str]) -> None:
    """Prints two columns, name and value."""
    table = Table(title=title, show_header=False)
    for name, value in facts.items():
        table.add_row(name, escape(value))
    print_table(table)


def print_table(table: Table) -> None:
    """Prints a table, which is wide where there is no terminal."""
    if console.is_terminal:
        console.print(table, soft_wrap=False)
    else:
        # print(width=…) cannot go beyond the width of the console itself.
        Console(file=console.file, highlight=False, width=_FILE_WIDTH).print(table)


def print_next(command: Sequence[str], why: str) -> None:
    """Prints the command that comes next, ready to paste."""
    console.print(f"[bold]Next:[/bold] {escape(shlex.join(command))}  [dim]({why})[/dim]")


def shown(path: Path) -> str:
    """The text of a path, relative to the working folder if that is shorter."""
    relative = os.path.relpath(path)
    return relative if len(relative) < len(str(path)) else str(path)
