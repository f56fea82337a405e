"""The command line: ``spirl run`` does everything, and each stage is a command of its own."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.markup import escape

from spirl_ray.cli import cluster as cli_cluster
from spirl_ray.cli.arguments import ConfigFile, Overrides, prepare_ray, readable_errors
from spirl_ray.cli.data import data_app, print_expert
from spirl_ray.cli.terminal import (
    console,
    print_exploration,
    print_next,
    print_scores,
    run_stage,
    say_waiting,
    shown,
)
from spirl_ray.config import Experiment, load_experiment
from spirl_ray.errors import SpirlError
from spirl_ray.files import layout

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    help="""Skill-prior reinforcement learning (SPiRL) on Ray.

    Give it demonstrations and one YAML file: [bold]spirl run CONFIG[/bold] learns skills, trains an agent with them,
    evaluates it and writes a report. The same command again goes on where it stopped.

    A first experiment of a few minutes: [bold]spirl run tune_configs/quickstart.yaml[/bold]""",
)
app.add_typer(data_app, name="data")
cli_cluster.add_commands(app)


@app.command()
def run(config: ConfigFile, set: Overrides = None) -> None:
    """Does everything: data, skills, prior rollouts, training, evaluation, report (and exploration, if asked for).

    What is done already is not done again: call it again after an interruption or a change of the config. Raising
    train.env_steps trains a finished policy further.
    """
    with _session(config, set) as session:
        session.data()
        session.demonstrations()
        for trial in session.trials:
            session.skills(trial)
            if trial.has_prior and trial.experiment.evaluate.prior_episodes:
                session.prior(trial, videos=trial.seed == session.first_seed)
        if session.experiment.explore.in_run:
            session.explore()
        for trial in session.trials:
            session.train(trial)
            session.evaluate(trial, videos=trial.seed == session.first_seed)
        session.report()


@app.command()
def pretrain(config: ConfigFile, set: Overrides = None) -> None:
    """Stage 1: learns the skill embedding and the skill prior from the data.

    Imports the data first, if that has not been done.
    """
    with _session(config, set) as session:
        session.data()
        for trial in session.trials:
            session.skills(trial)
        session.next("prior", "what the skills do before any reinforcement learning")


@app.command()
def prior(config: ConfigFile, set: Overrides = None) -> None:
    """Rolls out the bare prior: what random skills achieve, with a video.

    No reinforcement learning yet: skills are drawn from the prior ("sampled"), or are its most likely ones
    ("deterministic"). Trains the skills first, if that has not been done.
    """
    with _session(config, set) as session:
        session.data()
        trials = [trial for trial in session.trials if trial.has_prior]
        if not trials or not session.experiment.evaluate.prior_episodes:
            raise SpirlError(
                "There is no prior to roll out: none of the methods uses one, or evaluate.prior_episodes is 0. "
                "Add a method such as spirl_cl, or set evaluate.prior_episodes."
            )
        results = {}
        for trial in trials:
            session.skills(trial)
            results[_name(trial)] = session.prior(trial).facts
        print_scores("Scores of the bare prior", results)
        session.next("train", "train the policy from this prior")


@app.command()
def train(config: ConfigFile, set: Overrides = None) -> None:
    """Stage 2: trains the high-level policy, which acts by choosing skills.

    Imports the data and trains the skills first, if that has not been done.
    """
    with _session(config, set) as session:
        session.data()
        for trial in session.trials:
            session.skills(trial)
            session.train(trial)
        session.next("evaluate", "the final evaluation with videos")


@app.command()
def evaluate(config: ConfigFile, set: Overrides = None) -> None:
    """Evaluates the trained policies, deterministic and sampled, and films them.

    Settings of the environment that are changed here (--set env.layout_seed=7) tell where to evaluate: the policy is
    the one of the config without them, unless one has been trained with them.
    """
    with _session(config, set, create=False) as session:
        session.require_data()
        results = {}
        for trial in session.trials:
            trained = session.trained(trial)
            results[_name(trial)] = session.evaluate(trained, env=trial.experiment.env).facts
        print_scores("Scores of the trained policies", results)
        session.next("report", "write the report")


@app.command()
def explore(config: ConfigFile, set: Overrides = None) -> None:
    """Draws where the skill prior gets without a policy, beside random skills, an action prior, and random actions.

    The paper's exploration figure, for environments with a floor plan (the maze). Trains the skills first, if that has
    not been done.
    """
    with _session(config, set) as session:
        session.data()
        session.explore()
        session.next("train", "train the policy from this prior")


@app.command()
def report(config: ConfigFile, set: Overrides = None) -> None:
    """Writes the HTML report, the CSV and the JSON from what is there, also while training goes on."""
    with _session(config, set, ray=False, create=False) as session:
        session.require_data()
        session.report()


@app.command()
def sweep(
    config: Annotated[
        Path,
        typer.Argument(help="The sweep's YAML file, such as tune_configs/smoke_sweep.yaml.", show_default=False),
    ],
    set: Overrides = None,
) -> None:
    """Tries many configurations with Ray Tune: both stages, skills trained once for all trials that share them.

    The file names a base experiment, a search space, a searcher and a scheduler. An interrupted sweep goes on with the
    same command, and finished trials are not run again. --set changes keys of the sweep file (--set samples=20), or
    of the base experiment (--set output=FOLDER).
    """
    with readable_errors():
        from spirl_ray.sweeps.sweep_file import load_sweep

        chosen = load_sweep(config, set or [])
        _prepare([chosen.base, *chosen.examples()])
        from spirl_ray.cli.sweep import run

        run(chosen)


@data_app.command("import")
def import_data(config: ConfigFile, set: Overrides = None) -> None:
    """Imports (or generates) the experiment's trajectories into its folder, and validates them."""
    with _session(config, set) as session:
        session.data()
        print_next(["spirl", "data", "inspect", shown(session.workspace.dataset)], "look at what is in it")


@data_app.command("generate")
def generate_data(
    config: ConfigFile,
    episodes: Annotated[int | None, typer.Option(help="How many; the config's data.episodes if not given.")] = None,
    tasks: Annotated[
        str | None,
        typer.Option(help="Subtasks of every episode, in order, as in 'microwave,kettle'; else the expert chooses."),
    ] = None,
    keep_failures: Annotated[
        bool, typer.Option("--keep-failures", help="Keep failed episodes, labelled as such, instead of trying again.")
    ] = False,
    set: Overrides = None,
) -> None:
    """Generates the experiment's trajectories with the environment's scripted expert, on all CPUs of the Ray.

    The same seed gives the same episodes whatever the number of workers; an interrupted generation goes on. Other
    options of the expert, and the seed: --set data.generate.action_noise=0.1 --set data.seed=1.
    """
    chosen = ["data.source=generated"]
    if episodes is not None:
        chosen.append(f"data.episodes={episodes}")
    if tasks is not None:
        chosen.append(f"data.generate.tasks={[name.strip() for name in tasks.split(',')]}")
    if keep_failures:
        chosen.append("data.generate.keep_failures=true")
    with _session(config, [*(set or []), *chosen]) as session:
        session.data()
        dataset = session.workspace.dataset
        from spirl_ray.episodes.summary import summarize

        print_expert([dataset], [summarize(dataset)])
        print_next(["spirl", "data", "inspect", shown(dataset)], "look at what is in it")


# --- an experiment at work ---


@dataclass
class _Session:
    """A claimed experiment folder, and the command that works on it; shows each stage as it runs it."""

    experiment: Experiment
    workspace: Any
    pipeline: Any
    config: Path
    overrides: Sequence[str]

    @property
    def trials(self) -> list[Any]:
        return list(self.workspace.trials())

    @property
    def first_seed(self) -> int:
        """The seed whose episodes ``spirl run`` films."""
        return self.experiment.seeds[0]

    def data(self) -> None:
        def stage(progress: Any) -> Any:
            result, imported = self.pipeline.prepare_data(self.workspace, progress)
            for problem in imported.skipped if imported is not None else []:
                console.print(f"[yellow]left out[/yellow] {escape(str(problem))}")
            return result

        run_stage("Data", stage)

    def demonstrations(self) -> None:
        from spirl_ray.envs import environment

        if self.experiment.evaluate.videos and environment(self.experiment.env.id).render_recorded is not None:
            run_stage("Film of the data", lambda _: self.pipeline.show_demonstrations(self.workspace))

    def require_data(self) -> None:
        if not (self.workspace.dataset / layout.DATASET_CARD).exists():
            raise SpirlError(
                f"There is no dataset in {self.workspace.dataset}. Run spirl run, or spirl data import, with the same "
                "config and --set options first."
            )

    def skills(self, trial: Any) -> Any:
        return run_stage(f"Skills for {_name(trial)}", lambda progress: self.pipeline.train_skills(trial, progress))

    def prior(self, trial: Any, *, videos: bool = True) -> Any:
        return run_stage(
            f"Bare prior of {_name(trial)}",
            lambda progress: self.pipeline.roll_out_prior(trial, progress, videos=videos),
        )

    def train(self, trial: Any) -> Any:
        return run_stage(f"Training {_name(trial)}", lambda progress: self.pipeline.train(trial, progress))

    def evaluate(self, trial: Any, *, videos: bool = True, env: Any = None) -> Any:
        return run_stage(
            f"Evaluating {_name(trial)}",
            lambda progress: self.pipeline.evaluate_policy(trial, progress, videos=videos, env=env),
        )

    def trained(self, trial: Any) -> Any:
        """The trial itself if it is trained, or the one that differs only by the environment's settings in --set."""
        if (trial.policy / layout.TRAINED).exists():
            return trial
        kept = [text for text in self.overrides if not text.startswith("env.") or text.startswith("env.id=")]
        origin = type(self.workspace)(load_experiment(self.config, kept)).trial(trial.method, trial.seed)
        if not (origin.policy / layout.TRAINED).exists():
            raise SpirlError(
                f"There is no trained policy for {_name(trial)} in {origin.policy}. Run spirl train with the same "
                "config and --set options first."
            )
        return origin

    def explore(self) -> None:
        from spirl_ray.pipeline.exploration import exploring_trials, run_exploration

        for trial in exploring_trials(self.workspace):
            self.skills(trial)
        rows = run_stage("Exploration", lambda progress: run_exploration(self.workspace, progress)).facts["rows"]
        print_exploration(rows)

    def report(self) -> None:
        from spirl_ray.reports.gather import gather
        from spirl_ray.reports.report import write_report

        out = self.workspace.folder / layout.REPORTS
        with self.workspace.locked(out):
            files = write_report(out, gather(self.workspace, shlex.join(self.command("run"))))
        console.print("[green]done[/green]  Report")
        for file in (files.html, files.csv, files.json):
            console.print(f"      {escape(shown(file))}")
        print_next(["open", shown(files.html)], "curves, tables, videos, commands; any browser will do")

    def command(self, name: str) -> list[str]:
        """Another command on the same experiment."""
        return ["spirl", name, str(self.config), *(part for text in self.overrides for part in ("--set", text))]

    def next(self, name: str, why: str) -> None:
        print_next(self.command(name), why)


def _name(trial: Any) -> str:
    return f"{trial.method}, seed {trial.seed}"


def _prepare(experiments: Sequence[Experiment], *, make: bool = True) -> None:
    """Before Ray is imported: its settings, and the environments with their arguments."""
    from spirl_ray import envs

    for env in {repr(experiment.env): experiment.env for experiment in experiments}.values():
        envs.environment(env.id)
        if make:
            # A wrong argument is said now, not after an hour of pretraining.
            envs.make(env.id, **env.kwargs).close()
    prepare_ray()


@contextmanager
def _session(config: Path, overrides: list[str] | None, *, ray: bool = True, create: bool = True) -> Iterator[_Session]:
    """The claimed folder of an experiment, with Ray connected if asked for."""
    with readable_errors():
        experiment = load_experiment(config, overrides or [])
        _prepare([experiment], make=ray)
        from spirl_ray.pipeline import stages as pipeline
        from spirl_ray.pipeline.session import ray_session
        from spirl_ray.pipeline.workspace import Workspace

        workspace = Workspace(experiment, on_wait=say_waiting)
        workspace.claim(create=create)
        session = _Session(experiment, workspace, pipeline, config, overrides or [])
        if not ray:
            yield session
            return
        variants = [experiment.for_method(method) for method in experiment.methods]
        workers = max(max(variant.pretrain.workers, variant.train.env_runners) for variant in variants)
        with ray_session(experiment.ray, workers):
            yield session


def _one_option_each(arguments: Sequence[str]) -> list[str]:
    """``--set A=1 B=2`` as ``--set A=1 --set B=2``."""
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
    """Entry point of the ``spirl`` command."""
    app(args=_one_option_each(sys.argv[1:]))


if __name__ == "__main__":
    main()
