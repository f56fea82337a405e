"""The command ``spirl status``: what an experiment has done, is doing and has left, from any shell."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape
from rich.table import Table

from spirl_ray.cli.arguments import readable_errors
from spirl_ray.cli.terminal import console, print_table, stage_title
from spirl_ray.pipeline.status import StageStatus, State, duration, read_status

_STYLES = {"done": "green", "running": "bold", "stopped": "yellow", "left": "dim"}


def add_commands(app: typer.Typer) -> None:
    """Adds the command of this module to the program."""
    app.command()(status)


def status(
    folder: Annotated[Path, typer.Argument(help="The folder of an experiment, such as runs/NAME.", show_default=False)],
) -> None:
    """Shows what an experiment has done, is doing and has left, from any shell that sees its folder."""
    with readable_errors():
        now = time.time()
        found = read_status(folder, now)
        table = Table("stage", "state", "progress", "time", "result", title=escape(found.name))
        for line in found.stages:
            title = stage_title(line.key.stage, line.key.method, line.key.seed)
            state = f"[{_STYLES[line.state]}]{line.state}[/{_STYLES[line.state]}]"
            result = "" if line.record is None or line.state != "done" else line.record.folder or ""
            table.add_row(escape(title), state, _progress(line), _time(line, now), escape(result))
        print_table(table)
        states: tuple[State, ...] = ("done", "running", "stopped", "left")
        counts = ", ".join(f"{found.count(state)} {state}" for state in states if found.count(state))
        console.print(counts or "No command has told its status in this folder yet.")
        unfinished = found.count("stopped") + found.count("left")
        if unfinished and not found.count("running") and found.plan is not None and found.plan.command:
            console.print(f"[bold]Resume with:[/bold] {escape(found.plan.command)}")


def _progress(line: StageStatus) -> str:
    record = line.record
    if record is None or line.state not in ("running", "stopped") or not record.total:
        return ""
    return f"{100 * min(record.done / record.total, 1.0):.0f} %"


def _time(line: StageStatus, now: float) -> str:
    """How long a stage took, or how long it still takes, or since when it has been silent."""
    record = line.record
    if record is None or line.state == "left":
        return ""
    if line.state == "done":
        return duration(record.updated - record.started)
    if line.state == "stopped":
        return f"{duration(now - record.updated)} ago"
    if record.seconds_left is None:
        return f"for {duration(now - record.started)}"
    return f"{duration(max(record.seconds_left - (now - record.updated), 0.0))} left"
