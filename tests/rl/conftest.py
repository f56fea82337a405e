"""Tiny skill artifacts with random weights, and stage-2 configs that use them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from spirl_ray.config import SkillSettings
from spirl_ray.skills.artifact import save_skills
from spirl_ray.skills.model import SkillModel, SkillSpec, ViewShape

POINT_PADS = "spirl/PointPads-v0"
HORIZON, LATENT_DIM = 4, 3


@pytest.fixture
def make_skills(tmp_path: Path) -> Callable[..., Path]:
    """Writes an untrained skill artifact, for the point pads if not asked otherwise: ``make_skills(decoder=...)``."""
    import spirl_ray.envs as envs

    def make(decoder: Any = "closed_loop", prior: Any = "gaussian", environment: str = POINT_PADS) -> Path:
        settings = SkillSettings(
            horizon=HORIZON,
            latent_dim=LATENT_DIM,
            width=16,
            decoder_layers=1,
            prior_layers=2,
            prior=prior,
            mixture_components=2,
            flow_layers=2,
        )
        torch.manual_seed(0)
        spec = envs.environment(environment)
        view = spec.view
        shape = ViewShape(frames=view.frames, size=view.size, egocentric=view.egocentric) if view else None
        dims = {"state_dim": spec.state_dim, "action_dim": spec.action_dim, "view": shape}
        model = SkillModel(SkillSpec(decoder=decoder, settings=settings, **dims))
        model.set_normalisation(torch.linspace(-0.5, 0.5, spec.state_dim), torch.full((spec.state_dim,), 0.7))
        folder = tmp_path / f"skills-{decoder}-{prior}"
        save_skills(
            folder,
            model,
            environment=environment,
            dataset_sha256="0" * 64,
            pretrain={},
            seed=0,
            metrics={},
            package_version="0",
        )
        return folder

    return make


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
