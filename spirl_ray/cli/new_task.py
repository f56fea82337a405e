"""The commands of a new task: ``spirl init``, ``spirl env check``, and the look at data before their import."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape
from rich.table import Table

from spirl_ray.cli.arguments import ConfigFile, Overrides, readable_errors
from spirl_ray.cli.cluster import check_environment_as_job, is_dashboard
from spirl_ray.cli.terminal import console, print_next, print_table
from spirl_ray.config import Experiment, RaySettings, load_experiment
from spirl_ray.config_environment import EnvironmentSettings, InterfaceSettings
from spirl_ray.config_file import shipped_configs
from spirl_ray.errors import SpirlError
from spirl_ray.files.atomic import write_atomically
from spirl_ray.yaml_text import load_yaml

if TYPE_CHECKING:
    from spirl_ray.datasets.preview import DataPreview
    from spirl_ray.envs.inspection import EnvironmentInspection

env_app = typer.Typer(no_args_is_help=True, help="Look at an environment before it is used.")


def add_commands(app: typer.Typer) -> None:
    """Adds the commands of this module to the program."""
    app.command()(init)
    app.command()(configs)
    app.add_typer(env_app, name="env")


def init(
    name: Annotated[str, typer.Argument(help="The name of the experiment; NAME.yaml is written.", show_default=False)],
    env: Annotated[
        str | None,
        typer.Option(
            help="The environment: a Gymnasium id, module:Id, or package.module:callable. Without it, there are data "
            "alone.",
            show_default=False,
        ),
    ] = None,
    kwargs: Annotated[
        str, typer.Option(help="Arguments of its constructor as YAML, as in '{size: 3}'.", metavar="YAML")
    ] = "{}",
    max_episode_steps: Annotated[
        int | None, typer.Option(help="The time limit of an episode, if the environment has none.")
    ] = None,
    success: Annotated[
        str | None, typer.Option(help="What says success: info.KEY, terminated, 'return >= X', or none.")
    ] = None,
) -> None:
    """Begins an experiment: writes a commented config, filled in by looking at the environment."""
    with readable_errors():
        if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.-]*", name):
            raise SpirlError(f"{name}: a name has letters, digits, dots, dashes and underscores, and is no path.")
        path = Path(f"{name}.yaml")
        if path.exists():
            raise SpirlError(f"{path} is there already, and nothing was written. Choose another name, or remove it.")
        given = load_yaml(kwargs, "--kwargs")
        if not isinstance(given, dict):
            raise SpirlError(f"--kwargs {kwargs}: write the arguments as a mapping, such as '{{size: 3}}'.")
        from spirl_ray.cli.starting_config import starting_config
        from spirl_ray.envs.inspection import inspect_environment
        from spirl_ray.pipeline.user_code import current_folder_importable

        current_folder_importable()
        settings = EnvironmentSettings(
            id=env,
            kwargs=given,
            max_episode_steps=max_episode_steps,
            interface=InterfaceSettings(success=success),
        )
        found = None if env is None else inspect_environment(settings)
        write_atomically(path, starting_config(name, settings, found))
        if found is not None:
            _print_inspection(found)
        print_next(["spirl", "data", "import", str(path), "--dry-run"], "once data.sources names your data")


def configs() -> None:
    """Lists the configs that come with the program: each name can be given in place of a file."""
    table = Table(box=None, show_header=False)
    for name, about in shipped_configs().items():
        table.add_row(f"[bold]{name}[/bold]", escape(about))
    print_table(table)
    print_next(["spirl", "run", "quickstart"], "a complete small experiment in minutes")


@env_app.command("check")
def check(
    config: ConfigFile,
    set: Overrides = None,
    steps: Annotated[int, typer.Option(help="How many random steps to take.", min=1)] = 500,
    address: Annotated[
        str | None,
        typer.Option(
            help="A cluster, on each node of which the environment is made: its dashboard (http://HOST:8265), where "
            "the check then runs as a job, or HOST:6379 or auto on one of its nodes."
        ),
    ] = None,
) -> None:
    """Makes the config's environment and shows what it holds, how it is read, its seeding, its speed and its success.

    With --address, it is made on every node of the cluster as well. Ends with the YAML to paste.
    """
    with readable_errors():
        experiment = load_experiment(config, set or [])
        if address is not None and is_dashboard(address):
            check_environment_as_job(address, experiment, steps)
            return
        from spirl_ray.cli.starting_config import interface_yaml
        from spirl_ray.envs.inspection import inspect_environment
        from spirl_ray.pipeline.user_code import make_importable

        make_importable(experiment.submit.ship)
        found = inspect_environment(experiment.environment, steps)
        _print_inspection(found)
        console.print()
        console.print(escape(interface_yaml(experiment.environment, found)))
        if address is not None:
            _check_nodes(experiment, address)
        print_next(["spirl", "data", "import", str(config), "--dry-run"], "what your files hold")


def _check_nodes(experiment: Experiment, address: str) -> None:
    from spirl_ray.pipeline.nodes import try_on_every_node
    from spirl_ray.pipeline.ray_start import check_address
    from spirl_ray.pipeline.session import ray_session

    check_address(address, "--address")
    with ray_session(RaySettings(address=address), ship=experiment.submit.ship):
        problems = try_on_every_node(experiment.environment)
    for node, problem in problems.items():
        console.print(
            f"{escape(node)}: " + ("[green]made[/green]" if problem is None else f"[red]{escape(problem)}[/red]")
        )
    if failed := [node for node, problem in problems.items() if problem is not None]:
        raise SpirlError(f"{experiment.env.id} cannot be made on {', '.join(failed)}; the reasons are above.")


def _print_inspection(found: EnvironmentInspection) -> None:
    spec = found.spec
    table = Table("", "", title=escape(spec.id), show_header=False)
    for key, what in found.keys.items():
        table.add_row(f"its key {escape(key)}", escape(what + ("   left out" if key in found.left_out else "")))
    for name, feature in spec.features.items():
        table.add_row(f"feature {escape(name)}", escape(f"{feature.role} {list(feature.observed_shape)}"))
    table.add_row("its actions", escape(found.own_actions))
    table.add_row("episodes end after", f"{spec.max_episode_steps} steps")
    table.add_row("success", escape(found.success))
    table.add_row("info", escape(", ".join(found.info_keys)) or "empty")
    table.add_row("rewards of random steps", f"{found.rewards[0]:.4g} to {found.rewards[1]:.4g}")
    table.add_row("the same seed twice", "the same course" if found.seeded else "[yellow]another course[/yellow]")
    table.add_row("a step, a reset", f"{found.step_ms:.3g} ms, {found.reset_ms:.3g} ms")
    table.add_row("an instance", f"{found.instance_mb:.0f} MB")
    table.add_row("can be rendered", escape("yes" if found.render_problem is None else f"no: {found.render_problem}"))
    print_table(table)
    for warning in found.unrecognised:
        console.print(f"[yellow]The key[/yellow] {escape(warning)}")
    if not found.seeded:
        console.print(
            "[yellow]The environment does not follow its seed[/yellow], so evaluations with equal seeds will differ."
        )


def print_preview(experiment: Experiment) -> None:
    """Shows what an import would read, map and refuse.

    Raises:
        SpirlError: a source cannot be looked at, or something would be refused.
    """
    from spirl_ray.datasets.preview import preview_data
    from spirl_ray.envs import environment
    from spirl_ray.pipeline.kinds import check_kinds
    from spirl_ray.pipeline.user_code import make_importable

    make_importable(experiment.submit.ship)
    check_kinds(experiment)
    spec = None if experiment.env.id is None else environment(experiment.environment)
    found = preview_data(experiment.data, experiment.interface, spec)
    _print_sources(found)
    if found.problem is not None:
        raise SpirlError(f"The import would stop: {found.problem}")
    console.print(f"[green]Nothing would be refused[/green] among {found.looked_at:,} of {found.episodes:,} episodes.")


def _print_sources(found: DataPreview) -> None:
    for source in found.sources:
        console.print(escape(f"{source.place}: {source.origin}"))  # a title would be wrapped to the table's width
        table = Table("", "", show_header=False)
        table.add_row("episodes", f"{source.episodes:,}")
        for key, what in source.keys.items():
            table.add_row(f"key {escape(key)}", escape(what))
        if source.keys:
            table.add_row("actions", escape(source.actions))
            table.add_row("rewards", "yes" if source.rewards else "none, and stage 1 needs none")
        print_table(table)
    if found.mapping:
        table = Table("feature", "read from", title="Mapping")
        for name, keys in found.mapping.items():
            table.add_row(escape(name), escape(keys))
        print_table(table)
    if found.lengths:
        console.print(f"lengths: {min(found.lengths)} to {max(found.lengths)} actions")
    if found.low is not None and found.high is not None:
        ends = ", ".join(f"[{low:.3g}, {high:.3g}]" for low, high in zip(found.low, found.high, strict=True))
        console.print(escape(f"recorded actions, entry by entry: {ends}"))
