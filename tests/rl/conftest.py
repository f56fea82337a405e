"""Stage-2 configs that use tiny skill artifacts with random weights."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch

NETWORKS = {"critic_width": 16, "critic_layers": 1}


@pytest.fixture
def make_config(make_skills: Callable[..., Path]) -> Callable[..., Any]:
    """A small `SkillPriorSACConfig`: ``make_config(method=..., env_runners=..., **training)``."""
    from toy_skills import METHODS

    from spirl_ray.rl.algorithm import SkillPriorSACConfig
    from spirl_ray.rl.methods import MethodConfig, method_config
    from spirl_ray.skills.artifact import load_skills

    def make(
        *,
        skills: Path | None = None,
        environment: str = "spirl/PointPads-v0",
        regulariser: str = "prior",
        policy_init: str = "prior",
        dataset: Path | None = None,
        offline: Path | None = None,
        env_runners: int = 0,
        learners: int = 0,
        **training: Any,
    ) -> Any:
        folder = skills or make_skills()
        config = SkillPriorSACConfig()
        config.environment(environment)
        config.reading(max_episode_steps=30)
        config.env_runners(num_env_runners=env_runners, num_envs_per_env_runner=2, rollout_fragment_length=8)
        config.learners(num_learners=learners)
        config.debugging(seed=1, log_level="ERROR")
        config.training(
            **{
                **NETWORKS,
                "initial_alpha": 0.5,
                "batch_size": 32,
                "warmup_decisions": 32,
                "replay_capacity": 1000,
                "policy_init": policy_init,
                **training,
            }
        )
        spec = load_skills(folder).spec
        method: MethodConfig = method_config(METHODS[spec.decoder], config.settings, spec)
        method = method.model_copy(update={"regulariser": regulariser})
        return config.skills(folder, method=method, dataset=dataset, offline=offline)

    return make


@pytest.fixture
def make_learner(make_config: Callable[..., Any]) -> Callable[..., Any]:
    """A learner without a cluster, whose replay holds random decisions: ``make_learner(gpu=…, **training)``."""
    from gymnasium.spaces import Box
    from made_decisions import made_decisions
    from ray.rllib.core import DEFAULT_MODULE_ID
    from ray.rllib.core.learner.torch import torch_learner

    from spirl_ray.rl.policy_network import PolicyObserver
    from spirl_ray.skills.artifact import load_skills

    def make(*, gpu: bool = False, rows: int = 500, **training: Any) -> Any:
        config = make_config(**training)
        config.learners(num_gpus_per_learner=int(gpu))
        config.validate()
        skills = load_skills(config.skills_folder)
        width, latent = PolicyObserver(config.policy, skills).size, skills.spec.latent_dim
        spaces = {DEFAULT_MODULE_ID: tuple(Box(-np.inf, np.inf, (size,)) for size in (width, latent))}
        device = torch.device("cuda" if gpu else "cpu")
        with mock.patch.object(torch_learner, "get_device", return_value=device):  # RLlib would start a cluster to ask
            learner = config.build_learner(spaces=spaces)
        learner.replay.add(made_decisions(width, latent, rows))
        return learner

    return make
