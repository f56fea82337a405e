"""``spirl sweep`` prints data and trials while they run, then the results."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from rich.markup import escape

from spirl_ray.cli.sweep_table import SweepTable, print_failures, print_files, print_ranking
from spirl_ray.cli.terminal import StageDisplay, console, print_next, shown
from spirl_ray.errors import SpirlError
from spirl_ray.pipeline.events import Event
from spirl_ray.sweeps.ledger import Ledger, Status, TrialRecord
from spirl_ray.sweeps.run import SweepListener, SweepResult
from spirl_ray.sweeps.sweep_file import Sweep

_ENDS: tuple[Status, ...] = ("finished", "stopped", "failed")


class SweepDisplay(SweepListener):
    """Shows a sweep while it runs. It is a context manager, because a sweep that fails leaves its table."""

    def __init__(self) -> None:
        self._open = ExitStack()
        self._stages = self._open.enter_context(StageDisplay())
        self._table: SweepTable | None = None

    def __enter__(self) -> SweepDisplay:
        return self

    def __exit__(self, *error: Any) -> None:
        self._open.__exit__(*error)

    def event(self, event: Event) -> None:
        self._stages(event)

    def others(self, sweep: Sweep, folders: Sequence[Path]) -> None:
        for other in folders:
            console.print(
                f"[yellow]another sweep[/yellow] of this name is in {escape(shown(other))}: the file or its base has "
                f"changed since. This one has a folder of its own, {escape(shown(sweep.folder))}; policies that both "
                "ask for are trained once."
            )

    def started(self, sweep: Sweep, ledger: Ledger, trials: int, concurrency: int) -> None:
        ended = sum(record.ended for record in ledger.records)
        console.print(f"{trials} trials to run, {ended} have ended, {concurrency} at the same time")
        table = SweepTable(f"Sweep {sweep.file.name}", list(sweep.space), sweep.file.metric, ledger.records)
        self._table = self._open.enter_context(table)

    def changed(self, record: TrialRecord) -> None:
        assert self._table is not None  # since `started`
        self._table.change(record)

    def progress(self, stages: dict[int, dict[str, Any]]) -> None:
        assert self._table is not None
        self._table.progress(stages)

    def room(self, text: str) -> None:
        console.print(f"[yellow]sweep[/yellow] {escape(text)}")


def print_sweep(found: SweepResult) -> None:
    """Prints the results of a sweep.

    Raises:
        SpirlError: no trial has finished.
    """
    file, failed = found.sweep.file, found.ledger.with_status("failed")
    if not found.ran:
        console.print(f"[dim]there already  all trials of {escape(file.name)}[/dim]")
    print_failures(failed)
    if found.best is None:
        raise SpirlError(
            f"No trial of {file.name} has finished; {len(failed)} failed. Their records are in "
            f"{shown(found.folder)}. The same command tries again those that failed."
        )
    print_ranking(found.settings, file.metric, [key for key in found.sweep.space if key != "seeds"])
    counts = {status: len(found.ledger.with_status(status)) for status in _ENDS}
    text = ", ".join(f"{count} {status}" for status, count in counts.items() if count)
    console.print(f"[green]done[/green]  Sweep {escape(file.name)}  [dim]{text}[/dim]")
    print_files([*found.files, found.best])
    print_next(["spirl", "run", shown(found.best)], "the report of the best setting, with videos")
