"""The scripts of ``examples/`` run as a user starts them, at toy size."""

from __future__ import annotations

import contextlib
import importlib
import io
import json
import os
import re
import runpy
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from toy_skills import save_toy_skills

import spirl_ray
import spirl_ray.envs as envs
from spirl_ray.config import EnvironmentSettings, Experiment, TrainSettings, load_experiment
from spirl_ray.datasets.opened import open_data
from spirl_ray.datasets.sources import source_options
from spirl_ray.episodes.dataset import read_card
from spirl_ray.errors import SpirlError
from spirl_ray.files.tensors import read_tensors
from spirl_ray.policy.policy import save_policy
from spirl_ray.rl.methods import METHODS, method_config, skill_spec
from spirl_ray.rl.policy_network import PolicyNetwork, policy_spec
from spirl_ray.rl.replay import DecisionReplay
from spirl_ray.skills.artifact import load_skills
from spirl_ray.skills.model import SkillModel

EXAMPLES = Path(__file__).parents[1] / "examples"
PADS = "spirl/PointPads-v0"
STEPS = 30
ON_PADS = ("--environment", PADS, "--arguments", json.dumps({"tasks": ["north"]}), "--max-episode-steps", STEPS)
SMALL = ("--training", json.dumps({"critic_width": 8, "critic_layers": 1, "batch_size": 16, "warmup_decisions": 8}))
TOY_SIZE = (
    *("data.shards=2", "pretrain.updates=20", "pretrain.log_every=20", "skills.width=16", "skills.prior_layers=1"),
    *("train.env_steps=200", "train.evaluate_every=200", "train.evaluate_episodes=1", "train.warmup_decisions=8"),
    *("evaluate.episodes=1", "evaluate.prior_episodes=1", "evaluate.videos=0", "ray.object_store_mb=80"),
)
MakeSkills = Callable[..., Path]
LONG = pytest.mark.skipif("SPIRL_TEST_LONG" not in os.environ, reason="takes minutes: set SPIRL_TEST_LONG=1 to run it")


def run(script: str, *arguments: object, folder: Path | None = None) -> list[str]:
    """The lines that a script prints when it is started in a folder; it must succeed."""
    return started(EXAMPLES / script, *arguments, folder=folder)


def run_here(script: str, *arguments: object) -> list[str]:
    """The lines that a script prints when it is run in this process, with the Ray instance of the test session."""
    printed, before = io.StringIO(), sys.argv
    sys.argv = [script, *map(str, arguments)]
    try:
        with contextlib.redirect_stdout(printed):
            runpy.run_path(str(EXAMPLES / script), run_name="__main__")
    finally:
        sys.argv = before
    return printed.getvalue().splitlines()


def spirl(*arguments: object, folder: Path) -> list[str]:
    """The lines that a command prints when it is started in a folder; it must succeed."""
    return started("-m", "spirl_ray.cli", *arguments, folder=folder)


def started(*command: object, folder: Path | None) -> list[str]:
    # Other tests have set Ray's variables in this process, such as RAY_ENABLE_AUTO_CONNECT; a user has not.
    clean = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    path = os.pathsep.join([str(EXAMPLES.parent), clean.get("PYTHONPATH", "")])
    # Short, because Ray's socket paths must fit in 107 bytes; patient, for busy machines.
    with tempfile.TemporaryDirectory(prefix="spirl-", dir="/tmp", ignore_cleanup_errors=True) as sockets:
        done = subprocess.run(
            [sys.executable, *map(str, command)],
            cwd=folder,
            capture_output=True,
            text=True,
            timeout=900,
            env={**clean, "PYTHONPATH": path, "RAY_TMPDIR": sockets, "RAY_raylet_start_wait_time_s": "120"},
        )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout.splitlines()


def test_every_example_is_in_the_list_and_has_a_test() -> None:
    files = {path.relative_to(EXAMPLES) for path in EXAMPLES.rglob("*.py")}
    scripts = {file.as_posix() for file in files if "my_tasks" not in file.parts}
    listed = re.findall(r"`([\w/]+\.(?:py|yaml))`", (EXAMPLES / "README.md").read_text())
    assert scripts == {name for name in listed if name.endswith(".py")}
    tested = Path(__file__).read_text()
    assert not [name for name in scripts if Path(name).name not in tested and f'"{Path(name).stem}"' not in tested]
    configs = {path.relative_to(EXAMPLES).as_posix() for path in EXAMPLES.rglob("*.yaml")}
    assert configs == {name for name in listed if name.endswith(".yaml")}


@pytest.mark.parametrize("config", sorted(EXAMPLES.rglob("*.yaml")), ids=lambda config: config.stem)
def test_a_config_can_be_read(config: Path) -> None:
    experiment = load_experiment(config)
    assert experiment.name == config.stem
    for place, source in enumerate(experiment.data.sources):
        source_options(source, place)


@LONG
@pytest.mark.slow
def test_a_hand_is_recorded_and_learned_from(tmp_path: Path) -> None:
    printed = run("adroit_door.py", "--quick", "--steps", 60, folder=tmp_path)
    assert [line.split()[1] for line in printed if line.startswith("finished")][-1] == "report"
    assert (tmp_path / "runs/adroit_door_quick/report/report.html").exists()


@pytest.mark.slow
def test_an_environment_of_ones_own_is_learned(tmp_path: Path) -> None:
    folder = shutil.copytree(EXAMPLES / "own_environment", tmp_path / "own")
    spirl("run", "drawer.yaml", "--set", "data.sources.0.episodes=6", *TOY_SIZE, folder=folder)
    (rows,) = folder.glob("runs/drawer/evaluation/*/episodes.csv")
    header = rows.read_text().splitlines()[0].split(",")
    assert {"success", "completed", "return"} <= set(header)


@pytest.mark.slow
def test_the_noise_of_a_frozen_policy_is_chosen(tmp_path: Path) -> None:
    shutil.copytree(EXAMPLES / "own_environment", tmp_path / "own_environment")
    folder = shutil.copytree(EXAMPLES / "frozen_policy", tmp_path / "frozen_policy")
    started(folder / "diffusion.py", "--episodes", 2, "--updates", 5, folder=folder)
    spirl("run", "frozen_policy.yaml", "--set", "data.sources.0.episodes=6", *TOY_SIZE, folder=folder)
    (skills,) = folder.glob("runs/frozen_policy/skills/*/skill.json")
    model = read_tensors(skills.parent / "skills.safetensors")
    trained = torch.load(folder / "policy.pt", weights_only=True)
    assert all(torch.equal(model[f"codec.policy.{name}"], value) for name, value in trained.items())
    assert list(folder.glob("runs/frozen_policy/evaluation/*/episodes.csv"))


def test_arrays_become_a_dataset_that_the_config_reads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    run_here("own_arrays.py", "--episodes", 3)
    experiment = load_experiment(EXAMPLES / "own_arrays.yaml")
    source = open_data(experiment.data, experiment.interface, None).source
    episodes = [episode for chunk in source.chunks() for episode in source.read(chunk)]
    assert len(episodes) == 3
    assert {name: value.shape for name, value in episodes[0].observations.items()} == {
        "joints": (61, 2),
        "camera": (61, 32, 32, 1),
    }
    assert np.abs(episodes[0].actions).max() <= 1.0


def run_notebook(**parameters: int) -> dict[str, Any]:
    """What the notebook has defined at its end; ``parameters`` replace those of its first cell."""
    defined: dict[str, Any] = {}
    cells = json.loads((EXAMPLES / "your_data.ipynb").read_text())["cells"]
    for cell in (cell for cell in cells if cell["cell_type"] == "code"):
        exec("".join(cell["source"]), defined)
        if cell["metadata"].get("tags") == ["parameters"]:
            assert parameters.keys() <= defined.keys()
            defined |= parameters
    return defined


def test_the_notebook_goes_from_arrays_to_what_the_prior_knows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With untrained skills of the notebook's settings in place of stage 1, which takes a Ray."""

    def untrained(experiment: Experiment) -> tuple[SimpleNamespace]:
        card = read_card(Path("data/hand"))
        spec = skill_spec(experiment.skills, experiment.methods[0], card.features, 2, card.actions)
        return (SimpleNamespace(folder=save_toy_skills(tmp_path / "skills", SkillModel(spec)), findings=()),)

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(plt, "show", plt.close)
    monkeypatch.setattr(spirl_ray, "pretrain", untrained)
    defined = run_notebook(EPISODES=9)
    assert read_card(tmp_path / "data" / "hand").episodes == 9
    assert defined["paths"].shape == (40, 40, 2)


@LONG
@pytest.mark.slow
def test_the_notebook_trains_skills(local_ray: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(plt, "show", plt.close)
    assert run_notebook(EPISODES=12, UPDATES=20)["model"].spec.features == ("position",)


@pytest.mark.slow
def test_a_lerobot_folder_is_written_and_read(tmp_path: Path) -> None:
    run("lerobot_folder.py", "--episodes", 3, folder=tmp_path)
    config = EXAMPLES / "lerobot_folder.yaml"
    printed = "\n".join(spirl("data", "import", config, "--dry-run", folder=tmp_path))
    assert re.search(r"front\W+observation\.images\.front", printed)
    assert "3 of 3 episodes" in printed


@LONG
@pytest.mark.slow
def test_skills_are_learned_from_a_lerobot_folder(tmp_path: Path) -> None:
    run("lerobot_folder.py", "--episodes", 4, folder=tmp_path)
    spirl("pretrain", EXAMPLES / "lerobot_folder.yaml", "--set", *TOY_SIZE, folder=tmp_path)
    (skills,) = tmp_path.glob("runs/lerobot_folder/skills/*/skill.json")
    spec = load_skills(skills.parent).spec
    assert spec.features == ("arm", "front")
    assert spec.actions is not None


needs_ogbench = pytest.mark.skipif(
    find_spec("ogbench") is None, reason="OGBench is not installed: pip install -e '.[ogbench]'"
)


@needs_ogbench
@pytest.mark.slow
@pytest.mark.parametrize("config", ["cube_single", "cube_double", "scene"])
def test_play_is_recorded_with_ogbench(tmp_path: Path, config: str) -> None:
    folder = shutil.copytree(EXAMPLES / "ogbench", tmp_path / "ogbench")
    few = ("data.sources.0.episodes=2", "data.sources.0.options.rows=120", "data.shards=2")
    printed = "\n".join(spirl("data", "import", f"{config}.yaml", "--set", *few, folder=folder))
    assert "episodes 2 · steps 238" in printed


@needs_ogbench
@pytest.mark.parametrize("environment", ["cube-single", "cube-double", "scene"])
def test_the_judge_of_ogbench_gives_the_rewards_of_its_environments(
    monkeypatch: pytest.MonkeyPatch, environment: str
) -> None:
    import gymnasium
    import mujoco

    monkeypatch.syspath_prepend(EXAMPLES / "ogbench")
    judge = importlib.import_module("ogbench_judge").judge
    rng, found, given = np.random.default_rng(0), [], []
    for task in range(1, 6):
        env: Any = gymnasium.make(f"{environment}-singletask-v0", reward_task_id=task).unwrapped
        env.reset(seed=task)
        goal = {"block_xyzs": env.task_infos[task - 1].get("goal_xyzs"), **env.task_infos[task - 1].get("goal", {})}
        for _ in range(40):
            # Everything is put near its target, so that it is there in about half of the states.
            for number, place in enumerate(goal["block_xyzs"]):
                env._data.joint(f"object_joint_{number}").qpos[:3] = place + rng.normal(0.0, 0.02, 3)
            if environment == "scene":
                env._cur_button_states = rng.integers(0, 2, 2)
                env._data.joint("drawer_slide").qpos[0] = goal["drawer_pos"] + rng.normal(0.0, 0.04)
                env._data.joint("window_slide").qpos[0] = goal["window_pos"] + rng.normal(0.0, 0.04)
            mujoco.mj_forward(env._model, env._data)
            state = np.asarray(env.compute_observation(), np.float32)
            # The state before the step counts, whatever is after it.
            episode = SimpleNamespace(observations={"observation": np.stack([state, rng.permutation(state)])})
            [reward], [end] = judge({"reward_task_id": task}, episode)
            found.append(reward)
            given.append(env.compute_reward())
            assert end == (reward == 0.0)
    assert found == given
    assert 0.0 in found
    assert len(set(found)) >= {"cube-single": 2, "cube-double": 3, "scene": 4}[environment]
    for wrong in ({"reward_task_id": 0}, {"reward_task_id": 6}, {}):
        with pytest.raises(SpirlError, match=r"env\.kwargs\.reward_task_id"):
            judge(wrong, episode)


@needs_ogbench
def test_play_of_the_scene_leaves_out_cubes_that_are_out_of_sight(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(EXAMPLES / "ogbench")
    play = importlib.import_module("ogbench_play")

    def sound(*place: float) -> bool:
        recorded = np.zeros((5, 40), np.float32)
        recorded[3, play.ROBOT : play.ROBOT + 3] = (np.array(place) - play.CENTRE) * play.SCALE
        return bool(play._is_sound(recorded))

    assert sound(0.4, 0.0, 0.02)
    assert sound(0.4, -0.35, 0.07)  # in the drawer
    for place in ((0.4, 0.3, 0.02), (0.4, -0.35, 0.02), (0.4, 0.0, 0.9), (np.nan, 0.0, 0.02)):
        assert not sound(*place)


def saved_policy(make_skills: MakeSkills, tmp_path: Path) -> Path:
    """The folder of an untrained policy for the pads."""
    skills = make_skills("closed_loop")
    model = load_skills(skills)
    method = method_config("spirl_cl", TrainSettings(), model.spec)
    spec = policy_spec(model, method, envs.environment(PADS).features)
    save_policy(
        tmp_path / "policy",
        PolicyNetwork(spec, model).state_dict(),
        skills,
        policy=spec,
        environment=EnvironmentSettings(id=PADS, max_episode_steps=STEPS),
        method="spirl_cl",
        seed=0,
        latent_limit=None,
        env_steps=10,
        config_hash="abc",
    )
    return tmp_path / "policy"


def test_a_policy_acts(make_skills: MakeSkills, tmp_path: Path) -> None:
    printed = run("run_policy.py", saved_policy(make_skills, tmp_path), "--episodes", 2)
    assert [re.findall(r"in (\d+) steps", line) for line in printed] == [[str(STEPS)]] * 2


@pytest.mark.slow
@pytest.mark.skipif(find_spec("onnxscript") is None, reason="ONNX is not installed: pip install -e '.[onnx]'")
def test_an_exported_policy_acts_alike(make_skills: MakeSkills, tmp_path: Path) -> None:
    policy, out = saved_policy(make_skills, tmp_path), tmp_path / "exported"
    spirl("export", policy, "--onnx", out, folder=tmp_path)
    assert run("onnx_maze.py", out, 2) == run("run_policy.py", policy, "--episodes", 2)


@pytest.mark.slow
def test_rllib_trains_by_its_own_means(make_skills: MakeSkills) -> None:
    printed = run("rllib_native.py", make_skills("closed_loop"), *ON_PADS, *SMALL, "--iterations", 2)
    progress = [re.findall(r"(\d+) decisions, (\d+) updates", line) for line in printed if "iteration" in line]
    assert [int(decisions) for [(decisions, _)] in progress] == [16, 32]
    assert int(progress[-1][0][1]) > 0


@pytest.mark.slow
def test_tune_searches_by_its_own_means(make_skills: MakeSkills, tmp_path: Path) -> None:
    sizes = ("--divergences", 1, 4, "--iterations", 2, "--output", tmp_path / "search")
    printed = run("tune_native.py", make_skills("closed_loop"), *ON_PADS, *SMALL, *sizes)
    found = [re.findall(r"target divergence ([\d.]+): (\d+) updates", line) for line in printed]
    updates = {float(divergence): int(count) for [(divergence, count)] in filter(None, found)}
    assert updates.keys() == {1.0, 4.0}
    assert min(updates.values()) > 0


@pytest.mark.slow
def test_a_method_of_ones_own_is_trained(local_ray: None, make_skills: MakeSkills) -> None:
    try:
        printed = run_here("own_method.py", make_skills("open_loop"), *ON_PADS, *SMALL, "--iterations", 2)
    finally:
        METHODS._entries.pop("spirl_recent", None)
    [last] = re.findall(r"iteration 2: 32 decisions, (\d+) updates", "\n".join(printed))
    assert int(last) > 0


def test_a_method_of_ones_own_draws_half_of_a_batch_from_the_newest_decisions() -> None:
    own = runpy.run_path(str(EXAMPLES / "own_method.py"))
    replay = DecisionReplay(4000, 1, 1, seed=0)
    ages = np.arange(5000.0, dtype=np.float32)
    replay.add({name: ages.reshape(-1, *column.shape[1:]) for name, column in replay.columns.items()})
    draws = own["HalfRecent"](SimpleNamespace(replay=replay, config=SimpleNamespace(seed=0)))
    recent = draws.sample(200)["rewards"] >= 5000 - own["RECENT"]
    assert 100 <= recent.sum() < 200
    assert 0 < recent[:100].sum() < 100  # in random order, because each update takes a part
