"""A trained policy acts in its environment. This needs torch and gymnasium, and no Ray.

    python examples/run_policy.py runs/quickstart/policy/spirl-s0-…

The folder is what `spirl train` or `spirl run` leaves in ``policy/`` of an experiment, and can be copied anywhere.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import spirl_ray.envs as envs
from spirl_ray.policy.policy import load_policy, read_policy_card


def main() -> None:
    parser = argparse.ArgumentParser(description="Runs a trained policy and prints the return of each episode.")
    parser.add_argument("policy", type=Path, help="folder of the policy")
    parser.add_argument("--episodes", type=int, default=3)
    parser.add_argument("--sampled", action="store_true", help="draw skills at random instead of the most likely")
    asked = parser.parse_args()

    card = read_policy_card(asked.policy)
    policy = load_policy(asked.policy, deterministic=not asked.sampled)
    env = envs.make(card.environment)
    for episode in range(asked.episodes):
        observation, _ = env.reset(seed=episode)
        policy.reset(seed=episode)
        total, steps, ended = 0.0, 0, False
        while not ended:
            observation, reward, terminated, truncated, _ = env.step(policy.act(observation))
            total, steps, ended = total + float(reward), steps + 1, terminated or truncated
        print(f"episode {episode}: return {total:.2f} in {steps} steps")
    env.close()


if __name__ == "__main__":
    main()
