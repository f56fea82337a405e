"""Ray's own settings, which it reads from the environment while it is imported; so this module does not import it."""

from __future__ import annotations

import os

_SETTINGS = {
    # Harmless on a small machine, and printed even when the logs of Ray are not.
    "RAY_DEDUP_LOGS_SKIP_REGEX": "worker processes have been started on node",
    "RAY_USAGE_STATS_ENABLED": "0",
    # A thread that still asks something when the work has ended must not start another Ray.
    "RAY_ENABLE_AUTO_CONNECT": "0",
    # The first failed task is reported as one message; its siblings fail for the same reason.
    "RAY_IGNORE_UNHANDLED_ERRORS": "1",
    # A busy machine needs longer than the default 30 s to start a node.
    "RAY_raylet_start_wait_time_s": "120",
}
"""They are set before Ray is imported, unless the user has set them."""


def prepare_ray() -> None:
    """Makes Ray say only what a user can act on. It has no effect once Ray has been imported."""
    for name, value in _SETTINGS.items():
        os.environ.setdefault(name, value)
