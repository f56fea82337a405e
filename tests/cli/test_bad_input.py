"""Bad input through the command line: status 2, one message that names the culprit, nothing overwritten."""

from __future__ import annotations

import errno
import hashlib
import logging
import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import gymnasium
import minari
import numpy as np
import pytest
import yaml
from click.testing import Result
from minari.data_collector import EpisodeBuffer
from toy import write_config
from toy_skills import save_toy_policy, save_toy_skills, toy_model
from typer.testing import CliRunner

from spirl_ray.cli import main as cli
from spirl_ray.config import EnvironmentSettings, load_experiment
from spirl_ray.envs import environment
from spirl_ray.files import layout
from spirl_ray.pipeline.workspace import Trial, Workspace
from spirl_ray.skills.artifact import save_skills
from spirl_ray.skills.model import SkillModel

runner = CliRunner()


@pytest.fixture(autouse=True)
def ray_logs_to_streams_that_are_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray's loggers keep the streams of the first command that ran in this process, which are closed by now."""
    monkeypatch.setattr(logging, "raiseExceptions", False)


def spirl(*arguments: str | Path) -> Result:
    return runner.invoke(cli.app, list(map(str, arguments)))


def assert_refused(result: Result, *named: str) -> None:
    """Status 2 and one message with every name in it."""
    assert result.exit_code == 2, result.output
    assert result.output.count("Error:") == 1
    assert "Traceback" not in result.output
    message = result.output.partition("Error:")[2]
    for name in named:
        assert name in message, message


def hashes(folder: Path) -> dict[str, str]:
    """Of every file but the locks, and the status, which also says that a stage has failed."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and not path.name.endswith(".lock") and path.parent.name != layout.STATUS
    }


# --- the config ---


@pytest.mark.parametrize("command", [["run"], ["data", "import"], ["report"]])
def test_an_unknown_key_is_named_with_the_known_ones(tmp_path: Path, command: list[str]) -> None:
    result = spirl(*command, write_config(tmp_path, train__env_stepz=9))
    assert_refused(result, "train.env_stepz", "unknown key", "env_steps", "toy.yaml")
    assert not (tmp_path / "out").exists()


def test_a_wrong_type_is_named_with_what_was_found(tmp_path: Path) -> None:
    result = spirl("run", write_config(tmp_path), "--set", "train.env_steps=many")
    assert_refused(result, "train.env_steps", "'many'")
    assert not (tmp_path / "out").exists()


def test_a_missing_config_is_named_with_its_square_brackets(tmp_path: Path) -> None:
    assert_refused(spirl("run", tmp_path / "[kettle].yaml"), "[kettle].yaml", "No such file")


def test_a_config_that_is_no_yaml_is_named(tmp_path: Path) -> None:
    (tmp_path / "x.yaml").write_text("train: [")
    assert_refused(spirl("run", tmp_path / "x.yaml"), "x.yaml", "not valid YAML")


def test_an_unknown_environment_or_argument_is_said_before_any_work(tmp_path: Path) -> None:
    assert_refused(spirl("run", write_config(tmp_path), "--set", "env.id=spirl/Moon-v0"), "spirl/Moon-v0")
    assert_refused(spirl("run", write_config(tmp_path), "--set", "env.kwargs={pads_: 1}"), "pads_")
    assert not (tmp_path / "out").exists()


# --- the output ---


@pytest.mark.parametrize("place", ["below a file", "in /proc"])
def test_an_output_that_cannot_be_made_is_named(tmp_path: Path, place: str) -> None:
    (tmp_path / "file").write_text("mine")
    out = tmp_path / "file" / "out" if place == "below a file" else Path("/proc/spirl-out")
    assert_refused(spirl("run", write_config(tmp_path, output=str(out))), str(out), "output")
    assert (tmp_path / "file").read_text() == "mine"


def test_the_output_of_another_experiment_is_left_alone(tmp_path: Path) -> None:
    config = write_config(tmp_path)
    Workspace(load_experiment(config)).reserve()
    before = hashes(tmp_path / "out")
    assert_refused(spirl("run", config, "--set", "name=other"), "'toy'", "'other'", "--set output=")
    assert hashes(tmp_path / "out") == before


def test_a_full_disk_at_the_start_is_one_message(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    assert_refused(spirl("run", write_config(tmp_path)), "experiment.json", "No space left", "output")
    assert hashes(tmp_path / "out") == {}


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 16 KiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=16k", "tmpfs", folder], capture_output=True)
    if mounted.returncode:
        pytest.skip("mounting a small file system is not allowed here")
    yield folder
    subprocess.run(["umount", "-l", folder], check=True)


@pytest.mark.slow
@pytest.mark.usefixtures("local_ray")
def test_a_disk_that_fills_up_in_a_task_is_one_message(tmp_path: Path, small_disk: Path) -> None:
    result = spirl(
        "data", "import", write_config(tmp_path, output=str(small_disk / "out"), data__sources__0__episodes=40)
    )
    assert_refused(result, str(small_disk), "No space left")
    assert [path.name for path in (small_disk / "out" / "data").iterdir() if not path.name.startswith(".")] == []


# --- the data ---


def minari_root(folder: Path, change: Callable[[EpisodeBuffer], None], width: int = 9) -> Path:
    """A Minari root with one episode for the kitchen, changed by ``change``; actions have ``width`` entries."""
    rng = np.random.default_rng(0)
    buffer = EpisodeBuffer(
        id=0,
        observations=list(rng.normal(size=(13, 59))),
        actions=list(rng.uniform(-1, 1, (12, width))),
        rewards=[0.0] * 12,
        terminations=[False] * 12,
        truncations=[False] * 11 + [True],
        infos={},
    )
    change(buffer)
    folder.mkdir()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MINARI_DATASETS_PATH", str(folder))
        minari.create_dataset_from_buffers(
            dataset_id="made/kitchen-v0",
            buffer=[buffer],
            observation_space=gymnasium.spaces.Box(-np.inf, np.inf, (59,), np.float64),
            action_space=gymnasium.spaces.Box(-np.inf, np.inf, (width,), np.float64),
            author="A. Tester",
            author_email="none",
            algorithm_name="none",
            description="made by a test",
            code_permalink="none",
        )
    return folder


def kitchen_config(folder: Path, root: Path) -> Path:
    config = write_config(folder)
    raw = yaml.safe_load(config.read_text())
    raw["env"] = {"id": "spirl/Kitchen-v0"}
    raw["data"] = {"sources": [{"type": "minari", "id": "made/kitchen-v0", "root": str(root)}]}
    config.write_text(yaml.safe_dump(raw))
    return config


@pytest.mark.slow
@pytest.mark.usefixtures("local_ray")
@pytest.mark.filterwarnings("ignore::UserWarning:minari")
def test_bad_trajectories_are_refused_by_episode_field_and_row(tmp_path: Path) -> None:
    def nan(buffer: EpisodeBuffer) -> None:
        buffer.observations[3][20] = np.nan

    root = minari_root(tmp_path / "nan", nan)
    result = spirl("data", "import", kitchen_config(tmp_path, root))
    assert_refused(result, "made/kitchen-v0:00000", "objects", "row 3", "nan")

    root = minari_root(tmp_path / "wide", lambda buffer: None, width=8)
    result = spirl("data", "import", kitchen_config(tmp_path, root))
    assert_refused(result, "data.sources.0", "actions", "8", "9")

    result = spirl("data", "import", kitchen_config(tmp_path, tmp_path / "nowhere"))
    assert_refused(result, str(tmp_path / "nowhere"))
    assert [p.name for p in (tmp_path / "out" / "data").iterdir() if not p.name.startswith(".")] == []


@pytest.fixture(scope="module")
def imported(tmp_path_factory: pytest.TempPathFactory, local_ray: None) -> Path:
    """A toy experiment's folder with its dataset."""
    folder = tmp_path_factory.mktemp("imported")
    assert spirl("data", "import", write_config(folder)).exit_code == 0
    return folder


@pytest.fixture
def experiment(imported: Path, tmp_path: Path) -> Trial:
    """The imported dataset in a folder of the test's own, and untrained skills beside it."""
    import shutil

    shutil.copytree(imported / "out", tmp_path / "out")
    workspace = Workspace(load_experiment(write_config(tmp_path)))
    trial = workspace.trial("spirl_cl", 0)
    save_skills(
        trial.skills,
        SkillModel(trial.spec),
        environment="spirl/PointPads-v0",
        dataset_sha256="",
        pretrain={"augmentation": {"kind": "none"}},
        seed=0,
        metrics={},
        package_version="test",
    )
    return trial


def config_of(trial: Trial) -> Path:
    return trial.workspace.folder.parent / "toy.yaml"


def flip_last_byte(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


@pytest.mark.slow
@pytest.mark.parametrize("damage", ["missing", "truncated", "flipped"])
def test_a_damaged_data_file_is_named_before_stage_1(experiment: Trial, damage: str) -> None:
    (experiment.skills / "skill.json").unlink()
    file = next(experiment.workspace.dataset.glob("*.parquet"))
    if damage == "missing":
        file.unlink()
    elif damage == "truncated":
        file.write_bytes(file.read_bytes()[:-100])
    else:
        flip_last_byte(file)
    before = hashes(experiment.workspace.folder)
    assert_refused(spirl("pretrain", config_of(experiment)), file.name, "import the data again")
    assert_refused(spirl("data", "validate", experiment.workspace.dataset), file.name)
    assert hashes(experiment.workspace.folder) == before


@pytest.mark.slow
def test_an_error_in_a_training_worker_is_one_message(experiment: Trial) -> None:
    result = spirl("pretrain", config_of(experiment), "--set", "pretrain.learning_rate=1e30")
    assert_refused(result, "pretrain.learning_rate")


# --- artifacts ---


@pytest.mark.slow
@pytest.mark.parametrize("command", ["prior", "train"])
def test_skills_with_a_flipped_byte_are_refused(experiment: Trial, command: str) -> None:
    flip_last_byte(experiment.skills / "skills.safetensors")
    before = hashes(experiment.workspace.folder)
    assert_refused(spirl(command, config_of(experiment)), "skills.safetensors", "SHA-256")
    assert hashes(experiment.workspace.folder) == before


@pytest.mark.slow
@pytest.mark.parametrize("command", ["prior", "train"])
def test_skills_of_another_environment_are_refused(experiment: Trial, command: str) -> None:
    kitchen = environment("spirl/Kitchen-v0")
    save_toy_skills(experiment.skills, toy_model("closed_loop", kitchen.features, kitchen.action_dim), kitchen.id)
    assert_refused(spirl(command, config_of(experiment)), "feature 'robot'")


def save_untrained_policy(trial: Trial, env_id: str) -> None:
    save_toy_policy(
        trial.policy,
        trial.skills,
        environment("spirl/PointPads-v0").features,
        environment=EnvironmentSettings(id=env_id),
        method=trial.method,
        seed=trial.seed,
        env_steps=400,
        config_hash=trial.config_hash,
    )
    (trial.policy / "trained.json").write_text('{"env_steps": 400}')


@pytest.mark.slow
def test_a_policy_with_a_flipped_byte_or_of_another_environment_is_not_evaluated(experiment: Trial) -> None:
    save_untrained_policy(experiment, "spirl/Kitchen-v0")
    assert_refused(spirl("evaluate", config_of(experiment)), "spirl/Kitchen-v0", "spirl/PointPads-v0")
    save_untrained_policy(experiment, "spirl/PointPads-v0")
    flip_last_byte(experiment.policy / "policy.safetensors")
    assert_refused(spirl("evaluate", config_of(experiment)), "policy.safetensors", "SHA-256")
    assert not (experiment.evaluation / "summary.json").exists()


@pytest.mark.slow
def test_an_evaluation_without_a_policy_says_what_to_run(experiment: Trial) -> None:
    assert_refused(spirl("evaluate", config_of(experiment)), "spirl_cl, seed 0", "spirl train")
