"""Arrays of one's own become a dataset, and `own_arrays.yaml` learns skills from it; no environment is needed.

    python examples/own_arrays.py                       # writes data/own_arrays
    spirl data inspect data/own_arrays
    spirl pretrain examples/own_arrays.yaml

Replace `recordings` by a function that loads yours. The notebook `your_data.ipynb` continues from here.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

import spirl_ray as spirl

FEATURES = {
    "joints": spirl.Feature(shape=(2,), role="proprioception"),  # what a robot knows of itself
    "camera": spirl.Feature(shape=(32, 32, 1), role="image"),
}
RANGE = [(-0.5, 0.5), (-0.5, 0.5)]
"""The least and the greatest command of each joint (rad/s)."""


def recordings(episodes: int) -> Iterator[tuple[dict[str, NDArray[np.generic]], NDArray[np.float64]]]:
    """Observations with T + 1 values of each feature, and T commands [T, 2] (rad/s), an episode at a time."""
    for number in range(episodes):
        rng = np.random.default_rng(number)
        joints, commands = [rng.uniform(-1.0, 1.0, 2)], []
        target = joints[0]
        for step in range(60):
            if step % 20 == 0:
                target = rng.choice([-1.0, 1.0], 2)
            commands.append(np.clip(target - joints[-1], -0.5, 0.5) + rng.uniform(-0.02, 0.02, 2))
            commands[-1] = np.clip(commands[-1], -0.5, 0.5)
            joints.append(joints[-1] + 0.2 * commands[-1])
        yield {"joints": np.array(joints), "camera": images(np.array(joints))}, np.array(commands)


def images(joints: NDArray[np.float64]) -> NDArray[np.uint8]:
    """A grey image for each row of joint angles, uint8 [T, 32, 32, 1]: a bright spot at the place that they mean."""
    found = np.zeros((len(joints), 32, 32, 1), np.uint8)
    row, column = np.clip(np.rint(13.0 + 12.0 * joints), 0, 29).astype(int).T
    for height in range(3):
        for width in range(3):
            found[np.arange(len(joints)), row + height, column + width] = 255
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description="Writes a dataset from arrays.")
    parser.add_argument("--folder", type=Path, default=Path("data/own_arrays"), help="must not exist yet")
    parser.add_argument("--episodes", type=int, default=300)
    asked = parser.parse_args()

    with spirl.DatasetWriter(asked.folder, features=FEATURES, action_dim=2, actions=RANGE) as writer:
        for observations, actions in recordings(asked.episodes):
            writer.add(observations=observations, actions=actions)
    print(f"wrote {asked.episodes} episodes to {asked.folder}")


if __name__ == "__main__":
    main()
