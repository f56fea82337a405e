"""A new task through the command line: a config is begun, looked at, its data are looked at, and bad input is refused.

Bad input ends with status 2 and one message that names what is wrong and what to write, and nothing is left behind.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from foreign import STEPS
from typer.testing import CliRunner, Result

from spirl_ray.cli import main as cli
from spirl_ray.config import load_experiment

runner = CliRunner()
T = 6
LOW, HIGH = np.array([-1.0, -5.0]), np.array([3.0, 5.0])  # of foreign:Drift


@pytest.fixture(autouse=True)
def in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Each test has a current folder of its own; Ray's loggers keep streams that are closed by now."""
    monkeypatch.setattr(logging, "raiseExceptions", False)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def spirl(*arguments: str | Path) -> Result:
    return runner.invoke(cli.app, list(map(str, arguments)))


def config(source: dict[str, Any] | None = None, **groups: Any) -> Path:
    raw = {
        "name": "task",
        "env": {"id": "foreign:Drift"},
        "data": {"sources": [] if source is None else [source]},
        "output": "out",
        **groups,
    }
    path = Path("task.yaml")
    path.write_text(yaml.safe_dump(raw))
    return path


def arrays(number: int = 0, **changes: Any) -> dict[str, Any]:
    rng = np.random.default_rng(number)
    return {
        "observations": rng.normal(size=(T + 1, 4)),
        "actions": rng.uniform(LOW, HIGH, (T, 2)),
        "rewards": np.zeros(T),
        **changes,
    }


def npz(**changes: Any) -> dict[str, Any]:
    """A source with one good episode and, in a second file, one with these changes."""
    folder = Path("recorded")
    folder.mkdir()
    np.savez(folder / "a.npz", **arrays(0))
    np.savez(folder / "b.npz", **{name: value for name, value in arrays(1, **changes).items() if value is not None})
    return {"type": "npz", "path": "recorded", "layout": "episodes"}


# --- a new task ---


def test_a_config_is_begun_and_is_valid() -> None:
    result = spirl("init", "drift", "--env", "foreign:Drift")
    assert result.exit_code == 0, result.output
    experiment = load_experiment("drift.yaml")
    assert experiment.environment.id == "foreign:Drift"
    assert experiment.env.max_episode_steps == STEPS
    assert experiment.interface.observation == ("observation",)
    assert "Box([-1. -5.]" in Path("drift.yaml").read_text()
    again = spirl("init", "drift", "--env", "foreign:Nested")
    assert again.exit_code == 2
    assert "drift.yaml" in again.output
    assert load_experiment("drift.yaml").env.id == "foreign:Drift"


def test_a_config_of_a_nested_environment_names_its_keys() -> None:
    assert spirl("init", "nested", "--env", "foreign:Nested").exit_code == 0
    interface = load_experiment("nested.yaml").interface
    assert interface.observation is not None
    assert set(interface.observation) == {"arm.joints", "arm.grip"}
    assert interface.goal == ("desired_goal",)
    assert interface.images is not None
    assert interface.images["camera"].key == "camera"
    assert "achieved_goal" in Path("nested.yaml").read_text()


def test_a_begun_config_makes_the_same_environment_again() -> None:
    Path("mine_to_ship.py").write_text(
        "import gymnasium\n\ndef make(limit):\n    return gymnasium.make('Pendulum-v1', max_episode_steps=limit)\n"
    )
    result = spirl("init", "mine", "--env", "mine_to_ship:make", "--kwargs", "{limit: 7}")
    assert result.exit_code == 0, result.output
    experiment = load_experiment("mine.yaml")
    assert experiment.env.kwargs == {"limit": 7}
    assert [path.name for path in experiment.submit.ship] == ["mine_to_ship.py"]


def test_without_an_environment_a_config_of_data_alone_is_begun() -> None:
    result = spirl("init", "mine")
    assert result.exit_code == 0, result.output
    assert load_experiment("mine.yaml").env.id is None


@pytest.mark.parametrize("given", ["{limit: ", "3", "{limit: 1, limit: 2}"])
def test_arguments_that_are_no_mapping_are_refused_before_anything_is_written(given: str) -> None:
    result = spirl("init", "mine", "--env", "Pendulum-v1", "--kwargs", given)
    assert (result.exit_code, "--kwargs" in result.output) == (2, True), result.output
    assert not Path("mine.yaml").exists()


def test_what_a_check_prints_says_what_the_config_said() -> None:
    said = {
        "imports": ["foreign"],
        "observation": ["arm.joints"],
        "goal": ["desired_goal"],
        "images": {"view": {"key": "camera", "frames": 2, "grey": True}},
        "action": {"low": [-0.5], "high": [0.5]},
        "success": "none",
        "completed": "builtins:list",
        "position_target": {"feature": "arm_joints", "positions": [0, None], "gain": [0.1]},
    }
    result = spirl("env", "check", config(env={"id": "foreign:Nested"}, interface=said), "--steps", "3")
    assert result.exit_code == 0, result.output
    printed = result.output[result.output.index("interface:") : result.output.index("Next:")]
    again = load_experiment({"name": "again", **yaml.safe_load(printed)}).interface
    before = load_experiment("task.yaml").interface
    assert again.images is not None
    assert (again.images["view"].frames, again.images["view"].grey) == (2, True)
    assert again.model_copy(update={"images": None}) == before.model_copy(update={"images": None})


def test_a_check_shows_what_is_read_and_measured() -> None:
    result = spirl("env", "check", config(env={"id": "foreign:Random"}), "--steps", str(2 * STEPS))
    assert result.exit_code == 0, result.output
    for shown in ("observation", "Box(", "2 of 2", "another course", "interface:", "ms"):
        assert shown in result.output


def test_a_look_at_data_writes_nothing() -> None:
    result = spirl("data", "import", config(npz()), "--dry-run")
    assert result.exit_code == 0, result.output
    for shown in ("npz:", "float64 [4]", "Mapping", "Nothing would be refused", "2 of 2"):
        assert shown in result.output
    assert not Path("out").exists()


def test_a_look_at_data_alone_leads_to_skills() -> None:
    result = spirl(
        "data", "import", config(npz(), env={}, interface={"action": {"low": [-5], "high": [5]}}), "--dry-run"
    )
    assert result.exit_code == 0, result.output
    assert "spirl pretrain task.yaml" in result.output
    assert "spirl run" not in result.output


# --- bad input ---


def short_rewards() -> dict[str, Any]:
    return npz(rewards=np.zeros(T - 2))


def truncated_npz() -> dict[str, Any]:
    source = npz()
    file = Path("recorded/b.npz")
    file.write_bytes(file.read_bytes()[:-200])
    return source


def no_file() -> dict[str, Any]:
    return {"type": "npz", "path": "nowhere.npz"}


def text_for_hdf5() -> dict[str, Any]:
    Path("demos.hdf5").write_text("these are no demonstrations")
    return {"type": "hdf5", "path": "demos.hdf5"}


def raw_robomimic() -> dict[str, Any]:
    with h5py.File("demos.hdf5", "w") as file:
        demo = file.create_group("data/demo_0")
        demo["actions"], demo["states"] = np.zeros((T, 2)), np.zeros((T, 9))
    return {"type": "hdf5", "path": "demos.hdf5"}


def unknown_filter() -> dict[str, Any]:
    with h5py.File("demos.hdf5", "w") as file:
        demo = file.create_group("data/demo_0")
        demo["actions"], demo["obs/state"], demo["next_obs/state"] = (np.zeros((T, n)) for n in (2, 4, 4))
        file["mask/train"] = np.array([b"demo_0"])
    return {"type": "hdf5", "path": "demos.hdf5", "filter": "valid"}


def parquet_without_episodes() -> dict[str, Any]:
    pq.write_table(pa.table({"state": [[0.0] * 4] * T, "action": [[0.0] * 2] * T}), "steps.parquet")
    return {"type": "parquet", "path": "steps.parquet", "rows": "step", "episode": "episode_index"}


def no_function() -> dict[str, Any]:
    return {"type": "python", "call": "foreign:no_such_function"}


def failing_function() -> dict[str, Any]:
    Path("recordings_of_mine.py").write_text("def episodes():\n    raise ValueError('tape 7 is torn')\n    yield {}\n")
    return {"type": "python", "call": "recordings_of_mine:episodes"}


def empty_lerobot() -> dict[str, Any]:
    Path("my_set").mkdir()
    return {"type": "lerobot", "path": "my_set"}


def no_minari() -> dict[str, Any]:
    Path("root").mkdir()
    return {"type": "minari", "id": "no/such-v0", "root": "root"}


BAD_DATA: list[tuple[Callable[[], dict[str, Any]], list[str]]] = [
    (lambda: npz(observations=np.zeros((T + 1, 5))), ["episode 'b'", "[5]", "4"]),
    (lambda: npz(observations=np.zeros((T + 3, 4))), ["b.npz", "observation", str(T + 3)]),
    (lambda: npz(actions=np.zeros((T, 3))), ["actions", "3", "2"]),
    (lambda: npz(actions=np.full((T, 2), 4.0)), ["row 0, column 0 is 4", "[-1, 3]", "actions_outside"]),
    (lambda: npz(actions=np.full((T, 2), np.inf)), ["actions", "row 0, column 0", "inf"]),
    (lambda: npz(observations=np.full((T + 1, 4), np.nan)), ["observation", "row 0, column 0", "nan"]),
    (lambda: npz(actions=None), ["b.npz", "actions"]),
    (lambda: {**npz(), "columns": {"observation": "joints"}}, ["columns.observation", "joints", "observation"]),
    (lambda: {**npz(), "colums": {}}, ["data.sources.0", "colums", "columns"]),
    (lambda: {**npz(), "layout": "d5rl"}, ["layout", "d5rl", "episodes"]),
    (lambda: {"type": "tapes"}, ["data.sources.0.type", "tapes", "lerobot"]),
    (lambda: {"type": "npz"}, ["data.sources.0", "path"]),
    (lambda: {"type": "generated"}, ["generated", "foreign:Drift"]),
    (short_rewards, ["b.npz", "rewards", str(T - 2)]),
    (truncated_npz, ["b.npz"]),
    (no_file, ["nowhere.npz"]),
    (text_for_hdf5, ["demos.hdf5"]),
    (raw_robomimic, ["demos.hdf5", "obs"]),
    (unknown_filter, ["demos.hdf5", "valid", "train"]),
    (parquet_without_episodes, ["steps.parquet", "episode_index"]),
    (no_function, ["foreign:no_such_function"]),
    (failing_function, ["recordings_of_mine", "tape 7 is torn", "line 2"]),
    (empty_lerobot, ["my_set", "info.json"]),
    (no_minari, ["no/such-v0", "root"]),
]


@pytest.mark.parametrize(("make", "named"), BAD_DATA)
def test_bad_data_are_refused(
    make: Callable[[], dict[str, Any]], named: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    path = config(make())
    before = sorted(Path().rglob("*"))
    assert_refused(spirl("data", "import", path, "--dry-run"), *named)
    left = [file for file in Path().rglob("*") if file not in before and "__pycache__" not in file.parts]
    assert left == []


BAD_TASKS: list[tuple[dict[str, Any], list[str]]] = [
    ({"env": {"id": "foreign:Buttons"}}, ["Discrete(4)"]),
    ({"env": {"id": "foreign:Boundless"}}, ["interface.action"]),
    ({"env": {"id": "foreign:Endless"}}, ["env.max_episode_steps"]),
    ({"env": {"id": "nowhere:Thing-v0"}}, ["nowhere", "submit.ship"]),
    ({"env": {"id": "foreign:Broken"}}, ["motor 2 is on fire"]),
    ({"env": {"id": "foreign:Drift", "wheels": 4}}, ["wheels"]),
    ({"interface": {"success": "perhaps"}}, ["interface.success", "perhaps"]),
    ({"interface": {"observation": ["joints"]}}, ["interface.observation", "joints"]),
    ({"submit": {"ship": ["nowhere"]}}, ["submit.ship", "nowhere"]),
    ({"skills": {"artifact": "runs/none"}}, ["skills.artifact", "runs/none", "skill.json"]),
    ({"train": {"features": ["joints"]}}, ["train.features", "joints", "observation"]),
    ({"env": {}}, ["env.id"]),
    ({}, ["data.sources"]),
]


@pytest.mark.parametrize(("groups", "named"), BAD_TASKS)
def test_bad_tasks_are_refused_before_any_work(groups: dict[str, Any], named: list[str]) -> None:
    assert_refused(spirl("run", config(**groups)), *named)
    assert not [path for path in Path("out").rglob("*") if path.is_dir()]


def assert_refused(result: Result, *named: str) -> None:
    """Status 2 and one message with every name in it."""
    assert result.exit_code == 2, result.output
    assert [line for line in result.output.splitlines() if line.startswith("Error:")] != []
    assert "Traceback" not in result.output
    message = result.output.partition("Error:")[2]
    assert "\nError:" not in message
    for name in named:
        assert name in message, message
