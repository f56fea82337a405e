"""The command line: ``spirl run`` does everything, and each stage is a command of its own.

The commands are thin: they read the config, call `spirl_ray.api`, and show what that tells and gives back.
"""

from __future__ import annotations

import json
import logging
import os
import shlex
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from spirl_ray import __version__, api
from spirl_ray.cli import cluster as cli_cluster
from spirl_ray.cli import deploy, new_task
from spirl_ray.cli import status as cli_status
from spirl_ray.cli.arguments import ConfigFile, Overrides, readable_errors
from spirl_ray.cli.data import data_app, print_expert, summary_of
from spirl_ray.cli.terminal import (
    StageDisplay,
    console,
    print_next,
    print_scores,
    show_what_can_be_shown,
    shown,
)
from spirl_ray.config import Experiment, load_experiment
from spirl_ray.config_submit import seconds_of
from spirl_ray.errors import SpirlError
from spirl_ray.pipeline.stopping import INTERRUPTED, TERMINATED, stop_after

app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    help="""Skill-prior reinforcement learning (SPiRL) on Ray.

    Give it demonstrations and one YAML file: [bold]spirl run CONFIG[/bold] learns skills, trains an agent with them,
    evaluates it and writes a report. The same command again resumes where it stopped.

    A first experiment of a few minutes: [bold]spirl run quickstart[/bold]""",
)
app.add_typer(data_app, name="data")
cli_cluster.add_commands(app)
new_task.add_commands(app)
deploy.add_commands(app)
cli_status.add_commands(app)


def _print_version(asked: bool) -> None:
    if asked:
        console.print(f"spirl-ray {__version__}")
        raise typer.Exit


@app.callback()
def program(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version and exit.", callback=_print_version, is_eager=True)
    ] = False,
    time_limit: Annotated[
        str | None,
        typer.Option(
            help="Stop after this time, as after a SIGTERM: 90min, 12h, 2d. The same command resumes.",
            metavar="TIME",
            show_default=False,
        ),
    ] = None,
) -> None:
    """Holds the options of the program itself; its help is that of `app`."""
    if time_limit is not None:
        with readable_errors():
            stop_after(_seconds(time_limit), lambda: console.print(f"The time limit of {time_limit} is reached."))


def _seconds(duration: str) -> float:
    try:
        return seconds_of(duration)
    except ValueError as error:
        raise SpirlError(f"--time-limit {duration}: {error}.") from error


@dataclass(frozen=True)
class _Command:
    """A command at work: its experiment, and what shows the experiment's events."""

    config: Path
    overrides: Sequence[str]
    experiment: Experiment
    show: StageDisplay

    def again(self, name: str) -> list[str]:
        """The command line of another command on the same experiment."""
        return ["spirl", name, str(self.config), *(part for text in self.overrides for part in ("--set", text))]

    def next(self, name: str, why: str) -> None:
        print_next(self.again(name), why)


@contextmanager
def _command(config: Path, overrides: Sequence[str] | None) -> Iterator[_Command]:
    chosen = list(overrides or [])
    with readable_errors():
        experiment = load_experiment(config, chosen)
        with StageDisplay() as show:
            yield _Command(config, chosen, experiment, show)


@app.command()
def run(config: ConfigFile, set: Overrides = None) -> None:
    """Does everything: data, skills, prior rollouts, training, evaluation, report (and exploration, if asked for).

    Finished work is not repeated: call it again after an interruption or a change of the config. Raising
    train.env_steps trains a finished policy further.
    """
    with _command(config, set) as command:
        result = api.run(command.experiment, on_event=command.show, command=shlex.join(command.again("run")))
        _print_report(result.report.html)


@app.command()
def pretrain(config: ConfigFile, set: Overrides = None) -> None:
    """Stage 1: learns the skill embedding and the skill prior from the data.

    Imports the data first, if that has not been done.
    """
    with _command(config, set) as command:
        api.pretrain(command.experiment, on_event=command.show)
        if command.experiment.env.id is not None:
            command.next("prior", "what the skills do before any reinforcement learning")


@app.command()
def prior(config: ConfigFile, set: Overrides = None) -> None:
    """Rolls out the bare prior: what random skills achieve, with a video.

    No reinforcement learning yet: skills are drawn from the prior ("sampled"), or are its most likely ones
    ("deterministic"). Trains the skills first, if that has not been done.
    """
    with _command(config, set) as command:
        print_scores("Scores of the bare prior", api.prior(command.experiment, on_event=command.show))
        command.next("train", "train the policy from this prior")


@app.command()
def train(config: ConfigFile, set: Overrides = None) -> None:
    """Stage 2: trains the high-level policy, which acts by choosing skills.

    Imports the data and trains the skills first, if that has not been done.
    """
    with _command(config, set) as command:
        api.train(command.experiment, on_event=command.show)
        command.next("evaluate", "the final evaluation with videos")


@app.command()
def evaluate(
    config: Annotated[
        Path,
        typer.Argument(
            help="The experiment's YAML file, or the folder of a policy, such as artifacts/kitchen_play.",
            show_default=False,
        ),
    ],
    set: Overrides = None,
) -> None:
    """Evaluates the trained policies, deterministic and sampled, and records videos.

    A folder of a policy is evaluated without its experiment, in the environment that it was trained for.

    Settings of the environment that are changed here (--set env.layout_seed=7) tell where to evaluate: the policy is
    the one of the config without them, unless one has been trained with them.
    """
    if config.is_dir():
        with readable_errors(), StageDisplay() as show:
            print_scores("Scores of the policy", [api.evaluate_policy(config, set or [], on_event=show)])
        return
    with _command(config, set) as command:
        kept = [text for text in command.overrides if not text.startswith("env.") or text.startswith("env.id=")]
        trained_as = load_experiment(config, kept)
        found = api.evaluate(command.experiment, trained_as=trained_as, on_event=command.show)
        print_scores("Scores of the trained policies", found)
        command.next("report", "write the report")


@app.command()
def explore(config: ConfigFile, set: Overrides = None) -> None:
    """Draws where the skill prior gets without a policy, beside random skills, an action prior, and random actions.

    The paper's exploration figure, for environments with a floor plan (the maze). Trains the skills first, if that has
    not been done.
    """
    with _command(config, set) as command:
        api.explore(command.experiment, on_event=command.show)
        command.next("train", "train the policy from this prior")


@app.command()
def report(config: ConfigFile, set: Overrides = None) -> None:
    """Writes the HTML report, the CSV and the JSON from what is there, also while a training is running."""
    with _command(config, set) as command:
        files = api.report(command.experiment, on_event=command.show, command=shlex.join(command.again("run")))
        _print_report(files.html)


def _print_report(html: Path) -> None:
    print_next(["open", shown(html)], "curves, tables, videos, commands; any browser will do")


@app.command()
def sweep(
    config: Annotated[
        Path,
        typer.Argument(help="The sweep's YAML file, such as tune_configs/smoke_sweep.yaml.", show_default=False),
    ],
    set: Overrides = None,
) -> None:
    """Tries many configurations with Ray Tune: both stages, skills trained once for all trials that share them.

    The file names a base experiment, a search space, a searcher and a scheduler. An interrupted sweep is resumed by the
    same command, and finished trials are not run again. --set changes keys of the sweep file (--set samples=20), or
    of the base experiment (--set output=FOLDER).
    """
    with readable_errors():
        from spirl_ray.cli.sweep import SweepDisplay, print_sweep

        with SweepDisplay() as show:
            found = api.sweep(config, set or [], listener=show)
        print_sweep(found)


@data_app.command("import")
def import_data(
    config: ConfigFile,
    set: Overrides = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show what is there, how it is mapped, what is refused; write nothing.")
    ] = False,
) -> None:
    """Imports (or generates) the experiment's trajectories into its folder, and validates them."""
    if dry_run:
        with readable_errors():
            experiment = load_experiment(config, set or [])
            new_task.print_preview(experiment)
            if experiment.env.id is None:
                print_next(["spirl", "pretrain", str(config)], "skills from these data")
            else:
                print_next(["spirl", "run", str(config)], "both stages")
        return
    with _command(config, set) as command:
        data = api.import_data(command.experiment, on_event=command.show)
        print_next(["spirl", "data", "inspect", shown(data.folder)], "look at what is in it")


@data_app.command("generate")
def generate_data(
    config: ConfigFile,
    episodes: Annotated[int | None, typer.Option(help="How many; the config's number if not given.")] = None,
    set: Overrides = None,
) -> None:
    """Generates the experiment's trajectories with the environment's scripted expert, on all CPUs of the Ray cluster.

    The same seed gives the same episodes whatever the number of workers; an interrupted generation is resumed.
    Options of the expert, and the seed: --set data.sources.0.options.action_noise=0.1 --set data.sources.0.seed=1.
    """
    with readable_errors():
        known = load_experiment(config, set or []).data.sources
    source = next((dict(s.model_extra or {}) for s in known if s.type == "generated"), {})
    if episodes is not None:
        source["episodes"] = episodes
    chosen = [f"data.sources={json.dumps([{'type': 'generated', **source}])}"]
    with _command(config, [*(set or []), *chosen]) as command:
        dataset = api.import_data(command.experiment, on_event=command.show).folder
        print_expert([dataset], [summary_of(dataset)])
        print_next(["spirl", "data", "inspect", shown(dataset)], "look at what is in it")


def _one_option_each(arguments: Sequence[str]) -> list[str]:
    """Rewrites ``--set A=1 B=2`` as ``--set A=1 --set B=2``."""
    spread: list[str] = []
    listing = False
    for argument in arguments:
        follows = bool(spread) and spread[-1] == "--set"
        if listing and not follows and "=" in argument and not argument.startswith("-"):
            spread.append("--set")
            follows = True
        listing = argument == "--set" or follows
        spread.append(argument)
    return spread


def main() -> None:
    """The entry point of the ``spirl`` command."""
    # No window is ever opened; a notebook's backend, for one, may not exist in the environment of this program.
    os.environ["MPLBACKEND"] = "agg"
    logging.getLogger("matplotlib").setLevel(logging.ERROR)  # it says where its cache is if there is no home
    if not sys.stderr.isatty():
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")  # of the download of Minari's data
    show_what_can_be_shown()
    try:
        app(args=_one_option_each(sys.argv[1:]), prog_name="spirl")
    except SystemExit as end:
        if end.code in (INTERRUPTED, TERMINATED):
            # What libraries still have to say on the way out is about the end itself.
            threading.excepthook = lambda _: None
            sys.unraisablehook = lambda _: None
        if end.code == TERMINATED:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(TERMINATED)  # before Ray's own end, which has another status while threads still ask it
        raise


if __name__ == "__main__":
    main()
