"""The Python interpreter with which Ray runs on a node.

A job's command starts this one, because ``python`` on the node's PATH may be another one, or none.
"""

from __future__ import annotations

import os
import sys

VARIABLE = "SPIRL_PYTHON"
COMMAND = f'"${{{VARIABLE}:-python}}"'
"""The interpreter in a command of the shell."""
HOOK = f"{__name__}.remember"
"""The name under which Ray calls `remember` in each process of a job, also in the one that starts the job's command."""


def remember() -> None:
    """Puts this process's interpreter into the environment of the processes that it starts."""
    os.environ[VARIABLE] = sys.executable
