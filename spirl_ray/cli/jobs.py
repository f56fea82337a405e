"""Jobs on a cluster: ``spirl submit``, and ``spirl jobs``, which lists, shows, follows and stops them."""

from __future__ import annotations

import shlex
import sys
import time
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape
from rich.table import Table

from spirl_ray.cli.arguments import Overrides, readable_errors
from spirl_ray.cli.terminal import console, print_table, say_waiting
from spirl_ray.config import Experiment, load_experiment
from spirl_ray.config_file import to_yaml
from spirl_ray.config_submit import RESERVED_TAGS
from spirl_ray.errors import SpirlError
from spirl_ray.files import layout
from spirl_ray.pipeline.status import duration

if TYPE_CHECKING:
    from ray.job_submission import JobDetails, JobSubmissionClient

    from spirl_ray.cluster.dashboard import Dashboard

COMMANDS = ("run", "sweep", "pretrain", "prior", "train", "evaluate", "explore", "report")
"""The commands that can be jobs."""
_COLOURS = {"succeeded": "green", "failed": "red", "stopped": "yellow"}
DashboardAddress = Annotated[
    str | None,
    typer.Option(
        "--address",
        help="The cluster's dashboard; $RAY_API_SERVER_ADDRESS or http://127.0.0.1:8265 if not given.",
        metavar="URL",
        show_default=False,
    ),
]
Job = Annotated[
    str, typer.Argument(help="The id of a job, or the name of an experiment: its newest job.", show_default=False)
]
jobs_app = typer.Typer(no_args_is_help=True, help="Look after the jobs of a cluster.")


def submit(
    what: Annotated[
        list[str],
        typer.Argument(
            help=f"The YAML file, after the command that gets it: {', '.join(COMMANDS)}. Without a command, run.",
            metavar="[COMMAND] CONFIG",
            show_default=False,
        ),
    ],
    set: Overrides = None,
    address: DashboardAddress = None,
    follow: Annotated[
        bool, typer.Option("--follow/--no-follow", help="Show the log until the job ends, or return at once.")
    ] = True,
) -> None:
    """Runs a command as a job of a Ray cluster, with this code and these settings: spirl submit run CONFIG.

    The output must be a folder that every node sees: --set output=/shared/folder. What the job takes along, what its
    driver gets and how long it may run is in the config's section submit: --set submit.time_limit=12h. After a failure,
    submit the job again and it resumes where it stopped.
    """
    with readable_errors():
        command, config = _command_in(what)
        text = None
        if command == "sweep":
            experiment, text = _sweep_to_submit(config, set or [])
        else:
            experiment = load_experiment(config, set or [])
            from spirl_ray.pipeline.checks import check_experiments

            check_experiments([experiment])
        from spirl_ray.cluster import jobs
        from spirl_ray.cluster.dashboard import missing_place

        jobs.check_output(experiment)
        client, dashboard, job = submit_job(
            address, [command, layout.JOB_CONFIG], name=experiment.name, experiment=experiment, config=text
        )
        if missing := missing_place(dashboard, experiment.submit.driver):
            say_waiting(missing)
        if follow:
            follow_job(client, dashboard, job, experiment)


def _command_in(words: list[str]) -> tuple[str, Path]:
    """The command and the config in ``[COMMAND] CONFIG``."""
    *commands, config = words
    if len(commands) > 1 or any(command not in COMMANDS for command in commands):
        raise SpirlError(
            f"spirl submit {' '.join(words)}: write one config after one of {', '.join(COMMANDS)}, such as "
            f"spirl submit run {config}."
        )
    return (commands[0] if commands else "run"), Path(config)


def _sweep_to_submit(config: Path, overrides: list[str]) -> tuple[Experiment, str]:
    """The base of a sweep, and the text of the sweep with that base in full."""
    from spirl_ray.cluster.shipping import as_on_cluster
    from spirl_ray.sweeps.run import prepare

    sweep = prepare(config, overrides)
    base = as_on_cluster(sweep.base).model_dump(mode="json")
    return sweep.base, to_yaml(sweep.file.model_copy(update={"base": base, "changes": {}}))


def submit_job(
    address: str | None, command: list[str], *, name: str, experiment: Experiment | None, config: str | None = None
) -> tuple[JobSubmissionClient, Dashboard, str]:
    """Submits a command with `spirl_ray.cluster.jobs.submit`, and prints the job's id, page and commands."""
    from spirl_ray.cluster import jobs

    client, dashboard = _connected(address)
    job = jobs.submit(client, dashboard, command, name=name, experiment=experiment, config=config)
    console.print(f"[green]submitted[/green]  {escape(job)}")
    _print_page(dashboard, job)
    _print_command("follow", dashboard, job)
    _print_command("stop", dashboard, job)
    return client, dashboard, job


def follow_job(
    client: JobSubmissionClient,
    dashboard: Dashboard,
    job: str,
    experiment: Experiment | None = None,
    *,
    skip: int = 0,
) -> None:
    """Shows a job's log until the job ends; the program then exits with the job's status unless that is 0."""
    from spirl_ray.cluster import jobs
    from spirl_ray.cluster.dashboard import missing_place

    def say_pending() -> None:
        say_waiting(
            (missing_place(dashboard, experiment.submit.driver) if experiment else None)
            or "the cluster to start the job: a place for its driver, or the upload on that node"
        )

    again = shlex.join(_command("follow", dashboard, job))
    with readable_errors(stopped=f"The job continues; only its log has stopped. To see it again: {again}"):
        ending = jobs.follow(client, job, _pass_on, say_pending, skip=skip)
    if ending.exit_code:
        whole = shlex.join([*_command("follow", dashboard, job), "--all"])
        console.print(f"[red]{escape(ending.status)}[/red]  {escape(job)}  (all of its log: {escape(whole)})")
        if ending.reason and ending.status != "stopped":
            console.print(escape(ending.reason))
        raise typer.Exit(ending.exit_code)
    console.print(f"[green]succeeded[/green]  {escape(job)}")


@jobs_app.command("list")
def list_all(
    experiment: Annotated[
        str | None, typer.Argument(help="Only the jobs of this experiment.", show_default=False)
    ] = None,
    tag: Annotated[
        list[str] | None, typer.Option("--tag", help="Only jobs with this tag.", metavar="NAME=VALUE")
    ] = None,
    address: DashboardAddress = None,
) -> None:
    """Lists the jobs that the cluster remembers, the newest first."""
    with readable_errors():
        from spirl_ray.cluster import jobs

        client, _ = _connected(address)
        found = jobs.list_jobs(client, experiment, dict(_tag(text) for text in tag or []))
        if not found:
            console.print("There are no such jobs." if experiment or tag else "The cluster has no jobs.")
            return
        table = Table("experiment", "command", "status", "started", "time", "tags", "job", title="Jobs")
        for job in found:
            noted = job.metadata or {}
            table.add_row(
                escape(noted.get("experiment", "-")),
                escape(noted.get("command", "-")),
                _status(job),
                _moment(job.start_time),
                _duration(job),
                escape(_tags(noted)),
                escape(str(job.submission_id)),
            )
        print_table(table)


@jobs_app.command()
def show(job: Job, address: DashboardAddress = None) -> None:
    """Shows what is known of a job, its page in the dashboard, and the commands for it."""
    with readable_errors():
        from spirl_ray.cluster import jobs

        client, dashboard = _connected(address)
        found = jobs.find_job(client, job)
        noted, name = found.metadata or {}, str(found.submission_id)
        lines = {
            "job": escape(name),
            "experiment": escape(noted.get("experiment", "")),
            "command": escape(noted.get("command", found.entrypoint)),
            "status": _status(found),
            "started": _moment(found.start_time),
            "time": _duration(found),
            "limit": escape(noted.get("time_limit", "")),
            "driver": escape(found.driver_info.node_ip_address if found.driver_info else ""),
            "tags": escape(_tags(noted)),
            "variables": escape(noted.get("env_vars", "").replace(" ", ", ")),
            "exit": "" if found.driver_exit_code is None else str(found.driver_exit_code),
            "reason": escape(jobs.reason_of(found.message or "")) if found.status == "FAILED" else "",
        }
        for label, text in lines.items():
            if text:
                console.print(f"{label:<11}{text}")
        _print_page(dashboard, name)
        _print_command("follow", dashboard, name)
        if not found.status.is_terminal():
            _print_command("stop", dashboard, name)


@jobs_app.command()
def follow(
    job: Job,
    lines: Annotated[int, typer.Option(help="Begin with so many of the last lines.", min=0)] = 20,
    everything: Annotated[bool, typer.Option("--all", help="Begin with the first line of the log.")] = False,
    address: DashboardAddress = None,
) -> None:
    """Shows the log of a job until the job ends, and exits with its status. Ctrl-C ends the log, not the job."""
    with readable_errors():
        from spirl_ray.cluster import jobs

        client, dashboard = _connected(address)
        name = str(jobs.find_job(client, job).submission_id)
        written = "" if everything else jobs.log_of(client, name)
        _pass_on("".join(written.splitlines(keepends=True)[-lines:] if lines else []))
        follow_job(client, dashboard, name, skip=len(written))


@jobs_app.command()
def stop(job: Job, address: DashboardAddress = None) -> None:
    """Ends a job as SIGTERM does, and waits for its end. The same submit resumes from the last checkpoint."""
    with readable_errors():
        from spirl_ray.cluster import jobs

        client, _ = _connected(address)
        found = jobs.find_job(client, job, alive=True)
        name = str(found.submission_id)
        if not found.status.is_terminal():
            console.print(f"[yellow]stopping[/yellow]  {escape(name)}")
        ended = jobs.stop_job(client, name)
        console.print(f"{escape(str(ended).lower())}  {escape(name)}")
        if not ended.is_terminal():
            console.print(
                "It has no place yet. Ray ends it when it gets one, or fails it 15 minutes after its submission."
            )


def _connected(address: str | None) -> tuple[JobSubmissionClient, Dashboard]:
    from spirl_ray.cluster.dashboard import connect, find_dashboard

    dashboard = find_dashboard(address)
    client = connect(dashboard)
    if dashboard.sends_token_in_clear:
        console.print(
            "[yellow]The token travels unencrypted[/yellow] over http. Through a network that others share, use https "
            "or a tunnel (ssh -L 8265:127.0.0.1:8265 HOST)."
        )
    return client, dashboard


def _command(name: str, dashboard: Dashboard, job: str) -> list[str]:
    """A command about a job that works in every shell that has the token."""
    return ["spirl", "jobs", name, job, "--address", dashboard.url]


def _print_page(dashboard: Dashboard, job: str) -> None:
    console.print(f"{'page':<11}{escape(dashboard.link(job))}")


def _print_command(name: str, dashboard: Dashboard, job: str) -> None:
    console.print(f"{name:<11}{escape(shlex.join(_command(name, dashboard, job)))}")


def _pass_on(text: str) -> None:
    """Prints text of a job as it is, because the job has formatted it already."""
    sys.stdout.write(text)
    sys.stdout.flush()


def _tag(text: str) -> tuple[str, str]:
    name, sign, value = text.partition("=")
    if not sign or not name:
        raise SpirlError(f"--tag {text}: write it as NAME=VALUE.")
    return name, value


def _tags(noted: Mapping[str, Any]) -> str:
    return ", ".join(f"{name}={value}" for name, value in noted.items() if name not in RESERVED_TAGS)


def _status(job: JobDetails) -> str:
    text = str(job.status).lower()
    colour = _COLOURS.get(text)
    return f"[{colour}]{text}[/{colour}]" if colour else text


def _moment(milliseconds: int | None) -> str:
    return "-" if not milliseconds else f"{datetime.fromtimestamp(milliseconds / 1000):%Y-%m-%d %H:%M:%S}"


def _duration(job: JobDetails) -> str:
    if not job.start_time:
        return "-"
    return duration(max(0.0, (job.end_time or time.time() * 1000) - job.start_time) / 1000)
