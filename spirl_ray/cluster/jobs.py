"""Jobs on a running Ray cluster: submitting, finding, stopping, following the log until the job ends."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shlex
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
from ray.exceptions import AuthenticationError
from ray.job_submission import JobDetails, JobStatus, JobSubmissionClient, JobType

from spirl_ray.cluster import job_process
from spirl_ray.cluster.dashboard import UNKNOWN_ANSWERS, Dashboard, authentication_mode
from spirl_ray.cluster.sealing import seal
from spirl_ray.cluster.shipping import config_of, stage
from spirl_ray.config import Experiment
from spirl_ray.config_submit import SubmitSettings
from spirl_ray.datasets.sources import source_options
from spirl_ray.errors import SpirlError
from spirl_ray.files import layout
from spirl_ray.pipeline.resources import SAY_EVERY_S

_POLL_S = 1.0
_STOP_S = 120
"""The seconds between the SIGTERM and the SIGKILL of a job that is stopped; Ray's own 3 are too few for a
checkpoint."""
_PENDING_S = 5.0
_ENVIRONMENT = {
    "PYTHONUNBUFFERED": "1",
    "RAY_JOB_STOP_WAIT_TIME_S": str(_STOP_S),
    job_process.HOOK_VARIABLE: job_process.HOOK,
}


def check_output(experiment: Experiment) -> Path:
    """Returns the output folder of a job, which must be the same on every node.

    Raises:
        SpirlError: there is none, or it is relative.
    """
    if experiment.output is None or not experiment.output.is_absolute():
        raise SpirlError(
            f"output: {experiment.folder} is relative, and a job's folder is removed when it ends. Name a folder "
            "that every node of the cluster sees under the same path: --set output=/shared/folder."
        )
    for place, source in enumerate(experiment.data.sources):
        for name, value in source_options(source, place):
            if isinstance(value, Path) and not value.expanduser().is_absolute():
                raise SpirlError(
                    f"data.sources.{place}.{name}: {value} is relative. Name it as the nodes of the cluster see it."
                )
    return experiment.output


def submit(
    client: JobSubmissionClient,
    dashboard: Dashboard,
    command: Sequence[str],
    *,
    name: str,
    experiment: Experiment | None = None,
    config: str | None = None,
) -> str:
    """Submits ``spirl COMMAND``, with this package's code, the experiment's settings and what its ``submit`` asks for.

    Args:
        client: the cluster, from `connect`.
        dashboard: the cluster's dashboard.
        command: arguments of ``spirl``, for example ``["run", layout.JOB_CONFIG]``.
        name: becomes part of the job's id; `find_job` knows the job by it.
        experiment: written to ``experiment.yaml`` in the job's folder.
        config: the text of that file, where it is more than the experiment.

    Returns:
        The job's id.

    Raises:
        SpirlError: the code is too big to upload, a variable has no value here or cannot be kept from strangers, or the
            cluster refuses the job.
    """
    asked = SubmitSettings() if experiment is None else experiment.submit
    driver = asked.driver
    noted = {"experiment": name, "command": command[0]}
    if asked.env_vars:
        noted["env_vars"] = " ".join(asked.env_vars)
    if asked.time_limit:
        noted["time_limit"] = asked.time_limit
        command = ["--time-limit", asked.time_limit, *command]
    sealed = _sealed(dashboard, asked.env_vars)
    with tempfile.TemporaryDirectory(prefix="spirl-job-") as folder:
        runtime_env: dict[str, Any] = {"env_vars": {**_ENVIRONMENT, **sealed}}
        if asked.image:
            entrypoint = _in_image(command, None if experiment is None else config or config_of(experiment))
            runtime_env["image_uri"] = asked.image
        else:
            stage(Path(folder), experiment, config=config)
            entrypoint = f"exec {job_process.COMMAND} {_program(command)}"
            runtime_env |= {"working_dir": folder, "worker_process_setup_hook": job_process.HOOK}
            if asked.pip:
                runtime_env["pip"] = list(asked.pip)
        with _refusals("did not take the job"):
            return client.submit_job(
                entrypoint=entrypoint,
                submission_id=f"spirl-{name}-{uuid.uuid4().hex[:8]}",
                runtime_env=runtime_env,
                metadata={**asked.tags, **noted},
                entrypoint_num_cpus=driver.cpus or None,
                entrypoint_num_gpus=driver.gpus or None,
                entrypoint_memory=driver.memory,
                entrypoint_resources=driver.resources or None,
                entrypoint_label_selector=driver.labels or None,
            )


@contextlib.contextmanager
def _refusals(what: str) -> Iterator[None]:
    """Turns what Ray's client raises into a `SpirlError`, which says what the cluster did not do."""
    try:
        yield
    except (AuthenticationError, *UNKNOWN_ANSWERS) as error:
        raise SpirlError(f"The cluster {what}: {error}") from error


def _program(command: Sequence[str]) -> str:
    return shlex.join(["-m", "spirl_ray.cli", *command])


def _in_image(command: Sequence[str], config: str | None) -> str:
    """The command of a job in a container image, to which Ray brings no files: it writes the config itself."""
    end = f"END-{uuid.uuid4().hex}"
    file = "" if config is None else f"cat > {layout.JOB_CONFIG} <<'{end}'\n{config.rstrip()}\n{end}\n"
    return f'set -e\ncd "$(mktemp -d)"\n{file}exec python {_program(command)}'


def _sealed(dashboard: Dashboard, names: Sequence[str]) -> dict[str, str]:
    """The variables of this shell, sealed, as an environment variable of the job.

    Raises:
        SpirlError: a variable is not set, or there is no token with which to seal it.
    """
    if not names:
        return {}
    if missing := [name for name in names if name not in os.environ]:
        raise SpirlError(
            f"submit.env_vars: {', '.join(missing)} has no value in this shell. Set it (export {missing[0]}=…), or "
            "take it out of the list."
        )
    if dashboard.token is None or authentication_mode(dashboard) != "token":
        raise SpirlError(
            f"submit.env_vars: {dashboard.url} asks for no token, so whoever reaches it could read the values. "
            "Start the cluster with RAY_AUTH_MODE=token."
        )
    return {job_process.SEALED: seal({name: os.environ[name] for name in names}, dashboard.token)}


# --- jobs that are there ---


def list_jobs(
    client: JobSubmissionClient, experiment: str | None = None, tags: Mapping[str, str] | None = None
) -> list[JobDetails]:
    """The jobs that the cluster remembers, the newest first.

    Args:
        client: the cluster.
        experiment: lists the jobs of this experiment only.
        tags: lists the jobs with these tags only.

    Raises:
        SpirlError: the cluster does not answer.
    """
    with_these = {**(tags or {}), **({} if experiment is None else {"experiment": experiment})}
    with _refusals("does not say which jobs it has"):
        found = [job for job in client.list_jobs() if job.type == JobType.SUBMISSION]
    chosen = [job for job in found if with_these.items() <= (job.metadata or {}).items()]
    return sorted(chosen, key=lambda job: job.start_time or 0, reverse=True)


def find_job(client: JobSubmissionClient, name: str, *, alive: bool = False) -> JobDetails:
    """Finds a job by its id, or the newest one of an experiment.

    Args:
        client: the cluster.
        name: the id of the job, or the name of its experiment.
        alive: finds only a job that has not ended.

    Raises:
        SpirlError: there is none, or several of an experiment have not ended where one is asked for.
    """
    every = list_jobs(client)
    for job in every:
        if job.submission_id == name:
            return job
    found = [job for job in every if (job.metadata or {}).get("experiment") == name]
    if not found:
        known = ", ".join(dict.fromkeys((job.metadata or {}).get("experiment", "") for job in every)).strip(", ")
        raise SpirlError(
            f"{name}: the cluster knows no job and no experiment of this name. "
            + (f"It has jobs of {known}." if known else "It has no jobs of this program.")
        )
    if not alive:
        return found[0]
    running = [job for job in found if not job.status.is_terminal()]
    if not running:
        raise SpirlError(f"{name}: no job of it is running. The last one, {found[0].submission_id}, has ended.")
    if len(running) > 1:
        ids = ", ".join(str(job.submission_id) for job in running)
        raise SpirlError(f"{name}: several of its jobs are running. Name one: {ids}.")
    return running[0]


def stop_job(client: JobSubmissionClient, job: str) -> JobStatus:
    """Asks a job to end, as SIGTERM does, and returns its status when it has ended. A job that has no place yet stays
    pending, because Ray ends it only when it has one.

    Raises:
        SpirlError: the connection is lost, or the job does not end.
    """
    asked = time.monotonic()
    with _refusals(f"did not stop {job}"):
        client.stop_job(job)
        while not (status := client.get_job_status(job)).is_terminal():
            waited = time.monotonic() - asked
            if status == JobStatus.PENDING and waited > _PENDING_S:
                return status
            if waited > _STOP_S + 30:
                raise SpirlError(f"{job} has not ended in {_STOP_S + 30} s. Look at the node on which its driver runs.")
            time.sleep(_POLL_S)
    return status


def log_of(client: JobSubmissionClient, job: str) -> str:
    """Reads what a job has written so far.

    Raises:
        SpirlError: the cluster does not give it.
    """
    with _refusals(f"does not give the log of {job}"):
        return client.get_job_logs(job)


@dataclass(frozen=True)
class Ending:
    """The end of a job."""

    status: str
    exit_code: int
    """The exit code: 0 for success, else the driver's exit status where it is known, or 1."""
    message: str

    @property
    def reason(self) -> str:
        return reason_of(self.message)


def reason_of(message: str) -> str:
    """Finds the reason in what Ray says of the end of a job: one line without the log, our own where there is one."""
    lines = message.partition(", last available logs")[0].strip().splitlines() or [""]
    ours = f"{SpirlError.__module__}.{SpirlError.__name__}: "
    return next((line.removeprefix(ours) for line in lines if line.startswith(ours)), lines[0])


def follow(
    client: JobSubmissionClient,
    job: str,
    write: Callable[[str], Any],
    say_waiting: Callable[[], Any] = lambda: None,
    *,
    skip: int = 0,
) -> Ending:
    """Passes on a job's log as it is written, until the job ends.

    Args:
        client: the cluster.
        job: the job's id.
        write: gets the parts of the log.
        say_waiting: is called once a minute while the job has not started.
        skip: the number of characters at the beginning of the log that are not passed on.

    Raises:
        SpirlError: the connection is lost; the job continues.
    """

    async def tail() -> None:
        # Ray begins with the first line of the log each time.
        nonlocal skip
        read = 0
        async for text in client.tail_job_logs(job):
            fresh = text[max(0, skip - read) :]
            read += len(text)
            skip = max(skip, read)
            if fresh:
                write(fresh)

    said, tailed = time.monotonic(), False
    try:
        while not (status := client.get_job_status(job)).is_terminal():
            if status == JobStatus.PENDING:
                if time.monotonic() - said >= SAY_EVERY_S:
                    said = time.monotonic()
                    say_waiting()
            else:
                asyncio.run(tail())
                tailed = True
            time.sleep(_POLL_S)
        if not tailed:
            asyncio.run(tail())  # it has started and ended between two looks
        details = client.get_job_info(job)
    except (AuthenticationError, aiohttp.ClientError, *UNKNOWN_ANSWERS) as error:
        raise SpirlError(
            f"The connection to the cluster was lost ({error}). If the cluster still runs, so does the job; then "
            f"`spirl jobs follow {job}` shows its log again."
        ) from error
    if details.status == JobStatus.SUCCEEDED:
        return Ending("succeeded", 0, "")
    return Ending(str(details.status.value).lower(), details.driver_exit_code or 1, details.message or "")
