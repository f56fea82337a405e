"""Where an experiment runs: the surrounding cluster, a named one, or a local Ray that the program starts itself."""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Iterator

import ray
from ray.data import DataContext

from spirl_ray.config import RaySettings
from spirl_ray.errors import SpirlError

_MEGABYTE = 2**20


@contextlib.contextmanager
def ray_session(settings: RaySettings) -> Iterator[None]:
    """A connection to Ray for the duration of a command; does nothing if there is one already.

    Without an address, a job's ``RAY_ADDRESS`` is used, or a local Ray is started. It binds to loopback and has
    one logical CPU more than cores, for the short tasks that read data beside a training worker on every core.

    Raises:
        SpirlError: when the named cluster cannot be reached.
    """
    if ray.is_initialized():
        yield
        return
    address = settings.address or os.environ.get("RAY_ADDRESS")
    quiet = logging.ERROR
    try:
        if address:
            ray.init(address=address, log_to_driver=False, logging_level=quiet)
        else:
            ray.init(
                address="local",
                num_cpus=settings.num_cpus or max(2, os.cpu_count() or 1) + 1,
                include_dashboard=settings.dashboard,
                dashboard_host="127.0.0.1",
                object_store_memory=settings.object_store_mb * _MEGABYTE,
                log_to_driver=False,
                logging_level=quiet,
            )
    except (ConnectionError, RuntimeError, ValueError) as error:
        where = f"the Ray cluster at {address}" if address else "a local Ray"
        raise SpirlError(f"Cannot reach {where}: {error}") from error
    for name in ("ray.data", "ray.train", "ray.rllib", "ray.tune"):
        logging.getLogger(name).setLevel(quiet)
    context = DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    try:
        yield
    finally:
        ray.shutdown()
