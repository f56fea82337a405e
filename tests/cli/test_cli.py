"""What the commands say: help, next commands, messages, exit codes."""

from __future__ import annotations

import shlex
from pathlib import Path
from types import SimpleNamespace

import pytest
import typer
from toy import write_config
from typer.testing import CliRunner

from spirl_ray.cli import arguments as command
from spirl_ray.cli import main as cli
from spirl_ray.cli import terminal
from spirl_ray.errors import SpirlError

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


def test_the_program_without_a_command_shows_where_to_begin() -> None:
    assert "tune_configs/quickstart.yaml" in runner.invoke(cli.app, []).output


def test_the_next_command_repeats_the_options_and_survives_a_shell(capsys: pytest.CaptureFixture[str]) -> None:
    overrides = ["env.kwargs={tasks: [light switch]}", "output=a b"]
    session = cli._Session(None, None, None, Path("my file.yaml"), overrides)  # type: ignore[arg-type]
    session.next("train", "go on")
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
    assert "the same command goes on" in capsys.readouterr().err


def test_a_bug_is_not_disguised_as_bad_input() -> None:
    with pytest.raises(ZeroDivisionError), command.readable_errors():
        raise ZeroDivisionError


def test_progress_without_a_terminal_is_a_line_every_tenth(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "metrics.csv").touch()
    for number in range(12):
        (tmp_path / f"{number}.parquet").touch()

    def work(progress: object) -> SimpleNamespace:
        for step in range(1, 1042):
            progress(step, 1000, {"env_steps": step, "alpha": 0.123456})  # type: ignore[operator]
        return SimpleNamespace(ran=True, folder=tmp_path, facts={"steps": 15710, "train_loss": 0.71361})

    terminal.run_stage("Training [kettle]", work)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "  Training [kettle]: 10 %  steps 100 · temperature (alpha) 0.123"
    assert lines[9] == "  Training [kettle]: 100 %  steps 1,000 · temperature (alpha) 0.123"
    assert lines[10] == "done  Training [kettle]  loss 0.714 · steps 15,710"
    assert lines[11].endswith(": metrics.csv, 12 Parquet files")
    assert len(lines) == 12


def test_a_stage_with_nothing_to_do_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    terminal.run_stage("Data", lambda progress: SimpleNamespace(ran=False, folder=tmp_path, facts={}))
    assert capsys.readouterr().out.startswith("there already  Data")


def test_report_does_not_make_a_folder_that_is_not_there(tmp_path: Path) -> None:
    for name in ("report", "evaluate"):
        result = runner.invoke(cli.app, [name, str(write_config(tmp_path))])
        assert result.exit_code == 2
        assert "spirl run" in result.output
        assert not (tmp_path / "out").exists()


def test_prior_refuses_methods_that_have_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cli._Session, "data", lambda self: None)
    monkeypatch.setattr("spirl_ray.pipeline.session.ray_session", lambda settings, workers: _nothing())
    monkeypatch.setattr(cli._Session, "trials", [SimpleNamespace(has_prior=False)])
    result = runner.invoke(cli.app, ["prior", str(write_config(tmp_path, methods=["sac"]))])
    assert result.exit_code == 2
    assert "no prior to roll out" in result.output


def _nothing() -> object:
    import contextlib

    return contextlib.nullcontext()


def test_one_set_takes_several_settings() -> None:
    given = ["evaluate", "maze", "--set", "env.start=[1, 2]", "env.goal=[3, 4]", "--set", "a=b=c", "x"]
    assert cli._one_option_each(given) == [
        *("evaluate", "maze", "--set", "env.start=[1, 2]", "--set", "env.goal=[3, 4]", "--set", "a=b=c", "x")
    ]
    assert cli._one_option_each(["run", "a=b.yaml", "--help"]) == ["run", "a=b.yaml", "--help"]
