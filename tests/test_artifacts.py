"""The policies in ``artifacts/`` act as their page says, without any training."""

from __future__ import annotations

from pathlib import Path

import pytest

import spirl_ray as spirl
import spirl_ray.envs as envs
from spirl_ray.api import evaluate_policy
from spirl_ray.policy.policy import read_policy_card

ARTIFACTS = Path(__file__).parents[1] / "artifacts"
KITCHEN = ARTIFACTS / "kitchen_play"
FOLDERS = sorted(path.parent for path in ARTIFACTS.glob("*/policy.json"))


def test_they_are_small_and_listed() -> None:
    files = [path for path in ARTIFACTS.rglob("*") if path.is_file()]
    assert {path.suffix for path in files} == {".json", ".safetensors", ".md"}
    assert max(path.stat().st_size for path in files) < 2e6
    assert sum(path.stat().st_size for path in files) < 15e6
    page = (ARTIFACTS / "README.md").read_text()
    assert all(f"`{folder.name}`" in page for folder in FOLDERS)


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
def test_each_acts_in_its_environment(folder: Path) -> None:
    policy, env = spirl.load_policy(folder), envs.make(read_policy_card(folder).environment)
    observation, _ = env.reset(seed=0)
    policy.reset(0)
    for _ in range(12):
        action = policy.act(observation)
        assert env.action_space.contains(action)
        observation, *_ = env.step(action)
    env.close()


def test_the_kitchens_policy_completes_what_the_page_says() -> None:
    policy, env = spirl.load_policy(KITCHEN), envs.make(read_policy_card(KITCHEN).environment)
    completed = []
    for seed in range(10_000, 10_003):
        observation, info = env.reset(seed=seed)
        policy.reset(seed)
        ended = False
        while not ended:
            observation, _, terminated, truncated, info = env.step(policy.act(observation))
            ended = terminated or truncated
        completed.append(len(info["completed"]))
    assert completed == [4, 4, 4]


@pytest.mark.slow
@pytest.mark.usefixtures("local_ray")
def test_a_folder_is_evaluated_without_its_experiment(tmp_path: Path) -> None:
    few = ["evaluate.episodes=1", "evaluate.videos=0", f"output={tmp_path}", "evaluate.modes=deterministic"]
    found = evaluate_policy(KITCHEN, few)
    assert (found.score, found.mean("deterministic"), found.seed) == ("subtasks", 4.0, 0)
    assert found.folder.is_relative_to(tmp_path / "evaluation")
    assert not evaluate_policy(KITCHEN, few).ran
    assert evaluate_policy(KITCHEN, [*few, "env.tasks=kettle"]).modes["deterministic"]["subtasks"] <= 1.0


def test_a_folder_without_a_policy_is_refused(tmp_path: Path) -> None:
    with pytest.raises(spirl.SpirlError, match=r"policy\.json"):
        evaluate_policy(tmp_path)
