"""Ctrl-C and SIGTERM end a command with one line, whatever its threads are doing."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest
from processes import assert_nothing_is_left, start, until
from toy import write_config


@pytest.mark.interrupts
@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_stage_1_stops_with_one_line(tmp_path: Path, number: signal.Signals, status: int) -> None:
    process = start("pretrain", write_config(tmp_path, pretrain__updates=1_000_000))
    until(process, lambda: any((tmp_path / "out" / "skills").glob("*/metrics.csv")))
    os.kill(process.pid, number)
    output, _ = process.communicate(timeout=300)
    lines = output.splitlines()
    assert process.returncode == status, output
    assert lines[-1].startswith("Stopped. "), output
    assert not any(word in output for word in ("Traceback", "Exception", "Error")), output
    assert_nothing_is_left(process)
