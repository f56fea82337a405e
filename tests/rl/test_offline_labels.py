"""The labels of demonstrations: who gives them, and what is refused before any training."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from opened import expert_episodes
from stored import write_dataset

import spirl_ray.envs as envs
from spirl_ray.config import EnvironmentSettings
from spirl_ray.config_environment import InterfaceSettings
from spirl_ray.config_train import Labels
from spirl_ray.episodes.episode import Episode
from spirl_ray.errors import SpirlError
from spirl_ray.rl.offline_labels import Labeller

PADS = "spirl/PointPads-v0"


def labeller(labels: Labels = "environment", **interface: Any) -> Labeller:
    return Labeller(EnvironmentSettings(id="Pendulum-v1", interface=InterfaceSettings(**interface)), labels)


def demonstration() -> Episode:
    return expert_episodes(PADS, 1)[0]


def dataset(folder: Path, episode: Episode, *, rewards: bool = True) -> Path:
    spec = envs.environment(PADS)
    written = write_dataset(folder, [[episode]], spec.features, spec.action_dim)
    card = written / "card.json"
    card.write_text(json.dumps({**json.loads(card.read_text()), "rewards": rewards}))
    return written


def test_a_judge_gets_the_arguments_as_the_constructor_does() -> None:
    episode = demonstration()
    first = episode.metadata["completed"][0]
    one, many = (
        Labeller(EnvironmentSettings(id=PADS, kwargs={"tasks": tasks}), "environment")(episode)
        for tasks in (first, [first])
    )
    assert one.rewards.sum() == 1.0
    np.testing.assert_array_equal(one.rewards, many.rewards)


@pytest.mark.parametrize(
    ("reward", "rewards", "refused"),
    [
        ("env", [-3.0, 0.5], None),
        ("success", [0.0, 1.0], None),
        ("success", [0.0, -1.0], "-1"),
        ("success - 1", [-1.0, 0.0], None),
        ("success - 1", [-1.0, -2.0], "-2"),
    ],
)
def test_labels_must_be_rewards_that_the_agent_can_get(reward: str, rewards: list[float], refused: str | None) -> None:
    episode = demonstration()
    episode = replace(episode, rewards=np.resize(np.array(rewards, np.float32), episode.length))
    label = labeller("recorded", reward=reward, success="return >= 0")
    if refused is None:
        np.testing.assert_array_equal(label(episode).rewards, episode.rewards)
        return
    with pytest.raises(SpirlError) as raised:
        label(episode)
    for said in ("train.offline_labels: recorded", f"interface.reward: {reward}", f"gets {refused},", episode.id):
        assert said in str(raised.value)


def test_recordings_without_rewards_have_none_to_use(tmp_path: Path) -> None:
    episode = demonstration()
    with pytest.raises(SpirlError, match=r"train\.offline_labels: recorded: not all recordings in .*without"):
        labeller("recorded").check(dataset(tmp_path / "without", episode, rewards=False))
    labeller("recorded").check(dataset(tmp_path / "with", episode))
    labeller("learned").check(tmp_path / "without")


def test_a_judge_that_fails_is_found_by_the_first_demonstration(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "broken_judge.py").write_text("def judge(arguments, episode): return [0.0], [False]\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    label = labeller(judge="broken_judge:judge")
    with pytest.raises(SpirlError, match=r"judge of recorded states.*shape \[1\]"):
        label.check(dataset(tmp_path / "d", demonstration()))
