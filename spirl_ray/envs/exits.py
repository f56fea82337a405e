"""``sys.exit`` in somebody else's code is an error like any other; only this program and Ray end a process."""

from __future__ import annotations

import traceback
from collections.abc import Iterator
from contextlib import contextmanager

_OURS = ("spirl_ray", "ray")
"""The packages whose signal handlers end a process, wherever it is."""


@contextmanager
def exits_are_errors() -> Iterator[None]:
    """Turns a ``sys.exit`` of an environment's own code into a `RuntimeError` with the same traceback.

    Raises:
        RuntimeError: the code in the block has asked for the end of the process.
        SystemExit: a signal handler of this program or of Ray has asked for it while the block was running.
    """
    try:
        yield
    except SystemExit as error:
        *_, (frame, _) = traceback.walk_tb(error.__traceback__)
        if str(frame.f_globals.get("__name__")).partition(".")[0] in _OURS:
            raise
        raise RuntimeError(f"it calls sys.exit({error.code!r})").with_traceback(error.__traceback__) from error
