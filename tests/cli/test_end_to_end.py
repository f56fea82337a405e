"""``spirl run`` as a user runs it: in a process, from nothing to a report, killed, stopped and gone on with."""

from __future__ import annotations

import csv
import json
import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
from processes import assert_nothing_is_left, finish, start, until
from toy import write_config

import spirl_ray.envs as envs
from benchmarks.ray_nodes import session_members
from spirl_ray.policy.policy import load_policy

pytestmark = pytest.mark.slow


def rows(file: Path) -> list[dict[str, str]]:
    with file.open(newline="") as opened:
        return list(csv.DictReader(opened))


def done(output: str) -> list[str]:
    return [line.split("  ")[1].split(",")[0] for line in output.splitlines() if line.startswith("done")]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("run")


@pytest.fixture(scope="module")
def config(folder: Path) -> Path:
    return write_config(folder)


@pytest.fixture(scope="module")
def first_output(config: Path) -> str:
    process = start("run", config)
    until(process, lambda: len(session_members(process.pid)) > 3)  # Ray is in the process's session
    output = finish(process)
    assert_nothing_is_left(process)
    return output


def test_one_command_goes_from_nothing_to_a_report(folder: Path, first_output: str) -> None:
    out = folder / "out"
    stages = [
        "Data",
        "Video of the data",
        "Skills for spirl_cl",
        "Bare prior of spirl_cl",
        "Training spirl_cl",
        "Evaluating spirl_cl",
        "Report",
    ]
    assert done(first_output) == stages
    assert "raylet" not in first_output
    assert "Warning" not in first_output
    assert first_output.splitlines()[-1].startswith("Next: open ")
    assert "<html" in (out / "report" / "report.html").read_text()
    *_, result = [row for row in rows(out / "report" / "results.csv") if row["mode"] == "deterministic"]
    (policy,) = (out / "policy").glob("spirl_cl-*")
    trained = json.loads((policy / "trained.json").read_text())
    assert result["commit"] == trained["commit"]
    assert int(result["env_steps"]) == trained["env_steps"] >= 400
    for pattern in (
        "demonstrations/*/demonstrations.mp4",
        "prior/*/videos/sampled.mp4",
        "evaluation/*/videos/deterministic.mp4",
    ):
        (video,) = out.glob(pattern)
        assert video.stat().st_size > 1000


def test_the_policy_acts_in_a_gymnasium_loop(folder: Path, first_output: str) -> None:
    (path,) = (folder / "out" / "policy").glob("spirl_cl-*")
    policy, env = load_policy(path), envs.make("spirl/PointPads-v0")
    observation, _ = env.reset(seed=0)
    for _ in range(25):
        observation, _, _, _, info = env.step(policy.act(observation))
    assert info["completed"] == () or set(info["completed"])
    env.close()


def test_the_second_call_only_redoes_what_a_change_asks_for(folder: Path, config: Path, first_output: str) -> None:
    output = finish(start("run", config))
    assert done(output) == ["Report"]
    assert output.count("there already") == 6

    further = finish(start("run", config, "--set", "train.env_steps=480"))
    assert done(further) == ["Training spirl_cl", "Evaluating spirl_cl", "Report"]
    (policy,) = (folder / "out" / "policy").glob("spirl_cl-*")
    history = json.loads((policy / "provenance.json").read_text())["processes"]
    assert len(history) == 2
    assert history[1]["from_env_steps"] >= 400
    steps = [int(row["env_steps"]) for row in rows(policy / "metrics.csv")]
    assert steps == sorted(set(steps))
    assert steps[-1] >= 480

    changed = finish(start("run", config, "--set", "train.batch_size=8", "--set", "train.env_steps=100"))
    assert done(changed) == ["Training spirl_cl", "Evaluating spirl_cl", "Report"]
    assert len(list((folder / "out" / "policy").glob("spirl_cl-*"))) == 2


@pytest.fixture
def slow_config(tmp_path: Path) -> Path:
    """Long enough to be interrupted in every stage."""
    return write_config(
        tmp_path,
        data__sources__0__episodes=120,
        data__shards=12,
        pretrain__updates=2000,
        pretrain__checkpoint_every=100,
        pretrain__log_every=100,
        train__env_steps=1600,
        train__checkpoint_every=200,
        evaluate__episodes=30,
    )


@pytest.mark.interrupts
def test_a_run_that_is_killed_in_every_stage_goes_on_each_time(tmp_path: Path, slow_config: Path) -> None:
    out = tmp_path / "out"

    def there(pattern: str) -> bool:
        return next(out.glob(pattern), None) is not None

    moments: dict[str, Callable[[], bool]] = {
        "import": lambda: there("data/.*.partial-*/shard-*"),
        "pretrain": lambda: there("skills/*/ray_train/checkpoint_*"),
        "training": lambda: there("policy/*/checkpoints/step-*"),
        "evaluation": lambda: there("evaluation/*/episodes-so-far.csv"),
        "report": lambda: there("evaluation/*/summary.json"),
    }
    saved_steps = 0
    for stage, moment in moments.items():
        process = start("run", slow_config)
        until(process, moment)
        os.kill(process.pid, signal.SIGKILL)
        process.communicate(timeout=60)
        assert_nothing_is_left(process)
        if stage == "pretrain":
            assert not there("skills/*/skill.json")
        if stage == "training":
            saved_steps = max(int(path.name.split("-")[1]) for path in out.glob("policy/*/checkpoints/step-*"))
            assert 0 < saved_steps < 1600
    output = finish(start("run", slow_config))
    assert done(output) == ["Report"]

    (policy,) = out.glob("policy/spirl_cl-*")
    history = json.loads((policy / "provenance.json").read_text())["processes"]
    assert [entry["from_env_steps"] for entry in history] == [0, saved_steps]
    metrics = rows(policy / "metrics.csv")
    steps = [int(row["env_steps"]) for row in metrics]
    assert steps == sorted(set(steps))
    assert saved_steps in steps
    trained = json.loads((policy / "trained.json").read_text())
    assert steps[-1] == trained["env_steps"]
    assert int(metrics[-1]["updates"]) == trained["updates"]
    # One update for each decision after the warm-up, as in an unbroken run.
    assert trained["decisions"] - trained["updates"] <= 8 + 4
    (skills,) = out.glob("skills/*/metrics.csv")
    assert [float(row["update"]) for row in rows(skills)] == list(range(100, 2001, 100))
    (episodes,) = out.glob("evaluation/*/episodes.csv")
    assert len({(row["mode"], row["episode"]) for row in rows(episodes)}) == len(rows(episodes)) == 60


@pytest.mark.interrupts
@pytest.mark.parametrize("stage", ["pretrain", "training"])
def test_ctrl_c_exits_130_without_a_traceback_and_can_be_gone_on_from(
    tmp_path: Path, slow_config: Path, stage: str
) -> None:
    pattern = "skills/*/metrics.csv" if stage == "pretrain" else "policy/*/checkpoints/step-*"
    process = start("train", slow_config)
    until(process, lambda: next((tmp_path / "out").glob(pattern), None))
    os.kill(process.pid, signal.SIGINT)
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 130, output
    assert "Traceback" not in output
    assert "the same command goes on" in output
    assert_nothing_is_left(process)
    finish(start("train", slow_config))


@pytest.mark.interrupts
def test_two_processes_share_a_folder(tmp_path: Path) -> None:
    config = write_config(tmp_path)
    processes = [start("train", config, "--set", f"seeds=[{seed}]") for seed in (0, 1)]
    outputs = [finish(process) for process in processes]
    assert sum(line.startswith("done  Data") for text in outputs for line in text.splitlines()) == 1
    assert len(list((tmp_path / "out" / "policy").glob("*/trained.json"))) == 2
