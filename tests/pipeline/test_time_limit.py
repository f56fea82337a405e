"""A program that has a time limit ends when it is over, as after a SIGTERM, and at last in any case."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PROGRAM = """
import signal, time
from spirl_ray.pipeline.stopping import stop_after, terminate

signal.signal(signal.SIGTERM, {handler})
stop_after(0.2, lambda: print("over", flush=True), patience_s=0.2)
try:
    time.sleep(60)
    time.sleep(60)
finally:
    print("closed", flush=True)
"""


@pytest.mark.parametrize(
    ("handler", "said"), [("terminate", ["over", "closed"]), ("lambda *_: None", ["over"])], ids=["ends", "hangs"]
)
def test_a_program_ends_at_its_time_limit(handler: str, said: list[str]) -> None:
    program = PROGRAM.format(handler=handler)
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=50)
    assert (done.returncode, done.stdout.split()) == (143, said), done.stderr
