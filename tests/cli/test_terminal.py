"""The output suits what it goes to: terminals with and without colours or UTF-8, pipes, log files."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from pathlib import Path

import pytest
from rich.console import Console

from spirl_ray.cli import terminal
from spirl_ray.cli.terminal import StageDisplay, interactive
from spirl_ray.pipeline.events import Event


class _Stream(io.StringIO):
    def __init__(self, tty: bool) -> None:
        super().__init__()
        self.tty = tty

    def isatty(self) -> bool:
        return self.tty


def console_on(monkeypatch: pytest.MonkeyPatch, tty: bool, **environment: str) -> _Stream:
    for name in ("FORCE_COLOR", "NO_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TERM", "xterm-256color")
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    stream = _Stream(tty)
    monkeypatch.setattr(terminal, "console", Console(file=stream, highlight=False, soft_wrap=True))
    return stream


@pytest.mark.parametrize(
    ("tty", "environment", "expected"),
    [
        (True, {}, True),
        (True, {"NO_COLOR": "1"}, True),
        (True, {"TERM": "dumb"}, False),
        (False, {}, False),
        (False, {"FORCE_COLOR": "1"}, False),
        (False, {"TTY_COMPATIBLE": "1"}, False),
    ],
)
def test_bars_are_for_terminals_and_colours_do_not_make_one(
    monkeypatch: pytest.MonkeyPatch, tty: bool, environment: dict[str, str], expected: bool
) -> None:
    console_on(monkeypatch, tty, **environment)
    assert interactive() is expected


@pytest.mark.parametrize(("tty", "environment"), [(False, {"FORCE_COLOR": "1"}), (True, {"TERM": "dumb"}), (False, {})])
def test_a_log_has_whole_lines_and_no_cursor_movements(
    monkeypatch: pytest.MonkeyPatch, tty: bool, environment: dict[str, str]
) -> None:
    stream = console_on(monkeypatch, tty, **environment)
    with StageDisplay() as show:
        show(Event(happening="started", stage="data"))
        for done in range(11):
            show(Event(happening="progress", stage="data", done=done, total=10))
    lines = stream.getvalue().splitlines()
    assert len(lines) == 10
    assert not any(ending in stream.getvalue() for ending in ("\r", "\x1b[2K", "\x1b[1A", "\x1b[?25"))


def test_what_is_waited_for_is_a_line(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = console_on(monkeypatch, False)
    with StageDisplay() as show:
        show(Event(happening="waiting", stage="skills", resources="1 x 1 GPU; the cluster has 0 GPU (0 free)"))
        show(Event(happening="waiting", stage="skills", folder=Path("a/[b]")))
    first, second = stream.getvalue().splitlines()
    assert first == "waiting for 1 x 1 GPU; the cluster has 0 GPU (0 free)"
    assert "a/[b]" in second


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8"])
def test_what_a_terminal_cannot_show_is_replaced(encoding: str) -> None:
    program = (
        "from spirl_ray.cli.terminal import console, show_what_can_be_shown; show_what_can_be_shown(); "
        "console.print('a … b · ü 漢 \\udcff')"
    )
    environment = {**os.environ, "PYTHONIOENCODING": encoding}
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, env=environment)
    assert done.returncode == 0, done.stderr
    expected = {"ascii": "a ... b - ? ? ?", "latin-1": "a ... b · ü ? ?", "utf-8": "a … b · ü 漢 ?"}[encoding]
    assert done.stdout.decode(encoding).strip() == expected


def test_paths_are_whole_where_the_working_folder_is_the_root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert terminal.shown(tmp_path / "runs" / "report.html") == "runs/report.html"
    monkeypatch.chdir("/")
    assert terminal.shown(tmp_path) == str(tmp_path)
