"""``spirl sweep`` as a user runs it: both stages, a second call, a kill, a trial that fails, a population."""

from __future__ import annotations

import csv
import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest
import yaml
from processes import assert_nothing_is_left, finish, start, until
from sweep_files import write_sweep
from toy import write_config

pytestmark = pytest.mark.slow

GRID = {"skills.horizon": {"grid": [5, 10]}, "train.target_divergence": {"grid": [1.0, 5.0]}}


def sweep_folder(tmp_path: Path) -> Path:
    [folder] = [path for path in (tmp_path / "out" / "sweeps").iterdir() if path.is_dir()]
    return folder


def results(tmp_path: Path) -> list[dict[str, str]]:
    with (sweep_folder(tmp_path) / "results.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def records(tmp_path: Path) -> list[dict[str, Any]]:
    return [json.loads(file.read_text()) for file in sorted((sweep_folder(tmp_path) / "trials").iterdir())]


def files(folder: Path) -> dict[Path, int]:
    """When everything below a folder was written last."""
    return {path: path.stat().st_mtime_ns for path in sorted(folder.rglob("*")) if path.is_file()}


def test_a_sweep_trains_skills_once_and_a_second_call_runs_nothing(tmp_path: Path) -> None:
    path = write_sweep(tmp_path, GRID, concurrency=2)
    output = finish(process := start("sweep", path))
    assert_nothing_is_left(process)
    assert "Traceback" not in output
    rows = results(tmp_path)
    assert [row["status"] for row in rows] == ["finished"] * 4
    assert len({row["policy"] for row in rows}) == 4
    assert len({row["skills"] for row in rows}) == len(list((tmp_path / "out" / "skills").glob("*/skill.json"))) == 2
    for row in rows:
        trained = json.loads((tmp_path / "out" / "policy" / row["policy"] / "trained.json").read_text())
        assert (row["config_hash"], row["commit"]) == (trained["config_hash"], trained["commit"])
        assert int(row["env_steps"]) == trained["env_steps"]
    assert (sweep_folder(tmp_path) / "results.png").stat().st_size > 5000
    best = sweep_folder(tmp_path) / "best.yaml"
    assert f"spirl run {os.path.relpath(best)}" in output or f"spirl run {best}" in output

    before = files(tmp_path / "out" / "policy") | files(tmp_path / "out" / "skills")
    again = finish(start("sweep", path))
    assert "there already  all trials of small" in again
    assert files(tmp_path / "out" / "policy") | files(tmp_path / "out" / "skills") == before

    run = finish(start("run", best))
    assert [line.split("  ")[1] for line in run.splitlines() if line.startswith("there already")][:2] == [
        "Data",
        "Skills for spirl_cl, seed 0",
    ]
    assert any(line.startswith("there already  Training spirl_cl") for line in run.splitlines())


def test_a_trial_that_fails_is_shown_and_the_others_go_on(tmp_path: Path) -> None:
    # The generated episodes are shorter than a skill of 5,000 steps.
    path = write_sweep(tmp_path, {"skills.horizon": {"grid": [5000, 10]}})
    output = finish(start("sweep", path))
    assert [row["status"] for row in results(tmp_path)] == ["failed", "finished"]
    assert "trial 0 failed: No episode of" in output
    assert "Lower skills.horizon" in results(tmp_path)[0]["error"]


@pytest.mark.interrupts
def test_a_killed_sweep_goes_on_and_runs_no_finished_trial_again(tmp_path: Path) -> None:
    write_config(tmp_path, train__env_steps=800)
    path = write_sweep(tmp_path, GRID, concurrency=1)
    policies = tmp_path / "out" / "policy"
    process = start("sweep", path)
    until(process, lambda: len([path for path in policies.glob("*") if path.is_dir()]) == 2)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate(timeout=60)
    assert_nothing_is_left(process)
    [done] = [record for record in records(tmp_path) if record["status"] == "finished"]
    before = files(policies / done["result"]["policy"])

    process = start("sweep", path)
    until(process, lambda: len(list(policies.glob("*/trained.json"))) == 2)
    os.kill(process.pid, signal.SIGINT)
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 130, output
    assert "Traceback" not in output
    assert_nothing_is_left(process)

    finish(start("sweep", path))
    assert [row["status"] for row in results(tmp_path)] == ["finished"] * 4
    assert len(list(policies.glob("*/trained.json"))) == 4
    assert files(policies / done["result"]["policy"]) == before


@pytest.mark.interrupts
def test_a_population_clones_checkpoints_and_changes_settings(tmp_path: Path) -> None:
    # Long enough for Tune to hear of each member before the other ends; 3,000 steps take 9 s.
    write_config(tmp_path, train__env_steps=12000, train__evaluate_every=300, train__checkpoint_every=300)
    path = write_sweep(
        tmp_path,
        {"train.actor_lr": {"loguniform": [1e-4, 1e-3]}},
        samples=2,
        concurrency=2,
        scheduler={"kind": "pbt", "perturb_every": 600, "quantile": 0.5},
        metric="sampled_return",
    )
    finish(start("sweep", path))
    members = records(tmp_path)
    assert [record["status"] for record in members] == ["finished", "finished"]
    origins = sorted((tmp_path / "out" / "policy").glob("*-from-*/origin.json"))
    assert origins
    for path in origins:
        origin = json.loads(path.read_text())
        assert (tmp_path / "out" / "policy" / origin["policy"]).exists()
    [change, *_] = [change for record in members for change in record["changes"]]
    assert change["before"] != change["after"]
    history = yaml.safe_load(origins[0].with_name("provenance.json").read_text())["processes"]
    assert history[0]["from_env_steps"] >= 600
