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

import torch

from spirl_ray.rl.algorithm import SkillPriorSACConfig
from spirl_ray.rl.learner import SkillPriorSACLearner
from spirl_ray.rl.methods import Method, register_method

RECENT = 1000
"""The number of newest decisions from which half of each batch is drawn."""


class HalfRecent:
    """Batches of which one half is drawn from the newest decisions of the replay."""

    def __init__(self, learner: SkillPriorSACLearner) -> None:
        self.replay = learner.replay
        self.rng = torch.Generator(self.replay.device).manual_seed(learner.config.seed or 0)

    def sample(self, count: int) -> dict[str, torch.Tensor]:
        recent, device = min(len(self.replay), RECENT), self.replay.device
        ages = torch.randint(recent, (count // 2,), generator=self.rng, device=device)  # 0 is the newest decision
        newest = self.replay.rows((self.replay.position - 1 - ages) % len(self.replay))
        others = self.replay.sample(count - len(ages))
        # Mixed, because an update takes successive rows of the ``count`` that are drawn for several.
        mixed = torch.randperm(count, generator=self.rng, device=device)
        return {name: torch.cat([newest[name], others[name]])[mixed] for name in others}

    def state(self) -> dict[str, Any]:  # what a checkpoint needs beyond the replay
        return {"rng": self.rng.get_state()}

    def restore(self, state: dict[str, Any]) -> None:
        self.rng.set_state(state["rng"])


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
