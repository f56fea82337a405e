"""What this program needs of its environment and sets there before Ray is imported; this module does not import it."""

from __future__ import annotations

import importlib.util
import os
import sys

_DEFAULTS = {
    # Harmless on a small machine, and printed even when the logs of Ray are not.
    "RAY_DEDUP_LOGS_SKIP_REGEX": "worker processes have been started on node",
    "RAY_USAGE_STATS_ENABLED": "0",
    # A thread that still asks something when the work has ended must not start another Ray.
    "RAY_ENABLE_AUTO_CONNECT": "0",
    # The first failed task is reported as one message; its siblings fail for the same reason.
    "RAY_IGNORE_UNHANDLED_ERRORS": "1",
    # A busy machine needs longer than the default 30 s to start a node.
    "RAY_raylet_start_wait_time_s": "120",
    # And longer than the default 5 s and 10 s for Ray Serve's HTTP server.
    "RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S": "60",
    "RAY_SERVE_PROXY_HEALTH_CHECK_TIMEOUT_S": "60",
    # Under ``uv run``, Ray would send the working folder to the workers, with all results in it.
    "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",
}
"""They are set before Ray is imported, unless the user has set them."""
_NEEDED = {
    # Stage 1 is written for the second version of Ray Train.
    "RAY_TRAIN_V2_ENABLED": "1",
}
"""They are set whatever the user has set, because nothing works without them."""
_UV_HOOK = "uv_runtime_env_hook"
_LOOPBACK = ("127.0.0.1", "localhost", "::1")
_PROXIES = ("http_proxy", "https_proxy", "all_proxy")


def prepare_ray() -> None:
    """Makes Ray say only what a user can act on, and keeps from it what it cannot work with in the environment.

    It has no effect on Ray once that has been imported.
    """
    for name, value in _DEFAULTS.items():
        os.environ.setdefault(name, value)
    os.environ.update(_NEEDED)
    if _UV_HOOK in os.environ.get("RAY_RUNTIME_ENV_HOOK", ""):
        del os.environ["RAY_RUNTIME_ENV_HOOK"]
    keep_from_proxies(*_LOOPBACK)
    _usable_backend()


def keep_from_proxies(*hosts: str) -> None:
    """Adds hosts to those that programs ask directly, where the environment names a proxy."""
    if not any(os.environ.get(name) or os.environ.get(name.upper()) for name in _PROXIES):
        return
    # Libraries read one of the two names or the other.
    known = [
        host.strip()
        for name in ("no_proxy", "NO_PROXY")
        for host in os.environ.get(name, "").split(",")
        if host.strip()
    ]
    if "*" in known:
        known, hosts = ["*"], ()
    for name in ("no_proxy", "NO_PROXY"):
        os.environ[name] = ",".join(dict.fromkeys([*known, *hosts]))


def _usable_backend() -> None:
    """Makes matplotlib draw into memory where MPLBACKEND names a backend that is not there.

    A notebook hands its own to the programs that it starts, also to those of another virtual environment.
    """
    if not os.environ.get("MPLBACKEND") or "matplotlib" in sys.modules:
        return
    backend = os.environ.pop("MPLBACKEND")
    import matplotlib  # here and without the variable, because with a bad one the import fails

    module = backend.removeprefix("module://").partition(".")[0] if backend.startswith("module://") else "matplotlib"
    try:
        if importlib.util.find_spec(module) is None:
            raise ValueError(backend)
        matplotlib.rcParams["backend"] = backend
    except ValueError:
        matplotlib.rcParams["backend"] = backend = "agg"
    os.environ["MPLBACKEND"] = backend
