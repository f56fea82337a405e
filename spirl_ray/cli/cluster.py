"""The check of a cluster, ``spirl doctor``, and of an environment on its nodes."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape
from rich.table import Table

from spirl_ray.cli.arguments import readable_errors
from spirl_ray.cli.jobs import follow_job, jobs_app, submit, submit_job
from spirl_ray.cli.terminal import console, print_table
from spirl_ray.config import Experiment, RaySettings, load_experiment
from spirl_ray.config_file import read_mapping, split_override
from spirl_ray.errors import SpirlError
from spirl_ray.files import layout
from spirl_ray.settings import expanded

if TYPE_CHECKING:
    from spirl_ray.cluster.doctor import NodeReport


def add_commands(app: typer.Typer) -> None:
    """Adds the commands of this module to the program."""
    app.command()(submit)
    app.add_typer(jobs_app, name="jobs")
    app.command()(doctor)


def is_dashboard(address: str) -> bool:
    """True for the address of a cluster's dashboard, at which a command runs as a job."""
    return address.startswith(("http://", "https://"))


def check_environment_as_job(address: str, experiment: Experiment, steps: int) -> None:
    """Runs ``spirl env check`` on a cluster, on each node of which the environment is made."""
    command = ["env", "check", layout.JOB_CONFIG, "--steps", str(steps), "--address", "auto"]
    follow_job(*submit_job(address, command, name="check", experiment=experiment))


def doctor(
    set: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            help="Also check these: --set output=/shared/folder storage=s3://bucket/name.",
            metavar="KEY=VALUE",
        ),
    ] = None,
    address: Annotated[
        str | None,
        typer.Option(
            "--address",
            help="A cluster as its nodes name it (HOST:6379), or its dashboard (http://HOST:8265), where the check "
            "then runs as a job. $RAY_ADDRESS or the cluster of this machine if not given.",
            show_default=False,
        ),
    ] = None,
    config: Annotated[
        Path | None,
        typer.Option(
            help="An experiment or a sweep, whose environment is made on every node, with the code of its submit.ship.",
            show_default=False,
        ),
    ] = None,
    needs: Annotated[
        list[str] | None, typer.Option(help="Also import this module on every node.", metavar="MODULE", hidden=True)
    ] = None,
) -> None:
    """Checks every node of a cluster before an experiment uses it: versions, resources, storage, GPUs, import, clock.

    Prints a table and what to repair; the exit status is 2 if something has to be repaired.
    """
    with readable_errors():
        output, storage = _places(set or [])
        experiment, modules = (None, []) if config is None else _experiment_in(config)
        modules += needs or []
        if address is not None and is_dashboard(address):
            _doctor_as_job(address, output, storage, experiment, modules)
            return
        from spirl_ray.cluster.doctor import check_cluster, cluster_problems
        from spirl_ray.pipeline.ray_start import check_address
        from spirl_ray.pipeline.session import ray_session

        if address is not None:
            check_address(address, "--address")
        named = bool(address or os.environ.get("RAY_ADDRESS"))
        ship = () if experiment is None else experiment.submit.ship
        with ray_session(RaySettings(address=address if named else "auto"), ship=ship):
            reports = check_cluster(output, storage)
            without = {} if experiment is None else _without_environment(experiment, modules)
        _print_reports(reports)
        problems = [f"{report.node}: {problem}" for report in reports for problem in report.problems]
        problems += cluster_problems(reports)
        problems += [f"{node}: {problem}" for node, problem in without.items()]
        if problems:
            listing = "\n".join(f"  {problem}" for problem in problems)
            raise SpirlError(f"{len(problems)} problem(s):\n{listing}")
        if output is None:
            console.print("The output folder was not checked: name it with --set output=/shared/folder.")
        console.print(f"[green]All {len(reports)} node(s) are ready.[/green]")


def _experiment_in(config: Path) -> tuple[Experiment, list[str]]:
    """The experiment in a config, or the base of a sweep, with the modules that it needs besides."""
    if "space" not in read_mapping(config, Experiment)[0]:
        from spirl_ray.pipeline.trackers import asked_trackers

        experiment = load_experiment(config)
        return experiment, asked_trackers(experiment)
    from spirl_ray.sweeps.sweep_file import load_sweep
    from spirl_ray.sweeps.trackers import needed_modules

    sweep = load_sweep(config)
    return sweep.base, needed_modules(sweep)


def _without_environment(experiment: Experiment, modules: list[str]) -> dict[str, str]:
    """The nodes on which the experiment's environment cannot be made or a module is missing, and why."""
    from spirl_ray.pipeline.nodes import try_on_every_node

    found = try_on_every_node(None if experiment.env.id is None else experiment.environment, modules)
    return {node: problem for node, problem in found.items() if problem is not None}


def _places(overrides: list[str]) -> tuple[Path | None, str | None]:
    """The folder in ``output=FOLDER`` and the URI in ``storage=URI``."""
    folder: Path | None = None
    uri: str | None = None
    for override in overrides:
        key, _, value = override.partition("=")
        if key.strip() not in ("output", "storage") or not value:
            raise SpirlError(f"--set {override}: spirl doctor takes only output=FOLDER and storage=URI.")
        if key.strip() == "storage":
            uri = value
            continue
        _, found = split_override(override, Experiment)
        if found is None:
            raise SpirlError(f"--set {override}: name a folder.")
        folder = expanded(found)
        if not folder.is_absolute():
            raise SpirlError(f"--set {override}: give an absolute path, because it must be the same on every node.")
    return folder, uri


def _doctor_as_job(
    address: str, output: Path | None, storage: str | None, experiment: Experiment | None, modules: list[str]
) -> None:
    places = {"output": output, "storage": storage}
    command = ["doctor", *(word for key, value in places.items() if value for word in ("--set", f"{key}={value}"))]
    command += [] if experiment is None else ["--config", layout.JOB_CONFIG]
    command += [word for module in modules for word in ("--needs", module)]
    follow_job(*submit_job(address, command, name="doctor", experiment=experiment))


def _print_reports(reports: list[NodeReport]) -> None:
    names = ("python", "ray", "torch", "spirl-ray")
    table = Table("node", *names, "CPUs", "GPUs", "memory", "output", "storage", "clock", "fit", title="Nodes")
    for report in reports:
        table.add_row(
            escape(report.node),
            *(escape(report.versions.get(name, "?")) for name in names),
            f"{report.cpus:g}",
            f"{report.gpus:g}",
            f"{report.memory_gib:.1f} GiB",
            report.output,
            report.storage,
            "?" if report.clock_offset_s is None else f"{report.clock_offset_s:+.1f} s",
            "[green]yes[/green]" if not report.problems else f"[red]{len(report.problems)} problem(s)[/red]",
        )
    print_table(table)
