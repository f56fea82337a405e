"""How far a sweep is, for other shells: its ledger, and what its process says of itself beside it."""

from __future__ import annotations

import contextlib
import os
import socket
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from spirl_ray.config_file import read_mapping
from spirl_ray.errors import SpirlError
from spirl_ray.files import layout
from spirl_ray.files.atomic import read_json, write_json
from spirl_ray.files.untrusted import validate_card
from spirl_ray.pipeline.status import own_command, still_runs
from spirl_ray.settings import Settings
from spirl_ray.sweeps.ledger import Ledger, TrialRecord
from spirl_ray.sweeps.sweep_file import SweepFile

_SECONDS_BETWEEN_SIGNS = 60.0


class SweepSign(Settings):
    """What the process of a sweep says of itself. Times are in seconds since 1970."""

    command: str
    """The shell command, ready to paste; empty for calls from Python."""
    trials: int
    """The number of trials in all, those that have ended included."""
    host: str
    pid: int
    updated: float
    ended: bool = False
    """True once the command has run all trials."""


class SweepSigns:
    """Writes the signs of life of this process, which runs a sweep.

    Args:
        folder: folder of the sweep.
        trials: the number of trials in all.
        clock: a function that returns seconds since 1970.
    """

    def __init__(self, folder: Path, trials: int, clock: Callable[[], float] = time.time) -> None:
        self.folder, self.trials, self._clock, self._updated = folder, trials, clock, 0.0

    def sign(self, *, ended: bool = False) -> None:
        """Writes a sign of life, unless there has been one in the last minute; the end is always written."""
        now = self._clock()
        if not ended and now - self._updated < _SECONDS_BETWEEN_SIGNS:
            return
        self._updated = now
        sign = SweepSign(
            command=own_command(),
            trials=self.trials,
            host=socket.gethostname(),
            pid=os.getpid(),
            updated=now,
            ended=ended,
        )
        with contextlib.suppress(SpirlError):  # results do not depend on it
            write_json(self.folder / layout.SWEEP_SIGN, sign.model_dump(mode="json"))


@dataclass(frozen=True)
class SweepStatus:
    """The status of a sweep."""

    name: str
    metric: str
    keys: Sequence[str]
    """The keys that vary."""
    records: Sequence[TrialRecord]
    """The trials that have begun, by number."""
    running: bool
    """False where no process runs the sweep, so that trials without an end have been interrupted."""
    left: int | None
    """The number of trials that have not begun; None where it is not known."""
    command: str
    """The command that runs it; empty where it is not known."""

    @property
    def counts(self) -> dict[str, int]:
        """The number of trials by state, without the states in which there are none."""
        now = "running" if self.running else "interrupted"
        found = {"finished": 0, "stopped": 0, now: 0, "failed": 0, "left": self.left or 0}
        for record in self.records:
            found[now if record.status == "running" else record.status] += 1
        return {state: count for state, count in found.items() if count}


def read_sweep_status(folder: Path, now: float | None = None) -> SweepStatus:
    """Reads the status of a sweep's folder.

    Args:
        folder: folder of a sweep.
        now: seconds since 1970; None is now.

    Raises:
        SpirlError: a file is missing or damaged.
    """
    file, _ = read_mapping(folder / layout.SWEEP, SweepFile)
    records = Ledger(folder / layout.TRIALS).records
    place = folder / layout.SWEEP_SIGN
    sign = validate_card(read_json(place), SweepSign, str(place)) if place.exists() else None
    now = time.time() if now is None else now
    return SweepStatus(
        name=str(file.get("name")),
        metric=str(file.get("metric")),
        keys=list(file.get("space") or ()),
        records=records,
        running=sign is not None and not sign.ended and still_runs(sign.host, sign.pid, sign.updated, now),
        left=None if sign is None else max(sign.trials - len(records), 0),
        command="" if sign is None else sign.command,
    )
