"""``spirl submit`` and ``spirl jobs`` as a user sees them; a stand-in takes the place of the cluster."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import pytest
from toy import write_config
from typer.testing import CliRunner, Result

from spirl_ray.cli import main as cli
from spirl_ray.cluster import dashboard as dashboards
from spirl_ray.cluster import jobs
from spirl_ray.cluster.jobs import JobDetails, JobStatus, JobType
from spirl_ray.config import load_experiment

pytestmark = pytest.mark.usefixtures("no_token")


def job(name: str, experiment: str, status: str, start: int, **noted: str) -> JobDetails:
    return JobDetails(
        type=JobType.SUBMISSION,
        submission_id=name,
        status=JobStatus(status),
        entrypoint="x",
        message="Job entrypoint command failed with exit code 2, last available logs: Error",
        start_time=start * 1000,
        end_time=(start + 90) * 1000,
        metadata={"experiment": experiment, "command": "run", **noted},
        driver_exit_code=2 if status == "FAILED" else None,
    )


class Cluster:
    """Stands for the client of a cluster with jobs of two experiments; each look at the log ends a job."""

    def __init__(self) -> None:
        others = JobDetails(type=JobType.DRIVER, job_id="01", status=JobStatus.RUNNING, entrypoint="y")
        self.jobs = [
            job("spirl-maze-1", "maze", "SUCCEEDED", 100, project="thesis"),
            job("spirl-maze-2", "maze", "RUNNING", 300, project="thesis", env_vars="KEY OTHER", time_limit="2h"),
            job("spirl-kitchen-1", "kitchen", "FAILED", 200),
            others,
        ]
        self.log = "".join(f"line {number}\n" for number in range(40))
        self.stopped: list[str] = []
        self.sent: dict[str, Any] = {}

    def submit_job(self, **arguments: Any) -> str:
        self.sent = arguments
        self.jobs.append(job(arguments["submission_id"], "toy", "RUNNING", 400))
        return str(arguments["submission_id"])

    def list_jobs(self) -> list[JobDetails]:
        return self.jobs

    def get_job_info(self, name: str) -> JobDetails:
        return next(one for one in self.jobs if one.submission_id == name)

    def get_job_status(self, name: str) -> JobStatus:
        return self.get_job_info(name).status

    def get_job_logs(self, name: str) -> str:
        return self.log

    async def tail_job_logs(self, name: str) -> Any:
        yield self.log
        yield "the end\n"
        found = self.get_job_info(name)
        if not found.status.is_terminal():
            found.status = JobStatus.SUCCEEDED

    def stop_job(self, name: str) -> bool:
        self.stopped.append(name)
        self.get_job_info(name).status = JobStatus.STOPPED
        return True


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Cluster:
    made = Cluster()
    monkeypatch.setattr(dashboards, "connect", lambda dashboard: made)
    monkeypatch.setattr(dashboards, "missing_place", lambda dashboard, driver: None)
    monkeypatch.setattr(jobs, "_POLL_S", 0.0)
    return made


def spirl(*words: object) -> Result:
    return CliRunner().invoke(cli.app, [str(word) for word in words])


def test_submit_says_the_job_its_page_and_the_commands_for_it(cluster: Cluster, tmp_path: Path) -> None:
    address = "http://127.0.0.1:1234"
    result = spirl("submit", write_config(tmp_path), "--no-follow", "--address", address)
    assert result.exit_code == 0, result.output
    name = cluster.sent["submission_id"]
    assert result.output.splitlines() == [
        f"submitted  {name}",
        f"page       {address}/#/jobs/{name}",
        f"follow     spirl jobs follow {name} --address {address}",
        f"stop       spirl jobs stop {name} --address {address}",
    ]
    for command in re.findall(r"spirl (jobs .*)", result.output):  # they can be given as they are printed
        assert spirl(*shlex.split(command)).exit_code == 0
    assert cluster.stopped == [name]


def test_what_a_job_gets_can_be_set_on_the_command_line(cluster: Cluster, tmp_path: Path) -> None:
    chosen = ["submit.driver.resources.spirl_driver=1", "submit.time_limit=2h", "submit.tags.project=thesis"]
    sets = [word for text in chosen for word in ("--set", text)]
    result = spirl("submit", "pretrain", write_config(tmp_path), *sets)
    assert result.exit_code == 0, result.output
    assert result.output.splitlines()[-1].startswith("succeeded  spirl-toy-")
    assert cluster.sent["entrypoint_resources"] == {"spirl_driver": 1}
    assert cluster.sent["metadata"]["project"] == "thesis"
    assert "--time-limit 2h pretrain" in cluster.sent["entrypoint"]


def test_jobs_are_listed_the_newest_first(cluster: Cluster) -> None:
    def listed(*words: str) -> list[str]:
        return re.findall(r"spirl-\w+-\d", spirl("jobs", "list", *words).output)

    assert listed() == ["spirl-maze-2", "spirl-kitchen-1", "spirl-maze-1"]
    assert listed("maze") == ["spirl-maze-2", "spirl-maze-1"]
    assert listed("maze", "--tag", "project=thesis") == ["spirl-maze-2", "spirl-maze-1"]
    assert listed("--tag", "project=other") == []
    wrong = spirl("jobs", "list", "--tag", "project")
    assert (wrong.exit_code, "--tag project: write it as NAME=VALUE" in wrong.output) == (2, True)


def test_a_job_is_shown_by_the_name_of_its_experiment_without_any_value(cluster: Cluster) -> None:
    lines = spirl("jobs", "show", "maze").output.splitlines()
    assert "job        spirl-maze-2" in lines
    assert "variables  KEY, OTHER" in lines
    assert "tags       project=thesis" in lines
    assert "limit      2h" in lines
    failed = spirl("jobs", "show", "spirl-kitchen-1").output
    assert "reason     Job entrypoint command failed with exit code 2\n" in failed
    assert "jobs stop" not in failed


def test_a_log_is_followed_from_where_it_is(cluster: Cluster) -> None:
    result = spirl("jobs", "follow", "maze")
    assert result.output.splitlines()[:20] == [f"line {number}" for number in range(20, 40)]
    assert result.output.splitlines()[20:] == ["the end", "succeeded  spirl-maze-2"]
    assert spirl("jobs", "follow", "maze", "--lines", 0).output.startswith("the end\n")
    assert spirl("jobs", "follow", "maze", "--all").output.startswith("line 0\nline 1\n")


def test_following_a_job_that_has_failed_ends_with_its_status(cluster: Cluster) -> None:
    result = spirl("jobs", "follow", "kitchen")
    assert result.exit_code == 2
    assert "failed  spirl-kitchen-1" in result.output


def test_after_ctrl_c_the_job_continues_and_its_log_can_be_had_again(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def interrupted(name: str) -> Any:
        yield "half of it\n"
        raise KeyboardInterrupt

    monkeypatch.setattr(cluster, "tail_job_logs", interrupted)
    result = spirl("jobs", "follow", "maze", "--lines", 0)
    assert result.exit_code == 130
    assert cluster.stopped == []
    again = re.findall(r"The job continues; .*: spirl (jobs follow spirl-maze-2 .*)", result.output)
    assert [shlex.split(command)[:2] for command in again] == [["jobs", "follow"]]


def test_a_job_is_stopped_by_name_where_only_one_of_it_is_running(cluster: Cluster) -> None:
    assert spirl("jobs", "stop", "kitchen").exit_code == 2  # it has ended
    result = spirl("jobs", "stop", "maze")
    assert (result.exit_code, cluster.stopped) == (0, ["spirl-maze-2"])
    assert result.output.splitlines() == ["stopping  spirl-maze-2", "stopped  spirl-maze-2"]
    cluster.jobs += [job(f"spirl-maze-{number}", "maze", "RUNNING", number) for number in (3, 4)]
    several = spirl("jobs", "stop", "maze")
    assert several.exit_code == 2
    assert "Name one: spirl-maze-4, spirl-maze-3" in several.output


def test_a_job_without_a_place_is_not_waited_for(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jobs, "_PENDING_S", 0.0)
    monkeypatch.setattr(cluster, "stop_job", lambda name: True)
    cluster.jobs.append(job("spirl-door-1", "door", "PENDING", 500))
    result = spirl("jobs", "stop", "door")
    assert result.exit_code == 0
    assert result.output.splitlines()[1] == "pending  spirl-door-1"
    assert "Ray ends it when it gets one" in result.output


def test_a_job_that_is_not_there_is_refused_with_those_that_are(cluster: Cluster) -> None:
    result = spirl("jobs", "follow", "kitchin")
    assert result.exit_code == 2
    assert "kitchin: the cluster knows no job and no experiment of this name. It has jobs of maze, kitchen." in (
        result.output
    )


@pytest.mark.parametrize("command", ["list", "show", "follow", "stop"])
def test_the_token_is_asked_for_as_when_a_job_is_submitted(command: str) -> None:
    words = [] if command == "list" else ["maze"]
    result = spirl("jobs", command, *words, "--address", "https://head.example")
    assert result.exit_code == 2
    assert "there is no token here to show it. Nothing was sent" in result.output


def test_a_time_limit_is_a_duration(tmp_path: Path) -> None:
    result = spirl("--time-limit", "12", "report", write_config(tmp_path))
    assert result.exit_code == 2
    assert "--time-limit 12: must be a duration such as 90min" in result.output
    assert load_experiment(write_config(tmp_path, submit={"time_limit": "90min"})).submit.time_limit == "90min"
