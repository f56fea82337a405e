"""What an experiment has done, is doing and has left can be read from any shell."""

from __future__ import annotations

import json
import os
import socket
import sys
from pathlib import Path
from typing import Any

import pytest
from toy import TOY
from typer.testing import CliRunner

from spirl_ray.cli import arguments, terminal
from spirl_ray.cli import main as cli
from spirl_ray.config import load_experiment
from spirl_ray.errors import SpirlError
from spirl_ray.pipeline.events import Event
from spirl_ray.pipeline.experiment import ExperimentRun
from spirl_ray.pipeline.results import DataResult, SkillsResult
from spirl_ray.pipeline.status import Pace, StageKey, StatusLog, read_status
from spirl_ray.pipeline.workspace import Workspace

GONE = 2**22 + 1
"""The identifier of no process: Linux has at most 2^22 of them."""


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "experiment.json").write_text('{"name": "toy"}')
    return tmp_path / "run"


def states(folder: Path, now: float = 1000.0) -> dict[str, str]:
    return {line.key.name: line.state for line in read_status(folder, now).stages}


def edit(folder: Path, name: str, **changes: Any) -> None:
    place = folder / "status" / f"{name}.json"
    place.write_text(json.dumps({**json.loads(place.read_text()), **changes}))


def started(folder: Path, clock: Clock) -> StatusLog:
    """An experiment whose data are there, and whose skills are being trained."""
    log = StatusLog(folder, clock)
    trial: Any = {"method": "spirl", "seed": 3}
    log.plan([StageKey(stage="data"), StageKey(stage="skills", **trial), StageKey(stage="training", **trial)])
    log(Event(happening="started", stage="data"))
    (folder / "data").mkdir()
    result = DataResult(folder=folder / "data", ran=True, episodes=1, steps=2)
    log(Event(happening="finished", stage="data", result=result))
    log(Event(happening="started", stage="skills", **trial))
    for done in (500, 600):  # the first report is of a training that has been resumed
        clock.now += 10.0
        log(Event(happening="progress", stage="skills", done=done, total=1000, **trial))
    return log


def test_a_status_says_what_is_done_running_and_left(folder: Path) -> None:
    clock = Clock()
    started(folder, clock)
    assert states(folder) == {"data": "done", "skills-spirl-s3": "running", "training-spirl-s3": "left"}
    record = read_status(folder).stages[1].record
    assert record is not None
    assert (record.done, record.total, record.seconds_left) == (600, 1000, 40.0)
    assert (record.pid, record.host) == (os.getpid(), socket.gethostname())


def test_a_process_that_has_died_is_not_running(folder: Path) -> None:
    started(folder, Clock())
    edit(folder, "skills-spirl-s3", pid=GONE)
    assert states(folder)["skills-spirl-s3"] == "stopped"
    edit(folder, "skills-spirl-s3", host="another")
    assert states(folder, now=1100.0)["skills-spirl-s3"] == "running"
    assert states(folder, now=9999.0)["skills-spirl-s3"] == "stopped"


def test_a_result_that_was_removed_is_left_to_do(folder: Path) -> None:
    started(folder, Clock())
    (folder / "data").rmdir()
    assert states(folder)["data"] == "left"


def test_a_command_that_has_ended_leaves_nothing(folder: Path) -> None:
    log = started(folder, Clock())
    trial: Any = {"method": "spirl", "seed": 3}
    result = SkillsResult(folder=folder, ran=True, metrics={}, **trial)
    log(Event(happening="finished", stage="skills", result=result, **trial))
    log.plan([StageKey(stage="training", **trial)], ended=True)
    assert states(folder) == {"data": "done", "skills-spirl-s3": "done"}
    again = DataResult(folder=folder / "data", ran=False, episodes=1, steps=2)
    log(Event(happening="finished", stage="data", result=again))
    assert "was there" in CliRunner().invoke(cli.app, ["status", str(folder)]).output


def test_nothing_is_written_where_no_experiment_is(tmp_path: Path) -> None:
    StatusLog(tmp_path)(Event(happening="started", stage="data"))
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(SpirlError, match=r"experiment\.json"):
        read_status(tmp_path)


def test_a_stage_of_an_experiment_is_in_its_status(tmp_path: Path) -> None:
    experiment = load_experiment({**TOY, "output": str(tmp_path / "out"), "methods": ["spirl", "sac"], "seeds": [1]})
    workspace = Workspace(experiment)
    workspace.reserve()
    running, seen = ExperimentRun(workspace), {}

    def work(progress: Any) -> DataResult:
        progress(1, 2)
        seen.update(states(workspace.folder))
        return DataResult(folder=workspace.folder, ran=True, episodes=1, steps=2)

    with running.planned(["data", "prior", "training"]):
        running.stage("data", work)
    assert seen == {"data": "running", "prior-spirl-s1": "left", "training-spirl-s1": "left", "training-sac-s1": "left"}
    assert states(workspace.folder) == {"data": "done"}


def test_the_command_shows_it_and_how_to_resume(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["/bin/spirl", "run", "my task.yaml"])
    started(folder, Clock())
    shown = CliRunner().invoke(cli.app, ["status", str(folder)]).output
    assert "Resume" not in shown
    for said in ("Skills for spirl, seed 3", "60 %", "1 done, 1 running, 1 left"):
        assert said in shown
    edit(folder, "skills-spirl-s3", pid=GONE)
    shown = CliRunner().invoke(cli.app, ["status", str(folder)]).output
    assert "Resume with: spirl run 'my task.yaml'" in shown
    assert CliRunner().invoke(cli.app, ["status", str(folder.parent)]).exit_code == 2


def test_ctrl_c_says_the_command_that_resumes(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["/x/spirl_ray/cli/__main__.py", "train", "a.yaml", "--set", "train.env_steps=9"])
    with pytest.raises(cli.typer.Exit), arguments.readable_errors():
        raise KeyboardInterrupt
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith("Stopped. ")
    assert line.endswith("spirl train a.yaml --set train.env_steps=9")


def test_the_time_left_counts_from_the_first_report() -> None:
    pace = Pace()
    assert pace.left(100, 200, 0.0) is None
    assert pace.left(100, 200, 5.0) is None
    assert pace.left(150, 200, 10.0) == 10.0
    assert pace.left(250, 200, 20.0) == 0.0


def test_lines_in_a_log_say_the_time_left(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    now = [0.0]
    monkeypatch.setattr(terminal.time, "monotonic", lambda: now[0])
    with terminal.StageDisplay() as show:
        show(Event(happening="started", stage="data"))
        for done in range(3):
            show(Event(happening="progress", stage="data", done=done, total=10))
            now[0] += 30.0
    assert [line.rpartition("  ")[2] for line in capsys.readouterr().out.splitlines()] == [
        "4 min 30 s left",
        "4 min 0 s left",
    ]
