"""The parts that all commands share: arguments, and errors that a user can read."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from spirl_ray.cli.terminal import error_console
from spirl_ray.errors import SpirlError
from spirl_ray.pipeline.ray_environment import prepare_ray
from spirl_ray.pipeline.status import own_command
from spirl_ray.pipeline.stopping import INTERRUPTED, TERMINATED, was_terminated

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
    """Turns an error that a user can repair into one message on stderr and exit status 2.

    Ctrl-C is status 130, SIGTERM is 143.

    Args:
        stopped: message after Ctrl-C or SIGTERM; by default, that the same command resumes.
    """
    warnings.filterwarnings("ignore", category=DeprecationWarning)
    prepare_ray()
    try:
        yield
    except KeyboardInterrupt:
        _say_stopped(stopped)
        raise typer.Exit(INTERRUPTED) from None
    except SystemExit as error:
        if not was_terminated(error):
            raise
        _say_stopped(stopped)
        raise typer.Exit(TERMINATED) from None
    except SpirlError as error:
        _fail(str(error))
    except BrokenPipeError:
        raise
    except UnicodeEncodeError as error:
        if sys.getfilesystemencoding() == "utf-8" or error.encoding not in (sys.getfilesystemencoding(), "ascii"):
            raise
        _fail(f"{error.object!r} cannot be the name of a file in this locale. Set LC_ALL=C.UTF-8, or PYTHONUTF8=1.")
    except Exception as error:
        if isinstance(error, OSError) and error.strerror is not None and error.filename:
            _fail(f"{error.filename}: {error.strerror}.")
        from spirl_ray.pipeline.session import readable_cause

        known = readable_cause(error)
        if known is None:
            raise
        _fail(str(known))


def _say_stopped(text: str | None) -> None:
    if text is None:
        command = own_command()
        text = "What is done is kept: the same command resumes from the last checkpoint" + (
            f": {command}" if command else "."
        )
    error_console().print(f"[yellow]Stopped.[/yellow] {escape(text)}")


def _fail(message: str) -> None:
    error_console().print(f"[red]Error:[/red] {escape(message)}")
    raise typer.Exit(2) from None
