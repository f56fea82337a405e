"""SkillPriorSAC, an RLlib Algorithm: sampling of skills overlaps learning from a replay of decisions."""

from __future__ import annotations

import time
from collections import deque
from typing import Any

import numpy as np
from ray.rllib.algorithms.algorithm import Algorithm
from ray.rllib.algorithms.algorithm_config import AlgorithmConfig, NotProvided
from ray.rllib.core import DEFAULT_MODULE_ID
from ray.rllib.core.columns import Columns
from ray.rllib.core.learner.learner import Learner
from ray.rllib.core.rl_module.rl_module import RLModuleSpec
from ray.rllib.env.env_runner import EnvRunner
from ray.rllib.env.single_agent_episode import SingleAgentEpisode
from ray.rllib.policy.sample_batch import MultiAgentBatch, SampleBatch
from ray.rllib.utils.metrics import ENV_RUNNER_RESULTS, LEARNER_RESULTS

from spirl_ray.rl import checkpoint
from spirl_ray.rl.learner import LOGGED, SkillPriorSACLearner
from spirl_ray.rl.module import SkillPriorModule
from spirl_ray.rl.replay import DecisionReplay, decisions

_POLL_S = 0.002
_RECENT_EPISODES = 50
SKILL_RESULTS = "skills"
"""Key of this algorithm's own counters and episode statistics in RLlib's result dict."""


class SkillPriorSACConfig(AlgorithmConfig):
    """Settings of `SkillPriorSAC`; see `spirl_ray.config.TrainSettings` for their meaning."""

    def __init__(self, algo_class: type | None = None) -> None:
        super().__init__(algo_class=algo_class or SkillPriorSAC)
        self.actor_lr = self.critic_lr = self.alpha_lr = 3e-4
        self.target_divergence = 5.0
        self.alpha_min = 0.0
        self.polyak = 0.005
        self.divergence_in_target = True
        self.timeout_is_terminal = False
        self.discount_per = "decision"
        self.updates_per_decision = 1.0
        self.warmup_decisions = 5000
        self.replay_capacity = 1_000_000
        self.metrics_every = 20
        self.gamma = 0.99
        self.train_batch_size_per_learner = 256
        self.normalize_actions = False
        self.clip_actions = False
        # The learner checks its own losses, two scans of every gradient less.
        self.torch_skip_nan_gradients = True
        # There are no connectors with state. Syncing them would make every round wait for the sampling.
        self._dont_auto_sync_env_runner_states = True
        self.min_time_s_per_iteration = None
        self.restart_failed_env_runners = True

    def training(self, **settings: Any) -> SkillPriorSACConfig:
        """Sets this algorithm's own settings by name, and passes the rest on to RLlib."""
        own = {name: settings.pop(name) for name in list(settings) if name in _OWN_SETTINGS}
        super().training(**settings)
        for name, value in own.items():
            if value is not NotProvided:
                setattr(self, name, value)
        return self

    def get_default_rl_module_spec(self) -> RLModuleSpec:
        return RLModuleSpec(module_class=SkillPriorModule)

    def get_default_learner_class(self) -> type[Learner]:
        return SkillPriorSACLearner


_OWN_SETTINGS = frozenset(
    {
        "actor_lr",
        "critic_lr",
        "alpha_lr",
        "target_divergence",
        "alpha_min",
        "polyak",
        "divergence_in_target",
        "timeout_is_terminal",
        "discount_per",
        "updates_per_decision",
        "warmup_decisions",
        "replay_capacity",
        "metrics_every",
    }
)


def _sample_and_measure(runner: EnvRunner) -> tuple[list[SingleAgentEpisode], Any, float]:
    started = time.perf_counter()
    episodes = runner.sample()
    return episodes, runner.get_metrics(), time.perf_counter() - started


class SkillPriorSAC(Algorithm):
    """Prior-regularised SAC over skills (paper, Algorithm 1).

    A round fetches what the env runners sampled, sends them the newest weights and the next request, and
    then learns while they sample. Counters are primitive steps, decisions and updates.
    """

    config: SkillPriorSACConfig

    @classmethod
    def get_default_config(cls) -> SkillPriorSACConfig:
        return SkillPriorSACConfig()

    def setup(self, config: Any) -> None:
        super().setup(config)
        module = self.get_module(DEFAULT_MODULE_ID)
        if module is not None:
            state_dim = module.observation_space.shape[0]
            latent_dim = module.action_space.shape[0]
        else:
            spaces = self.env_runner_group.get_spaces()[DEFAULT_MODULE_ID]
            state_dim, latent_dim = spaces[0].shape[0], spaces[1].shape[0]
        self.replay = DecisionReplay(self.config.replay_capacity, state_dim, latent_dim, self.config.seed or 0)
        self.counters = {"env_steps": 0, "decisions": 0, "updates": 0, "episodes": 0}
        self.recent: deque[dict[str, Any]] = deque(maxlen=_RECENT_EPISODES)
        self.learner_metrics: dict[str, float] = {}
        """The newest losses, divergences and alpha, by name."""
        self._owed_updates = 0.0
        self._returns: dict[str, float] = {}
        self.timings = {"sample_s": 0.0, "wait_s": 0.0, "learn_s": 0.0}

    def training_step(self) -> None:
        waiting = time.perf_counter()
        episodes = self._collect()
        learning = time.perf_counter()
        if episodes:
            self._remember(episodes)
            self._learn()
        self.timings = {
            "wait_s": learning - waiting,
            "learn_s": time.perf_counter() - learning,
            "sample_s": self._sample_s,
        }
        self.metrics.log_dict({**self.counters, **self.timings}, key=SKILL_RESULTS, window=1)

    # --- sampling ---

    _sample_s = 0.0

    def _collect(self) -> list[SingleAgentEpisode]:
        """Pieces of episodes sampled since the last round; requests the next ones before it returns."""
        group = self.env_runner_group
        if group.num_remote_env_runners() == 0:
            episodes, metrics, self._sample_s = _sample_and_measure(group.local_env_runner)
            self.metrics.aggregate([metrics], key=ENV_RUNNER_RESULTS)
            self._sync_weights()
            return episodes
        group.foreach_env_runner_async(_sample_and_measure, tag="sample")  # those that have no request yet
        deadline = time.monotonic() + self.config.sample_timeout_s
        results: list[tuple[int, Any]] = []
        while not results and time.monotonic() < deadline and group.num_healthy_remote_workers():
            results = group.fetch_ready_async_reqs(tags="sample", timeout_seconds=0.0)
            if not results:
                time.sleep(_POLL_S)
        self._sync_weights()
        group.foreach_env_runner_async(_sample_and_measure, tag="sample")
        if results:
            self.metrics.aggregate([metrics for _, (_, metrics, _) in results], key=ENV_RUNNER_RESULTS)
            self._sample_s = float(np.mean([seconds for _, (_, _, seconds) in results]))
        return [episode for _, (episodes, _, _) in results for episode in episodes]

    def _sync_weights(self) -> None:
        if self.counters["updates"] > 0:
            self.env_runner_group.sync_weights(from_worker_or_learner_group=self.learner_group, inference_only=True)
        model = self.config.model_config
        if model["regulariser"] == "prior" and model["policy_init"] == "scratch":
            act = _act_from_policy if self.counters["updates"] else _act_from_prior
            self.env_runner_group.foreach_env_runner_async(act, tag="prior")

    def _remember(self, episodes: list[SingleAgentEpisode]) -> None:
        rows = decisions(
            episodes,
            gamma=self.config.gamma,
            per_decision=self.config.discount_per == "decision",
            timeout_is_terminal=self.config.timeout_is_terminal,
        )
        if not rows:
            return
        self.replay.add(rows)
        count = len(rows[Columns.REWARDS])
        self.counters["decisions"] += count
        self._owed_updates += count * self.config.updates_per_decision
        for episode in episodes:
            infos = episode.get_infos()[1:]
            self.counters["env_steps"] += int(sum(info["primitive_steps"] for info in infos))
            total = self._returns.pop(episode.id_, 0.0) + float(sum(episode.get_rewards()))
            if episode.is_done:
                self.counters["episodes"] += 1
                completed = infos[-1]["completed"] if infos else ()
                self.recent.append({"episode_return": total, "completed": list(completed)})
            else:
                self._returns[episode.id_] = total

    # --- learning ---

    def _learn(self) -> None:
        """Makes the updates owed for the sampled decisions, in one call to the learners."""
        if len(self.replay) < max(self.config.warmup_decisions, 1):
            self._owed_updates = 0.0
            return
        updates = int(self._owed_updates)
        if not updates:
            return
        self._owed_updates -= updates
        size = self.config.total_train_batch_size
        batch = SampleBatch(self.replay.sample(updates * size))
        results = self.learner_group.update(
            batch=MultiAgentBatch({DEFAULT_MODULE_ID: batch}, env_steps=updates * size),
            minibatch_size=self.config.train_batch_size_per_learner,
            num_epochs=1,
        )
        self.counters["updates"] += updates
        self.metrics.aggregate(results, key=LEARNER_RESULTS)
        newest = self.metrics.peek((LEARNER_RESULTS, DEFAULT_MODULE_ID), default={})
        values = {name: float(newest[name]) for name in LOGGED if name in newest}
        self.learner_metrics.update({name: value for name, value in values.items() if value == value})

    # --- what a round has to tell ---

    def episode_metrics(self) -> dict[str, Any]:
        """Mean return and completed subtasks over the last 50 episodes."""
        if not self.recent:
            return {}
        names = sorted({name for episode in self.recent for name in episode["completed"]})
        count = len(self.recent)
        return {
            "episode_return": sum(episode["episode_return"] for episode in self.recent) / count,
            "subtasks": sum(len(episode["completed"]) for episode in self.recent) / count,
            **{f"subtask/{n}": sum(n in e["completed"] for e in self.recent) / count for n in names},
        }

    def policy_state(self) -> dict[str, Any]:
        """State dict of the `SkillPolicy`, for the policy artifact."""
        return checkpoint.policy_state(self.learner_group)

    # --- checkpoints, without a pickle; Tune calls these, too ---

    def save_checkpoint(self, checkpoint_dir: str) -> None:
        checkpoint.save(self, checkpoint_dir)

    def load_checkpoint(self, checkpoint_dir: str) -> None:
        checkpoint.load(self, checkpoint_dir)


def _act_from_prior(runner: Any) -> None:
    runner.module.unwrapped().act_from_prior = True


def _act_from_policy(runner: Any) -> None:
    runner.module.unwrapped().act_from_prior = False
