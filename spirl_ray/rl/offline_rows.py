"""Batches that are partly offline decisions (Ball et al. 2023, RLPD, Section 4.1: symmetric sampling)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from ray.rllib.core.columns import Columns
from torch import Tensor

from spirl_ray.errors import SpirlError
from spirl_ray.rl.learned_labels import LearnedLabels
from spirl_ray.rl.methods import MethodConfig
from spirl_ray.rl.offline_decisions import STEPS, read_decisions, read_offline_card
from spirl_ray.rl.policy_network import PolicyNetwork
from spirl_ray.rl.replay import DISCOUNTS, OFFLINE_PHASE, PHASE, DecisionReplay
from spirl_ray.skills.execution import decision_discount


class OfflineRows:
    """The source of batches of which each has the same share of offline decisions; the rest is from the replay.

    Args:
        config: the `SkillPriorSACConfig`, which names the folder of the decisions.
        replay: the replay of the learner.
        policy: the policy network, for labels that are learned.
        seed: seed of what is drawn.

    Raises:
        SpirlError: there are no offline decisions, or they are damaged or of another policy.
    """

    def __init__(self, config: Any, replay: DecisionReplay, policy: PolicyNetwork, seed: int) -> None:
        self.online = replay
        settings, device = config.settings, replay.device
        if config.offline is None:
            raise SpirlError(
                f"The method {config.method['name']} also learns from the demonstrations: name their decisions, "
                ".skills(FOLDER, offline=FOLDER), which spirl train makes."
            )
        folder = Path(config.offline)
        rows = read_decisions(folder, settings.replay_capacity)
        per_decision = settings.discount_per == "decision"
        steps = rows.pop(STEPS)
        rows[DISCOUNTS] = np.array(
            [decision_discount(settings.discount, int(n), per_decision=per_decision) for n in steps], np.float32
        )
        rows[PHASE] = np.full_like(rows[PHASE], OFFLINE_PHASE)
        (count, width), latent_dim = rows[Columns.OBS].shape, rows[Columns.ACTIONS].shape[1]
        wanted = replay.observation_dim, replay.latent_dim
        if (width, latent_dim) != wanted:
            raise SpirlError(
                f"{folder}: the decisions have policy observations of {width} and latents of {latent_dim} numbers, "
                f"the policy has {wanted[0]} and {wanted[1]}. Remove the folder, and "
                "they are made again."
            )
        self.offline = DecisionReplay(count, width, latent_dim, seed, device)
        self.offline.add(rows)
        self.batch_size = settings.batch_size
        self.share = round(self.batch_size * MethodConfig.model_validate(config.method).offline_fraction)
        """The number of offline decisions in a batch."""
        self.labels: LearnedLabels | None = None
        if read_offline_card(folder).labels == "learned":
            self.labels = LearnedLabels(policy, latent_dim, settings, seed).to(device)

    def sample(self, count: int) -> dict[str, Tensor]:
        """Draws whole batches, ``count`` decisions in all; see `spirl_ray.rl.replay.RowSource`."""
        batches = count // self.batch_size
        online = self.online.sample(batches * (self.batch_size - self.share))
        offline = self.offline.sample(batches * self.share)
        if self.labels is not None:
            self.labels.learn(online, batches)
            offline[Columns.REWARDS] = self.labels(offline)
        return {
            name: torch.cat([_batches(online[name], batches), _batches(offline[name], batches)], dim=1).flatten(0, 1)
            for name in online
        }

    def state(self) -> dict[str, Any]:
        labels = None if self.labels is None else self.labels.state()
        return {"decisions": len(self.offline), "rng": self.offline.generator.get_state(), "labels": labels}

    def restore(self, state: dict[str, Any]) -> None:
        if state["decisions"] != len(self.offline):
            raise SpirlError(
                f"The checkpoint was written with {state['decisions']} offline decisions, and there are "
                f"{len(self.offline)} now: the dataset has changed. Start again in another output."
            )
        self.offline.generator.set_state(state["rng"])
        if self.labels is not None:
            self.labels.restore(state["labels"])


def _batches(values: Tensor, count: int) -> Tensor:
    return values.unflatten(0, (count, -1))
