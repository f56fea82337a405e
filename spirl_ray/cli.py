"""The command line: ``spirl run`` does everything, and each stage is a command of its own."""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from spirl_ray.config import Experiment, load_experiment
from spirl_ray.errors import SpirlError

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    help="""Skill-prior reinforcement learning (SPiRL) on Ray.

    Give it demonstrations and one YAML file: [bold]spirl run CONFIG[/bold] learns skills, trains an agent with them,
    evaluates it and writes a report. The same command again goes on where it stopped.""",
)
data_app = typer.Typer(no_args_is_help=True, help="Import, inspect and validate offline trajectories.")
app.add_typer(data_app, name="data")
console = Console(stderr=False, highlight=False)

ConfigFile = Annotated[Path, typer.Argument(help="The experiment's YAML file.", show_default=False)]
Overrides = Annotated[
    list[str] | None,
    typer.Option("--set", help="Change a setting: --set train.env_steps=50000. May be repeated.", metavar="KEY=VALUE"),
]


@app.command()
def run(config: ConfigFile, set: Overrides = None) -> None:
    """Does everything: data, skills, prior rollouts, training, evaluation, report.

    What is done already is not done again: call it again after an interruption or a change of the config.
    """
    with _workspace(config, set) as (workspace, pipeline):
        _data(workspace, pipeline)
        trials = workspace.trials()
        first = workspace.experiment.seeds[0]
        for trial in trials:
            name = f"{trial.method}, seed {trial.seed}"
            _stage(f"Skills for {name}", lambda p, t=trial: pipeline.train_skills(t, p))
            if trial.experiment.evaluate.prior_episodes:
                videos = trial.seed == first
                _stage(
                    f"Bare prior of {name}",
                    lambda p, t=trial, v=videos: pipeline.roll_out_prior(t, p, videos=v),
                )
        for trial in trials:
            name, videos = f"{trial.method}, seed {trial.seed}", trial.seed == first
            _stage(f"Training {name}", lambda p, t=trial: pipeline.train(t, p))
            _stage(f"Evaluating {name}", lambda p, t=trial, v=videos: pipeline.evaluate_policy(t, p, videos=v))
        _report(workspace, config)


@app.command()
def pretrain(config: ConfigFile, set: Overrides = None) -> None:
    """Stage 1: learns the skill embedding and the skill prior from the data."""
    with _workspace(config, set) as (workspace, pipeline):
        _data(workspace, pipeline)
        for trial in workspace.trials():
            _stage(
                f"Skills for {trial.method}, seed {trial.seed}",
                lambda p, t=trial: pipeline.train_skills(t, p),
            )
        _next(f"spirl prior {config}", "what the skills do before any reinforcement learning")


@app.command()
def prior(config: ConfigFile, set: Overrides = None) -> None:
    """Rolls out the bare prior: how many subtasks random skills solve, with a video."""
    with _workspace(config, set) as (workspace, pipeline):
        _data(workspace, pipeline)
        results = {}
        for trial in workspace.trials():
            name = f"{trial.method}, seed {trial.seed}"
            _stage(f"Skills for {name}", lambda p, t=trial: pipeline.train_skills(t, p))
            results[name] = _stage(f"Bare prior of {name}", lambda p, t=trial: pipeline.roll_out_prior(t, p))
        _score_table("Subtasks that the bare prior solves", {n: r.facts for n, r in results.items()})
        _next(f"spirl train {config}", "train the policy from this prior")


@app.command()
def train(config: ConfigFile, set: Overrides = None) -> None:
    """Stage 2: trains the high-level policy (and stage 1 first, if it is missing)."""
    with _workspace(config, set) as (workspace, pipeline):
        _data(workspace, pipeline)
        for trial in workspace.trials():
            name = f"{trial.method}, seed {trial.seed}"
            _stage(f"Skills for {name}", lambda p, t=trial: pipeline.train_skills(t, p))
            _stage(f"Training {name}", lambda p, t=trial: pipeline.train(t, p))
        _next(f"spirl evaluate {config}", "the final evaluation with videos")


@app.command()
def evaluate(config: ConfigFile, set: Overrides = None) -> None:
    """Evaluates the trained policies, deterministic and sampled, and films them."""
    with _workspace(config, set) as (workspace, pipeline):
        _require_data(workspace)
        results = {}
        for trial in workspace.trials():
            name = f"{trial.method}, seed {trial.seed}"
            if not (trial.policy / "policy.json").exists():
                raise SpirlError(f"There is no trained policy for {name} in {trial.policy}: run spirl train first.")
            results[name] = _stage(f"Evaluating {name}", lambda p, t=trial: pipeline.evaluate_policy(t, p))
        _score_table("Subtasks completed", {n: r.facts for n, r in results.items()})
        _next(f"spirl report {config}", "write the report")


@app.command()
def report(config: ConfigFile, set: Overrides = None) -> None:
    """Writes the HTML report, the CSV and the JSON from what is there."""
    with _workspace(config, set, ray=False) as (workspace, _):
        _require_data(workspace)
        _report(workspace, config)


@data_app.command("import")
def import_data(config: ConfigFile, set: Overrides = None) -> None:
    """Imports (or generates) the experiment's trajectories into its folder, and validates them."""
    with _workspace(config, set) as (workspace, pipeline):
        _data(workspace, pipeline)
        _next(f"spirl data inspect {workspace.dataset}", "look at what is in it")


@data_app.command("inspect")
def inspect_data(
    dataset: Annotated[Path, typer.Argument(help="A dataset folder (it holds card.json).", show_default=False)],
) -> None:
    """Shows what a dataset holds: episodes, lengths, subtasks and their order, ranges."""
    from spirl_ray.data.inspecting import summarize

    with _readable_errors():
        summary = summarize(dataset)
        card = summary.card
        facts = {
            "environment": card.environment,
            "source": card.source,
            "licence": card.licence,
            "episodes": f"{summary.episodes} ({summary.terminated} terminated, {summary.truncated} truncated)",
            "steps": f"{summary.steps}",
            "length": f"{summary.length_min} to {summary.length_max}, mean {summary.length_mean:.1f}",
        }
        _facts_table(str(dataset), facts)
        if summary.subtasks:
            table = Table("subtask", "episodes", title="Completed subtasks")
            for name, count in summary.subtasks.items():
                table.add_row(name, str(count))
            console.print(table)
            table = Table("order", "episodes", title="Orders of completion")
            for order, count in list(summary.orders.items())[:10]:
                table.add_row(" > ".join(order) or "none", str(count))
            console.print(table)
        for name, spread in (("state", summary.states), ("action", summary.actions)):
            table = Table("dimension", "min", "max", "mean", "std", title=f"{name.capitalize()} ranges")
            for i, values in enumerate(zip(spread.minimum, spread.maximum, spread.mean, spread.std, strict=True)):
                table.add_row(f"{name} {i}", *(f"{value:.3f}" for value in values))
            console.print(table)
        console.print(f"Saturated action entries: {100 * summary.saturated.mean():.1f} %")
        _next(f"spirl data validate {dataset}", "check every value and hash")


@data_app.command("validate")
def validate_data(
    dataset: Annotated[Path, typer.Argument(help="A dataset folder (it holds card.json).", show_default=False)],
) -> None:
    """Checks every file's hash and every episode's lengths, shapes and values."""
    from spirl_ray.data.validation import validate_dataset

    with _readable_errors():
        problems = validate_dataset(dataset)
        if problems:
            listing = "\n".join(f"  {problem}" for problem in problems[:20])
            more = f"\n  … and {len(problems) - 20} more" if len(problems) > 20 else ""
            raise SpirlError(
                f"{dataset} has {len(problems)} problem(s):\n{listing}{more}\n"
                "Import it again, with --set data.skip_bad=true to leave bad episodes out."
            )
        console.print(f"[green]{dataset} is valid.[/green]")


# --- how stages are shown ---


def _data(workspace: Any, pipeline: Any) -> None:
    def stage(progress: Any) -> Any:
        result, imported = pipeline.prepare_data(workspace, progress)
        for problem in imported.skipped if imported is not None else []:
            console.print(f"[yellow]left out[/yellow] {problem}")
        return result

    _stage("Data", stage)


def _require_data(workspace: Any) -> None:
    if not (workspace.dataset / "card.json").exists():
        raise SpirlError(f"There is no dataset in {workspace.dataset}: run spirl run or spirl data import first.")


def _stage(title: str, work: Callable[[Any], Any]) -> Any:
    """Runs one stage under a progress bar and prints its result in a line."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=24),
        TextColumn("{task.percentage:>3.0f} %"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[facts]}", style="dim"),
    )
    last_line = -1
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task(title, total=None, facts="")

        def progress(done: float, total: float, facts: dict[str, Any]) -> None:
            nonlocal last_line
            text = _brief(facts)
            bar.update(task, completed=done, total=total, facts=text)
            tenth = int(10 * done / total)
            if not console.is_terminal and tenth > last_line:
                last_line = tenth
                console.print(f"  {title}: {100 * done / total:.0f} %  {text}")

        result = work(progress)
    mark = "[green]done[/green]" if result.ran else "[dim]there already[/dim]"
    console.print(f"{mark}  {title}  [dim]{_brief(result.facts)}[/dim]\n      {_shown(result.folder)}")
    return result


_BRIEF = {
    "episodes": "episodes",
    "steps": "steps",
    "skipped": "left out",
    "train_loss": "loss",
    "validation_loss": "held out",
    "windows_per_s": "windows/s",
    "subtasks": "subtasks",
    "evaluation_deterministic": "evaluated",
    "divergence": "divergence",
    "alpha": "α",
    "env_steps_per_s": "steps/s",
}


def _brief(facts: dict[str, Any]) -> str:
    parts = []
    for key, name in _BRIEF.items():
        if isinstance(facts.get(key), int | float):
            parts.append(f"{name} {float(facts[key]):.4g}")
    for mode in ("deterministic", "sampled"):
        if isinstance(facts.get(mode), dict):
            parts.append(f"{mode} {facts[mode]['subtasks']:.2f} subtasks")
    return " · ".join(parts)


def _score_table(title: str, scores: dict[str, dict[str, Any]]) -> None:
    table = Table("agent", "mode", "subtasks", "return", "episodes", title=title)
    for name, modes in scores.items():
        for mode, score in modes.items():
            table.add_row(
                name,
                mode,
                f"{score['subtasks']:.2f}",
                f"{score['episode_return']:.2f}",
                str(score["episodes"]),
            )
    console.print(table)


def _facts_table(title: str, facts: dict[str, str]) -> None:
    table = Table(title=title, show_header=False)
    for name, value in facts.items():
        table.add_row(name, value)
    console.print(table)


def _report(workspace: Any, config: Path) -> None:
    from spirl_ray.experiments.gather import gather
    from spirl_ray.experiments.provenance import command_line
    from spirl_ray.experiments.report import write_report

    files = write_report(workspace.folder / "report", gather(workspace, command_line()))
    console.print("[green]Report[/green]")
    for file in (files.html, files.csv, files.json):
        console.print(f"      {_shown(file)}")
    _next(f"open {_shown(files.html)}", "curves, tables, videos, commands")


def _next(command: str, why: str) -> None:
    console.print(f"[bold]Next:[/bold] {command}  [dim]({why})[/dim]")


def _shown(path: Path) -> str:
    relative = os.path.relpath(path)
    return relative if len(relative) < len(str(path)) else str(path)


@contextmanager
def _workspace(config: Path, overrides: list[str] | None, *, ray: bool = True) -> Iterator[tuple[Any, Any]]:
    """The claimed folder of an experiment, with Ray connected if asked for."""
    with _readable_errors():
        experiment: Experiment = load_experiment(config, overrides or [])
        from spirl_ray.envs import environment

        environment(experiment.env.id)
        warnings.filterwarnings("ignore", category=DeprecationWarning)
        from spirl_ray.experiments import pipeline
        from spirl_ray.experiments.session import ray_session
        from spirl_ray.experiments.workspace import Workspace

        workspace = Workspace(experiment)
        workspace.claim()
        if not ray:
            yield workspace, pipeline
            return
        with ray_session(experiment.ray):
            yield workspace, pipeline


@contextmanager
def _readable_errors() -> Iterator[None]:
    """A `SpirlError` becomes one message on stderr and exit status 2."""
    try:
        yield
    except SpirlError as error:
        Console(stderr=True, highlight=False).print("[red]Error:[/red]", str(error), markup=True, soft_wrap=True)
        raise typer.Exit(2) from error
    except OSError as error:
        where = f" ({error.filename})" if error.filename else ""
        Console(stderr=True, highlight=False).print(f"[red]Error:[/red] {error.strerror or error}{where}")
        raise typer.Exit(2) from error


def main() -> None:
    """Entry point of the ``spirl`` command."""
    app()


if __name__ == "__main__":
    sys.exit(main())
