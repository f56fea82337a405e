"""Ctrl-C and SIGTERM end a command with one line, whatever its threads are doing."""

from __future__ import annotations

import os
import signal
import subprocess
from pathlib import Path

import pytest
from processes import assert_nothing_is_left, start, until
from sweep_files import write_sweep
from toy import write_config


@pytest.mark.interrupts
@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_stage_1_stops_with_one_line(tmp_path: Path, number: signal.Signals, status: int) -> None:
    process = start("pretrain", write_config(tmp_path, pretrain__updates=1_000_000))
    until(process, lambda: any((tmp_path / "out" / "skills").glob("*/metrics.csv")))
    os.kill(process.pid, number)
    assert_stopped(process, status)


@pytest.mark.interrupts
@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
@pytest.mark.parametrize("within", ["skills/*/metrics.csv", "policy/*/metrics.csv"])
def test_a_sweep_stops_with_one_line(tmp_path: Path, number: signal.Signals, status: int, within: str) -> None:
    write_config(tmp_path, pretrain__updates=400, train__env_steps=1_000_000)
    process = start("sweep", write_sweep(tmp_path, {"train.target_divergence": {"grid": [1.0, 5.0]}}, concurrency=1))
    until(process, lambda: any((tmp_path / "out").glob(within)))
    os.kill(process.pid, number)
    assert_stopped(process, status)


def assert_stopped(process: subprocess.Popen[str], status: int) -> None:
    output, _ = process.communicate(timeout=300)
    lines = output.splitlines()
    assert process.returncode == status, output
    assert lines[-1].startswith("Stopped. "), output
    assert not any(word in output for word in ("Traceback", "Exception", "Error")), output
    assert_nothing_is_left(process)
