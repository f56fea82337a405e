"""The commands that concern a cluster: ``spirl submit`` and ``spirl doctor``."""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape
from rich.table import Table

from spirl_ray.cli.arguments import Overrides, readable_errors
from spirl_ray.cli.terminal import console, print_next, print_table, say_waiting
from spirl_ray.config import Experiment, RaySettings, load_experiment
from spirl_ray.config_file import read_mapping, split_override, to_yaml
from spirl_ray.errors import SpirlError
from spirl_ray.files import layout
from spirl_ray.settings import expanded

if TYPE_CHECKING:
    from ray.job_submission import JobSubmissionClient

    from spirl_ray.cluster.doctor import NodeReport
    from spirl_ray.cluster.jobs import Dashboard

_COMMANDS = ("run", "sweep", "pretrain", "prior", "train", "evaluate", "explore", "report")
"""The commands that can be jobs."""
DashboardAddress = Annotated[
    str | None,
    typer.Option(
        "--address",
        help="The cluster's dashboard; $RAY_API_SERVER_ADDRESS or http://127.0.0.1:8265 if not given.",
        metavar="URL",
        show_default=False,
    ),
]


def add_commands(app: typer.Typer) -> None:
    """Adds the commands of this module to the program."""
    app.command()(submit)
    app.command()(doctor)


def submit(
    what: Annotated[
        list[str],
        typer.Argument(
            help=f"The YAML file, after the command that gets it: {', '.join(_COMMANDS)}. Without a command, run.",
            metavar="[COMMAND] CONFIG",
            show_default=False,
        ),
    ],
    set: Overrides = None,
    address: DashboardAddress = None,
    follow: Annotated[
        bool, typer.Option("--follow/--no-follow", help="Show the log until the job ends, or return at once.")
    ] = True,
    driver_on: Annotated[
        str | None,
        typer.Option(
            help="Run the driver on nodes that declare this resource, such as spirl_driver of cluster/kuberay.",
            metavar="RESOURCE",
            show_default=False,
        ),
    ] = None,
) -> None:
    """Runs a command as a job of a Ray cluster, with this code and these settings: spirl submit run CONFIG.

    The output must be a folder that every node sees: --set output=/shared/folder. After a failure, submit the job again
    and it resumes where it stopped.
    """
    with readable_errors(stopped="The job continues; only the log has stopped."):
        command, config = _command_in(what)
        text = None
        if command == "sweep":
            experiment, text = _sweep_to_submit(config, set or [])
        else:
            experiment = load_experiment(config, set or [])
        from spirl_ray.cluster import jobs
        from spirl_ray.pipeline.experiment import check_experiments

        check_experiments([experiment])
        jobs.check_output(experiment)
        resources = {driver_on: 1.0} if driver_on else None
        client, dashboard, job = _submit(
            address,
            [command, layout.JOB_CONFIG],
            name=experiment.name,
            experiment=experiment,
            resources=resources,
            config=text,
        )
        console.print(f"      {escape(dashboard.link(job))}")
        if missing := jobs.missing_resource(dashboard, resources):
            say_waiting(missing)
        if not follow:
            print_next(_ray_job("logs", dashboard, job, "--follow"), "the log; with stop instead, the job ends")
            return
        _follow(client, dashboard, job, resources)


def _command_in(words: list[str]) -> tuple[str, Path]:
    """The command and the config in ``[COMMAND] CONFIG``."""
    *commands, config = words
    if len(commands) > 1 or any(command not in _COMMANDS for command in commands):
        raise SpirlError(
            f"spirl submit {' '.join(words)}: write one config after one of {', '.join(_COMMANDS)}, such as "
            f"spirl submit run {config}."
        )
    return (commands[0] if commands else "run"), Path(config)


def _sweep_to_submit(config: Path, overrides: list[str]) -> tuple[Experiment, str]:
    """The base of a sweep, and the text of the sweep with that base in full."""
    from spirl_ray.cluster.shipping import as_on_cluster
    from spirl_ray.sweeps.search import check_planned
    from spirl_ray.sweeps.sweep_file import load_sweep

    sweep = load_sweep(config, overrides)
    check_planned(sweep)
    base = as_on_cluster(sweep.base).model_dump(mode="json")
    return sweep.base, to_yaml(sweep.file.model_copy(update={"base": base, "changes": {}}))


def is_dashboard(address: str) -> bool:
    """True for the address of a cluster's dashboard, at which a command runs as a job."""
    return address.startswith(("http://", "https://"))


def _submit(address: str | None, command: list[str], **options: Any) -> tuple[JobSubmissionClient, Dashboard, str]:
    """Submits a command with the options of `spirl_ray.cluster.jobs.submit`, and says the id of the job."""
    from spirl_ray.cluster import jobs

    dashboard = jobs.find_dashboard(address)
    client = _client(dashboard)
    job = jobs.submit(client, command, **options)
    console.print(f"[green]submitted[/green]  {escape(job)}")
    return client, dashboard, job


def check_environment_as_job(address: str, experiment: Experiment, steps: int) -> None:
    """Runs ``spirl env check`` on a cluster, on each node of which the environment is made."""
    command = ["env", "check", layout.JOB_CONFIG, "--steps", str(steps), "--address", "auto"]
    _follow(*_submit(address, command, name="check", experiment=experiment))


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
    _follow(*_submit(address, command, name="doctor", experiment=experiment))


def _client(dashboard: Dashboard) -> JobSubmissionClient:
    from spirl_ray.cluster.jobs import connect

    client = connect(dashboard)
    if dashboard.sends_token_in_clear:
        console.print(
            "[yellow]The token travels unencrypted[/yellow] over http. Through a network that others share, use https "
            "or a tunnel (ssh -L 8265:127.0.0.1:8265 HOST)."
        )
    return client


def _follow(
    client: JobSubmissionClient, dashboard: Dashboard, job: str, resources: Mapping[str, float] | None = None
) -> None:
    from spirl_ray.cluster import jobs

    def say_pending() -> None:
        say_waiting(
            jobs.missing_resource(dashboard, resources)
            or "the cluster to start the job: a place for its driver, or the upload on that node"
        )

    ending = jobs.follow(client, job, _pass_on, say_pending)
    if ending.exit_code:
        again = shlex.join(_ray_job("logs", dashboard, job))
        console.print(f"[red]{escape(ending.status)}[/red]  {escape(job)}  (all of its log: {escape(again)})")
        if ending.reason and ending.status != "stopped":
            console.print(escape(ending.reason))
        raise typer.Exit(ending.exit_code)
    console.print(f"[green]succeeded[/green]  {escape(job)}")


def _pass_on(text: str) -> None:
    """Prints text of a job as it is, because the job has formatted it already."""
    sys.stdout.write(text)
    sys.stdout.flush()


def _ray_job(command: str, dashboard: Dashboard, job: str, *options: str) -> list[str]:
    """A command of Ray about a job, with the variables that it needs: without the first, Ray does not show the token,
    and the second wins over ``--address``."""
    mode = ["RAY_AUTH_MODE=token"] if dashboard.token else []
    return [*mode, f"RAY_API_SERVER_ADDRESS={dashboard.url}", "ray", "job", command, *options, job]


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
