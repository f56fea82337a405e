"""The episodes of a training, which arrive in pieces: how many have ended, and what the newest were worth."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable

from ray.rllib.env.single_agent_episode import SingleAgentEpisode

from spirl_ray.envs.metrics import EpisodeOutcome, Scores
from spirl_ray.rl.skill_env import last_info

_RECENT_EPISODES = 50


class TrainingEpisodes:
    """The newest training episodes that have ended, and the lengths of those that have not.

    Args:
        scores: the metrics of an episode; a driver may set others before it trains.
    """

    def __init__(self, scores: Scores) -> None:
        self.scores = scores
        self.recent: deque[dict[str, float]] = deque(maxlen=_RECENT_EPISODES)
        """The metrics of the newest episodes, by name."""
        self._running: dict[str, tuple[float, int]] = {}
        """The return and the length so far of the episodes that have not ended."""

    def add(self, pieces: Iterable[SingleAgentEpisode]) -> tuple[int, int]:
        """Adds pieces of episodes; returns their primitive steps, and how many episodes have ended with them."""
        all_steps = ended = 0
        for piece in pieces:
            infos = piece.get_infos()[1:]
            steps = int(sum(info["primitive_steps"] for info in infos))
            all_steps += steps
            total, length = self._running.pop(piece.id_, (0.0, 0))
            total, length = total + float(sum(piece.get_rewards())), length + steps
            if not piece.is_done:
                self._running[piece.id_] = total, length
                continue
            ended += 1
            last = last_info(infos[-1])
            outcome = EpisodeOutcome(total, length, bool(piece.is_terminated), bool(piece.is_truncated), last)
            measured = self.scores.of(outcome)
            self.recent.append({name: value for name, value in measured.items() if math.isfinite(value)})
        return all_steps, ended

    def mean(self) -> dict[str, float]:
        """The means of the metrics over the newest 50 episodes; those without a value are left out."""
        return self.scores.mean(self.recent)

    def restore(self, recent: Iterable[dict[str, float]]) -> None:
        """Sets what the newest episodes were worth; running ones start anew."""
        self._running.clear()
        self.recent.clear()
        self.recent.extend(recent)
