"""What an experiment's commands have done, are doing and have left, written beside the results for other shells.

Each command writes its plan, and a file for each stage with how far it is. Nothing depends on these files: results are
found by their own, and a status that cannot be written is left out.
"""

from __future__ import annotations

import contextlib
import math
import os
import shlex
import socket
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from spirl_ray.config import Settings
from spirl_ray.errors import SpirlError
from spirl_ray.files import layout
from spirl_ray.files.atomic import alive, read_json, write_json
from spirl_ray.files.untrusted import validate_card
from spirl_ray.pipeline.events import Event, Stage

State = Literal["done", "running", "stopped", "left"]
_SECONDS_BETWEEN_WRITES = 5.0
_SILENT_S = 900.0
"""How long a process of another host may say nothing before it counts as stopped; evaluations may take minutes."""


class StageKey(Settings):
    """A stage, of one method with one seed where it has them."""

    stage: Stage
    method: str | None = None
    seed: int | None = None

    @property
    def name(self) -> str:
        """The name of the stage's file, without its suffix."""
        return self.stage if self.method is None else f"{self.stage}-{self.method}-s{self.seed}"


class Plan(Settings):
    """The newest command of an experiment."""

    command: str
    """The shell command, ready to paste; empty for calls from Python."""
    stages: tuple[StageKey, ...]
    ended: bool = False
    """True once the command has done all of it."""


class StageRecord(StageKey):
    """How far a stage is, as the process that runs it has written last. Times are in seconds since 1970."""

    host: str
    pid: int
    started: float
    updated: float
    finished: bool = False
    ran: bool = True
    """False where the result was there already."""
    done: float = 0.0
    total: float | None = None
    seconds_left: float | None = None
    """The time that is left, as estimated at ``updated``."""
    folder: str | None = None
    """The folder of the result, relative to the experiment's, or absolute where it is elsewhere."""


@dataclass(frozen=True)
class StageStatus:
    """One line of a status."""

    key: StageKey
    state: State
    record: StageRecord | None = None


@dataclass(frozen=True)
class ExperimentStatus:
    """The status of an experiment's folder."""

    name: str
    plan: Plan | None
    stages: Sequence[StageStatus]

    def count(self, state: State) -> int:
        """The number of stages in a state."""
        return sum(one.state == state for one in self.stages)


class Pace:
    """Estimates how long a stage still takes from its pace since its first report; resumed work does not count."""

    def __init__(self) -> None:
        self._first: tuple[float, float] | None = None

    def left(self, done: float, total: float | None, now: float) -> float | None:
        """The seconds left after a report at the time ``now``; None before anything has moved."""
        if self._first is None:
            self._first = (done, now)
        before, began = self._first
        if total is None or done <= before:
            return None
        return max(total - done, 0.0) * (now - began) / (done - before)


class StatusLog:
    """Writes what `spirl status` reads; a listener for the events of one process.

    Args:
        folder: folder of an experiment; nothing is written before it is reserved.
        clock: a function that returns seconds since 1970.
    """

    def __init__(self, folder: Path, clock: Callable[[], float] = time.time) -> None:
        self.folder, self._clock = folder, clock
        self._records: dict[str, StageRecord] = {}
        self._paces: dict[str, Pace] = {}

    def plan(self, stages: Sequence[StageKey], *, ended: bool = False) -> None:
        """Writes what this process is going to do, or that it has done it."""
        self._write(layout.PLAN, Plan(command=own_command(), stages=tuple(stages), ended=ended))

    def __call__(self, event: Event) -> None:
        if event.stage is None or event.happening == "waiting":
            return
        key, now = StageKey(stage=event.stage, method=event.method, seed=event.seed), self._clock()
        record = self._records.get(key.name)
        if event.happening == "started" or record is None:
            record = StageRecord(
                **key.model_dump(), host=socket.gethostname(), pid=os.getpid(), started=now, updated=now
            )
            self._paces[key.name] = Pace()
        elif event.happening == "progress":
            left = self._paces[key.name].left(event.done, event.total, now)
            if now - record.updated < _SECONDS_BETWEEN_WRITES:
                return
            record = record.model_copy(
                update={"done": event.done, "total": event.total, "seconds_left": left, "updated": now}
            )
        if event.happening == "finished":
            folder = None if event.result is None else os.path.relpath(event.result.folder, self.folder)
            record = record.model_copy(
                update={
                    "finished": True,
                    "ran": event.result is None or event.result.ran,
                    "updated": now,
                    "folder": folder,
                }
            )
        self._records[key.name] = record
        self._write(f"{key.name}.json", record)

    def _write(self, name: str, value: Settings) -> None:
        if (self.folder / layout.EXPERIMENT).exists():
            with contextlib.suppress(SpirlError):
                write_json(self.folder / layout.STATUS / name, value.model_dump(mode="json"))


def own_command() -> str:
    """The shell command of this process, ready to paste; empty where it is not ``spirl``."""
    program = Path(sys.argv[0])
    ours = program.name == "spirl" or program.parts[-3:] == ("spirl_ray", "cli", "__main__.py")
    return shlex.join(["spirl", *sys.argv[1:]]) if ours else ""


def read_status(folder: Path, now: float | None = None) -> ExperimentStatus:
    """Reads the status of an experiment's folder.

    Args:
        folder: folder of an experiment.
        now: seconds since 1970; None is now.

    Raises:
        SpirlError: the folder is no experiment's, or a file is damaged.
    """
    if not (folder / layout.EXPERIMENT).exists():
        raise SpirlError(
            f"{folder} is no folder of an experiment, because it has no {layout.EXPERIMENT}. Name one, runs/NAME."
        )
    now = time.time() if now is None else now
    places = sorted((folder / layout.STATUS).glob("*.json"))
    records = [
        validate_card(read_json(place), StageRecord, str(place)) for place in places if place.name != layout.PLAN
    ]
    found = {record.name: record for record in records}
    place = folder / layout.STATUS / layout.PLAN
    plan = validate_card(read_json(place), Plan, str(place)) if place.exists() else None
    keys = {key.name: key for key in (() if plan is None or plan.ended else plan.stages)}
    order = {stage: number for number, stage in enumerate(get_args(Stage))}
    for record in sorted(records, key=lambda one: (order[one.stage], one.seed or 0, one.method or "")):
        keys.setdefault(record.name, record)
    lines = [StageStatus(key, _state(folder, found.get(name), now), found.get(name)) for name, key in keys.items()]
    return ExperimentStatus(str(read_json(folder / layout.EXPERIMENT).get("name")), plan, lines)


def _state(folder: Path, record: StageRecord | None, now: float) -> State:
    if record is None:
        return "left"
    if record.finished:
        # A result that somebody has removed is to be made again.
        return "done" if record.folder is None or (folder / record.folder).exists() else "left"
    return "running" if still_runs(record.host, record.pid, record.updated, now) else "stopped"


def still_runs(host: str, pid: int, updated: float, now: float) -> bool:
    """True for a process of this machine that lives, or one of another machine that has written something lately.

    Args:
        host: name of the machine.
        pid: identifier of the process.
        updated: when it has written something last, in seconds since 1970.
        now: seconds since 1970.
    """
    return alive(pid) if host == socket.gethostname() else now - updated < _SILENT_S


def duration(seconds: float) -> str:
    """75 → "1 min 15 s"; 11520 → "3 h 12 min"; NaN → "unknown"."""
    if math.isnan(seconds):
        return "unknown"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def number(value: float) -> str:
    """Formats a number with three digits, or all of those before the point; rounding errors are 0."""
    if abs(value) < 1e-6:
        return "0"
    return f"{value:,.0f}" if abs(value) >= 999.5 else f"{value:.3g}"
