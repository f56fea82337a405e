"""Stage 2 by RLlib alone: `SkillPriorSACConfig` is an `AlgorithmConfig` like any other.

    python examples/rllib_native.py runs/quickstart/skills/open_loop-… --environment spirl/Maze-v0

The folder is a skill artifact, as `spirl pretrain` or `spirl run` leaves it in ``skills/`` of an experiment. The skills
must have been trained on the features of the environment. RLlib starts a local Ray.
"""

from __future__ import annotations

import argparse
import json
from typing import Any

from spirl_ray.rl.algorithm import SkillPriorSACConfig


def main() -> None:
    parser = argparse.ArgumentParser(description="Trains a policy over skills with RLlib.")
    parser.add_argument("skills", help="folder of a skill artifact")
    parser.add_argument("--environment", default="spirl/Kitchen-v0", help="id of the environment")
    parser.add_argument("--arguments", type=json.loads, default={}, help="of the environment's constructor, as JSON")
    parser.add_argument("--max-episode-steps", type=int, help="the environment's own if not given")
    parser.add_argument("--training", type=json.loads, default={}, help="arguments of .training(…), as JSON")
    parser.add_argument("--iterations", type=int, default=100)
    parser.add_argument("--env-runners", type=int, default=0, help="processes that act; 0 acts in this process")
    asked = parser.parse_args()

    config = (
        SkillPriorSACConfig()
        .skills(asked.skills)
        .environment(asked.environment, env_config=asked.arguments)
        .reading(max_episode_steps=asked.max_episode_steps)
        .env_runners(num_env_runners=asked.env_runners, num_envs_per_env_runner=2, rollout_fragment_length=8)
        .training(**asked.training)
        .debugging(seed=0)
    )
    algorithm = config.build_algo()
    try:
        for iteration in range(asked.iterations):
            show(iteration, algorithm.train()["skills"])
    finally:
        algorithm.stop()


def show(iteration: int, skills: dict[str, Any]) -> None:
    """Prints how far the training is; ``skills`` are the metrics that spirl-ray adds to RLlib's."""
    print(f"iteration {iteration + 1}: {skills['decisions']:.0f} decisions, {skills['updates']:.0f} updates")


if __name__ == "__main__":
    main()
