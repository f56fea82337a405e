"""A method of one's own: SPiRL whose batches have recent decisions in one half and any decisions in the other.

    python examples/own_method.py runs/quickstart/skills/open_loop-… --environment spirl/Maze-v0

A method is a row of a table: which skills, what the policy stays close to, where it starts, and where its batches come
from. This process alone knows the row; `docs/extending.md` shows the entry point by which configs and all processes
of a cluster know it. The folder is a skill artifact with open-loop skills, as `make quickstart` leaves it.
"""

from __future__ import annotations

import argparse
import json
from typing import Any

import numpy as np
import torch

from spirl_ray.rl.algorithm import SkillPriorSAC, SkillPriorSACConfig
from spirl_ray.rl.methods import Method, register_method

RECENT = 1000
"""The number of newest decisions from which half of each batch is drawn."""


class HalfRecent:
    """Batches of which one half is drawn from the newest decisions of the replay."""

    def __init__(self, algorithm: SkillPriorSAC) -> None:
        self.replay = algorithm.replay
        self.rng = np.random.default_rng(algorithm.config.seed)

    def sample(self, count: int) -> dict[str, torch.Tensor]:
        batch = self.replay.sample(count)
        ages = self.rng.integers(min(len(self.replay), RECENT), size=count // 2)  # 0 is the newest decision
        rows = (self.replay.position - 1 - ages) % len(self.replay)
        for name, values in batch.items():
            values[: len(rows)] = torch.from_numpy(self.replay.columns[name][rows])
        return batch

    def state(self) -> dict[str, Any]:  # what a checkpoint needs beyond the replay
        return {"rng": self.rng.bit_generator.state}

    def restore(self, state: dict[str, Any]) -> None:
        self.rng.bit_generator.state = state["rng"]


METHOD = Method(
    decoder="open_loop",
    regulariser="prior",
    policy_init="prior",
    summary="SPiRL, open-loop skills, recent decisions in half of each batch",
    rows=HalfRecent,
)


def main() -> None:
    parser = argparse.ArgumentParser(description="Trains a policy by a method that this file adds.")
    parser.add_argument("skills", help="folder of a skill artifact with open-loop skills")
    parser.add_argument("--environment", default="spirl/Kitchen-v0", help="id of the environment")
    parser.add_argument("--arguments", type=json.loads, default={}, help="of the environment's constructor, as JSON")
    parser.add_argument("--max-episode-steps", type=int, help="the environment's own if not given")
    parser.add_argument("--training", type=json.loads, default={}, help="arguments of .training(…), as JSON")
    parser.add_argument("--iterations", type=int, default=100)
    asked = parser.parse_args()

    register_method("spirl_recent", METHOD)
    config = (
        SkillPriorSACConfig()
        .skills(asked.skills, method="spirl_recent")
        .environment(asked.environment, env_config=asked.arguments)
        .reading(max_episode_steps=asked.max_episode_steps)
        .env_runners(num_env_runners=0, num_envs_per_env_runner=2, rollout_fragment_length=8)
        .training(**asked.training)
        .debugging(seed=0)
    )
    algorithm = config.build_algo()
    try:
        for iteration in range(asked.iterations):
            found = algorithm.train()["skills"]
            print(f"iteration {iteration + 1}: {found['decisions']:.0f} decisions, {found['updates']:.0f} updates")
    finally:
        algorithm.stop()


if __name__ == "__main__":
    main()
