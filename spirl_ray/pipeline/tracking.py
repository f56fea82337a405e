"""The results of an experiment in its trackers: one tracked run for each policy and for each stage 1.

A result's own files are the source. What a tracker has of them is noted beside them, so a run that is resumed
continues its tracked run, and what could not be sent is sent by the next command. Sending is the work of a thread for
each tracker: one that is slow or down does not hold up the training.
"""

from __future__ import annotations

import contextlib
import queue
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from pydantic import Field

from spirl_ray import __version__
from spirl_ray.episodes.validation import file_digest
from spirl_ray.files import layout
from spirl_ray.files.atomic import read_json, write_json
from spirl_ray.files.tables import read_csv
from spirl_ray.files.untrusted import validate_card
from spirl_ray.pipeline.events import Event
from spirl_ray.pipeline.results import EvaluationResult, ReportResult
from spirl_ray.pipeline.trackers import Described, Point, Tracked, asked_trackers, finite, open_run
from spirl_ray.pipeline.workspace import Trial, Workspace
from spirl_ray.settings import Settings

Say = Callable[[str, bool], None]
"""A function that tells the user a sentence; True where it is a warning. It is called in another thread."""
_EVERY_S = 5.0
"""The time between two looks at the files of a result."""
_PAUSE_S = 60.0
"""The time after which a tracker that has failed is tried again."""
_PATIENCE_S = 60.0
"""The time that a command that has done its work waits for its trackers."""
_PATIENCE_AFTER_ERRORS_S = 10.0


class TrackedRecord(Settings):
    """What a tracker has of a result, in its `layout.tracked` file."""

    where: dict[str, Any]
    """The tracker's settings; with others, another run is begun."""
    run: str | None = None
    """The id of the run in the tracker."""
    step: int = -1
    """The step up to which rows of ``metrics.csv`` have been sent."""
    rows_at_step: int = 1
    """The number of these that have just this step, because offline updates come without one."""
    evaluations: tuple[str, ...] = ()
    """The evaluations that have been sent."""
    files: dict[str, str] = Field(default_factory=dict)
    """The SHA-256 of the files that have been sent, by name."""


@dataclass
class TrackedResult:
    """A result that is tracked: a policy or skills."""

    folder: Path
    run: Described
    evaluations: dict[str, Point] = field(default_factory=dict)
    """Evaluations that are no file of the result, by a name of their own."""
    files: dict[str, Path] = field(default_factory=dict)
    """The files to attach, by name."""
    done: bool = False
    """True once the stage has ended."""

    def unsent(self, record: TrackedRecord) -> tuple[list[Point], dict[str, Point]]:
        """The rows of metrics, and the evaluations by name, that a tracker does not have yet."""
        step = self.run.step
        rows = [
            Point(row.whole_number(step), finite({k: v for k, v in row.cells.items() if k != step}))
            for row in read_csv(self.folder / layout.METRICS)
        ]
        evaluations = _evaluated(self.folder) | dict(self.evaluations)
        again = [row for row in rows if row.step == record.step]
        return (
            [*again[record.rows_at_step :], *(row for row in rows if row.step > record.step)],
            {name: point for name, point in evaluations.items() if name not in record.evaluations},
        )


def _evaluated(folder: Path) -> dict[str, Point]:
    """The evaluations of snapshots, by steps and mode."""
    found = {}
    for row in read_csv(folder / layout.EVALUATIONS):
        mode = row.cells["mode"]
        means = {k: v for k, v in row.cells.items() if k not in ("env_steps", "mode", "wall_clock_s")}
        found[f"{row.cells['env_steps']} {mode}"] = _means(row.whole_number("env_steps"), f"{mode}_", means)
    return found


def _means(step: int, prefix: str, means: Mapping[str, Any]) -> Point:
    return Point(step, {f"{prefix}{name}": value for name, value in finite(means).items()})


class Tracking:
    """A listener that passes on what an experiment's trackers have to know; a context manager that waits for them.

    Args:
        workspace: the experiment's folder, which has been reserved.
        say: tells the user where results are tracked, and what went wrong.
    """

    def __init__(self, workspace: Workspace, say: Say) -> None:
        self._workspace = workspace
        self._results: dict[Path, TrackedResult] = {}
        self._senders = [_Sender(name, workspace, say) for name in asked_trackers(workspace.experiment)]

    def __call__(self, event: Event) -> None:
        if self._senders and event.happening in ("progress", "finished"):
            for result in self._concerned(event):
                for sender in self._senders:
                    sender.ask(result)

    def __enter__(self) -> Tracking:
        for sender in self._senders:
            sender.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, *error: object) -> None:
        deadline = time.monotonic() + (_PATIENCE_S if kind is None else _PATIENCE_AFTER_ERRORS_S)
        for sender in self._senders:
            sender.end()
        for sender in self._senders:
            sender.wait(deadline)

    def _concerned(self, event: Event) -> list[TrackedResult]:
        """The results of which there is news."""
        outcome = event.result
        if isinstance(outcome, ReportResult):
            found = [self._result(trial, "training") for trial in self._workspace.trials()]
            for one in found:
                one.files[layout.REPORT] = outcome.html
            return found
        if event.method is None or event.seed is None:
            return []
        stage = {"prior": "skills", "evaluation": "training"}.get(event.stage or "", event.stage)
        trial = self._workspace.trial(event.method, event.seed)
        if stage not in ("skills", "training") or (stage == "skills" and trial.artifact is not None):
            return []
        result = self._result(trial, stage)
        if isinstance(outcome, EvaluationResult):
            what = "prior" if event.stage == "prior" else "final"
            for mode, means in outcome.modes.items():
                name, last = f"{what} {outcome.folder.name} {mode}", _last_step(result)
                result.evaluations[name] = _means(last, f"{what}_{mode}_", means)
            result.files |= {f"{layout.VIDEOS}/{what}/{path.name}": path for mode, path in outcome.videos.items()}
        elif event.stage == stage:
            result.done = outcome is not None
        return [result]

    def _result(self, trial: Trial, stage: str) -> TrackedResult:
        folder = trial.skills if stage == "skills" else trial.policy
        if folder not in self._results:
            experiment = self._workspace.experiment
            settings = trial.experiment.model_dump(mode="json", exclude={"overrides", "tracking", "methods", "seeds"})
            known = {"seed": trial.seed, "spirl_ray": __version__}
            if stage == "training":
                known |= {"method": trial.method, "config_hash": trial.config_hash}
            name = folder.name if stage == "skills" else f"{trial.method}-s{trial.seed}"
            self._results[folder] = TrackedResult(
                folder,
                Described(
                    experiment=experiment.name,
                    name=f"{experiment.name} {name}",
                    step="update" if stage == "skills" else "env_steps",
                    settings={**dict(_flat(settings)), **known},
                    folder=self._workspace.folder,
                ),
            )
        return self._results[folder]


def _last_step(result: TrackedResult) -> int:
    rows = read_csv(result.folder / layout.METRICS)
    return rows[-1].whole_number(result.run.step) if rows else 0


def _flat(settings: Mapping[str, Any], before: str = "") -> Iterator[tuple[str, Any]]:
    """The settings that have a value, by key with dots."""
    for name, value in settings.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{before}{name}.")
        elif value is not None:
            yield f"{before}{name}", value


class _Sender:
    """Sends results to one tracker, in a thread of its own."""

    def __init__(self, name: str, workspace: Workspace, say: Say) -> None:
        self.name, self._say = name, say
        self._settings = getattr(workspace.experiment.tracking, name)
        self._where = self._settings.model_dump(mode="json", exclude={"tags"})
        self._asked: queue.SimpleQueue[TrackedResult | None] = queue.SimpleQueue()
        self._open: dict[Path, tuple[TrackedResult, Tracked]] = {}
        self._locks: dict[Path, FileLock] = {}
        self._waiting: dict[Path, TrackedResult] = {}
        """The results with news that have not been sent."""
        self._pause_until, self._warned = 0.0, ""
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._work, daemon=True, name=f"tracking {name}")

    def start(self) -> None:
        self._thread.start()

    def ask(self, result: TrackedResult) -> None:
        """Asks for a look at a result."""
        self._asked.put(result)

    def end(self) -> None:
        """Asks the thread to send what is left, and to end."""
        self._ending.set()
        self._asked.put(None)

    def wait(self, deadline: float) -> None:
        """Waits for the thread's end, until a time of the monotonic clock."""
        self._thread.join(max(0.0, deadline - time.monotonic()))
        if self._thread.is_alive():
            self._say(f"{self.name} has not taken everything in time. {_LATER}", True)

    def _work(self) -> None:
        ends = False
        while not ends:
            found = [self._asked.get()]
            self._ending.wait(_EVERY_S)
            while not self._asked.empty():
                found.append(self._asked.get())
            ends = None in found
            self._waiting |= {one.folder: one for one in found if one is not None}
            if ends or time.monotonic() >= self._pause_until:
                self._send_all()
        for result, run in self._open.values():
            with contextlib.suppress(Exception):  # what matters has been sent
                run.close(ended=result.done)
        for lock in self._locks.values():
            lock.release()

    def _send_all(self) -> None:
        try:
            for folder, result in list(self._waiting.items()):
                self._send(result)
                del self._waiting[folder]
        except Exception as error:  # of a client, or of the network below it
            self._pause_until = time.monotonic() + _PAUSE_S
            text = next(iter(str(error).strip().splitlines()), type(error).__name__)[:300]
            if text != self._warned:
                self._warned = text
                reason = f"{self.name} cannot track {result.run.name}: {text}"
                self._say(f"{reason} Nothing else is affected. {_LATER}", True)

    def _send(self, result: TrackedResult) -> None:
        if not result.folder.is_dir() or not self._reserve(result.folder):
            return
        path = result.folder / layout.tracked(self.name)
        record = TrackedRecord(where=self._where)
        if path.exists():
            found = validate_card(read_json(path), TrackedRecord, str(path))
            record = found if found.where == self._where else record
        rows, evaluations = result.unsent(record)
        given = {name: (file, file_digest(file)) for name, file in dict(result.files).items() if file.is_file()}
        files = {name: one for name, one in given.items() if record.files.get(name) != one[1]}
        if not (rows or evaluations or files):
            return

        def note(**changes: Any) -> TrackedRecord:
            changed = record.model_copy(update=changes)
            write_json(path, changed.model_dump(mode="json"))
            return changed

        if result.folder not in self._open:
            run = open_run(self.name, self._settings, result.run, record.run)
            self._open[result.folder] = (result, run)
            if record.run != run.id:
                record = note(run=run.id)
            self._say(f"{self.name} tracks {result.run.name}" + (f": {run.address}" if run.address else ""), False)
        _, run = self._open[result.folder]
        run.log([*rows, *evaluations.values()])
        last = max((row.step for row in rows), default=record.step)
        at_last = sum(row.step == last for row in rows) + (record.rows_at_step if last == record.step else 0)
        record = note(step=last, rows_at_step=at_last, evaluations=(*record.evaluations, *evaluations))
        for name, (file, digest) in files.items():
            run.attach(file, name)
            record = note(files={**record.files, name: digest})

    def _reserve(self, folder: Path) -> bool:
        """False where another process sends this result."""
        if folder in self._locks:
            return True
        lock = FileLock(folder / f".{layout.tracked(self.name)}.lock")
        try:
            lock.acquire(timeout=0.0)
        except Timeout:
            return False
        self._locks[folder] = lock
        return True


_LATER = "The same command sends what is missing."
