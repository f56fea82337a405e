"""Tiny skill artifacts with random weights, and stage-2 configs that use them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest


@pytest.fixture
def make_config(make_skills: Callable[..., Path]) -> Callable[..., Any]:
    """A small `SkillPriorSACConfig`: ``make_config(regulariser=..., env_runners=..., **training)``."""
    from ray.tune.registry import register_env

    from spirl_ray.rl.algorithm import SkillPriorSACConfig

    def make(
        *,
        skills: Path | None = None,
        regulariser: str = "prior",
        policy_init: str = "prior",
        initial_alpha: float = 0.5,
        env_runners: int = 0,
        learners: int = 0,
        **training: Any,
    ) -> Any:
        folder = str(skills or make_skills())

        def make_env(_: Any) -> Any:
            from pathlib import Path

            from spirl_ray.rl.skill_env import SkillEnv

            return SkillEnv("spirl/PointPads-v0", {"max_episode_steps": 30}, Path(folder), None)

        register_env("tiny-skill-env", make_env)
        config = SkillPriorSACConfig()
        config.environment("tiny-skill-env")
        config.env_runners(num_env_runners=env_runners, num_envs_per_env_runner=2, rollout_fragment_length=8)
        config.learners(num_learners=learners)
        config.debugging(seed=1, log_level="ERROR")
        config.rl_module(
            model_config={
                "skills": folder,
                "regulariser": regulariser,
                "policy_init": policy_init,
                "proposals": False,
                "objects": None,
                "initial_alpha": initial_alpha,
                "critic_width": 16,
                "critic_layers": 1,
                "critic_layer_norm": False,
            }
        )
        return config.training(
            **{
                "train_batch_size_per_learner": 32,
                "warmup_decisions": 32,
                "replay_capacity": 1000,
                "metrics_every": 1,
                **training,
            }
        )

    return make
