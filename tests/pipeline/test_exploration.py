"""Exploration: who acts how, what counts as covered, and the figure's command from nothing to the report."""

from __future__ import annotations

import csv
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from processes import start
from toy import write_config
from toy_environments import GOAL, SPECS
from toy_skills import toy_model

import spirl_ray.envs as envs
from spirl_ray.config import EnvironmentSettings
from spirl_ray.envs.spec import FloorPlan
from spirl_ray.pipeline.exploration import coverage_rows, explore_with
from spirl_ray.skills.model import SkillModel

MAZE = "spirl/Maze-v0"
SMALL = EnvironmentSettings(
    id=MAZE, kwargs={"layout_seed": 1, "size": 8, "start": None, "goal": None}, max_episode_steps=12
)


def model(decoder: str) -> SkillModel:
    spec = envs.environment(MAZE)
    made = toy_model(decoder, spec.features, spec.action_dim, horizon=4)
    return made.eval().requires_grad_(False)


def test_coverage_counts_cells_episodes_and_ratios() -> None:
    walls = np.ones((6, 6), dtype=bool)
    walls[1:5, 1:5] = False  # 16 free cells
    plan = FloorPlan("position", walls, (1, 1), (4, 4), 1.0)
    still = np.full((2, 5, 2), 1.2, np.float32)
    walked = np.array([[[1, 1], [2, 1], [3.4, 1], [3, 1]], [[4, 1], [4, 2], [4, 3.2], [1, 1]]], np.float32)
    rows = {row["explorer"]: row for row in coverage_rows({"walks": walked, "stays": still}, plan)}
    assert rows["walks"]["coverage"] == pytest.approx(6 / 16)
    assert rows["walks"]["cells_per_episode"] == 3.5
    assert rows["walks"]["reached_goal"] == 0.5
    assert (rows["walks"]["env_steps"], rows["walks"]["episodes"]) == (6, 2)
    assert rows["stays"]["coverage"] == pytest.approx(1 / 16, abs=1e-4)
    assert rows["stays"]["prior_over_this"] == pytest.approx(6.0, rel=0.01)
    assert rows["walks"]["prior_over_this"] == 1.0


@pytest.mark.parametrize("decoder", ["open_loop", "closed_loop", "identity"])
def test_agents_that_act_together_do_what_each_would_alone(decoder: str) -> None:
    skills = model(decoder)
    together = explore_with(skills, "prior", SMALL, [0, 1, 2], seed=4)
    assert together.shape == (3, 13, 2)
    env = envs.make(SMALL)
    for number in range(3):
        np.testing.assert_array_equal(together[number, 0], env.reset(seed=4 + number)[0]["position"])
    again = explore_with(skills, "prior", SMALL, [0, 1, 2], seed=4)
    np.testing.assert_array_equal(together, again)


def test_explorers_differ() -> None:
    paths = [
        explore_with(model("open_loop"), "prior", SMALL, [0], seed=4),
        explore_with(model("open_loop"), "standard_normal", SMALL, [0], seed=4),
        explore_with(None, "prior", SMALL, [0], seed=4),
    ]
    assert (paths[0] != paths[1]).any()
    assert (paths[1] != paths[2]).any()


def test_an_agent_whose_episode_has_ended_stays_where_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    plan = FloorPlan("position", np.zeros((2, 2), np.bool_), None, None, 1.0)
    ends = replace(SPECS["goal"], floor_plan=lambda _: plan)
    monkeypatch.setattr(envs, "environment", lambda _: ends)
    paths = explore_with(None, "prior", EnvironmentSettings(id=GOAL), range(20), seed=4)
    assert paths.shape == (20, ends.max_episode_steps + 1, 2)
    moved = np.abs(np.diff(paths, axis=1)).max(-1) > 0.0
    lengths = {int(np.flatnonzero(row).max()) + 1 for row in moved}
    assert len(lengths) > 1  # some agents reached the target, and the others continued
    assert max(lengths) == ends.max_episode_steps


@pytest.mark.slow
def test_a_maze_from_nothing_to_a_report_and_into_another_layout(tmp_path: Path) -> None:
    """Generated data, image skills, exploration, training, evaluation; then the same policy in a layout not seen."""
    config = write_config(
        tmp_path,
        name="small-maze",
        methods=["spirl"],
        env={
            **{"id": MAZE, "layout_seed": 1, "size": 8, "start": [1, 1], "goal": None},
            "max_episode_steps": 60,
        },
        data__sources__0__options={"size": 8},
        train__env_steps=600,
        train__evaluate_every=600,
        explore__in_run=True,
        explore__env_steps=240,
    )
    process = start("run", config)
    output, _ = process.communicate(timeout=600)
    assert process.returncode == 0, output
    (folder,) = (tmp_path / "out" / "exploration").glob("[!.]*")
    rows = list(csv.DictReader((folder / "coverage.csv").open(newline="")))
    assert next(row["explorer"] for row in rows) == "skill prior (SPiRL)"
    assert {row["env_steps"] for row in rows} == {"240"}
    assert (folder / "exploration.png").read_bytes()[:4] == b"\x89PNG"
    page = (tmp_path / "out" / "report" / "report.html").read_text()
    assert "Exploration" in page
    assert "data:image/png" in page

    process = start("evaluate", config, "--set", "env.layout_seed=2", "env.start=null", "evaluate.videos=0")
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 0, output
    folders = [path for path in (tmp_path / "out" / "evaluation").glob("spirl-*")]
    assert len(folders) == 2
    summaries = [json.loads((f / "summary.json").read_text()) for f in folders]
    assert [each["modes"]["sampled"]["episodes"] for each in summaries] == [2, 2]

    process = start("evaluate", config, "--set", "env.start=[0, 0]")
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 2
    assert "start (0, 0) is outside the layout: both go from 1 to 8" in output
    assert "Traceback" not in output
