"""SkillPriorSAC, an RLlib Algorithm: sampling of skills overlaps learning from a replay of decisions."""

from __future__ import annotations

import math
import time
import traceback
from collections import deque
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ray.rllib.algorithms.algorithm import Algorithm
from ray.rllib.core import COMPONENT_LEARNER, COMPONENT_RL_MODULE, DEFAULT_MODULE_ID
from ray.rllib.core.columns import Columns
from ray.rllib.env.env_runner import EnvRunner
from ray.rllib.env.single_agent_episode import SingleAgentEpisode
from ray.rllib.policy.sample_batch import MultiAgentBatch, SampleBatch
from ray.rllib.utils.metrics import ENV_RUNNER_RESULTS, LEARNER_RESULTS, WEIGHTS_SEQ_NO

from spirl_ray.envs import environment
from spirl_ray.envs.metrics import EpisodeOutcome, undeclared
from spirl_ray.errors import SpirlError
from spirl_ray.metrics import learner_columns
from spirl_ray.rl.checkpoint import (
    RestoreRandomState,
    cuda_random_state,
    random_state,
    read_state,
    write_state,
)
from spirl_ray.rl.config import SkillPriorSACConfig
from spirl_ray.rl.methods import METHODS, MethodConfig
from spirl_ray.rl.replay import DecisionReplay, RowSource, decisions

_POLL_S = 0.002
_PAUSE_S = 0.5
_RECENT_EPISODES = 50
_POLICY_PREFIX = "policy."
_RL_MODULE = f"{COMPONENT_LEARNER}/{COMPONENT_RL_MODULE}"
SKILL_RESULTS = "skills"
"""Key of this algorithm's own counters and episode statistics in RLlib's result dict."""


Sampled = tuple[list[SingleAgentEpisode], Any, float]
"""Pieces of episodes, RLlib's metrics, seconds."""


def _sample_and_measure(runner: EnvRunner) -> Sampled:
    started = time.perf_counter()
    episodes = runner.sample()
    return episodes, runner.get_metrics(), time.perf_counter() - started


def _try_to_sample(runner: EnvRunner) -> Sampled | str:
    """The samples, or the traceback of an error in the environment, which RLlib would hide behind restarts."""
    try:
        return _sample_and_measure(runner)
    except Exception:
        return traceback.format_exc()


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
        observations, latents = self.env_runner_group.get_spaces()[DEFAULT_MODULE_ID]
        self.settings = self.config.settings
        self.replay = DecisionReplay(
            self.settings.replay_capacity, observations.shape[0], latents.shape[0], self.config.seed or 0
        )
        rows = METHODS[MethodConfig.model_validate(self.config.method).name].rows
        self.rows: RowSource = self.replay if rows is None else rows(self)
        """Where the batches of updates come from."""
        self.counters = {"env_steps": 0, "decisions": 0, "updates": 0, "episodes": 0}
        env = self.config.env_config
        self.scores = environment(env["env_id"]).scores(env.get("env_kwargs", {})) if "env_id" in env else undeclared()
        """What is measured of the training episodes; a driver may set others before it trains."""
        self.recent: deque[dict[str, float]] = deque(maxlen=_RECENT_EPISODES)
        """Metrics of the newest training episodes, by name."""
        self.learner_metrics: dict[str, float] = {}
        """The newest losses, divergences and alpha, by name."""
        self._owed_updates = 0.0
        self._running: dict[str, tuple[float, int]] = {}
        self._sample_s = 0.0
        self._heard_at = time.monotonic()
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

    def _collect(self) -> list[SingleAgentEpisode]:
        """Pieces of episodes sampled since the last round; requests the next ones before it returns.

        Empty while the env runners are away; RLlib brings them back between two rounds.

        Raises:
            RuntimeError: with the traceback from the env runner, when its environment failed.
            SpirlError: when no env runner has answered for `silence_limit_s`.
        """
        group = self.env_runner_group
        if group.num_remote_env_runners() == 0:
            samples = {0: _sample_and_measure(group.local_env_runner)}
            self._send_weights(None)
        else:
            samples = self._next_samples()
            if not samples:
                return []
            # Only to those that sample next: behind a running request, weights would be old when they are used.
            self._send_weights(list(samples))
            group.foreach_env_runner_async(_try_to_sample, tag="sample", remote_worker_ids=list(samples))
        self.metrics.aggregate([metrics for _, metrics, _ in samples.values()], key=ENV_RUNNER_RESULTS)
        self._sample_s = float(np.mean([seconds for _, _, seconds in samples.values()]))
        return [episode for episodes, _, _ in samples.values() for episode in episodes]

    def _next_samples(self) -> dict[int, Sampled]:
        """What has been sampled by env runner; waits for the first, and requests from those that are idle."""
        group = self.env_runner_group
        group.foreach_env_runner_async(_try_to_sample, tag="sample")  # no more than one request a runner
        deadline = time.monotonic() + self.config.sample_timeout_s
        results: list[tuple[int, Sampled | str]] = []
        while not results and group.num_in_flight_async_reqs("sample") and time.monotonic() < deadline:
            results = group.fetch_ready_async_reqs(tags="sample", timeout_seconds=0.0)
            if not results:
                time.sleep(_POLL_S)
        samples = {}
        for index, sampled in results:
            if isinstance(sampled, str):
                raise RuntimeError(f"The environment of env runner {index} failed:\n{sampled}")
            samples[index] = sampled
        now = time.monotonic()
        if samples:
            self._heard_at = now
        elif now - self._heard_at > self.config.silence_limit_s:
            raise SpirlError(
                f"No env runner has answered for {self.config.silence_limit_s:.0f} s. Check that the cluster has a "
                "free CPU for each (`ray status`), then start the command again: it resumes from the last checkpoint."
            )
        else:
            time.sleep(_PAUSE_S)
        return samples

    def _send_weights(self, runners: list[int] | None) -> None:
        if self.counters["updates"] > 0:
            self.env_runner_group.sync_weights(
                from_worker_or_learner_group=self.learner_group, to_worker_indices=runners, inference_only=True
            )

    def _remember(self, episodes: list[SingleAgentEpisode]) -> None:
        rows = decisions(
            episodes,
            gamma=self.settings.discount,
            per_decision=self.settings.discount_per == "decision",
            timeout_is_terminal=self.settings.timeout_is_terminal,
        )
        if not rows:
            return
        self.replay.add(rows)
        count = len(rows[Columns.REWARDS])
        self.counters["decisions"] += count
        self._owed_updates += count * self.settings.updates_per_decision
        for episode in episodes:
            infos = episode.get_infos()[1:]
            steps = int(sum(info["primitive_steps"] for info in infos))
            self.counters["env_steps"] += steps
            total, length = self._running.pop(episode.id_, (0.0, 0))
            total, length = total + float(sum(episode.get_rewards())), length + steps
            if not episode.is_done:
                self._running[episode.id_] = total, length
                continue
            self.counters["episodes"] += 1
            last = infos[-1] if infos else {}
            outcome = EpisodeOutcome(total, length, bool(episode.is_terminated), bool(episode.is_truncated), last)
            measured = self.scores.of(outcome)
            self.recent.append({name: value for name, value in measured.items() if math.isfinite(value)})

    # --- learning ---

    def _learn(self) -> None:
        """Makes the updates owed for the sampled decisions, in one call to the learners."""
        if len(self.replay) < max(1, min(self.settings.warmup_decisions, self.settings.replay_capacity)):
            self._owed_updates = 0.0
            return
        updates = int(self._owed_updates)
        if not updates:
            return
        self._owed_updates -= updates
        size = self.config.total_train_batch_size
        batch = SampleBatch(self.rows.sample(updates * size))
        results = self.learner_group.update(
            batch=MultiAgentBatch({DEFAULT_MODULE_ID: batch}, env_steps=updates * size),
            minibatch_size=self.config.train_batch_size_per_learner,
            num_epochs=1,
        )
        self.counters["updates"] += updates
        self.metrics.aggregate(results, key=LEARNER_RESULTS)
        newest = self.metrics.peek((LEARNER_RESULTS, DEFAULT_MODULE_ID), default={})
        values = {name: float(newest[name]) for name in learner_columns() if name in newest}
        self.learner_metrics.update({name: value for name, value in values.items() if value == value})

    # --- what a round has to tell ---

    def episode_metrics(self) -> dict[str, float]:
        """Means of the episode metrics over the last 50 training episodes; those without a value are left out."""
        return self.scores.mean(self.recent)

    def policy_state(self) -> dict[str, torch.Tensor]:
        """State dict of the `PolicyNetwork`, from the (first) learner, for the policy artifact."""
        state = self.learner_group.get_state(components=[f"{_RL_MODULE}/{DEFAULT_MODULE_ID}"], inference_only=True)
        module = state[COMPONENT_LEARNER][COMPONENT_RL_MODULE][DEFAULT_MODULE_ID]
        return {
            name.removeprefix(_POLICY_PREFIX): torch.as_tensor(value)
            for name, value in module.items()
            if name.startswith(_POLICY_PREFIX)
        }

    # --- checkpoints; Tune calls these, too ---

    def save_checkpoint(self, checkpoint_dir: str) -> None:
        """Writes everything: networks, targets, alpha, optimisers, replay, random generators and counters."""
        learners, runners = self.learner_group, self.env_runner_group
        write_state(
            Path(checkpoint_dir),
            {
                "learner": learners.get_state()[COMPONENT_LEARNER],
                "learner_rng": _first(learners.foreach_learner(random_state)),
                "learner_cuda_rng": _first(learners.foreach_learner(cuda_random_state)),
                "runner_rng": runners.foreach_env_runner(random_state),
                "replay": self.replay.state(),
                "rows": None if self.rows is self.replay else self.rows.state(),
                "counters": dict(self.counters),
                "owed_updates": self._owed_updates,
                "recent": list(self.recent),
                "iteration": self.iteration,
            },
        )

    def load_checkpoint(self, checkpoint_dir: str) -> None:
        """Restores what `save_checkpoint` wrote with the same config, bit-equal; running episodes start anew.

        Raises:
            SpirlError: naming the file that is missing or damaged.
        """
        state = read_state(Path(checkpoint_dir))
        learners, runners = self.learner_group, self.env_runner_group
        # Learners and env runners take only weights with a higher number than their own.
        live = learners.get_state(components=_RL_MODULE, inference_only=True)[COMPONENT_LEARNER]
        newest = 1 + max(live[WEIGHTS_SEQ_NO], state["learner"][WEIGHTS_SEQ_NO])
        learners.set_state({COMPONENT_LEARNER: {**state["learner"], WEIGHTS_SEQ_NO: newest}})
        runners.sync_weights(from_worker_or_learner_group=learners, inference_only=True)
        self.replay.restore(state["replay"])
        if self.rows is not self.replay:
            self.rows.restore(state["rows"])
        self.counters.update(state["counters"])
        self._owed_updates = state["owed_updates"]
        self._running.clear()
        self.recent.clear()
        self.recent.extend(state["recent"])
        self._iteration = state["iteration"]
        for index, rng in zip(runners.healthy_env_runner_ids() or [None], state["runner_rng"], strict=False):
            remote = None if index is None else [index]
            runners.foreach_env_runner(RestoreRandomState(rng), remote_worker_ids=remote)
        learners.foreach_learner(RestoreRandomState(state["learner_rng"], state.get("learner_cuda_rng")))


def _first(results: Any) -> Any:
    """The first learner's answer, which a remote one wraps."""
    first = next(iter(results))
    return first.get() if hasattr(first, "get") else first
