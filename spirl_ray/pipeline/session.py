"""The Ray cluster of an experiment: the surrounding one, a named one, or a local one that the program starts."""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import re
import signal
import sys
import threading
import weakref
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import ray
from ray.data import DataContext

from spirl_ray.config import RaySettings
from spirl_ray.errors import SpirlError, errors_within, user_error_in
from spirl_ray.files.shared import storage_problem
from spirl_ray.pipeline.ray_start import advice, check_address
from spirl_ray.pipeline.resources import Needs, check_resources, is_own_instance
from spirl_ray.pipeline.stopping import terminate
from spirl_ray.pipeline.user_code import shipped_paths
from spirl_ray.registry import TRUSTED_CODECS

_MEGABYTE = 2**20
_NOISE = re.compile(
    rb"core_worker\.cc:\d+\S* Actor with class name: .* has constructor arguments in the object store"
    rb"|Set ray log level from environment variable"
    rb"|Failed to determine local IP via external connectivity"
)
_STORAGE_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO, errno.ESTALE)


@contextlib.contextmanager
def ray_session(settings: RaySettings, needs: Needs | None = None, ship: Sequence[Path] = ()) -> Iterator[None]:
    """Connects to Ray for the duration of a command; does nothing if there is a connection already.

    Without an address, a job's ``RAY_ADDRESS`` is used, or a local Ray instance is started. It has one logical CPU more
    than cores (or than processes, if these are more), because short tasks run beside the workers.

    Args:
        settings: the cluster to use.
        needs: what is held at the same time; on a Ray that gets no more nodes, it must be there.
        ship: folders and files of the user's code that workers import.

    Raises:
        SpirlError: the named cluster cannot be reached, a local Ray instance does not start, or has too little.
    """
    needs = needs or Needs()
    if ray.is_initialized():
        if is_own_instance():
            check_resources(needs, ray.cluster_resources())
        yield
        return
    address = settings.address or os.environ.get("RAY_ADDRESS")
    if address == "local":
        address = None
    if not address and settings.num_cpus is not None:
        check_resources(Needs(needs.processes, cpu_keys=needs.cpu_keys), {"CPU": settings.num_cpus})
    with _filtered_stderr():
        yield from _connected(settings, address, needs, ship)


def _start(settings: RaySettings, address: str | None, needs: Needs, ship: Sequence[Path]) -> None:
    travels: dict[str, Any] = {"py_modules": [str(path) for path in shipped_paths(ship)]} if ship else {}
    if trusted := os.environ.get(TRUSTED_CODECS):
        travels["env_vars"] = {TRUSTED_CODECS: trusted}
    code: dict[str, Any] = {"runtime_env": travels} if travels else {}
    if address:
        check_address(address, "ray.address" if settings.address else "RAY_ADDRESS")
    try:
        if address:
            ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR, **code)
            return
        # A local Ray needs no copy of the working folder; Ray has read the variable if it was imported before.
        ray._private.ray_constants.RAY_ENABLE_UV_RUN_RUNTIME_ENV = False
        ray.init(
            address="local",
            num_cpus=settings.num_cpus or max(2, os.cpu_count() or 1, needs.processes) + 1,
            include_dashboard=settings.dashboard,
            dashboard_host="127.0.0.1",
            object_store_memory=settings.object_store_mb * _MEGABYTE,
            log_to_driver=False,
            logging_level=logging.ERROR,
            **code,
        )
        check_resources(needs, ray.cluster_resources())
    except SpirlError:
        ray.shutdown()
        raise
    except Exception as error:  # Ray raises a bare Exception when its processes are too slow to start
        ray.shutdown()
        if address:
            name = "ray.address" if settings.address else "RAY_ADDRESS"
            raise SpirlError(f"Cannot reach the Ray cluster at {address} ({name}): {error}") from error
        reason = str(error).rstrip(". ")
        raise SpirlError(f"Cannot start a local Ray instance: {reason}. {advice(error)}") from error


def _connected(settings: RaySettings, address: str | None, needs: Needs, ship: Sequence[Path]) -> Iterator[None]:
    quiet = logging.ERROR
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    _start(settings, address, needs, ship)
    for name in ("ray.data", "ray.train", "ray.rllib", "ray.tune"):
        logging.getLogger(name).setLevel(quiet)
    context = DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    in_main_thread = threading.current_thread() is threading.main_thread()
    if in_main_thread:
        # Ray's handlers end the process at once; ours lets locks, files and Ray be closed.
        signal.signal(signal.SIGTERM, terminate)
    ends = False
    try:
        yield
    except SystemExit:
        ends = bool(address)
        raise
    finally:
        _silence_threads()
        # A thread that still asks Ray something would end the process with another status. Where the process ends
        # anyhow, the cluster notices that itself; a Ray of our own has to be ended.
        if not ends:
            ray.shutdown()
        if in_main_thread:
            for number, handler in handlers.items():
                signal.signal(number, handler)


_OUTLIVED: weakref.WeakSet[threading.Thread] = weakref.WeakSet()
"""The threads that were there when a connection to Ray ended."""


def _silence_threads() -> None:
    """Keeps threads that still ask Ray something after its end from printing that they got no answer.

    The hook is put in place once and stays, because such a thread may notice a while later.
    """
    if not _OUTLIVED:
        before = threading.excepthook

        def hook(arguments: threading.ExceptHookArgs) -> None:
            if arguments.thread not in _OUTLIVED:
                before(arguments)

        threading.excepthook = hook
        _OUTLIVED.add(threading.main_thread())  # which never ends, so this is done once
    _OUTLIVED.update(threading.enumerate())


@contextlib.contextmanager
def _filtered_stderr() -> Iterator[None]:
    """Keeps off stderr the harmless messages that Ray's C++ part writes there despite all Python settings."""
    sys.stderr.flush()
    original, (reading, writing) = os.dup(2), os.pipe()

    def copy() -> None:
        with open(reading, "rb", buffering=0) as pipe, contextlib.suppress(OSError):
            rest = b""
            while chunk := pipe.read(65536):
                *lines, rest = (rest + chunk).split(b"\n")
                for line in lines:
                    if not _NOISE.search(line):
                        os.write(original, line + b"\n")
            os.write(original, rest)

    thread = threading.Thread(target=copy, daemon=True)
    thread.start()
    os.dup2(writing, 2)
    os.close(writing)
    try:
        yield
    finally:
        sys.stderr.flush()
        os.dup2(original, 2)
        thread.join(timeout=2.0)


@contextlib.contextmanager
def deferred_termination() -> Iterator[threading.Event]:
    """Lets a first SIGTERM only set the event: a cluster sends it as a notice before it takes the node away.

    The code that checks the event then saves and exits with the status `TERMINATED`. A second SIGTERM ends the process
    at once.
    """
    notice = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield notice  # signals can only be handled in the main thread
        return

    def note(number: int, frame: Any) -> None:
        if notice.is_set():
            terminate(number, frame)
        notice.set()

    before = signal.signal(signal.SIGTERM, note)
    try:
        yield notice
    finally:
        signal.signal(signal.SIGTERM, before)


def finished_tasks(references: Iterable[ray.ObjectRef]) -> Iterator[tuple[ray.ObjectRef, Any]]:
    """Yields tasks with their results, in the order in which they finish.

    Raises:
        SpirlError: a task failed for a reason that a user can repair; the others are cancelled.
        RayError: a task failed for another reason; the others are cancelled as well.
    """
    pending = list(references)
    while pending:
        (ready,), pending = ray.wait(pending, num_returns=1)
        try:
            result = ray.get(ready)
        except ray.exceptions.RayError as error:
            for reference in pending:
                ray.cancel(reference)
            raise readable_cause(error) or error from error
        yield ready, result


def readable_cause(error: BaseException) -> SpirlError | None:
    """Finds the error that a user can repair inside an error of Ray: a `SpirlError`, or failed storage."""
    if (known := user_error_in(error)) is not None:
        return known
    for found in errors_within(error):
        # pyarrow, which writes for Ray, names no file.
        if isinstance(found, OSError) and found.strerror and (found.filename or found.errno in _STORAGE_ERRORS):
            return storage_problem(found, Path("the output"))
    return None
