"""A ring buffer of decisions (SMDP transitions)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import torch
from ray.rllib.core.columns import Columns
from ray.rllib.env.single_agent_episode import SingleAgentEpisode
from torch import Tensor

from spirl_ray.skills.execution import decision_discount

DISCOUNTS, PHASE = "discounts", "phase"
OFFLINE_PHASE = -1.0
"""The phase of decisions that are not the agent's own; that of its own is from 0 to 1."""
_GROWTH = 2.0
_FIRST_ROWS = 4096
"""The rows for which there is room at the start."""


class RowSource(Protocol):
    """The source of a learner's batches: the replay alone, or the replay with other rows that a method adds."""

    def sample(self, count: int) -> dict[str, Tensor]:
        """Draws ``count`` decisions, with the columns of `DecisionReplay`, on the learner's device.

        They are in random order, because each update takes successive ones of them.
        """
        ...

    def state(self) -> dict[str, Any]:
        """Returns everything needed to resume bit-equal: plain values, arrays and tensors."""
        ...

    def restore(self, state: dict[str, Any]) -> None:
        """Restores a `state`."""
        ...


class DecisionReplay:
    """A uniform replay of (s, z, r, s', done, discount, phase), one row a decision, on the learner's device.

    A row crosses to the device once, when it is added. Rows are packed in one float32 tensor, which starts small and
    doubles up to ``capacity``; then the oldest rows are overwritten. Its bound is 4 ``capacity`` (2 D + Z + 4) bytes
    with D numbers in a policy observation and Z in a latent, and half as much again while it grows.

    Args:
        capacity: the most rows.
        observation_dim: D.
        latent_dim: Z.
        seed: seed of the generator that draws rows.
        device: the learner's device.
    """

    def __init__(
        self, capacity: int, observation_dim: int, latent_dim: int, seed: int, device: torch.device | str = "cpu"
    ) -> None:
        self.capacity = capacity
        self.observation_dim, self.latent_dim = observation_dim, latent_dim
        self.size = 0
        self.position = 0
        self.generator = torch.Generator(device).manual_seed(seed)
        self._widths = {
            Columns.OBS: observation_dim,
            Columns.NEXT_OBS: observation_dim,
            Columns.ACTIONS: latent_dim,
            Columns.REWARDS: 0,
            Columns.TERMINATEDS: 0,
            DISCOUNTS: 0,
            PHASE: 0,
        }
        self._rows = torch.zeros(0, sum(max(1, width) for width in self._widths.values()), device=device)
        self._reserve(min(capacity, _FIRST_ROWS))

    def __len__(self) -> int:
        return self.size

    @property
    def device(self) -> torch.device:
        """The device of the rows."""
        return self._rows.device

    @property
    def columns(self) -> dict[str, Tensor]:
        """The columns of the rows so far, [size, width] or [size], as views: what is written to them stays."""
        return self._columns(self._rows[: self.size])

    def _columns(self, rows: Tensor) -> dict[str, Tensor]:
        parts = rows.split([max(1, width) for width in self._widths.values()], dim=-1)
        named = zip(self._widths.items(), parts, strict=True)
        return {name: part if width else part.squeeze(-1) for (name, width), part in named}

    def _packed(self, rows: Mapping[str, Any]) -> Tensor:
        """The rows, arrays or tensors by column, as one tensor on the device."""
        parts = [torch.as_tensor(rows[name]) for name in self._widths]
        return torch.cat([part if part.ndim == 2 else part[:, None] for part in parts], dim=-1).to(self.device)

    def _reserve(self, rows: int) -> None:
        have = len(self._rows)
        if rows > have:
            grown = self._rows.new_zeros(min(self.capacity, max(rows, int(have * _GROWTH))), self._rows.shape[1])
            grown[:have] = self._rows
            self._rows = grown

    def add(self, rows: Mapping[str, Any]) -> None:
        """Appends rows: float32 arrays or tensors of one length, one for each column."""
        packed = self._packed(rows)[-self.capacity :]
        count = len(packed)
        self._reserve(min(self.capacity, self.size + count))
        first = min(count, self.capacity - self.position)  # the rest is at the start of the ring
        self._rows[self.position : self.position + first] = packed[:first]
        self._rows[: count - first] = packed[first:]
        self.position = (self.position + count) % self.capacity
        self.size = min(self.capacity, self.size + count)

    def rows(self, indices: Tensor) -> dict[str, Tensor]:
        """The rows at these indices [n] on the device, by column."""
        return self._columns(self._rows[indices])

    def sample(self, count: int) -> dict[str, Tensor]:
        """Draws ``count`` rows uniformly with replacement."""
        return self.rows(torch.randint(self.size, (count,), generator=self.generator, device=self.device))

    def state(self) -> dict[str, Any]:
        """Returns everything needed to resume bit-equal: filled rows, ring position, random generator."""
        return {
            "columns": self.columns,
            "position": self.position,
            "capacity": self.capacity,
            "rng": self.generator.get_state(),
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Restores a `state` of a buffer of the same capacity."""
        if state["capacity"] != self.capacity:
            raise ValueError(f"replay capacity {self.capacity} differs from the saved {state['capacity']}")
        packed = self._packed(state["columns"])
        self.size = len(packed)
        self._reserve(max(1, self.size))
        self._rows[: self.size] = packed
        self.position = state["position"]
        self.generator.set_state(state["rng"])


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
