"""A whole sweep, as `spirl_ray.api.sweep` runs it: checks, data, trials, results."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from spirl_ray.files import layout
from spirl_ray.pipeline.checks import check_experiments
from spirl_ray.pipeline.events import Event
from spirl_ray.pipeline.experiment import ExperimentRun, readable
from spirl_ray.pipeline.resources import said_while_waiting
from spirl_ray.pipeline.workspace import Workspace
from spirl_ray.sweeps.ledger import Ledger, TrialRecord
from spirl_ray.sweeps.results import Setting, settings, write_best, write_evaluations, write_figure, write_results
from spirl_ray.sweeps.search import check_planned, remaining
from spirl_ray.sweeps.status import SweepSigns
from spirl_ray.sweeps.sweep_file import Sweep, load_sweep
from spirl_ray.sweeps.trackers import check_packages
from spirl_ray.sweeps.tune_run import ray_for, reserve, run_sweep, searches_data


class SweepListener:
    """A listener that does nothing; a subclass overrides the methods for what it shows.

    The methods are called in the process of the sweep, `event` in a thread of its own where something is waited for,
    so they should be quick. What they raise ends the sweep.
    """

    def event(self, event: Event) -> None:
        """Gets the events of the data that all trials share, and ``waiting`` while no trial gets on."""

    def others(self, sweep: Sweep, folders: Sequence[Path]) -> None:
        """Gets the folders of other sweeps of the same name, from before the file or its base was changed."""

    def started(self, sweep: Sweep, ledger: Ledger, trials: int, concurrency: int) -> None:
        """Gets the records of earlier calls, the number of trials to run, and the number at the same time."""

    def changed(self, record: TrialRecord) -> None:
        """Gets the record of a trial that starts, reports or ends."""

    def progress(self, stages: dict[int, dict[str, Any]]) -> None:
        """Gets ``stage``, ``done`` and ``total`` of the running trials by their numbers."""

    def room(self, text: str) -> None:
        """Gets the words for a changed number of trials at the same time."""


@dataclass(frozen=True, kw_only=True)
class SweepResult:
    """The result of a sweep."""

    sweep: Sweep
    folder: Path
    ran: bool
    """False where all trials had ended before, so that nothing had to be done."""
    settings: Sequence[Setting]
    """The points of the space with finished trials, the best first."""
    ledger: Ledger
    """The records of all trials."""
    files: Sequence[Path]
    """The tables and the figure that were written."""
    best: Path | None
    """The experiment of the best setting as a YAML file; None where no trial has finished."""


def prepare(path: Path, overrides: Sequence[str] = ()) -> Sweep:
    """Reads a sweep and checks, before any work, what would otherwise fail later.

    Args:
        path: the YAML file, see `load_sweep`.
        overrides: changes of settings as after ``--set``, see `load_sweep`.

    Raises:
        SpirlError: a setting is wrong, or a package is missing; the message names the key.
    """
    sweep = load_sweep(path, overrides)
    check_planned(sweep)
    check_experiments([sweep.base, *sweep.examples()])
    check_packages(sweep)
    return sweep


def run(sweep: Sweep, listener: SweepListener) -> SweepResult:
    """Runs the remaining trials of a sweep and writes its results.

    Raises:
        SpirlError: an error stops all trials.
    """

    def say_waiting(target: Path) -> None:
        listener.event(Event(happening="waiting", folder=target))

    with readable():
        workspace = Workspace(sweep.base, on_wait=say_waiting)
        workspace.reserve()
        with workspace.locked(sweep.folder):
            if others := reserve(sweep):
                listener.others(sweep, others)
            ledger = Ledger(sweep.folder / layout.TRIALS)
            waiting, ended = remaining(sweep, ledger), sum(record.ended for record in ledger.records)
            signs = SweepSigns(sweep.folder, waiting + ended)
            if waiting:
                signs.sign()
                ledger = _run(workspace, sweep, ledger, waiting, signs, listener)
            signs.sign(ended=True)
            files = [write_results(sweep, ledger), write_evaluations(sweep, ledger), write_figure(sweep, ledger)]
            return SweepResult(
                sweep=sweep,
                folder=sweep.folder,
                ran=waiting > 0,
                settings=settings(sweep, ledger),
                ledger=ledger,
                files=[file for file in files if file is not None],
                best=write_best(sweep, ledger),
            )


def _run(
    workspace: Workspace, sweep: Sweep, ledger: Ledger, trials: int, signs: SweepSigns, listener: SweepListener
) -> Ledger:
    """Makes the data, runs the trials, and says what they wait for while none of them gets on."""
    newest: dict[int, dict[str, Any]] = {}
    with ray_for(sweep) as concurrency:
        if not searches_data(sweep):
            ExperimentRun(workspace, listener.event).data()
        listener.started(sweep, ledger, trials, concurrency)
        with said_while_waiting(lambda text: listener.event(Event(happening="waiting", resources=text))) as moved:

            def change(record: TrialRecord) -> None:
                moved()
                listener.changed(record)

            def progress(stages: dict[int, dict[str, Any]]) -> None:
                nonlocal newest
                if stages != newest:
                    moved()
                newest = stages
                listener.progress(stages)
                signs.sign()

            return run_sweep(sweep, concurrency, change, progress, listener.room)
