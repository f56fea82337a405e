"""Episodes of an agent: the same wherever they run, kept in a CSV, refused for another environment."""

from __future__ import annotations

from pathlib import Path

import pytest

from spirl_ray.config import SkillSettings
from spirl_ray.errors import SpirlError
from spirl_ray.pipeline.rollouts import (
    EpisodeRow,
    RolloutPlan,
    mean_return,
    mean_subtasks,
    read_episode_rows,
    run_episodes,
    write_episodes,
)
from spirl_ray.policy.policy import save_policy
from spirl_ray.rl.policy_network import SkillPolicy
from spirl_ray.skills.artifact import load_skills, save_skills
from spirl_ray.skills.model import SkillModel, SkillSpec

import spirl_ray.envs as envs  # isort: skip

PADS = "spirl/PointPads-v0"


@pytest.fixture
def skills(tmp_path: Path) -> Path:
    facts = envs.environment(PADS)
    settings = SkillSettings(latent_dim=2, width=8, decoder_layers=1, prior_layers=1)
    spec = SkillSpec(decoder="closed_loop", state_dim=facts.state_dim, action_dim=facts.action_dim, settings=settings)
    save_skills(
        tmp_path / "skills",
        SkillModel(spec),
        environment=PADS,
        dataset_sha256="",
        pretrain={},
        seed=0,
        metrics={},
        package_version="test",
    )
    return tmp_path / "skills"


def plan(skills: Path, mode: str = "sampled") -> RolloutPlan:
    return RolloutPlan(str(skills), PADS, {}, mode, prior=True, seed=5)  # type: ignore[arg-type]


def test_an_episode_is_the_same_in_any_order_and_company(skills: Path) -> None:
    together = run_episodes(plan(skills), [0, 1])
    assert run_episodes(plan(skills), [1]) == [together[1]]
    assert [row.seed for row in together] == [5, 6]


def test_episodes_survive_their_csv(tmp_path: Path) -> None:
    rows = [
        EpisodeRow("sampled", 3, 8, 1.5, 80, 2, "kettle > light switch"),
        EpisodeRow("sampled", 4, 9, 0.0, 80, 0, ""),
    ]
    write_episodes(tmp_path / "episodes.csv", rows)
    assert read_episode_rows(tmp_path / "episodes.csv") == rows
    assert read_episode_rows(tmp_path / "none.csv") == []
    assert (mean_return(rows), mean_subtasks(rows)) == (0.75, 1.0)


def test_a_video_is_filmed_beside_the_same_rows(skills: Path, tmp_path: Path) -> None:
    filmed = run_episodes(plan(skills, "deterministic"), [0], tmp_path / "x.mp4", 25)
    assert filmed == run_episodes(plan(skills, "deterministic"), [0])
    assert (tmp_path / "x.mp4").stat().st_size > 1000


def test_a_policy_of_another_environment_is_refused(skills: Path, tmp_path: Path) -> None:
    save_policy(
        tmp_path / "policy",
        SkillPolicy(load_skills(skills)).state_dict(),
        skills,
        environment="spirl/Kitchen-v0",
        env_kwargs={},
        method="spirl_cl",
        seed=0,
        latent_limit=2.0,
        env_steps=0,
        config_hash="",
    )
    with pytest.raises(SpirlError, match="was trained for spirl/Kitchen-v0"):
        RolloutPlan(str(tmp_path / "policy"), PADS, {}, "sampled").agent()
