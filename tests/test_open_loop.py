"""The benchmark of open-loop control: recorded actions, moved back to the demonstration, and its own latents."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest
from toy_skills import save_toy_skills, toy_model

from benchmarks import open_loop
from spirl_ray.envs.kitchen.env import FEATURES, GAIN
from spirl_ray.episodes.episode import Episode


@pytest.fixture(scope="module")
def demonstration() -> Episode:
    return open_loop.demonstrations(1)[0]


def test_the_first_action_of_a_plan_moves_the_arm_back_and_the_others_are_as_recorded(demonstration: Episode) -> None:
    act, robot = open_loop.replayed(demonstration, 5), demonstration.observations["robot"]
    for step in (5, 6):
        elsewhere = {"robot": robot[step] + np.float32(0.01)}
        back = 0.01 / GAIN if step == 5 else 0.0
        expected = np.clip(demonstration.actions[step] - back, -1.0, 1.0)
        np.testing.assert_allclose(act(step, elsewhere), expected, atol=1e-5)


def test_a_demonstration_that_is_put_right_every_step_does_what_it_did(demonstration: Episode) -> None:
    act = open_loop.replayed(demonstration, 1)
    assert open_loop.completed(act, demonstration, len(demonstration.actions), seed=0) == 4


def test_a_table_compares_replays_and_the_latents_of_skills(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, demonstration: Episode
) -> None:
    monkeypatch.setattr(open_loop, "RESULTS", tmp_path)
    monkeypatch.setattr(open_loop, "HORIZONS", (280,))
    monkeypatch.setattr(open_loop, "demonstrations", lambda count: [demonstration])
    folders = [
        save_toy_skills(tmp_path / kind, toy_model(kind, FEATURES, 9), "spirl/Kitchen-v0")
        for kind in ("plan", "open_loop", "closed_loop")
    ]
    monkeypatch.setattr("sys.argv", ["open_loop", "--skills", *map(str, folders)])
    open_loop.main()
    with (tmp_path / "kitchen_open_loop.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [(row["control"], row["decoder"], row["horizon"]) for row in rows] == [
        ("latents", "plan", "5"),
        ("latents", "open_loop", "5"),
        ("latents", "closed_loop", "5"),
        ("replay", "", "280"),
    ]
    assert all(0 <= float(row["subtasks"]) <= 4 for row in rows)
    assert [(row["updates"], row["seed"]) for row in rows] == [("3", "7")] * 3 + [("", "")]
    assert all(row["commit"] and row["cpu"] for row in rows)
