"""A columnar ring buffer of decisions (SMDP transitions)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
import torch
from ray.rllib.core.columns import Columns
from ray.rllib.env.single_agent_episode import SingleAgentEpisode
from torch import Tensor

from spirl_ray.skills.execution import decision_discount

DISCOUNTS, PHASE = "discounts", "phase"
_GROWTH = 2.0
_FIRST_ROWS = 4096


class RowSource(Protocol):
    """The source of a learner's batches: the replay alone, or the replay with other rows that a method adds."""

    def sample(self, count: int) -> dict[str, Tensor]:
        """Draws ``count`` decisions, with the columns of `DecisionReplay`."""
        ...

    def state(self) -> dict[str, Any]:
        """Returns everything needed to resume bit-equal: plain values, arrays and tensors."""
        ...

    def restore(self, state: dict[str, Any]) -> None:
        """Restores a `state`."""
        ...


class DecisionReplay:
    """A uniform replay of (s, z, r, s', done, discount, phase), one row a decision.

    The arrays start small and double up to ``capacity``; then the oldest rows are overwritten.
    """

    def __init__(self, capacity: int, observation_dim: int, latent_dim: int, seed: int) -> None:
        self.capacity = capacity
        self.size = 0
        self.position = 0
        self.rng = np.random.default_rng(seed)
        self._widths = {
            Columns.OBS: observation_dim,
            Columns.NEXT_OBS: observation_dim,
            Columns.ACTIONS: latent_dim,
            Columns.REWARDS: 0,
            Columns.TERMINATEDS: 0,
            DISCOUNTS: 0,
            PHASE: 0,
        }
        self.columns = {name: self._empty(width, 0) for name, width in self._widths.items()}
        self._reserve(min(capacity, _FIRST_ROWS))

    def __len__(self) -> int:
        return self.size

    @staticmethod
    def _empty(width: int, rows: int) -> np.ndarray:
        return np.zeros((rows, width) if width else (rows,), np.float32)

    def _reserve(self, rows: int) -> None:
        have = len(self.columns[Columns.REWARDS])
        if rows <= have:
            return
        rows = min(self.capacity, max(rows, int(have * _GROWTH)))
        for name, width in self._widths.items():
            grown = self._empty(width, rows)
            grown[:have] = self.columns[name]
            self.columns[name] = grown

    def add(self, rows: dict[str, np.ndarray]) -> None:
        """Appends rows: float32 arrays of one length, one for each column."""
        count = len(rows[Columns.REWARDS])
        if count > self.capacity:
            rows, count = {name: values[-self.capacity :] for name, values in rows.items()}, self.capacity
        self._reserve(min(self.capacity, self.size + count))
        target = (self.position + np.arange(count)) % self.capacity
        for name, column in self.columns.items():
            column[target] = rows[name]
        self.position = int((self.position + count) % self.capacity)
        self.size = min(self.capacity, self.size + count)

    def sample(self, count: int) -> dict[str, Tensor]:
        """Draws ``count`` rows uniformly with replacement."""
        chosen = self.rng.integers(0, self.size, count)
        return {name: torch.from_numpy(column[chosen]) for name, column in self.columns.items()}

    def state(self) -> dict[str, Any]:
        """Returns everything needed to resume bit-equal: filled rows, ring position, random generator."""
        return {
            "columns": {name: column[: self.size] for name, column in self.columns.items()},
            "position": self.position,
            "capacity": self.capacity,
            "rng": self.rng.bit_generator.state,
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Restores a `state` of a buffer of the same capacity."""
        if state["capacity"] != self.capacity:
            raise ValueError(f"replay capacity {self.capacity} differs from the saved {state['capacity']}")
        self.size = len(state["columns"][Columns.REWARDS])
        self._reserve(max(1, self.size))
        for name, column in self.columns.items():
            column[: self.size] = state["columns"][name]
        self.position = state["position"]
        self.rng.bit_generator.state = state["rng"]


def decisions(
    episodes: Sequence[SingleAgentEpisode], *, gamma: float, per_decision: bool, timeout_is_terminal: bool
) -> dict[str, np.ndarray]:
    """Converts sampled (pieces of) episodes to replay rows, see `DecisionReplay`.

    A time-out keeps ``terminateds`` 0, so the critic bootstraps through it, unless ``timeout_is_terminal``.
    """
    parts: dict[str, list[np.ndarray]] = {}
    for episode in episodes:
        count = len(episode)
        if not count:
            continue
        observations = np.asarray(episode.get_observations(), np.float32)
        infos = episode.get_infos()[1:]
        terminated = np.zeros(count, np.float32)
        terminated[-1] = episode.is_terminated or (timeout_is_terminal and episode.is_truncated)
        rows = {
            Columns.OBS: observations[:-1],
            Columns.NEXT_OBS: observations[1:],
            Columns.ACTIONS: np.asarray(episode.get_actions(), np.float32),
            Columns.REWARDS: np.asarray(episode.get_rewards(), np.float32),
            Columns.TERMINATEDS: terminated,
            DISCOUNTS: np.asarray(
                [decision_discount(gamma, i["primitive_steps"], per_decision=per_decision) for i in infos],
                np.float32,
            ),
            PHASE: np.asarray([info["phase"] for info in infos], np.float32),
        }
        for name, values in rows.items():
            parts.setdefault(name, []).append(values)
    return {name: np.concatenate(values) for name, values in parts.items()}
