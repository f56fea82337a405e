"""The work of ``spirl sweep``, in order: data, trials, results. It prints each as it begins or ends."""

from __future__ import annotations

from typing import Any

from rich.markup import escape

from spirl_ray.cli.sweep_table import SweepTable, print_failures, print_files, print_ranking
from spirl_ray.cli.terminal import StageDisplay, console, print_next, say_waiting, shown
from spirl_ray.errors import SpirlError
from spirl_ray.files import layout
from spirl_ray.pipeline.experiment import ExperimentRun
from spirl_ray.pipeline.resources import said_while_waiting
from spirl_ray.pipeline.workspace import Workspace
from spirl_ray.sweeps.ledger import Ledger, Status, TrialRecord
from spirl_ray.sweeps.results import settings, write_best, write_evaluations, write_figure, write_results
from spirl_ray.sweeps.search import remaining
from spirl_ray.sweeps.status import SweepSigns
from spirl_ray.sweeps.sweep_file import Sweep
from spirl_ray.sweeps.trackers import check_packages
from spirl_ray.sweeps.tune_run import ray_for, reserve, run_sweep, searches_data

_ENDS: tuple[Status, ...] = ("finished", "stopped", "failed")


def run(sweep: Sweep) -> None:
    """Runs the remaining trials of a sweep and writes its results.

    Raises:
        SpirlError: an error stops all trials, or none has finished.
    """
    check_packages(sweep)
    workspace = Workspace(sweep.base, on_wait=say_waiting)
    workspace.reserve()
    with workspace.locked(sweep.folder):
        for other in reserve(sweep):
            console.print(
                f"[yellow]another sweep[/yellow] of this name is in {escape(shown(other))}: the file or its base has "
                f"changed since. This one has a folder of its own, {escape(shown(sweep.folder))}; policies that both "
                "ask for are trained once."
            )
        ledger = Ledger(sweep.folder / layout.TRIALS)
        waiting, ended = remaining(sweep, ledger), sum(record.ended for record in ledger.records)
        signs = SweepSigns(sweep.folder, waiting + ended)
        if waiting:
            signs.sign()
            ledger = _run(sweep, workspace, ledger, signs)
        else:
            console.print(f"[dim]there already  all trials of {escape(sweep.file.name)}[/dim]")
        signs.sign(ended=True)
        _show(sweep, ledger)


def _run(sweep: Sweep, workspace: Workspace, ledger: Ledger, signs: SweepSigns) -> Ledger:
    with ray_for(sweep) as concurrency:
        if not searches_data(sweep):
            with StageDisplay() as show:
                ExperimentRun(workspace, show).data()
        ended = sum(record.ended for record in ledger.records)
        console.print(f"{signs.trials - ended} trials to run, {ended} have ended, {concurrency} at the same time")
        with SweepTable(f"Sweep {sweep.file.name}", list(sweep.space), sweep.file.metric, ledger.records) as table:
            return _watched(sweep, concurrency, table, signs)


def _watched(sweep: Sweep, concurrency: int, table: SweepTable, signs: SweepSigns) -> Ledger:
    """Runs the trials; says what they wait for while none of them gets on."""
    with said_while_waiting(say_waiting) as moved:

        def change(record: TrialRecord) -> None:
            moved()
            table.change(record)

        def progress(stages: dict[int, dict[str, Any]]) -> None:
            if stages != table.stages:
                moved()
            table.progress(stages)
            signs.sign()

        return run_sweep(sweep, concurrency, change, progress, _say_room)


def _say_room(text: str) -> None:
    console.print(f"[yellow]sweep[/yellow] {escape(text)}")


def _show(sweep: Sweep, ledger: Ledger) -> None:
    files = [write_results(sweep, ledger), write_evaluations(sweep, ledger), write_figure(sweep, ledger)]
    best = write_best(sweep, ledger)
    failed = ledger.with_status("failed")
    print_failures(failed)
    if best is None:
        raise SpirlError(
            f"No trial of {sweep.file.name} has finished; {len(failed)} failed. Their records are in "
            f"{shown(sweep.folder)}. The same command tries again those that failed."
        )
    print_ranking(settings(sweep, ledger), sweep.file.metric, [key for key in sweep.space if key != "seeds"])
    counts = {status: len(ledger.with_status(status)) for status in _ENDS}
    text = ", ".join(f"{count} {status}" for status, count in counts.items() if count)
    console.print(f"[green]done[/green]  Sweep {escape(sweep.file.name)}  [dim]{text}[/dim]")
    print_files([*files, best])
    print_next(["spirl", "run", shown(best)], "the report of the best setting, with videos")
