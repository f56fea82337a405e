"""Records play with the oracle of OGBench's cube environment; `ogbench_cube.yaml` learns to place the cube.

    pip install -e '.[ogbench]' -c constraints.txt
    python examples/ogbench_cube.py --episodes 120      # writes data/cube-single-play.npz; about 5 minutes
    spirl run examples/ogbench_cube.yaml

The file has OGBench's layout: the rows of all episodes one after the other, and ``terminals`` 1 at the last of each.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import gymnasium
import numpy as np
from numpy.typing import NDArray


def play(episodes: int, rows: int, noise: float, seed: int) -> dict[str, NDArray[np.float32]]:
    """Lets the plan oracle carry the cube from place to place.

    Args:
        episodes: number of episodes.
        rows: number of rows of an episode, 1001 in OGBench's own data.
        noise: deviation of the noise on the oracle's plan, 0.1 in OGBench's own data.
        seed: seed of the first episode.

    Returns:
        ``observations`` [N, 28], ``actions`` [N, 5] in [-1, 1] and ``terminals`` [N], float32.
    """
    import ogbench.manipspace
    from ogbench.manipspace.oracles.plan.cube_plan import CubePlanOracle

    gymnasium.register_envs(ogbench.manipspace)
    env = gymnasium.make("cube-single-v0", terminate_at_goal=False, mode="data_collection", max_episode_steps=rows)
    oracle = CubePlanOracle(env=env, noise=noise)
    observations, actions, terminals = [], [], []
    for episode in range(episodes):
        np.random.seed(seed + episode)  # OGBench and its oracles draw from the global generator
        observation, info = env.reset(seed=seed + episode)
        oracle.reset(observation, info)
        for row in range(rows):
            action = np.clip(oracle.select_action(observation, info), -1.0, 1.0)
            observations.append(observation)
            actions.append(action)
            terminals.append(row == rows - 1)
            observation, _, _, _, info = env.step(action)
            if oracle.done:
                observation, info = env.unwrapped.set_new_target()  # type: ignore[attr-defined]
                oracle.reset(observation, info)
    env.close()
    found = {"observations": observations, "actions": actions, "terminals": terminals}
    return {name: np.asarray(values, np.float32) for name, values in found.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description="Records play of OGBench's cube-single with its plan oracle.")
    parser.add_argument("--path", type=Path, default=Path("data/cube-single-play.npz"), help="the file to write")
    parser.add_argument("--episodes", type=int, default=120)
    parser.add_argument("--rows", type=int, default=1001, help="the rows of an episode")
    parser.add_argument("--noise", type=float, default=0.1)
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    found = play(asked.episodes, asked.rows, asked.noise, asked.seed)
    asked.path.parent.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(asked.path, **found)  # type: ignore[arg-type]
    print(f"{asked.path}: {asked.episodes} episodes, {len(found['actions'])} rows")


if __name__ == "__main__":
    main()
