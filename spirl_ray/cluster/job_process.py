"""The first work of each process of a job: it remembers its Python interpreter, and opens the variables that were
sealed for the job.

A job's command starts the interpreter with which Ray runs on the node, because ``python`` on the node's PATH may be
another one, or none.
"""

from __future__ import annotations

import os
import sys

from ray._private import ray_constants

INTERPRETER = "SPIRL_PYTHON"
COMMAND = f'"${{{INTERPRETER}:-python}}"'
"""The interpreter in a command of the shell."""
SEALED = "SPIRL_SEALED"
"""The environment variable that holds the sealed values of ``submit.env_vars``."""
HOOK = f"{__name__}.prepare"
"""The name under which Ray calls `prepare` in the processes of a job."""
HOOK_VARIABLE = ray_constants.WORKER_PROCESS_SETUP_HOOK_ENV_VAR
"""The environment variable in which a process finds that name. Ray sets it for the workers of the job's driver, but not
for the process that starts the job's command."""


def prepare() -> None:
    """Puts this process's interpreter and the variables of the job into its environment, and so into that of the
    processes that it starts."""
    os.environ[INTERPRETER] = sys.executable
    if sealed := os.environ.get(SEALED):
        from spirl_ray.cluster.sealing import read_token, unseal

        os.environ.update(unseal(sealed, read_token()))
