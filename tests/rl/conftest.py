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


@pytest.fixture
def offline_folder(make_learner: Callable[..., Any], tmp_path: Path) -> Callable[..., Path]:
    """Writes a folder of 200 random offline decisions of the skills and policy of `make_config`."""
    from made_decisions import made_decisions

    from spirl_ray.config import EnvironmentSettings
    from spirl_ray.config_train import Labels
    from spirl_ray.rl.offline_decisions import STEPS, Encoding, write_card, write_part
    from spirl_ray.rl.replay import DISCOUNTS, PHASE

    def write(labels: Labels = "environment", latent_limit: float | None = None) -> Path:
        plain = make_learner()
        rows = made_decisions(plain.networks.policy.observation_dim, plain.networks.latent_dim, 200, seed=5)
        rows[STEPS] = np.full(200, 4, np.float32)
        del rows[DISCOUNTS], rows[PHASE]
        rows |= {"judged_rewards": np.zeros(200, np.float32), "judged_lengths": np.array([200.0], np.float32)}
        folder, pads = tmp_path / f"offline-{labels}", EnvironmentSettings(id="spirl/PointPads-v0")
        encoding = Encoding(plain.config.skills_folder, plain.config.policy, pads, latent_limit, labels, seed=0)
        write_card(folder, encoding, "d" * 64, [write_part(folder, 0, rows, latent_limit)])
        return folder

    return write
