"""One policy to train, and what RLlib must know to train it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from ray.tune.registry import register_env

from spirl_ray.config import Experiment
from spirl_ray.rl.algorithm import SkillPriorSACConfig
from spirl_ray.rl.methods import ResolvedMethod
from spirl_ray.rl.skill_env import SkillEnv

_ENV_NAME = "spirl/SkillEnv"


@dataclass(frozen=True)
class TrainingRun:
    """One policy to train: an experiment resolved for a method and a seed."""

    experiment: Experiment
    method: ResolvedMethod
    seed: int
    skills: Path
    out: Path
    config_hash: str


def _make_skill_env(config: Any) -> SkillEnv:
    torch.set_num_threads(1)
    return SkillEnv(
        config["env_id"],
        config["env_kwargs"],
        Path(config["skills"]),
        config["latent_limit"],
        proposals=config["proposals"],
    )


def algorithm_config(run: TrainingRun) -> SkillPriorSACConfig:
    """The RLlib config of a run."""
    train, method, env = run.experiment.train, run.method, run.experiment.env
    register_env(_ENV_NAME, _make_skill_env)
    fragment = max(1, train.decisions_per_round // train.envs_per_runner)
    config = SkillPriorSACConfig()
    config.environment(
        _ENV_NAME,
        env_config={
            "env_id": env.id,
            "env_kwargs": env.kwargs,
            "skills": str(run.skills.absolute()),
            "latent_limit": method.latent_limit,
            "proposals": method.proposals,
        },
    )
    config.env_runners(
        num_env_runners=train.env_runners,
        num_envs_per_env_runner=train.envs_per_runner,
        rollout_fragment_length=fragment,
        num_cpus_per_env_runner=1,
    )
    config.learners(
        num_learners=train.learners,
        num_gpus_per_learner=train.gpus_per_learner,
    )
    config.fault_tolerance(restart_failed_env_runners=True, ignore_env_runner_failures=True)
    config.debugging(seed=run.seed, log_level="ERROR")
    config.rl_module(
        model_config={
            "skills": str(run.skills.absolute()),
            "regulariser": method.regulariser,
            "policy_init": method.policy_init,
            "proposals": method.proposals,
            "objects": method.objects,
            "initial_alpha": train.initial_alpha,
            "critic_width": train.critic_width,
            "critic_layers": train.critic_layers,
            "critic_layer_norm": train.critic_layer_norm,
        }
    )
    return config.training(
        gamma=train.discount,
        train_batch_size_per_learner=train.batch_size,
        actor_lr=train.actor_lr,
        critic_lr=train.critic_lr,
        alpha_lr=train.alpha_lr,
        target_divergence=method.target_divergence,
        alpha_min=train.alpha_min,
        fixed_alpha=train.fixed_alpha,
        reward_scale=train.reward_scale,
        polyak=train.polyak,
        divergence_in_target=train.divergence_in_target,
        timeout_is_terminal=train.timeout_is_terminal,
        discount_per=train.discount_per,
        updates_per_decision=train.updates_per_decision,
        warmup_decisions=train.warmup_decisions,
        replay_capacity=train.replay_capacity,
    )
