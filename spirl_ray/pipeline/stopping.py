"""The end of a command by a signal."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Callable
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


def stop_after(seconds: float, say: Callable[[], Any], patience_s: float = 600.0) -> None:
    """Sends this process a SIGTERM when its time is over, and ends it at once if it is still there a while later.

    Args:
        seconds: the time that it has.
        say: is called when that is over.
        patience_s: the seconds between the signal and the end.
    """

    def watch() -> None:
        time.sleep(seconds)
        say()
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(patience_s)
        os._exit(TERMINATED)

    threading.Thread(target=watch, name="time limit", daemon=True).start()
