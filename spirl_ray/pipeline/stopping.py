"""The end of a command by a signal."""

from __future__ import annotations

import signal
import sys
from typing import Any

INTERRUPTED, TERMINATED = 128 + signal.SIGINT, 128 + signal.SIGTERM
"""The exit statuses after Ctrl-C and after a SIGTERM."""
_received: list[int] = []


def terminate(number: int, frame: Any) -> None:
    """The handler of SIGTERM: it ends the program as `SystemExit`, so that locks, files and Ray are closed."""
    _received.append(number)
    sys.exit(TERMINATED)


def was_terminated(end: SystemExit) -> bool:
    """True where a SIGTERM is the cause of this exit.

    Ray's C++ part replaces the status by its own where the signal came while it was waiting.
    """
    return end.code == TERMINATED or bool(_received)
