"""One policy to train, and the RLlib config that trains it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from spirl_ray.config import Experiment
from spirl_ray.rl.algorithm import SkillPriorSACConfig
from spirl_ray.rl.methods import MethodConfig


@dataclass(frozen=True)
class TrainingRun:
    """One policy to train: an experiment with one method and one seed."""

    experiment: Experiment
    method: MethodConfig
    seed: int
    skills: Path
    out: Path
    config_hash: str
    dataset: Path | None = None
    """The demonstrations, for methods that also learn from them."""
    offline: Path | None = None
    """The demonstrations as decisions, for methods with offline decisions."""

    @property
    def length(self) -> int:
        """The number of steps of the training, and of its updates without a step, by which progress is measured."""
        return self.experiment.train.env_steps + self.method.offline_updates


def algorithm_config(run: TrainingRun) -> SkillPriorSACConfig:
    """The RLlib config of a run."""
    train, env = run.experiment.train, run.experiment.environment
    config = SkillPriorSACConfig().with_settings(train)
    config.skills(run.skills, method=run.method, dataset=run.dataset, offline=run.offline)
    config.environment(env.id, env_config=env.kwargs)
    config.reading(max_episode_steps=env.max_episode_steps, **env.interface.model_dump(mode="json"))
    config.env_runners(
        num_env_runners=train.env_runners,
        num_envs_per_env_runner=train.envs_per_runner,
        rollout_fragment_length=max(1, train.decisions_per_round // train.envs_per_runner),
        num_cpus_per_env_runner=1,
    )
    config.learners(num_learners=train.learners, num_gpus_per_learner=train.gpus_per_learner)
    config.fault_tolerance(restart_failed_env_runners=True, ignore_env_runner_failures=True)
    config.debugging(seed=rllib_seed(run.seed), log_level="ERROR")
    return config


def rllib_seed(seed: int, offset: int = 0) -> int:
    """The seed of a run for RLlib, which adds the number of an env runner to it and takes 32 bits.

    Args:
        seed: of the run, of 32 bits.
        offset: what a resumed run adds, so that its episodes do not repeat those from before.

    Returns:
        Their sum; where that is too large, a hash of both.
    """
    if seed + offset < 2**31:
        return seed + offset
    return int(np.random.SeedSequence((seed, offset)).generate_state(1)[0]) >> 1
