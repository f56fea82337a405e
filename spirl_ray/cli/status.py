"""The command ``spirl status``: what an experiment or a sweep has done, is doing and has left, from any shell."""

from __future__ import annotations

import shlex
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape
from rich.table import Table

from spirl_ray.cli.arguments import readable_errors
from spirl_ray.cli.sweep_table import SweepTable, print_failures
from spirl_ray.cli.terminal import console, print_table, shown, stage_title
from spirl_ray.files import layout
from spirl_ray.pipeline.status import StageStatus, State, duration, read_status

if TYPE_CHECKING:
    from spirl_ray.sweeps.status import SweepStatus

_STYLES = {"done": "green", "running": "bold", "stopped": "yellow", "left": "dim"}


def add_commands(app: typer.Typer) -> None:
    """Adds the command of this module to the program."""
    app.command()(status)


def status(
    folder: Annotated[
        Path,
        typer.Argument(help="The folder of an experiment, such as runs/NAME, or of a sweep in it.", show_default=False),
    ],
) -> None:
    """Shows what an experiment or a sweep has done, is doing and has left, from any shell that sees its folder."""
    with readable_errors():
        from spirl_ray.sweeps.status import read_sweep_status

        if (folder / layout.SWEEP).exists():
            _print_sweep(read_sweep_status(folder))
            return
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
            console.print(_resume(found.plan.command))
        for place in sorted((folder / layout.SWEEPS).glob(f"*/{layout.SWEEP}")):
            sweep = read_sweep_status(place.parent, now)
            again = shlex.join(["spirl", "status", shown(place.parent)])
            console.print(f"Sweep {escape(sweep.name)}: {_counts(sweep)}  [dim]{escape(again)}[/dim]")


def _print_sweep(found: SweepStatus) -> None:
    table = SweepTable(f"Sweep {found.name}", found.keys, found.metric, found.records, running=found.running)
    print_table(table.table())
    print_failures([record for record in found.records if record.status == "failed"])
    console.print(_counts(found))
    if not found.running and found.command and set(found.counts) & {"interrupted", "failed", "left"}:
        console.print(_resume(found.command))


def _counts(sweep: SweepStatus) -> str:
    words = {"stopped": "stopped by the scheduler"}
    return ", ".join(f"{count} {words.get(state, state)}" for state, count in sweep.counts.items()) or "no trial yet"


def _resume(command: str) -> str:
    return f"[bold]Resume with:[/bold] {escape(command)}"


def _progress(line: StageStatus) -> str:
    record = line.record
    if record is None or line.state not in ("running", "stopped") or not record.total:
        return ""
    return f"{100 * min(record.done / record.total, 1.0):.0f} %"


def _time(line: StageStatus, now: float) -> str:
    """The time that a stage took, or still takes, or for which it has been silent."""
    record = line.record
    if record is None or line.state == "left":
        return ""
    if line.state == "done":
        return duration(record.updated - record.started) if record.ran else "was there"
    if line.state == "stopped":
        return f"{duration(now - record.updated)} ago"
    if record.seconds_left is None:
        return f"for {duration(now - record.started)}"
    return f"{duration(max(record.seconds_left - (now - record.updated), 0.0))} left"
