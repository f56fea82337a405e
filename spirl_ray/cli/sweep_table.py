"""The output of ``spirl sweep``: a live table of the trials on a terminal, whole lines in a pipe or a log file."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from rich.live import Live
from rich.markup import escape
from rich.table import Table

from spirl_ray.cli.terminal import console, interactive, print_table, shown

_COLOURS = {"running": "yellow", "finished": "green", "stopped": "dim", "failed": "red"}
_ROWS = 30
"""The most trials in the live table, which shows the newest."""


class SweepTable:
    """A table with a row for each trial: parameters, state, metric, steps.

    Args:
        title: of the table.
        keys: the keys that vary.
        metric: the metric that is optimised.
        records: the trials so far.
        running: False where no process runs the sweep, so that trials without an end have been interrupted.
    """

    def __init__(
        self, title: str, keys: Sequence[str], metric: str, records: Sequence[Any], *, running: bool = True
    ) -> None:
        self.title, self.keys, self.metric, self.running = title, list(keys), metric, running
        self.records = {record.number: record for record in records}
        self.stages: dict[int, dict[str, Any]] = {}
        self._printed: dict[int, str] = {}
        self._live = Live(get_renderable=self.table, console=console, refresh_per_second=2, transient=True)

    def __enter__(self) -> SweepTable:
        if interactive():
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if interactive():
            self._live.stop()

    def change(self, record: Any) -> None:
        """Updates the row of a trial that has started, reported or ended."""
        self.records[record.number] = record
        if record.status != "running":
            self.stages.pop(record.number, None)
        if interactive():
            return
        text = f"{record.status} {len(record.reports)}" if record.status == "running" else record.status
        if self._printed.get(record.number) != text:
            self._printed[record.number] = text
            console.print(f"  {self._line(record)}", markup=False)

    def progress(self, stages: dict[int, dict[str, Any]]) -> None:
        """Updates the progress of the running trials."""
        self.stages = stages

    def _line(self, record: Any) -> str:
        parameters = " · ".join(f"{key} {shown_value(value)}" for key, value in record.parameters.items())
        measured = ""
        if self.metric in record.newest:
            measured = f"  {self.metric} {record.newest[self.metric]:.3g} after {record.newest['env_steps']:,} steps"
        return f"trial {record.number} {record.status}: {parameters}{measured}{_because(record)}"

    def table(self) -> Table:
        """The table of the newest trials by number."""
        table = Table("trial", *self.keys, "state", self.metric, "steps", title=self.title)
        ordered = [self.records[number] for number in sorted(self.records)]
        for record in ordered[-_ROWS:]:
            measured = record.newest.get(self.metric)
            table.add_row(
                str(record.number),
                *(escape(shown_value(record.parameters.get(key, ""))) for key in self.keys),
                f"[{_COLOURS[record.status]}]{escape(self._state(record))}[/]",
                "" if measured is None else f"{measured:.3g}",
                f"{record.newest['env_steps']:,}" if record.newest else "",
            )
        return table

    def _state(self, record: Any) -> str:
        if record.status == "running" and not self.running:
            return "interrupted"
        stage = self.stages.get(record.number)
        if record.status != "running" or stage is None:
            return str(record.status)
        return f"{stage['stage']} {100 * min(1.0, stage['done'] / stage['total']):.0f} %"


def print_ranking(settings: Sequence[Any], metric: str, keys: Sequence[str]) -> None:
    """Prints the best settings with the mean of the metric."""
    table = Table(*keys, metric, "trials", title="Best settings")
    for setting in settings[:10]:
        values = [escape(shown_value(setting.parameters[key])) for key in keys]
        table.add_row(*values, f"{setting.score:.3g}", ", ".join(str(record.number) for record in setting.records))
    print_table(table)


def print_failures(records: Sequence[Any]) -> None:
    """Prints why trials failed, a line for each; a long message is cut."""
    for record in records:
        console.print(f"[red]trial {record.number} failed[/red]{escape(_because(record))}")


def print_files(files: Sequence[Path]) -> None:
    """Prints the files that were written."""
    for file in files:
        console.print(f"      {escape(shown(file))}")


def _because(record: Any) -> str:
    if record.status != "failed":
        return ""
    lines = [line for line in str(record.error).splitlines() if line.strip()]
    return f": {lines[0] if len(lines) == 1 else f'{lines[0]} … {lines[-1].strip()}'}" if lines else ""


def shown_value(value: Any) -> str:
    """The text of a parameter in a table."""
    return f"{value:.3g}" if isinstance(value, float) else str(value)
