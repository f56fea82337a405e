"""How far a sweep is can be read from any shell."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
from sweep_files import sweep
from typer.testing import CliRunner

from spirl_ray.cli import main as cli
from spirl_ray.files.atomic import write_json
from spirl_ray.sweeps.ledger import Ledger
from spirl_ray.sweeps.status import SweepSigns, read_sweep_status
from spirl_ray.sweeps.tune_run import reserve

GONE = 2**22 + 1
"""The identifier of no process: Linux has at most 2^22 of them."""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A sweep of six trials: three have ended, one runs, two are left."""
    monkeypatch.setattr(sys, "argv", ["/bin/spirl", "sweep", "my sweep.yaml"])
    chosen = sweep(tmp_path, {"train.actor_lr": {"choice": [0.1, 0.2]}, "seeds": {"grid": [0, 1, 2]}}, samples=2)
    reserve(chosen)
    ledger = Ledger(chosen.folder / "trials")
    states: list[Any] = ["finished", "stopped", "failed", "running"]
    for number, state in enumerate(states):
        record = ledger.record_of({"train.actor_lr": 0.1, "seeds": number})
        record.status, record.error = state, "no space left" if state == "failed" else None
        record.add({"env_steps": 100, "deterministic_score": 1.5})
        ledger.save(record)
    SweepSigns(chosen.folder, 6).sign()
    write_json(tmp_path / "out" / "experiment.json", {"name": "toy"})
    return chosen.folder


def test_a_status_counts_trials_by_state(folder: Path) -> None:
    assert read_sweep_status(folder).counts == {"finished": 1, "stopped": 1, "running": 1, "failed": 1, "left": 2}


def test_a_sweep_whose_process_has_died_is_interrupted(folder: Path) -> None:
    sign = json.loads((folder / "running.json").read_text())
    write_json(folder / "running.json", {**sign, "pid": GONE})
    assert read_sweep_status(folder).counts["interrupted"] == 1
    write_json(folder / "running.json", {**sign, "host": "elsewhere"})
    assert read_sweep_status(folder, now=sign["updated"] + 100.0).counts["running"] == 1
    assert read_sweep_status(folder, now=sign["updated"] + 10_000.0).counts["interrupted"] == 1


def test_a_sweep_of_which_no_process_has_told_is_not_running(folder: Path) -> None:
    (folder / "running.json").unlink()
    assert read_sweep_status(folder).counts == {"finished": 1, "stopped": 1, "interrupted": 1, "failed": 1}


def test_signs_come_once_a_minute_and_at_the_end(folder: Path) -> None:
    now = [1000.0]
    signs = SweepSigns(folder, 6, lambda: now[0])

    def written() -> dict[str, Any]:
        return json.loads((folder / "running.json").read_text())

    for clock, updated in ((1000.0, 1000.0), (1030.0, 1000.0), (1061.0, 1061.0)):
        now[0] = clock
        signs.sign()
        assert written()["updated"] == updated
    signs.sign(ended=True)
    assert written()["ended"]


def test_the_command_shows_trials_failures_and_how_to_resume(folder: Path) -> None:
    shown = CliRunner().invoke(cli.app, ["status", str(folder)]).output
    for said in (
        "0.1",
        "1.5",
        "trial 2 failed: no space left",
        "1 stopped by the scheduler, 1 running, 1 failed, 2 left",
    ):
        assert said in shown
    assert "Resume" not in shown
    (folder / "running.json").write_text(
        (folder / "running.json").read_text().replace('"ended": false', '"ended": true')
    )
    assert "Resume with: spirl sweep 'my sweep.yaml'" in CliRunner().invoke(cli.app, ["status", str(folder)]).output


def test_the_status_of_an_experiment_names_its_sweeps(folder: Path) -> None:
    shown = CliRunner().invoke(cli.app, ["status", str(folder.parents[1])]).output
    assert "Sweep small: 1 finished, 1 stopped by the scheduler, 1 running, 1 failed, 2 left" in shown
    assert str(folder.name) in shown
