"""A method whose batches are half demonstrations: their windows, encoded by the frozen skills, are decisions, too."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from ray.rllib.core.columns import Columns
from torch import Tensor

from spirl_ray.episodes.dataset import read_episodes
from spirl_ray.rl.learner import SkillPriorSACLearner
from spirl_ray.rl.methods import Method
from spirl_ray.rl.policy_network import PolicyObserver
from spirl_ray.rl.replay import DISCOUNTS, PHASE, DecisionReplay
from spirl_ray.skills.artifact import load_skills


class HalfOffline:
    """Rows of the replay and of the demonstrations in equal parts."""

    def __init__(self, learner: SkillPriorSACLearner) -> None:
        self.online = learner.replay
        rows = demonstrations(learner)
        count, width = rows[Columns.OBS].shape
        latent_dim, seed = rows[Columns.ACTIONS].shape[1], learner.config.seed or 0
        self.offline = DecisionReplay(count, width, latent_dim, seed, self.online.device)
        self.offline.add(rows)

    def sample(self, count: int) -> dict[str, Tensor]:
        half = count // 2
        one, other = self.online.sample(count - half), self.offline.sample(half)
        mixed = torch.randperm(count, device=self.online.device)
        return {name: torch.cat([one[name], other[name]])[mixed] for name in one}

    def state(self) -> dict[str, Any]:
        return self.offline.state()

    def restore(self, state: dict[str, Any]) -> None:
        self.offline.restore(state)


@torch.inference_mode()
def demonstrations(learner: SkillPriorSACLearner) -> dict[str, np.ndarray]:
    """Decisions from every H-th window of the dataset, with the recorded rewards."""
    config = learner.config
    assert config.skills_folder is not None
    assert config.dataset is not None
    skills = load_skills(config.skills_folder)
    observer, horizon = PolicyObserver(config.policy, skills), skills.spec.horizon
    columns: dict[str, list[Any]] = {}
    for episode in read_episodes(config.dataset):
        for first in range(0, episode.length - horizon + 1, horizon):
            last = first + horizon
            window = {
                name: torch.from_numpy(episode.observations[name][first:last]).unsqueeze(0)
                for name in skills.spec.features
            }
            actions = torch.from_numpy(episode.actions[first:last]).unsqueeze(0)
            posterior = skills.codec.encode(skills.codec.observe(window), actions)
            row = {
                Columns.OBS: observer({name: value[first] for name, value in episode.observations.items()}),
                Columns.NEXT_OBS: observer({name: value[last] for name, value in episode.observations.items()}),
                Columns.ACTIONS: posterior.mean[0].numpy(),
                Columns.REWARDS: episode.rewards[first:last].sum(),
                Columns.TERMINATEDS: float(episode.terminated and last == episode.length),
                DISCOUNTS: config.settings.discount,
                PHASE: first / episode.length,
            }
            for name, value in row.items():
                columns.setdefault(name, []).append(value)
    return {name: np.asarray(values, np.float32) for name, values in columns.items()}


METHOD = Method(
    "linear", "prior", "prior", "a plugin's method: SPiRL with demonstrations in half of every batch", HalfOffline
)
