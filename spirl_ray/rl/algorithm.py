"""SkillPriorSAC, an RLlib Algorithm in which sampling of skills overlaps learning from replays of decisions."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ray.rllib.algorithms.algorithm import Algorithm
from ray.rllib.algorithms.algorithm_config import AlgorithmConfig, NotProvided
from ray.rllib.core import COMPONENT_LEARNER, COMPONENT_RL_MODULE, DEFAULT_MODULE_ID
from ray.rllib.core.columns import Columns
from ray.rllib.core.learner.learner import Learner
from ray.rllib.core.rl_module.rl_module import RLModuleSpec
from ray.rllib.env.single_agent_episode import SingleAgentEpisode
from ray.rllib.utils.metrics import ENV_RUNNER_RESULTS, LEARNER_RESULTS, WEIGHTS_SEQ_NO
from ray.tune.registry import register_env

import spirl_ray.envs as envs
from spirl_ray.config import EnvironmentSettings, TrainSettings
from spirl_ray.config_train import LearnerSettings
from spirl_ray.errors import SpirlError
from spirl_ray.rl import checkpoint
from spirl_ray.rl.config import (
    SKILL_ENV,
    environment_settings,
    make_skill_env,
    method_and_policy,
    train_settings,
)
from spirl_ray.rl.learner import SkillPriorSACLearner
from spirl_ray.rl.learners import Learners
from spirl_ray.rl.methods import MethodConfig
from spirl_ray.rl.module import SkillPriorModule
from spirl_ray.rl.policy_network import PolicySpec
from spirl_ray.rl.replay import decisions
from spirl_ray.rl.rewards import RewardScale, rewards_of_demonstrations
from spirl_ray.rl.sampling import Sampler
from spirl_ray.rl.training_episodes import TrainingEpisodes
from spirl_ray.skills.artifact import read_skill_card

_OFFLINE_UPDATES_A_ROUND = 250
"""The updates on offline decisions alone in a round, after which a driver can save, and stop."""
_POLICY, _AVERAGE = "policy.", "average."
"""The prefixes of the names of the policy's parameters, and of those of its average."""
_RL_MODULE = f"{COMPONENT_LEARNER}/{COMPONENT_RL_MODULE}"
SKILL_RESULTS = "skills"
"""The key of this algorithm's counters and episode statistics in RLlib's result dict."""


class SkillPriorSACConfig(AlgorithmConfig):
    """The config of `SkillPriorSAC` for users of RLlib.

    Example:
        >>> config = (
        ...     SkillPriorSACConfig()
        ...     .skills("runs/kitchen_play/skills/closed_loop-…")
        ...     .environment("spirl/Kitchen-v0", env_config={"tasks": ["microwave", "kettle"]})
        ...     .training(target_divergence=2.0, warmup_decisions=256)
        ... )
        >>> algorithm = config.build_algo()
        >>> result = algorithm.train()

    ``tune.Tuner(SkillPriorSAC, param_space=config)`` takes it as well; a value of ``training`` may be a search space.
    """

    def __init__(self, algo_class: type | None = None) -> None:
        super().__init__(algo_class=algo_class or SkillPriorSAC)
        self.env: Any
        self.env_config: Any
        self.train: dict[str, Any] = {}
        """The settings of stage 2 that differ from the defaults, see `settings`."""
        self.skills_folder: str | None = None
        self.method: dict[str, Any] | str | None = None
        """A `MethodConfig` as plain values, or the name of a method; None chooses one that fits the skills."""
        self.max_episode_steps: int | None = None
        """The time limit of an episode; None takes the environment's own."""
        self.interface: dict[str, Any] = {}
        """How the environment is read, see `spirl_ray.config.InterfaceSettings`."""
        self.dataset: str | None = None
        """The folder of the demonstrations, for methods that also learn from them."""
        self.offline: str | None = None
        """The folder of the demonstrations as decisions, for methods with offline decisions."""
        self.silence_limit_s = 1800.0
        """The time (s) without an answer from any env runner after which training gives up."""
        self.normalize_actions = False
        self.clip_actions = False
        # The learner checks its losses itself, which saves two scans of every gradient.
        self.torch_skip_nan_gradients = True
        # There are no connectors with state. Syncing them would make every round wait for the sampling.
        self._dont_auto_sync_env_runner_states = True
        self.min_time_s_per_iteration = None
        self.restart_failed_env_runners = True
        # A round waits this long for missing runners, instead of the default 30 s, so that the others continue.
        self.env_runner_health_probe_timeout_s = 1.0
        # A restarted runner then gets the learner's weights, not those of a local runner that never learns.
        self.create_local_env_runner = False

    @property
    def settings(self) -> TrainSettings:
        """The settings of stage 2.

        Raises:
            SpirlError: a setting has an impossible value; the message names it.
        """
        return train_settings(self.train)

    @property
    def policy(self) -> PolicySpec:
        """The spec of the policy; it is known once the config has been validated, as building does."""
        return PolicySpec.model_validate(self.env_config["policy"])

    def skills(
        self,
        folder: str | Path,
        *,
        method: str | MethodConfig | None = None,
        dataset: str | Path | None = None,
        offline: str | Path | None = None,
    ) -> SkillPriorSACConfig:
        """Sets the skills through which the policy acts.

        Args:
            folder: folder of the skill artifact; every node must be able to read it.
            method: the method that uses them; None is the first in the table with skills of this kind and a prior. A
                `MethodConfig` holds its target divergence, regulariser and the like itself; those of `training` fill in
                a method that is named.
            dataset: folder of the demonstrations, for methods that also learn from them.
            offline: folder of the demonstrations as decisions, for methods with offline decisions; ``spirl train`` and
                `spirl_ray.pipeline.offline.label_decisions` make it.
        """
        self.skills_folder = str(Path(folder).absolute())
        self.method = method.model_dump(mode="json") if isinstance(method, MethodConfig) else method
        self.dataset = None if dataset is None else str(Path(dataset).absolute())
        self.offline = None if offline is None else str(Path(offline).absolute())
        return self

    def training(self, *, silence_limit_s: float = NotProvided, **settings: Any) -> SkillPriorSACConfig:
        """Sets settings of stage 2 by name, and passes RLlib's, such as ``grad_clip``, on to RLlib.

        Args:
            silence_limit_s: time (s) without an answer from any env runner after which training gives up.
            settings: the fields of `spirl_ray.config_train.LearnerSettings`. RLlib's ``gamma`` and
                ``train_batch_size_per_learner`` are ``discount`` and ``batch_size`` here.
        """
        if "lr" in settings:
            raise SpirlError(
                "SkillPriorSACConfig.training: there is no lr. Policy, critics and temperature have rates of their "
                "own: actor_lr, critic_lr and alpha_lr."
            )
        for theirs, ours in (("gamma", "discount"), ("train_batch_size_per_learner", "batch_size")):
            if theirs in settings:
                settings[ours] = settings.pop(theirs)
        own = {name: settings.pop(name) for name in LearnerSettings.model_fields if name in settings}
        self.train = {**self.train, **{name: value for name, value in own.items() if value is not NotProvided}}
        if silence_limit_s is not NotProvided:
            self.silence_limit_s = silence_limit_s
        super().training(**settings)
        return self

    def reading(self, *, max_episode_steps: int | None = None, **interface: Any) -> SkillPriorSACConfig:
        """Sets how the environment is read; environments that are registered with their features need none of this.

        Args:
            max_episode_steps: time limit of an episode; None takes the environment's own.
            interface: settings of `spirl_ray.config.InterfaceSettings`, such as ``success="info.solved"``.
        """
        self.max_episode_steps, self.interface = max_episode_steps, interface
        return self

    def with_settings(self, settings: TrainSettings) -> SkillPriorSACConfig:
        """Sets a whole settings model, in place of single values of `training`."""
        self.train = settings.model_dump(mode="json")
        return self

    def validate(self) -> None:
        """Wraps the environment in a `SkillEnv`, which building the algorithm asks for.

        Raises:
            SpirlError: there are no skills, they do not fit the environment, or a setting is impossible.
        """
        if self.env != SKILL_ENV:
            self._wrap_environment()
        register_env(SKILL_ENV, make_skill_env)
        super().validate()

    def _wrap_environment(self) -> None:
        if self.skills_folder is None:
            raise SpirlError(
                "SkillPriorSACConfig needs skills: call .skills(FOLDER) with the folder of a skill artifact."
            )
        settings = self.settings
        environment = environment_settings(self.env, self.env_config, self.max_episode_steps, self.interface)
        method, spec = method_and_policy(environment, self.skills_folder, self.method, settings)
        self.method = method.model_dump(mode="json")
        shared = {"skills": self.skills_folder, "policy": spec.model_dump(mode="json")}
        described = environment.model_dump(mode="json")
        self.env_config = {**shared, "environment": described, "latent_limit": method.latent_limit}
        self.env = SKILL_ENV
        self.gamma, self.train_batch_size_per_learner = settings.discount, settings.batch_size
        self.rl_module(model_config={**shared, "method": self.method, "settings": settings.model_dump(mode="json")})

    def get_default_rl_module_spec(self) -> RLModuleSpec:
        return RLModuleSpec(module_class=SkillPriorModule)

    def get_default_learner_class(self) -> type[Learner]:
        return SkillPriorSACLearner


class SkillPriorSAC(Algorithm):
    """Prior-regularised SAC over skills (paper, Algorithm 1).

    A round fetches what the env runners sampled, sends them the newest weights and the next request, and
    then learns while they sample. The learners hold the replays; with several learners, each gets the decisions of
    its own env runners. Counters are primitive steps, decisions and updates.
    """

    config: SkillPriorSACConfig

    @classmethod
    def get_default_config(cls) -> SkillPriorSACConfig:
        return SkillPriorSACConfig()

    def setup(self, config: Any) -> None:
        super().setup(config)
        self.settings = self.config.settings
        self.learners = Learners(self.learner_group)
        self.rewards = RewardScale(self.settings, read_skill_card(Path(self.config.env_config["skills"])).spec.horizon)
        counted = ("env_steps", "decisions", "updates", "offline_updates", "episodes")
        self.counters: dict[str, Any] = dict.fromkeys(counted, 0)
        self._offline_updates = MethodConfig.model_validate(self.config.method).offline_updates
        environment = EnvironmentSettings.model_validate(self.config.env_config["environment"])
        self.environment = envs.environment(environment)
        self._rewards_are_replaced = environment.interface.reward != "env"
        self.episodes = TrainingEpisodes(envs.declared_scores(environment))
        self.learner_metrics: dict[str, float] = {}
        """The newest losses, divergences and alpha, by name."""
        self._owed_updates = 0.0
        self._sample_s = 0.0
        self.sampler = Sampler(self.env_runner_group, self.config)
        self.timings = {"sample_s": 0.0, "wait_s": 0.0, "learn_s": 0.0}

    def training_step(self) -> None:
        waiting = time.perf_counter()
        # Env runners keep what they have sampled until the updates on offline decisions alone are over.
        offline = self.offline_updates_left > 0
        fragments = [] if offline else self._collect()
        learning = time.perf_counter()
        for runner, episodes in fragments:
            self._remember(runner, episodes)
        if fragments or offline:
            self._learn()
        learned = time.perf_counter() - learning
        self.timings = {"wait_s": learning - waiting, "learn_s": learned, "sample_s": self._sample_s}
        self.metrics.log_dict({**self.counters, **self.timings}, key=SKILL_RESULTS, window=1)

    # --- sampling ---

    def _collect(self) -> list[tuple[int, list[SingleAgentEpisode]]]:
        """Collects the pieces of episodes sampled since the last round, by the number of their env runner, and requests
        the next ones before it returns.

        The list is empty while the env runners are away; RLlib brings them back between two rounds.
        """
        samples = self.sampler.collect(self._send_weights)
        if not samples:
            return []
        self.metrics.aggregate([sampled.metrics for sampled in samples], key=ENV_RUNNER_RESULTS)
        self._sample_s = float(np.mean([sampled.seconds for sampled in samples]))
        return [(sampled.runner, sampled.episodes) for sampled in samples]

    def _send_weights(self, runners: list[int] | None) -> None:
        if self.counters["updates"] > 0:
            self.env_runner_group.sync_weights(
                from_worker_or_learner_group=self.learner_group, to_worker_indices=runners, inference_only=True
            )

    def _remember(self, runner: int, episodes: list[SingleAgentEpisode]) -> None:
        rows = decisions(
            episodes,
            gamma=self.settings.discount,
            per_decision=self.settings.discount_per == "decision",
            timeout_is_terminal=self.settings.timeout_is_terminal,
        )
        if not rows:
            return
        self.learners.add(runner, rows)
        self.rewards.observe(episodes, rows)
        count = len(rows[Columns.REWARDS])
        self.counters["decisions"] += count
        self._owed_updates += count * self.settings.updates_per_decision
        steps, ended = self.episodes.add(episodes)
        self.counters["env_steps"] += steps
        self.counters["episodes"] += ended

    # --- learning ---

    @property
    def offline_updates_left(self) -> int:
        """The number of updates on offline decisions alone that are made before any further step; 0 in the warm-up."""
        left = self._offline_updates - self.counters["offline_updates"]
        return max(0, left) if self.rewards.warmed_up else 0

    def _learn(self) -> None:
        """Makes the updates owed for the sampled decisions, or some of those on offline decisions alone that come
        before them, in one call to the learners."""
        wanted = min(self.settings.warmup_decisions, self.settings.replay_capacity)
        if self.counters["decisions"] < wanted or not all(self.learners.decisions):
            self._owed_updates = 0.0
            return
        if not self.rewards.warmed_up:
            offline = None if self.config.offline is None else Path(self.config.offline)
            known = rewards_of_demonstrations(
                self.config.dataset, self.environment, offline, replaced=self._rewards_are_replaced
            )
            self.rewards.end_warm_up(self.learners.mean_divergence(), known)
        alone = min(self.offline_updates_left, _OFFLINE_UPDATES_A_ROUND)
        updates = alone or int(self._owed_updates)
        if not updates:
            return
        if alone:
            self.counters["offline_updates"] += alone
        else:
            self._owed_updates -= updates
        self.learner_metrics.update(self.learners.learn(updates, self.rewards.factor, offline=alone > 0))
        self.counters["updates"] += updates
        self.metrics.log_dict(self.learner_metrics, key=(LEARNER_RESULTS, DEFAULT_MODULE_ID), window=1)

    # --- results of a round ---

    def policy_state(self) -> dict[str, torch.Tensor]:
        """The state dict of the `PolicyNetwork`, from the (first) learner, for the policy artifact: that of its average
        where there is one."""
        averaged = self.settings.policy_polyak < 1.0
        state = self.learner_group.get_state(
            components=[f"{_RL_MODULE}/{DEFAULT_MODULE_ID}"], inference_only=not averaged
        )
        module = state[COMPONENT_LEARNER][COMPONENT_RL_MODULE][DEFAULT_MODULE_ID]
        prefix = _AVERAGE if averaged else _POLICY
        return {
            name.removeprefix(prefix): torch.as_tensor(value)
            for name, value in module.items()
            if name.startswith(prefix)
        }

    # --- checkpoints, which Tune also calls ---

    def save_checkpoint(self, checkpoint_dir: str) -> None:
        """Writes a checkpoint: networks, targets, alpha, optimisers, replays, random generators and counters."""
        learners, runners = self.learner_group, self.env_runner_group
        checkpoint.write_state(
            Path(checkpoint_dir),
            {
                "learner": learners.get_state()[COMPONENT_LEARNER],
                "learners": self.learners.state(),
                "runner_rng": runners.foreach_env_runner(checkpoint.random_state),
                "rewards": self.rewards.state(),
                "counters": dict(self.counters),
                "owed_updates": self._owed_updates,
                "recent": list(self.episodes.recent),
                "iteration": self.iteration,
            },
        )

    def load_checkpoint(self, checkpoint_dir: str) -> None:
        """Restores what `save_checkpoint` wrote with the same config, bit-equal; running episodes start anew.

        Raises:
            SpirlError: a file is missing or damaged; the message names it.
        """
        state = checkpoint.read_state(Path(checkpoint_dir))
        learners, runners = self.learner_group, self.env_runner_group
        # Learners and env runners take only weights with a higher number than their own.
        live = learners.get_state(components=_RL_MODULE, inference_only=True)[COMPONENT_LEARNER]
        newest = 1 + max(live[WEIGHTS_SEQ_NO], state["learner"][WEIGHTS_SEQ_NO])
        learners.set_state({COMPONENT_LEARNER: {**state["learner"], WEIGHTS_SEQ_NO: newest}})
        runners.sync_weights(from_worker_or_learner_group=learners, inference_only=True)
        self.rewards.restore(state["rewards"])
        self.counters.update(state["counters"])
        self._owed_updates = state["owed_updates"]
        self.episodes.restore(state["recent"])
        self._iteration = state["iteration"]
        for index, rng in zip(runners.healthy_env_runner_ids() or [None], state["runner_rng"], strict=False):
            remote = None if index is None else [index]
            runners.foreach_env_runner(checkpoint.RestoreRandomState(rng), remote_worker_ids=remote)
        self.learners.restore(state["learners"])
