"""The rewards that a training has seen, and the factor by which its learner multiplies them.

With ``train.reward_scale: auto`` the factor comes from the *expected value* V, the size that Q will have without it. V
is the largest of three:

- the largest discounted sum of rewards from a decision to the end of its episode, in the episodes so far;
- the same in the demonstrations, if these have rewards that count (`rewards_of_demonstrations`);
- the mean reward of a decision times the discounted number of decisions in an episode, 1 + gamma + … + gamma^(N - 1).

The factor is the largest of 1, 2 and 5 times a power of ten by which V becomes at most `TARGET_VALUE`. It is settled
when the warm-up is over, or at the end of the first episode with a reward if neither the warm-up nor the demonstrations
had one. Until then it follows V. The replay holds rewards as the environment gave them, and batches are multiplied.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from ray.rllib.core.columns import Columns
from ray.rllib.env.single_agent_episode import SingleAgentEpisode

from spirl_ray.config import TrainSettings
from spirl_ray.envs.spec import EnvironmentSpec
from spirl_ray.episodes.dataset import dataset_files, read_card, read_tables
from spirl_ray.rl.offline_decisions import judged_rewards, read_offline_card
from spirl_ray.rl.replay import DISCOUNTS, PHASE
from spirl_ray.skills.execution import decision_discount

TARGET_VALUE = 5.0
"""The most that values have after scaling. Settings that have learned had values of 4 in the kitchen (4 subtasks, scale
1), of 5 in OGBench's cube (1 at success, scale 5), and of 17 in block stacking (1718 in its data, scale 0.01)."""
Vector = NDArray[np.float64]


def scale_for(value: float) -> float:
    """The largest of 1, 2 and 5 times a power of ten by which ``value`` becomes at most `TARGET_VALUE`; 1 for zero."""
    if value == 0.0:
        return 1.0
    wanted = TARGET_VALUE / abs(value) * (1.0 + 1e-9)
    power = math.floor(math.log10(wanted))
    digit = next(digit for digit in (5, 2, 1) if float(f"{digit}e{power}") <= wanted or digit == 1)
    return float(f"{digit}e{power}")


def discounted_returns(rewards: ArrayLike, discounts: ArrayLike) -> Vector:
    """The discounted sum of rewards from each decision to the last one, float64 [n], of rewards and discounts [n]."""
    rewards, discounts = np.asarray(rewards, np.float64), np.asarray(discounts, np.float64)
    returns, later = np.zeros(len(rewards)), 0.0
    for index in range(len(rewards) - 1, -1, -1):
        returns[index] = later = rewards[index] + discounts[index] * later
    return returns


@dataclass
class RewardsSeen:
    """The statistics of the rewards of decisions."""

    decisions: int = 0
    episodes: int = 0
    """The number of episodes that have ended."""
    rewarded: int = 0
    """The number of these that had a reward other than 0."""
    total: float = 0.0
    """The sum of all rewards."""
    largest: float = 0.0
    """The reward of a decision that is farthest from 0."""
    largest_return: float = 0.0
    """The discounted sum of rewards, from a decision to the end of its episode, that is farthest from 0."""
    decisions_in_episode: float = 0.0
    """The number of decisions in the longest possible episode, as far as it is known."""

    @property
    def mean(self) -> float:
        """The mean reward of a decision."""
        return self.total / max(1, self.decisions)

    def add(self, rewards: Vector, returns: Vector) -> None:
        """Adds the rewards [n] of decisions, and the returns [m] of all decisions of their episode so far."""
        self.decisions += len(rewards)
        self.total += float(rewards.sum())
        self.largest = _farther(self.largest, rewards)
        self.largest_return = _farther(self.largest_return, returns)

    def end(self, returns: Vector) -> None:
        """Counts an episode that has ended, of which all returns [m] are given."""
        self.episodes += 1
        self.rewarded += bool(np.any(returns))


def _farther(known: float, values: Vector) -> float:
    found = float(values[np.abs(values).argmax()])
    return found if abs(found) > abs(known) else known


class _RunningEpisode:
    """The returns so far of an episode that is sampled in pieces."""

    def __init__(self) -> None:
        self.returns: Vector = np.zeros(0)
        self._weights: Vector = np.zeros(0)
        """What a reward of the next decision counts in each of the returns."""

    def add(self, rewards: Vector, discounts: Vector) -> None:
        piece = discounted_returns(rewards, discounts)
        self.returns = np.concatenate([self.returns + self._weights * piece[0], piece])
        weights = np.cumprod(discounts[::-1])[::-1]
        self._weights = np.concatenate([self._weights * weights[0], weights])


class RewardScale:
    """The rewards that a training has seen, and the factor on them.

    Args:
        settings: the settings of stage 2.
        horizon: H, the length of a skill in primitive steps.
    """

    def __init__(self, settings: TrainSettings, horizon: int) -> None:
        self.automatic = settings.reward_scale == "auto"
        self._settled = None if settings.reward_scale == "auto" else float(settings.reward_scale)
        self._horizon = horizon
        self._discount = decision_discount(settings.discount, horizon, per_decision=settings.discount_per == "decision")
        self._running: dict[str, _RunningEpisode] = {}
        self.seen = RewardsSeen()
        self.recorded = RewardsSeen()
        """The rewards of the demonstrations; empty before the warm-up is over."""
        self.warmed_up = False
        self.starting_divergence = 0.0
        """The mean divergence (nats) of the policy at the decisions of the warm-up, before it has learned."""

    @property
    def settled(self) -> bool:
        """True where the factor will not change any more."""
        return self._settled is not None

    @property
    def factor(self) -> float:
        """The factor on rewards."""
        return scale_for(self.expected_value) if self._settled is None else self._settled

    @property
    def expected_value(self) -> float:
        """The size that Q is expected to have if rewards are not scaled; 0 where no reward is known."""
        steady = abs(self.seen.mean) * self.discounted_decisions
        return max(abs(self.seen.largest_return), abs(self.recorded.largest_return), steady)

    @property
    def discounted_decisions(self) -> float:
        """The discounted number of decisions in an episode, 1 + gamma + … + gamma^(N - 1)."""
        count, gamma = self.seen.decisions_in_episode, self._discount
        return count if gamma == 1.0 else (1.0 - gamma**count) / (1.0 - gamma)

    def observe(self, episodes: Sequence[SingleAgentEpisode], rows: Mapping[str, NDArray[np.float32]]) -> None:
        """Adds sampled (pieces of) episodes, with the rows that `spirl_ray.rl.replay.decisions` has made of them."""
        first = 0
        for episode in episodes:
            piece = slice(first, first + len(episode))
            first = piece.stop
            if not len(episode):
                continue
            rewards = rows[Columns.REWARDS][piece].astype(np.float64)
            running = self._running.setdefault(episode.id_, _RunningEpisode())
            running.add(rewards, rows[DISCOUNTS][piece].astype(np.float64))
            self.seen.add(rewards, running.returns)
            if (phase := float(rows[PHASE][piece][-1])) > 0.0:
                length = (len(running.returns) - 1) / phase
                self.seen.decisions_in_episode = max(self.seen.decisions_in_episode, length)
            if episode.is_done:
                self.seen.end(running.returns)
                del self._running[episode.id_]
        self._settle()

    def end_warm_up(self, starting_divergence: float, recorded: Iterable[NDArray[np.float32]]) -> None:
        """Looks at what is there before the first update: the policy's divergence, the rewards of the demonstrations.

        Args:
            starting_divergence: mean divergence (nats) of the policy at the decisions of the warm-up.
            recorded: the rewards of the steps of each demonstration [T], as far as they are those of this task.
        """
        self.starting_divergence = starting_divergence
        self.recorded = self.in_decisions(recorded)
        self.warmed_up = True
        self._settle()

    def _settle(self) -> None:
        if self._settled is None and self.warmed_up and (self.seen.rewarded or self.recorded.rewarded):
            self._settled = self.factor

    def in_decisions(self, recorded: Iterable[NDArray[np.float32]]) -> RewardsSeen:
        """The rewards of demonstrations in decisions of H steps from the start of each episode."""
        found = RewardsSeen()
        for steps in recorded:
            if not len(steps):
                continue
            rewards = np.add.reduceat(steps.astype(np.float64), np.arange(0, len(steps), self._horizon))
            returns = discounted_returns(rewards, np.full(len(rewards), self._discount))
            found.add(rewards, returns)
            found.end(returns)
        return found

    def numbers(self) -> dict[str, float]:
        """The values of the metrics of `spirl_ray.metrics` about rewards, by name; unknown ones are left out."""
        found = {
            "reward_scale": self.factor,
            "reward_mean": self.seen.mean,
            "reward_largest": self.seen.largest,
            "return_largest": self.seen.largest_return,
            "return_largest_data": self.recorded.largest_return,
            "episode_decisions": self.seen.decisions_in_episode,
            "expected_value": self.expected_value,
            "starting_divergence": self.starting_divergence,
        }
        return found if self.recorded.decisions else {k: v for k, v in found.items() if k != "return_largest_data"}

    def state(self) -> dict[str, Any]:
        """Returns everything needed to resume bit-equal; running episodes start anew."""
        return {
            "settled": self._settled,
            "seen": asdict(self.seen),
            "recorded": asdict(self.recorded),
            "warmed_up": self.warmed_up,
            "starting_divergence": self.starting_divergence,
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Restores a `state`; a factor that the settings fix stays."""
        if self.automatic:
            self._settled = state["settled"]
        self.seen, self.recorded = RewardsSeen(**state["seen"]), RewardsSeen(**state["recorded"])
        self.warmed_up, self.starting_divergence = state["warmed_up"], state["starting_divergence"]
        self._running.clear()


def rewards_of_demonstrations(
    dataset: str | None, environment: EnvironmentSpec, offline: Path | None, *, replaced: bool = False
) -> Iterator[NDArray[np.float32]]:
    """The rewards of the steps of each demonstration [T], if these are those of the task.

    Labels of offline decisions are. Without such, recorded rewards count where the data are of this environment and it
    does not judge recorded states: one that does may have several tasks, and the rewards may be those of another one.

    Args:
        dataset: the folder of the demonstrations; None is no demonstrations.
        environment: the description of the environment.
        offline: the folder of offline decisions, where the method learns from them.
        replaced: True where ``interface.reward`` replaces the rewards of the environment, so that recorded ones do not
            count.

    Raises:
        SpirlError: a file is missing or damaged.
    """
    if offline is not None and read_offline_card(offline).labels != "learned":
        yield from judged_rewards(offline)
    elif dataset is not None and environment.judge is None and not replaced:
        card = read_card(dataset)
        if card.environment == environment.id:
            for file in dataset_files(Path(dataset)):
                for table in read_tables(file, card, columns=["rewards"]):
                    yield from (np.asarray(steps, np.float32) for steps in table["rewards"].to_pylist())
