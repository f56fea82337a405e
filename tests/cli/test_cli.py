"""What the commands say: help, next commands, messages, exit codes."""

from __future__ import annotations

import contextlib
import os
import shlex
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import typer
from stored import ACTION_DIM, FEATURES, make_episode, write_dataset
from toy import TOY, write_config
from typer.testing import CliRunner

import spirl_ray
from spirl_ray.cli import arguments as command
from spirl_ray.cli import main as cli
from spirl_ray.cli import terminal
from spirl_ray.config import TrainSettings, load_experiment
from spirl_ray.errors import SpirlError
from spirl_ray.pipeline import experiment
from spirl_ray.pipeline.events import Event
from spirl_ray.pipeline.experiment import ExperimentRun
from spirl_ray.pipeline.results import DataResult, EvaluationResult, Finding, SkillsResult, Snapshot, TrainingResult

runner = CliRunner()
COMMANDS = ["run", "sweep", "pretrain", "prior", "explore", "train", "evaluate", "report"]


@pytest.mark.parametrize(
    "command", [[name] for name in COMMANDS] + [["data", n] for n in ("import", "generate", "inspect", "validate")]
)
def test_every_command_explains_itself(command: list[str]) -> None:
    result = runner.invoke(cli.app, [*command, "--help"])
    assert result.exit_code == 0
    assert len(result.output.splitlines()[3].strip()) > 20
    if command[0] != "data":
        assert "--set" in result.output
        assert "output=FOLDER" in result.output


def test_an_inspection_shows_the_tries_of_the_environments_own_expert(tmp_path: Path) -> None:
    chain = {"completed": ["kettle"], "tasks": ["kettle", "microwave"], "failed_attempts": [[]]}
    for name, environment, shown in (("ours", "spirl/Kitchen-v0", True), ("others", "spirl/PointPads-v0", False)):
        one = replace(make_episode(), metadata=chain)
        folder = write_dataset(tmp_path / name, [[one]], FEATURES, ACTION_DIM, environment=environment)
        result = runner.invoke(cli.app, ["data", "inspect", str(folder)])
        assert result.exit_code == 0
        assert ("kettle" in result.output and "50.0 % of 2 tries" in result.output) == shown


def test_the_program_without_a_command_shows_where_to_begin() -> None:
    assert "spirl run quickstart" in runner.invoke(cli.app, []).output


def test_the_next_command_repeats_the_options_and_survives_a_shell(capsys: pytest.CaptureFixture[str]) -> None:
    overrides = ["env.kwargs={tasks: [light switch]}", "output=a b"]
    command = cli._Command(Path("my file.yaml"), overrides, load_experiment(TOY), terminal.StageDisplay())
    command.next("train", "go on")
    printed = capsys.readouterr().out.removeprefix("Next: ").partition("  (")[0]
    assert shlex.split(printed) == ["spirl", "train", "my file.yaml", "--set", overrides[0], "--set", overrides[1]]


def test_a_message_keeps_its_square_brackets(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(typer.Exit) as exit_, command.readable_errors():
        raise SpirlError("no such file: /data/[kettle]/[/red]x")
    assert exit_.value.exit_code == 2
    assert capsys.readouterr().err == "Error: no such file: /data/[kettle]/[/red]x\n"


def test_a_long_message_is_one_line_when_there_is_no_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(typer.Exit), command.readable_errors():
        raise SpirlError("word " * 100)
    assert capsys.readouterr().err.count("\n") == 1


def test_ctrl_c_exits_130_and_says_how_to_go_on(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(typer.Exit) as exit_, command.readable_errors():
        raise KeyboardInterrupt
    assert exit_.value.exit_code == 130
    assert "the same command" in capsys.readouterr().err


def test_a_termination_says_the_same_and_exits_143(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(typer.Exit) as found, command.readable_errors():
        sys.exit(143)
    assert found.value.exit_code == 143
    assert capsys.readouterr().err.startswith("Stopped. ")
    with pytest.raises(SystemExit), command.readable_errors():
        sys.exit(3)


def test_a_bug_is_not_disguised_as_bad_input() -> None:
    with pytest.raises(ZeroDivisionError), command.readable_errors():
        raise ZeroDivisionError


def test_progress_without_a_terminal_is_a_line_every_tenth(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "metrics.csv").touch()
    for number in range(12):
        (tmp_path / f"{number}.parquet").touch()
    trial: Any = {"stage": "training", "method": "[kettle]", "seed": 0}
    with terminal.StageDisplay() as show:
        show(Event(happening="started", **trial))
        for step in range(1, 1042):
            metrics = {"env_steps": step, "alpha": 0.123456}
            show(Event(happening="progress", done=step, total=1000, metrics=metrics, scores={"success": 0.25}, **trial))
        snapshot = Snapshot(env_steps=1040, score=0.5, deterministic={"success": 0.5}, sampled={})
        result = TrainingResult(
            folder=tmp_path,
            ran=True,
            method="[kettle]",
            seed=0,
            env_steps=15710,
            decisions=1571,
            updates=1500,
            wall_clock_s=9.0,
            commit="c",
            score="success",
            publish="best",
            best=snapshot,
            last=snapshot,
        )
        show(Event(happening="finished", result=result, **trial))
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("  Training [kettle], seed 0: 10 %  steps 100 · ")
    assert "0.123" in lines[0]
    assert "success 0.25" in lines[0]
    assert lines[9].startswith("  Training [kettle], seed 0: 100 %  steps 1,000 · ")
    assert lines[10].startswith("done  Training [kettle], seed 0  steps 15,710 · ")
    assert lines[10].endswith("success, deterministic 0.5")
    assert lines[11].endswith(": metrics.csv, 12 Parquet files")
    assert len(lines) == 12


def test_what_decides_is_printed_when_it_is_known(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sentence, warning = Finding("A latent carries [0.7] nats."), Finding("The latent hardly steers.", warning=True)
    trial: Any = {"method": "spirl_cl", "seed": 0}
    skills: Any = {"folder": tmp_path, "metrics": {}, "findings": (sentence, warning), **trial}
    with terminal.StageDisplay() as show:
        show(Event(happening="progress", stage="training", done=1, total=1000, findings=(sentence, warning), **trial))
        show(Event(happening="finished", stage="skills", result=SkillsResult(ran=True, **skills), **trial))
        show(Event(happening="finished", stage="skills", result=SkillsResult(ran=False, **skills), **trial))
    lines = [line.strip() for line in capsys.readouterr().out.splitlines()]
    assert lines[:2] == [sentence.text, f"warning {warning.text}"]
    assert lines.count(sentence.text) == 2  # skills that are there already repeat their warnings alone
    assert lines.count(f"warning {warning.text}") == 3


def test_why_there_is_no_video_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    common: Any = {"method": "spirl_cl", "seed": 0}
    result = EvaluationResult(
        folder=tmp_path,
        ran=True,
        score="return",
        modes={"sampled": {"return": 1.0}},
        episodes_csv=tmp_path / "episodes.csv",
        no_videos="[pygame] is not installed",
        **common,
    )
    with terminal.StageDisplay() as show:
        show(Event(happening="finished", stage="evaluation", result=result, **common))
    assert "no video: [pygame] is not installed" in capsys.readouterr().out


def test_a_stage_with_nothing_to_do_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    result = DataResult(folder=tmp_path, ran=False, episodes=1, steps=2)
    with terminal.StageDisplay() as show:
        show(Event(happening="started", stage="data"))
        show(Event(happening="finished", stage="data", result=result))
    assert capsys.readouterr().out.startswith("there already  Data")


def test_episodes_that_an_import_left_out_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    result = DataResult(folder=tmp_path, ran=True, episodes=1, steps=2, skipped=("file: episode-1: [actions]: nan",))
    with terminal.StageDisplay() as show:
        show(Event(happening="finished", stage="data", result=result))
    assert "file: episode-1: [actions]: nan" in capsys.readouterr().out


def test_the_version_is_one() -> None:
    result = runner.invoke(cli.app, ["--version"])
    assert (result.exit_code, result.output.strip()) == (0, f"spirl-ray {spirl_ray.__version__}")


def test_a_shell_completes_commands() -> None:
    asked = {"_SPIRL_COMPLETE": "complete_bash", "COMP_WORDS": "spirl pre", "COMP_CWORD": "1"}
    program = [sys.executable, "-m", "spirl_ray.cli"]
    found = subprocess.run(program, env={**os.environ, **asked}, capture_output=True, text=True, check=True)
    assert found.stdout.split() == ["pretrain"]


def test_report_does_not_make_a_folder_that_is_not_there(tmp_path: Path) -> None:
    for name in ("report", "evaluate"):
        result = runner.invoke(cli.app, [name, str(write_config(tmp_path))])
        assert result.exit_code == 2
        assert "spirl run" in result.output
        assert not (tmp_path / "out").exists()


def test_prior_refuses_methods_that_have_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ExperimentRun, "data", lambda self: None)
    monkeypatch.setattr(
        ExperimentRun,
        "trials",
        [SimpleNamespace(has_prior=False, method="sac", seed=0, experiment=SimpleNamespace(train=TrainSettings()))],
    )
    monkeypatch.setattr(experiment, "ray_session", lambda *arguments: contextlib.nullcontext())
    result = runner.invoke(cli.app, ["prior", str(write_config(tmp_path, methods=["sac"]))])
    assert result.exit_code == 2
    assert "no prior to roll out" in result.output


def test_one_set_takes_several_settings() -> None:
    given = ["evaluate", "maze", "--set", "env.start=[1, 2]", "env.goal=[3, 4]", "--set", "a=b=c", "x"]
    assert cli._one_option_each(given) == [
        *("evaluate", "maze", "--set", "env.start=[1, 2]", "--set", "env.goal=[3, 4]", "--set", "a=b=c", "x")
    ]
    assert cli._one_option_each(["run", "a=b.yaml", "--help"]) == ["run", "a=b.yaml", "--help"]
