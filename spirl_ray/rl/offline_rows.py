"""Batches that are partly offline decisions (Ball et al. 2023, RLPD, Section 4.1: symmetric sampling)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from spirl_ray.errors import SpirlError
from spirl_ray.rl.learned_labels import LearnedLabels
from spirl_ray.rl.methods import METHODS, MethodConfig, offline_share
from spirl_ray.rl.offline_decisions import STEPS, check_decisions, read_decisions, read_offline_card
from spirl_ray.rl.policy_network import PolicyNetwork
from spirl_ray.rl.replay import DISCOUNTS, OFFLINE_PHASE, PHASE, DecisionReplay
from spirl_ray.skills.decoders import DECODERS
from spirl_ray.skills.execution import decision_discount

_OTHER_SEED = 1_000_003
"""This is added to a learner's seed, so that its two replays do not draw the same indices."""


class OfflineRows:
    """The source of batches of which each has the same share of offline decisions; the rest is from the replay.

    With several learners, each has a part of the decisions.

    Args:
        config: the `SkillPriorSACConfig`, which names the folder of the decisions.
        replay: the replay of the learner.
        policy: the policy network as it begins, for labels that are learned.
        learner: the number of the learner.

    Raises:
        SpirlError: there are no offline decisions, or they are damaged or of other skills or another policy.
    """

    def __init__(self, config: Any, replay: DecisionReplay, policy: PolicyNetwork, learner: int) -> None:
        settings, device, self.online = config.settings, replay.device, replay
        method = MethodConfig.model_validate(config.method)
        if config.offline is None:
            raise SpirlError(
                f"The method {method.name} also learns from the demonstrations: name their decisions, "
                ".skills(FOLDER, offline=FOLDER), which spirl train makes."
            )
        folder, learners, seed = Path(config.offline), max(1, config.num_learners), (config.seed or 0) + learner
        self.card = read_offline_card(folder)
        check_decisions(self.card, folder, Path(config.skills_folder), config.policy, method.latent_limit)
        if method.offline_updates and self.card.labels == "learned":
            raise SpirlError(
                f"{folder}: these offline decisions have no rewards of their own (offline_labels: learned), so no "
                "updates can be made on them alone. Set train.offline_updates to 0, or make decisions with labels."
            )
        most = min(self.card.decisions, learners * replay.capacity) // learners + self.card.parts
        self.offline = DecisionReplay(most, replay.observation_dim, replay.latent_dim, _OTHER_SEED + seed, device)
        before, per_decision = 0, settings.discount_per == "decision"
        for part in read_decisions(folder, learners * replay.capacity):
            own = slice((learner - before) % learners, None, learners)
            before += len(part[STEPS])
            rows = {name: values[own] for name, values in part.items()}
            steps = rows.pop(STEPS)
            rows[DISCOUNTS] = np.array(
                [decision_discount(settings.discount, int(n), per_decision=per_decision) for n in steps], np.float32
            )
            rows[PHASE] = np.full_like(steps, OFFLINE_PHASE)
            self.offline.add(rows)
        self.batch_size = settings.batch_size
        self.share = offline_share(self.batch_size, method.offline_fraction)
        """The number of offline decisions in a batch."""
        self.labels: LearnedLabels | None = None
        if self.card.labels == "learned":
            flat = DECODERS[METHODS[method.name].decoder].flat
            limit = 1.0 if flat else method.latent_limit
            self.labels = LearnedLabels(policy, replay.latent_dim, limit, settings, seed).to(device)

    def sample(self, count: int) -> dict[str, Tensor]:
        """Draws whole batches, ``count`` decisions in all; see `spirl_ray.rl.replay.RowSource`."""
        batches = count // self.batch_size
        online = self.online.sample(batches * (self.batch_size - self.share))
        offline = self.offline.sample(batches * self.share)
        if self.labels is not None:
            self.labels.learn(online, batches)
            offline.update(self.labels(offline))
        return {
            name: torch.cat([_batches(online[name], batches), _batches(offline[name], batches)], dim=1).flatten(0, 1)
            for name in online
        }

    def sample_offline(self, count: int) -> dict[str, Tensor]:
        """Draws ``count`` offline decisions, without any of the agent's own."""
        return self.offline.sample(count)

    def state(self) -> dict[str, Any]:
        labels = None if self.labels is None else self.labels.state()
        return {"card": self._identity, "rng": self.offline.generator.get_state(), "labels": labels}

    def restore(self, state: dict[str, Any]) -> None:
        if state["card"] != self._identity:
            raise SpirlError(
                "The checkpoint was written with other offline decisions: the dataset or the skills have changed. "
                "Start again in another output."
            )
        self.offline.generator.set_state(state["rng"])
        if self.labels is not None:
            self.labels.restore(state["labels"])

    @property
    def _identity(self) -> dict[str, Any]:
        return self.card.model_dump(mode="json")


def _batches(values: Tensor, count: int) -> Tensor:
    return values.unflatten(0, (count, -1))
