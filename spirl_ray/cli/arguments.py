"""The parts that all commands share: arguments, and errors that a user can read."""

from __future__ import annotations

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


@contextmanager
def readable_errors(stopped: str | None = None) -> Iterator[None]:
    """Turns an error that a user can repair into one message on stderr and exit status 2; Ctrl-C is status 130.

    Args:
        stopped: message after Ctrl-C; by default, that the same command resumes.
    """
    warnings.filterwarnings("ignore", category=DeprecationWarning)
    try:
        yield
    except KeyboardInterrupt:
        error_console().print(
            "[yellow]Stopped.[/yellow] "
            + (stopped or "What is done is kept: the same command resumes from the last checkpoint.")
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
