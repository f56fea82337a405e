"""Jobs on a real cluster with token authentication: spirl submit, plain ray job submit, spirl doctor, the metrics."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import requests
from toy import write_config

from benchmarks.ray_nodes import RayNodes

REPOSITORY = Path(__file__).parents[2]
DASHBOARD = REPOSITORY / "cluster" / "grafana" / "spirl-ray.json"
pytestmark = pytest.mark.cluster
_PATIENCE_S = 1800.0
DRIVER = "submit.driver.resources.spirl_driver=1"


def spirl(nodes: RayNodes, *arguments: object, **environment: str) -> subprocess.CompletedProcess[str]:
    return run([sys.executable, "-m", "spirl_ray.cli", *map(str, arguments)], nodes, cwd=None, **environment)


def run(
    command: list[str], nodes: RayNodes, cwd: Path | None = None, **environment: str
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command,
        capture_output=True,
        text=True,
        timeout=_PATIENCE_S,
        cwd=cwd or nodes.folder,
        env={**nodes.environment, **environment},
    )


def plotted_series() -> set[str]:
    text = DASHBOARD.read_text()
    return set(re.findall(r'"expr": "(\w+)\{', text))


class Scraper:
    """Reads the metrics endpoints of a cluster, as Prometheus finds them, until it is stopped."""

    def __init__(self, nodes: RayNodes) -> None:
        self.nodes, self.lines, self._stop = nodes, set[str](), threading.Event()
        self._thread = threading.Thread(target=self._scrape, daemon=True)

    def _scrape(self) -> None:
        while not self._stop.wait(1.0):
            for group in self.nodes.ask("/api/prometheus/sd").json():
                for target in group["targets"]:
                    try:
                        text = requests.get(f"http://{target}/metrics", timeout=30).text
                    except requests.RequestException:
                        continue
                    self.lines |= {line.rpartition(" ")[0] for line in text.splitlines() if "spirl_" in line}

    def __enter__(self) -> Scraper:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join(timeout=60)


def test_a_submitted_experiment_runs_to_its_report_and_shows_what_grafana_plots(
    nodes: RayNodes, tmp_path: Path
) -> None:
    config = write_config(tmp_path)
    with Scraper(nodes) as scraper:
        done = spirl(nodes, "submit", config, "--address", nodes.dashboard, "--set", DRIVER)
    assert done.returncode == 0, done.stdout + done.stderr
    (job,) = re.findall(r"^submitted  (spirl-toy-\w+)$", done.stdout, re.MULTILINE)
    assert f"{nodes.dashboard}/#/jobs/{job}" in done.stdout
    assert "done  Training spirl_cl, seed 0" in done.stdout  # the log, while it runs
    assert done.stdout.splitlines()[-1] == f"succeeded  {job}"
    assert (tmp_path / "out" / "report" / "report.html").is_file()
    (trained,) = (tmp_path / "out" / "policy").glob("*/trained.json")
    assert json.loads(trained.read_text())["env_steps"] >= 400

    found = {re.match(r"\w+", line)[0] for line in scraper.lines if line.startswith("ray_")}  # type: ignore[index]
    assert plotted_series() <= found
    for line in scraper.lines:
        if line.startswith("ray_spirl_divergence{"):
            assert 'run="toy"' in line
            assert 'trial="spirl_cl-s0"' in line
            assert 'stage="train"' in line


def test_a_users_own_code_and_variables_travel_to_every_node(nodes: RayNodes, tmp_path: Path) -> None:
    # The folder is on no node's path, and the job does not run in it.
    shutil.copytree(REPOSITORY / "examples" / "own_environment" / "my_tasks", tmp_path / "lab_tasks")
    with (tmp_path / "lab_tasks" / "drawer.py").open("a") as module:  # in the driver and in every worker
        module.write("\nimport os, sys\nassert os.environ['LAB_KEY'] == 'value' + '-of-the-lab', sys.argv\n")
    source = {"type": "python", "call": "lab_tasks.drawer:episodes", "episodes": 6, "options": {"camera": False}}
    config = write_config(
        tmp_path,
        env={"id": "lab_tasks.drawer:Drawer", "max_episode_steps": 60},
        interface={"goal": ["wanted"], "success": "info.opened", "completed": "lab_tasks.drawer:completed"},
        data__sources=[source],
        pretrain__workers=2,
        submit={"ship": [str(tmp_path / "lab_tasks")], "env_vars": ["LAB_KEY"], "tags": {"project": "thesis"}},
    )
    for command in (["doctor", "--config", config], ["env", "check", config], ["submit", "run", config]):
        done = spirl(nodes, *command, "--address", nodes.dashboard, LAB_KEY="value-of-the-lab")
        assert done.returncode == 0, done.stdout + done.stderr
    assert (tmp_path / "out" / "report" / "report.html").is_file()
    for folder in (nodes.folder, tmp_path):
        read = [file.read_bytes() for file in folder.rglob("*") if file.is_file() and not file.is_symlink()]
        assert not any(b"value-of-the-lab" in content for content in read)

    listed = spirl(nodes, "jobs", "list", "--tag", "project=thesis", "--address", nodes.dashboard)
    (job,) = re.findall(r"spirl-toy-\w+", listed.stdout)
    assert "variables  LAB_KEY\n" in spirl(nodes, "jobs", "show", job, "--address", nodes.dashboard).stdout
    followed = spirl(nodes, "jobs", "follow", job, "--lines", 1, "--address", nodes.dashboard)
    assert (followed.returncode, followed.stdout.splitlines()[-1]) == (0, f"succeeded  {job}")


def test_a_job_is_stopped_with_time_for_its_last_words(nodes: RayNodes, tmp_path: Path) -> None:
    config = write_config(tmp_path, name="endless", pretrain__updates=10**9)
    address = ("--address", nodes.dashboard)
    done = spirl(nodes, "submit", "pretrain", config, *address, "--no-follow")
    assert done.returncode == 0, done.stdout + done.stderr
    nodes.wait(lambda: any((tmp_path / "out" / "skills").glob("*/metrics.csv")))
    stopped = spirl(nodes, "jobs", "stop", "endless", *address)
    assert stopped.returncode == 0, stopped.stdout + stopped.stderr
    ended = spirl(nodes, "jobs", "follow", "endless", *address)
    assert ended.returncode == 1
    assert "Stopped. What is done is kept" in ended.stdout


def test_rays_own_command_does_the_same_from_a_checkout(nodes: RayNodes, tmp_path: Path) -> None:
    checkout = tmp_path / "checkout"
    shutil.copytree(REPOSITORY / "spirl_ray", checkout / "spirl_ray", ignore=shutil.ignore_patterns("__pycache__"))
    for name in (".gitignore", ".rayignore"):
        shutil.copy(REPOSITORY / name, checkout)
    write_config(checkout).rename(checkout / "toy.yaml")
    entrypoint = ["spirl", "data", "import", "toy.yaml", "--set", f"output={tmp_path / 'out'}"]
    command = ["ray", "job", "submit", "--address", nodes.dashboard, "--working-dir", ".", "--", *entrypoint]
    done = run(command, nodes, cwd=checkout)
    assert done.returncode == 0, done.stdout + done.stderr
    assert len(list((tmp_path / "out" / "data").glob("*/card.json"))) == 1


def test_a_folder_that_goes_away_with_the_job_is_refused_by_the_job(nodes: RayNodes, tmp_path: Path) -> None:
    config = write_config(tmp_path)
    command = ["ray", "job", "submit", "--address", nodes.dashboard, "--working-dir", str(tmp_path), "--"]
    done = run([*command, "spirl", "run", config.name, "--set", "output=runs/toy"], nodes)
    assert done.returncode != 0
    assert "Ray removes when the job ends" in done.stdout + done.stderr


def test_a_job_that_fails_ends_the_command_with_its_status(nodes: RayNodes, tmp_path: Path) -> None:
    config = write_config(tmp_path)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "holiday.jpg").touch()
    done = spirl(nodes, "submit", config, "--address", nodes.dashboard)
    assert done.returncode == 2, done.stdout + done.stderr
    assert "is not empty and is no experiment folder" in done.stdout
    assert "Traceback" not in done.stdout


@pytest.mark.parametrize("token", ["", "f" * 64])
def test_without_the_right_token_nothing_is_submitted(nodes: RayNodes, tmp_path: Path, token: str) -> None:
    file = tmp_path / "token"
    file.write_text(token)
    done = spirl(
        nodes,
        "submit",
        write_config(tmp_path),
        "--address",
        nodes.dashboard,
        RAY_AUTH_TOKEN_PATH=str(file),
        RAY_AUTH_MODE="disabled",
    )
    assert done.returncode == 2
    assert "token" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "out").exists()


def test_doctor_finds_every_node_fit(nodes: RayNodes, tmp_path: Path) -> None:
    places = ("--set", f"output={tmp_path / 'shared'}", "--set", f"storage={(tmp_path / 'bucket').as_uri()}")
    done = spirl(nodes, "doctor", "--address", nodes.address, *places)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "All 2 node(s) are ready" in done.stdout
    assert list((tmp_path / "shared").iterdir()) == []


def test_doctor_runs_as_a_job_where_it_is_given_a_dashboard(nodes: RayNodes, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    done = spirl(nodes, "doctor", "--address", nodes.dashboard, "--set", f"output={tmp_path / 'file' / 'shared'}")
    assert done.returncode == 2, done.stdout + done.stderr
    assert "The driver cannot write to" in done.stdout
