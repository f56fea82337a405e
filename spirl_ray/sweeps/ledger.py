"""The ledger of a sweep, a JSON file for each trial. A continued sweep reads everything that it knows from here."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from spirl_ray.errors import SpirlError
from spirl_ray.files import layout
from spirl_ray.files.atomic import read_json, write_json

Status = Literal["running", "finished", "stopped", "failed"]
Row = dict[str, Any]


@dataclass
class TrialRecord:
    """The record of one trial so far."""

    number: int
    parameters: Row
    """The parameters by config key; in a population, the newest ones."""
    status: Status = "running"
    """``stopped`` means stopped by the scheduler, because the trial lagged behind. A trial that is ``running`` when no
    sweep runs was interrupted."""
    reports: list[Row] = field(default_factory=list)
    """The metrics of the evaluated snapshots, in the order of training."""
    result: Row | None = None
    """The metrics of the final evaluation."""
    error: str | None = None
    changes: list[Row] = field(default_factory=list)
    """For population based training: when the trial took over which checkpoint, with which parameters."""

    @property
    def ended(self) -> bool:
        """True for a trial that is not to be run again; a failed trial is."""
        return self.status in ("finished", "stopped")

    @property
    def newest(self) -> Row:
        """The result, or else the newest report; empty before the first report."""
        return self.result or (self.reports[-1] if self.reports else {})

    def add(self, report: Row) -> None:
        """Adds the metrics of a snapshot. A trial that resumes tells its earlier ones again; where one of them differs,
        the trial has taken another course, and what followed is gone."""
        if report not in self.reports:
            earlier = [old for old in self.reports if old["env_steps"] < report["env_steps"]]
            self.reports = [*earlier, report]


class Ledger:
    """The records of a sweep in the order of their numbers."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.records: list[TrialRecord] = []
        for file in sorted(folder.glob("[0-9]*.json")):
            try:
                self.records.append(TrialRecord(**read_json(file)))
            except TypeError as error:
                raise SpirlError(
                    f"{file} is not the record of a trial ({error}). Remove it to try these parameters again."
                ) from error

    def has_ended(self, parameters: Row) -> bool:
        """True when a trial with these parameters is not to be run again."""
        found = self._find(parameters)
        return found is not None and found.ended

    def _find(self, parameters: Row) -> TrialRecord | None:
        wanted = _comparable(parameters)
        return next((record for record in self.records if _comparable(record.parameters) == wanted), None)

    def record_of(self, parameters: Row) -> TrialRecord:
        """The record of a trial with these parameters, or a new record if there is none yet."""
        if (found := self._find(parameters)) is not None:
            return found
        number = 1 + max((record.number for record in self.records), default=-1)
        self.records.append(TrialRecord(number, parameters))
        return self.records[-1]

    def member(self, number: int, parameters: Row) -> TrialRecord:
        """The record of a member of a population, whose parameters change."""
        for record in self.records:
            if record.number == number:
                return record
        self.records.append(TrialRecord(number, parameters))
        return self.records[-1]

    def save(self, record: TrialRecord) -> None:
        """Writes a record as a whole or not at all."""
        write_json(self.folder / layout.trial_record(record.number), asdict(record))

    def with_status(self, *statuses: Status) -> list[TrialRecord]:
        """The records with one of these statuses, by number."""
        return sorted((r for r in self.records if r.status in statuses), key=lambda record: record.number)


def distinct(trials: Sequence[Row]) -> list[Row]:
    """Removes repetitions and keeps the order, because the same parameters lead to the same result."""
    return list({_comparable(parameters): parameters for parameters in trials}.values())


def _comparable(parameters: Row) -> str:
    return json.dumps(parameters, sort_keys=True, default=str)
