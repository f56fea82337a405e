"""Episodes of an agent: the same wherever they run, kept in a CSV, refused for another environment."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from toy_skills import save_toy_policy, save_toy_skills, toy_model

import spirl_ray.envs as envs
from spirl_ray.config import EnvironmentSettings
from spirl_ray.envs.metrics import Mode, undeclared
from spirl_ray.errors import SpirlError
from spirl_ray.pipeline.rollouts import (
    EpisodeRow,
    RolloutPlan,
    read_episode_rows,
    run_episodes,
    write_episodes,
)

PADS = "spirl/PointPads-v0"


@pytest.fixture
def skills(tmp_path: Path) -> Path:
    pads = envs.environment(PADS)
    model = toy_model("closed_loop", pads.features, pads.action_dim, latent_dim=2, width=8, horizon=10)
    return save_toy_skills(tmp_path / "skills", model)


def plan(skills: Path, mode: Mode = "sampled") -> RolloutPlan:
    pads = EnvironmentSettings(id=PADS)
    return RolloutPlan(str(skills), pads, mode, prior=True, seed=5, scores=envs.declared_scores(pads))


def test_an_episode_is_the_same_in_any_order_and_company(skills: Path) -> None:
    together = run_episodes(plan(skills), [0, 1])
    assert run_episodes(plan(skills), [1]) == [together[1]]
    assert [row.seed for row in together] == [5, 6]


def test_an_episode_is_measured_by_what_its_environment_declares(skills: Path) -> None:
    (row,) = run_episodes(plan(skills), [0])
    assert list(row.metrics) == ["return", "length", "subtasks", "north", "east", "south", "west"]
    assert row.metrics["subtasks"] == sum(row.metrics[pad] for pad in ("north", "east", "south", "west"))
    # Whoever declares nothing has the return; the pads' info says nothing of a success, so there is none.
    (row,) = run_episodes(replace(plan(skills), scores=undeclared()), [0])
    assert list(row.metrics) == ["return", "length"]
    assert row.metrics["length"] == envs.environment(PADS).max_episode_steps


def test_episodes_survive_their_csv(tmp_path: Path) -> None:
    rows = [
        EpisodeRow("sampled", 3, 8, {"return": 1.5, "length": 80.0, "success": 1.0}),
        EpisodeRow("sampled", 4, 9, {"return": 0.0, "length": 80.0}),
    ]
    write_episodes(tmp_path / "episodes.csv", rows)
    assert read_episode_rows(tmp_path / "episodes.csv") == rows
    assert read_episode_rows(tmp_path / "none.csv") == []
    assert (tmp_path / "episodes.csv").read_text().splitlines()[0] == "mode,episode,seed,return,length,success"
    (tmp_path / "episodes.csv").write_text("mode,episode\nsampled,3\n")
    with pytest.raises(SpirlError, match=r"episodes\.csv: no column 'seed'.*Remove"):
        read_episode_rows(tmp_path / "episodes.csv")


def test_a_video_is_recorded_beside_the_same_rows(skills: Path, tmp_path: Path) -> None:
    recorded = run_episodes(plan(skills, "deterministic"), [0], tmp_path / "x.mp4", 25)
    assert recorded == run_episodes(plan(skills, "deterministic"), [0])
    assert (tmp_path / "x.mp4").stat().st_size > 1000


def test_a_policy_of_another_environment_is_refused(skills: Path, tmp_path: Path) -> None:
    features = envs.environment(PADS).features
    save_toy_policy(tmp_path / "policy", skills, features, environment=EnvironmentSettings(id="spirl/Kitchen-v0"))
    with pytest.raises(SpirlError, match="was trained for spirl/Kitchen-v0"):
        RolloutPlan(str(tmp_path / "policy"), EnvironmentSettings(id=PADS), "sampled").agent()
