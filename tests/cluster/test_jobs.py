"""What a job is sent with, how it is found, followed and stopped; a stand-in takes the place of the cluster."""

from __future__ import annotations

import importlib
import os
import subprocess
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from toy import TOY
from typer.testing import CliRunner

from spirl_ray.cli import jobs as cli_jobs
from spirl_ray.cli import main as cli
from spirl_ray.cluster import job_process, jobs
from spirl_ray.cluster.dashboard import Dashboard
from spirl_ray.cluster.jobs import check_output, follow, submit
from spirl_ray.config import load_experiment, parse_experiment
from spirl_ray.errors import SpirlError
from spirl_ray.files import layout

pytestmark = pytest.mark.usefixtures("no_token")
HERE = Dashboard("http://127.0.0.1:1234", "secret")


class Taker:
    """Stands for the client of a cluster that takes every job."""

    def __init__(self) -> None:
        self.sent: dict[str, Any] = {}
        self.files: dict[str, str] = {}

    def submit_job(self, **arguments: Any) -> str:
        self.sent = arguments
        folder = arguments["runtime_env"].get("working_dir")
        if folder is not None:
            self.files = {path.name: path.read_text() for path in Path(folder).glob("*.yaml")}
        return str(arguments["submission_id"])


def sent_with(monkeypatch: pytest.MonkeyPatch, **asked: Any) -> Taker:
    """What a cluster gets of an experiment with these settings of ``submit``."""
    monkeypatch.setattr(jobs, "authentication_mode", lambda dashboard: "token")
    taker: Any = Taker()
    experiment = parse_experiment({**TOY, "output": "/shared/toy", "submit": asked}, "test")
    submit(taker, HERE, ["run", layout.JOB_CONFIG], name="toy", experiment=experiment)
    return taker


def test_a_job_runs_with_the_interpreter_of_ray(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    taker: Any = Taker()
    submit(taker, HERE, ["--version"], name="x")
    runtime_env = taker.sent["runtime_env"]
    # Ray calls the hook in a driver's own workers by the first, in the process that starts the command by the second.
    assert runtime_env["worker_process_setup_hook"] == runtime_env["env_vars"][job_process.HOOK_VARIABLE]
    module, _, function = runtime_env["worker_process_setup_hook"].rpartition(".")
    monkeypatch.setenv(job_process.INTERPRETER, "")
    getattr(importlib.import_module(module), function)()
    entrypoint = taker.sent["entrypoint"]
    environment = {**os.environ, "PATH": "/usr/bin:/bin"}
    done = subprocess.run(entrypoint, shell=True, capture_output=True, text=True, env=environment, check=True)
    assert done.stdout.startswith("spirl-ray ")
    (tmp_path / "python").write_text("#!/bin/sh\necho other $*\n")
    (tmp_path / "python").chmod(0o755)
    environment = {"PATH": f"{tmp_path}:/usr/bin:/bin"}  # a node where Ray calls no hook
    done = subprocess.run(entrypoint, shell=True, capture_output=True, text=True, env=environment, check=True)
    assert done.stdout == "other -m spirl_ray.cli --version\n"


def test_a_job_takes_along_what_its_config_asks_for(monkeypatch: pytest.MonkeyPatch) -> None:
    driver = {"cpus": 2, "gpus": 0.5, "memory": "2GiB", "resources": {"spirl_driver": 1}, "labels": {"zone": "a"}}
    taker = sent_with(
        monkeypatch, pip="humanize==4.12.0", driver=driver, time_limit="1.5h", tags={"project": "kitchen"}
    )
    sent = taker.sent
    assert sent["runtime_env"]["pip"] == ["humanize==4.12.0"]
    assert sent["entrypoint"].endswith(" -m spirl_ray.cli --time-limit 1.5h run experiment.yaml")
    assert (sent["entrypoint_num_cpus"], sent["entrypoint_num_gpus"]) == (2, 0.5)
    assert sent["entrypoint_memory"] == 2 * 2**30
    assert sent["entrypoint_resources"] == {"spirl_driver": 1}
    assert sent["entrypoint_label_selector"] == {"zone": "a"}
    assert sent["metadata"] == {"project": "kitchen", "experiment": "toy", "command": "run", "time_limit": "1.5h"}
    assert "kitchen" not in taker.files[layout.JOB_CONFIG]  # the job does not submit


def test_a_job_that_asks_for_nothing_reserves_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    sent = sent_with(monkeypatch).sent
    assert [value for name, value in sent.items() if name.startswith("entrypoint_")] == [None] * 5
    assert "pip" not in sent["runtime_env"]


def test_values_of_variables_reach_the_job_and_are_readable_nowhere_on_the_way(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LAB_KEY", "value-of-the-lab")
    taker = sent_with(monkeypatch, env_vars="LAB_KEY")
    assert "value-of-the-lab" not in str(taker.sent) + str(taker.files)
    assert taker.sent["metadata"]["env_vars"] == "LAB_KEY"
    sealed = taker.sent["runtime_env"]["env_vars"][job_process.SEALED]

    monkeypatch.delenv("LAB_KEY")
    monkeypatch.setenv(job_process.SEALED, sealed)
    monkeypatch.setenv(job_process.INTERPRETER, "")
    for token, words in ((None, "no cluster token"), ("another", "another cluster token")):
        if token:
            monkeypatch.setenv("RAY_AUTH_TOKEN", token)
        with pytest.raises(SpirlError, match=words):
            job_process.prepare()
    monkeypatch.setenv("RAY_AUTH_TOKEN", HERE.token or "")
    job_process.prepare()
    assert os.environ.pop("LAB_KEY") == "value-of-the-lab"


def test_a_variable_without_a_value_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LAB_KEY", raising=False)
    with pytest.raises(SpirlError, match=r"submit\.env_vars: LAB_KEY has no value in this shell.*export LAB_KEY="):
        sent_with(monkeypatch, env_vars=["PATH", "LAB_KEY"])


@pytest.mark.parametrize(("token", "mode"), [(None, "token"), ("secret", "disabled")])
def test_variables_are_not_sent_where_everybody_could_read_them(
    monkeypatch: pytest.MonkeyPatch, token: str | None, mode: str
) -> None:
    monkeypatch.setattr(jobs, "authentication_mode", lambda dashboard: mode)
    experiment = parse_experiment({**TOY, "submit": {"env_vars": ["PATH"]}}, "test")
    taker: Any = Taker()
    with pytest.raises(SpirlError, match=r"submit\.env_vars: .* asks for no token"):
        submit(taker, Dashboard(HERE.url, token), ["run"], name="toy", experiment=experiment)
    assert taker.sent == {}


def test_in_a_container_the_job_writes_its_config_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    taker = sent_with(monkeypatch, image="registry.example/spirl-ray:cpu")
    assert set(taker.sent["runtime_env"]) == {"image_uri", "env_vars"}  # with all else, Ray refuses it
    assert taker.sent["runtime_env"]["image_uri"] == "registry.example/spirl-ray:cpu"
    (tmp_path / "python").write_text(f"#!/bin/sh\nprintf '%s ' $*\ncp experiment.yaml {tmp_path}\n")
    (tmp_path / "python").chmod(0o755)
    environment = {"PATH": f"{tmp_path}:/usr/bin:/bin", "TMPDIR": str(tmp_path)}
    done = subprocess.run(taker.sent["entrypoint"], shell=True, capture_output=True, text=True, env=environment)
    assert done.stdout == "-m spirl_ray.cli run experiment.yaml ", done.stderr
    there = load_experiment(tmp_path / "experiment.yaml")
    assert there == parse_experiment({**TOY, "output": "/shared/toy"}, "test")


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ({"image": "x", "pip": ["y"], "env_vars": ["Z"]}, "so pip, env_vars cannot be used with it"),
        ({"tags": {"experiment": "x"}}, "experiment is noted for every job"),
        ({"env_vars": ["KEY=value"]}, "submit.env_vars.0: must be the name of an environment variable alone"),
        ({"env_vars": ["RAY_ADDRESS"]}, "belongs to Ray"),
        ({"time_limit": "12"}, "submit.time_limit: must be a duration such as 90min"),
        ({"time_limit": "0h"}, "must be a duration"),
        ({"driver": {"memory": 8}}, "submit.driver.memory: must be an amount of memory such as 8GiB"),
        ({"driver": {"cpus": -1}}, "submit.driver.cpus: must be at least 0"),
    ],
)
def test_what_a_job_cannot_have_is_refused_with_its_key(asked: dict[str, Any], words: str) -> None:
    with pytest.raises(SpirlError) as caught:
        parse_experiment({**TOY, "submit": asked}, "test")
    assert words in str(caught.value)


@pytest.mark.parametrize("output", [None, "runs/toy", "./shared"])
def test_a_job_needs_an_output_that_means_the_same_everywhere(output: str | None) -> None:
    with pytest.raises(SpirlError, match=r"output: .* is relative.*--set output=/shared/folder"):
        check_output(parse_experiment({**TOY, "output": output}, "test"))


def test_a_relative_folder_of_demonstrations_is_refused() -> None:
    data = {"sources": [*TOY["data"]["sources"], {"type": "folder", "path": "mine"}]}
    experiment = parse_experiment({**TOY, "output": "/shared", "data": data}, "test")
    with pytest.raises(SpirlError, match=r"data\.sources\.1\.path: mine is relative"):
        check_output(experiment)


def test_submit_refuses_a_uri_with_exit_status_2(tmp_path: Path) -> None:
    from toy import write_config

    result = CliRunner().invoke(cli.app, ["submit", str(write_config(tmp_path)), "--set", "output=s3://bucket/runs"])
    assert result.exit_code == 2
    assert "output: this is a URI, and work is done in a folder" in result.output
    assert "Traceback" not in result.output


@pytest.mark.parametrize(
    ("words", "found"),
    [(["a.yaml"], ("run", "a.yaml")), (["run", "a.yaml"], ("run", "a.yaml")), (["sweep", "s"], ("sweep", "s"))],
)
def test_a_job_runs_the_command_that_is_given(words: list[str], found: tuple[str, str]) -> None:
    assert cli_jobs._command_in(words) == (found[0], Path(found[1]))


@pytest.mark.parametrize("words", [["doctor", "a.yaml"], ["a.yaml", "b.yaml"], ["run", "train", "a.yaml"]])
def test_what_is_no_command_for_a_job_is_refused_with_those_that_are(words: list[str]) -> None:
    result = CliRunner().invoke(cli.app, ["submit", *words])
    assert result.exit_code == 2
    assert f"spirl submit run {words[-1]}" in result.output


class Job:
    """Stands for the client of a cluster; the log breaks off once before the job ends, and begins anew."""

    def __init__(self, status: str, exit_code: int | None) -> None:
        self.status, self.exit_code, self.parts = status, exit_code, [["one "], ["on", "e tw", "o"]]

    def get_job_status(self, job: str) -> Any:
        return SimpleNamespace(is_terminal=lambda: not self.parts)

    async def tail_job_logs(self, job: str) -> Any:
        for text in self.parts.pop(0):
            yield text

    def get_job_info(self, job: str) -> Any:
        status = jobs.JobStatus(self.status)
        return SimpleNamespace(status=status, driver_exit_code=self.exit_code, message="why")


@pytest.mark.parametrize(
    ("status", "exit_code", "expected"), [("SUCCEEDED", 0, 0), ("FAILED", 2, 2), ("FAILED", None, 1), ("STOPPED", 0, 1)]
)
def test_the_log_is_followed_to_the_end_and_the_exit_status_is_the_drivers(
    monkeypatch: pytest.MonkeyPatch, status: str, exit_code: int | None, expected: int
) -> None:
    monkeypatch.setattr(jobs, "_POLL_S", 0.0)
    seen: list[str] = []
    ending = follow(Job(status, exit_code), "job", seen.append)
    assert "".join(seen) == "one two"
    assert ending.exit_code == expected


def test_what_has_been_shown_of_a_log_is_not_shown_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jobs, "_POLL_S", 0.0)
    seen: list[str] = []
    follow(Job("SUCCEEDED", 0), "job", seen.append, skip=5)
    assert "".join(seen) == "wo"


def test_a_job_that_does_not_start_is_not_waited_for_in_silence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jobs, "_POLL_S", 0.0)
    monkeypatch.setattr(jobs, "SAY_EVERY_S", 0.0)
    happened: list[str] = []

    class Pending(Job):
        looks = 0

        def get_job_status(self, job: str) -> Any:
            self.looks += 1
            return jobs.JobStatus.PENDING if self.looks < 3 else jobs.JobStatus.SUCCEEDED

    waiting = Pending("SUCCEEDED", 0)
    assert follow(waiting, "job", happened.append, lambda: happened.append("waits")).exit_code == 0
    assert happened == ["waits", "waits", "one "]  # the log of a job that ended at once is there, too


def test_the_reason_of_a_failure_promises_no_log_that_is_not_there() -> None:
    message = "Job entrypoint command failed with exit code 2, last available logs (truncated to 20,000 chars):\nError"
    assert jobs.Ending("failed", 2, message).reason == "Job entrypoint command failed with exit code 2"


def test_the_reason_of_a_failure_is_our_own_message_where_there_is_one() -> None:
    message = (
        "Job supervisor actor died: it died.\nTraceback\n  line\nspirl_ray.errors.SpirlError: do this.\n\nIt never ran."
    )
    assert jobs.reason_of(message) == "do this."


@pytest.mark.parametrize("command", ["submit", "doctor"])
def test_the_commands_explain_themselves(command: str) -> None:
    result = CliRunner().invoke(cli.app, [command, "--help"])
    assert result.exit_code == 0
    for option in ("--set", "--address"):
        assert option in result.output
