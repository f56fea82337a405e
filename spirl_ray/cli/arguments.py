"""What the commands of the command line share: arguments, and errors that a user can read."""

from __future__ import annotations

import os
import signal
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from spirl_ray.cli.terminal import error_console
from spirl_ray.errors import SpirlError

_INTERRUPTED = 128 + signal.SIGINT

_RAY_ENVIRONMENT = {
    # Harmless on a small machine, and printed even when the logs of Ray are not.
    "RAY_DEDUP_LOGS_SKIP_REGEX": "worker processes have been started on node",
    "RAY_USAGE_STATS_ENABLED": "0",
    # A thread that still asks something when the command has ended must not start another Ray.
    "RAY_ENABLE_AUTO_CONNECT": "0",
    # The first failed task is reported as one message; its siblings fail for the same reason.
    "RAY_IGNORE_UNHANDLED_ERRORS": "1",
    # A busy machine needs longer than the default 30 s to start a node.
    "RAY_raylet_start_wait_time_s": "120",
}
"""Set before Ray is imported, unless the user has set them."""

ConfigFile = Annotated[
    Path, typer.Argument(help="The experiment's YAML file, such as tune_configs/quickstart.yaml.", show_default=False)
]
Overrides = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        help="Change a setting: --set train.env_steps=50000 --set output=FOLDER. May be repeated.",
        metavar="KEY=VALUE",
    ),
]


def prepare_ray() -> None:
    """Makes Ray say only what a user can act on. Call it before Ray is imported."""
    for name, value in _RAY_ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    warnings.filterwarnings("ignore", category=DeprecationWarning)


@contextmanager
def readable_errors(stopped: str | None = None) -> Iterator[None]:
    """What a user can act on becomes one message on stderr and exit status 2; Ctrl-C is status 130.

    Args:
        stopped: what to say after Ctrl-C; by default, that the same command goes on.
    """
    try:
        yield
    except KeyboardInterrupt:
        error_console().print(
            "[yellow]Stopped.[/yellow] "
            + (stopped or "What is done is kept: the same command goes on from the last checkpoint.")
        )
        raise typer.Exit(_INTERRUPTED) from None
    except SpirlError as error:
        _fail(str(error))
    except BrokenPipeError:
        raise
    except OSError as error:
        if error.strerror is None or not error.filename:
            raise
        _fail(f"{error.filename}: {error.strerror}.")
    except Exception as error:
        from spirl_ray.pipeline.session import readable_cause

        known = readable_cause(error)
        if known is None:
            raise
        _fail(str(known))


def _fail(message: str) -> None:
    error_console().print(f"[red]Error:[/red] {escape(message)}")
    raise typer.Exit(2) from None
