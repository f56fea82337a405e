"""The learners of an algorithm, one or several, each with its own replay shard: what the driver asks of them.

Several learners average their gradients, so their networks stay equal. The driver keeps no decision: those of env
runner i go to learner (i - 1) mod L.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import numpy as np
import torch
from ray.rllib.core.columns import Columns
from ray.rllib.core.learner.learner_group import LearnerGroup

from spirl_ray.errors import SpirlError
from spirl_ray.rl.learner import SkillPriorSACLearner

_FIRST_DECISIONS = 1024
"""The most decisions of the warm-up at which the divergence of the policy is measured before it learns."""
Ask = Callable[[SkillPriorSACLearner], Any]


class LearnerLost(RuntimeError):
    """A learner's process ended, so training has to resume from the last checkpoint with new learners."""


class Learners:
    """The learners of RLlib's group.

    Args:
        group: local or remote learners.
    """

    def __init__(self, group: LearnerGroup) -> None:
        self.group = group
        self.count = max(1, len(group))
        self.decisions = [0] * self.count
        """The number of decisions that each learner has got."""

    def add(self, runner: int, rows: Mapping[str, np.ndarray]) -> None:
        """Adds decisions of an env runner, by its number, to the replay of its learner."""
        to = (runner - 1) % self.count
        self.decisions[to] += len(rows[Columns.REWARDS])
        # Not waited for: a learner makes its updates after what was sent before.
        self._ask(lambda learner: learner.replay.add(rows), to=to, waits=False)

    def learn(self, updates: int, reward_scale: float, *, offline: bool = False) -> dict[str, float]:
        """Makes updates on all learners at once; returns the first one's metrics, see `SkillPriorSACLearner.learn`."""
        return self._ask(lambda learner: learner.learn(updates, reward_scale, offline=offline))[0]

    def mean_divergence(self) -> float:
        """The mean divergence (nats) of the policy at the first decisions in the replays."""

        def measure(learner: SkillPriorSACLearner) -> float:
            return learner.networks.mean_divergence(learner.replay.columns[Columns.OBS][:_FIRST_DECISIONS])

        return float(np.mean(self._ask(measure)))

    def state(self) -> list[dict[str, Any]]:
        """What each learner holds beside the networks and optimisers: replay, rows and random generators."""
        return self._ask(_state)

    def restore(self, states: list[dict[str, Any]]) -> None:
        """Restores a `state` of as many learners.

        Raises:
            SpirlError: it is of another number of learners.
        """
        if len(states) != self.count:
            raise SpirlError(
                f"The checkpoint has the replays of {len(states)} learners, and there are {self.count}: set "
                f"train.learners to {len(states) if len(states) > 1 else '0 or 1'}, or start again in another output."
            )
        for index, state in enumerate(states):
            self._ask(partial(_restore, state=state), to=index)
            self.decisions[index] = len(state["replay"]["columns"][Columns.REWARDS])

    def _ask(self, ask: Ask, *, to: int | None = None, waits: bool = True) -> list[Any]:
        """Calls a function on one learner, or on all, and returns the answers; none where it does not wait for them.

        Raises:
            SpirlError: what a learner raised.
            LearnerLost: a learner did not answer.
        """
        local = self.group.is_local
        results = list(
            self.group.foreach_learner(
                partial(_answer, ask=ask),
                remote_actor_ids=None if to is None or local else [to],
                timeout_seconds=None if waits else 0.0,
            )
        )
        answers = [result.get() for result in results if result.ok]
        for answer in answers:
            if isinstance(answer, SpirlError):
                raise answer
        asked = self.count if to is None else 1
        if (waits or local) and len(answers) < asked:
            error = next((result.get() for result in results if not result.ok), None)
            raise LearnerLost(f"{asked - len(answers)} of {asked} learners did not answer") from error
        return answers


def _answer(learner: SkillPriorSACLearner, ask: Ask) -> Any:
    """The answer of a learner, or its error, which RLlib would turn into the end of the learner's process."""
    try:
        return ask(learner)
    except SpirlError as error:
        return error


def _state(learner: SkillPriorSACLearner) -> dict[str, Any]:
    on_gpu = learner.replay.device.type == "cuda"
    return {
        "replay": learner.replay.state(),
        "rows": None if learner.rows is learner.replay else learner.rows.state(),
        "rng": torch.get_rng_state(),
        "cuda_rng": torch.cuda.get_rng_state() if on_gpu else None,
    }


def _restore(learner: SkillPriorSACLearner, state: dict[str, Any]) -> None:
    learner.replay.restore(state["replay"])
    if learner.rows is not learner.replay:
        learner.rows.restore(state["rows"])
    torch.set_rng_state(state["rng"])
    if state["cuda_rng"] is not None and learner.replay.device.type == "cuda":
        torch.cuda.set_rng_state(state["cuda_rng"])
