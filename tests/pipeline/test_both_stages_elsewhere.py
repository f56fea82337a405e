"""Both stages in environments of somebody else: two RGB cameras, objects without an image, a goal that changes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import toy_environments
from toy import TOY

from spirl_ray.config import parse_experiment
from spirl_ray.envs import make
from spirl_ray.pipeline import stages
from spirl_ray.pipeline.workspace import Trial, Workspace
from spirl_ray.policy.policy import Policy, load_policy, read_policy_card
from spirl_ray.skills.artifact import read_skill_card

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("local_ray")]


def trained(folder: Path, env_id: str, method: str, **changes: Any) -> Trial:
    """The trial of a toy experiment, after all stages."""
    raw = {
        **TOY,
        "env": {"id": env_id},
        "methods": [method],
        "output": str(folder / "out"),
        "skills": {**TOY["skills"], "horizon": 4, **changes},
        "train": {**TOY["train"], "env_steps": 200, "evaluate_every": 200, "actor_lr": 0.01},
        "evaluate": {**TOY["evaluate"], "videos": 0},
    }
    workspace = Workspace(parse_experiment(raw, "test"))
    workspace.reserve()
    stages.prepare_data(workspace)
    [trial] = workspace.trials()
    stages.train_skills(trial)
    stages.roll_out_prior(trial, videos=False)
    stages.train(trial)
    stages.evaluate_policy(trial, videos=False)
    return trial


def first_observation(env_id: str, seed: int = 0) -> dict[str, np.ndarray]:
    env = make(env_id)
    observation, _ = env.reset(seed=seed)
    env.close()
    return dict(observation)


def acted(policy: Policy, observation: dict[str, np.ndarray]) -> np.ndarray:
    policy.reset(0)
    return policy.act(observation)


def test_two_rgb_cameras_and_a_vector(tmp_path: Path) -> None:
    trial = trained(tmp_path, toy_environments.CAMERAS, "spirl_cl", prior="mixture", mixture_components=2)
    skills, policy = read_skill_card(trial.skills).spec, read_policy_card(trial.policy).policy
    assert skills.features == ("arm", "front", "wrist")
    assert skills.observed["wrist"].observed_shape == (2, 64, 64, 3)
    assert (list(policy.features), policy.head, policy.sees_prior) == (["arm"], "residual", True)
    observation, agent = first_observation(toy_environments.CAMERAS), load_policy(trial.policy)
    for camera in ("front", "wrist"):
        dark = {**observation, camera: np.zeros_like(observation[camera])}
        assert not np.array_equal(acted(agent, dark), acted(agent, observation)), camera


def test_objects_without_an_image(tmp_path: Path) -> None:
    trial = trained(tmp_path, toy_environments.OBJECTS, "spirl")
    skills, policy = read_skill_card(trial.skills).spec, read_policy_card(trial.policy).policy
    assert skills.features == ("hand", "speed", "things")
    assert (list(policy.features), policy.head) == (["hand", "speed", "things"], "gaussian")
    observation, agent = first_observation(toy_environments.OBJECTS), load_policy(trial.policy)
    shuffled = {**observation, "things": observation["things"][::-1].copy()}
    np.testing.assert_allclose(acted(agent, shuffled), acted(agent, observation), atol=1e-6)
    moved = {**observation, "things": observation["things"] + 0.5}
    assert not np.allclose(acted(agent, moved), acted(agent, observation))


def test_a_goal_that_the_policy_sees_and_skills_do_not(tmp_path: Path) -> None:
    trial = trained(tmp_path, toy_environments.GOAL, "spirl_cl")
    skills, policy = read_skill_card(trial.skills).spec, read_policy_card(trial.policy).policy
    assert skills.features == ("position",)
    assert (list(policy.features), policy.head, policy.sees_prior) == (["position", "goal"], "residual", False)
    observation, agent = first_observation(toy_environments.GOAL), load_policy(trial.policy)
    elsewhere = {**observation, "goal": -observation["goal"]}
    assert not np.allclose(acted(agent, elsewhere), acted(agent, observation))
