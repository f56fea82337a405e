"""Records a small Minari dataset of AdroitHandDoor; `adroit_door.yaml` learns skills and a policy from it.

    python examples/adroit_door.py                # records data/minari/example/door-v0
    spirl run examples/adroit_door.yaml           # both stages, at full size
    python examples/adroit_door.py --quick        # or both at once at toy size, in a few minutes

The recorded hand moves from one random pose to the next. This shows the way of the data, and does not open the door.
Recordings of people are in Minari's collection: ``{type: minari, id: D4RL/door/human-v2}``.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import Any

import gymnasium
import gymnasium_robotics
import numpy as np
from numpy.typing import NDArray

import spirl_ray as spirl
from spirl_ray.pipeline.events import Event

CONFIG = Path(__file__).with_suffix(".yaml")
DATASET = "example/door-v0"
ACTIONS = 28
QUICK = {
    "pretrain.updates": 100,
    "train.env_steps": 1200,
    "train.evaluate_every": 1200,
    "train.evaluate_episodes": 2,
    "train.warmup_decisions": 20,
    "evaluate.episodes": 2,
    "evaluate.prior_episodes": 2,
    "evaluate.videos": 0,
}


def moving_hand(rng: np.random.Generator, steps: int) -> NDArray[np.float32]:
    """Actions [steps, 28]: targets of the joints that move from one random pose to the next, a pose in 25 steps."""
    poses = rng.uniform(-0.7, 0.7, (steps // 25 + 1, ACTIONS)).repeat(25, axis=0)[:steps]
    actions, action = np.empty((steps, ACTIONS), np.float32), np.zeros(ACTIONS)
    for step, pose in enumerate(poses):
        action += 0.15 * (pose - action)
        actions[step] = np.clip(action + 0.05 * rng.normal(size=ACTIONS), -1.0, 1.0)
    return actions


def record(root: Path, episodes: int, steps: int) -> None:
    """Writes the dataset to a folder of Minari datasets, unless it is there."""
    if (root / DATASET).exists():
        print(f"{root / DATASET} is there already")
        return
    os.environ["MINARI_DATASETS_PATH"] = str(root)
    import minari
    from minari.data_collector import EpisodeBuffer

    root.mkdir(parents=True, exist_ok=True)
    gymnasium.register_envs(gymnasium_robotics)
    env = gymnasium.make("AdroitHandDoor-v1", max_episode_steps=steps)
    buffers = []
    for episode in range(episodes):
        observation, _ = env.reset(seed=episode)
        taken: dict[str, list[Any]] = {"observations": [observation], "actions": [], "rewards": []}
        ends: dict[str, list[bool]] = {"terminations": [], "truncations": []}
        for action in moving_hand(np.random.default_rng(episode), steps):
            observation, reward, terminated, truncated, _ = env.step(action)
            taken["observations"].append(observation)
            taken["actions"].append(action)
            taken["rewards"].append(float(reward))
            ends["terminations"].append(bool(terminated))
            ends["truncations"].append(bool(truncated))
            if terminated or truncated:
                break
        buffers.append(EpisodeBuffer(id=episode, seed=episode, **taken, **ends))
    minari.create_dataset_from_buffers(
        DATASET,
        buffers,
        env=env,
        algorithm_name="random poses",
        author="examples/adroit_door.py",
        author_email="nobody@example.org",
        code_permalink="https://example.org",
        description="A hand that moves from one random pose to the next.",
    )
    env.close()
    print(f"recorded {episodes} episodes in {root / DATASET}")


def main() -> None:
    parser = argparse.ArgumentParser(description="Records demonstrations of AdroitHandDoor with Minari.")
    parser.add_argument("--root", type=Path, default=Path("data/minari"), help="folder of Minari datasets")
    parser.add_argument("--episodes", type=int, default=50)
    parser.add_argument("--steps", type=int, default=200, help="the length of an episode")
    parser.add_argument("--quick", action="store_true", help="record less, and run both stages at toy size")
    parser.add_argument("--output", type=Path, default=Path("runs/adroit_door_quick"), help="of --quick")
    asked = parser.parse_args()

    record(asked.root.absolute(), 6 if asked.quick else asked.episodes, asked.steps)
    if asked.quick:
        changes = {**QUICK, "data.sources.0.root": str(asked.root.absolute()), "output": str(asked.output)}
        changes["env.max_episode_steps"] = asked.steps
        found = spirl.run(spirl.load_experiment(CONFIG, changes), on_event=show)
        print(f"report {found.report.html}")


def show(event: Event) -> None:
    """Prints which stage has finished."""
    if event.happening == "finished":
        print(f"finished {event.stage}")


if __name__ == "__main__":
    main()
