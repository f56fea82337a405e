"""Where the images of block stacking should come from: ``python -m benchmarks.block_frames [--out results.csv]``.

It compares two ways from nothing to images in memory, in seconds of one core (`time.process_time`) for each episode:

- ``stored``: images are rendered while the episode is simulated, and written to Parquet with it; a training reads them.
- ``rendered``: images are not stored; each training renders them from the numbers when it starts. The numbers tell the
  positions of the blocks and not how they are turned, so these images differ a little from the agent's:
  ``pixel_difference`` is the mean difference (0 to 255).

``generate_s`` is the time of simulation, rendering (if stored) and writing; ``load_s`` is what every training pays;
``bytes_per_step`` is the size of the Parquet file. Most experiments train more than one skill model on a dataset
(several seeds, skills and action priors), so ``total_s`` is for three.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray

from spirl_ray.envs.blocks.env import DATA_BLOCKS, SPEC, AgentCamera, features
from spirl_ray.envs.blocks.expert import demonstrate
from spirl_ray.envs.blocks.world import FINGER_TRAVEL, BlockWorld
from spirl_ray.envs.offscreen import load_mujoco
from spirl_ray.episodes.episode import Episode
from spirl_ray.episodes.features import Features, Observation
from spirl_ray.episodes.table import episodes_to_table, table_to_episodes
from spirl_ray.errors import SpirlError
from spirl_ray.files.tables import write_csv
from spirl_ray.pipeline.provenance import commit, hardware

TRAININGS = 3
_NOISE = (0.01, 0.05)  # of way-points and actions, the expert's defaults
Row = dict[str, Any]


class NumbersCamera:
    """Renders frames from observed numbers alone, with all blocks upright."""

    def __init__(self) -> None:
        self.world = BlockWorld(DATA_BLOCKS)
        self.world.arrange([(float(i), 1.0) for i in range(DATA_BLOCKS)], (0.0, 1.0))
        self.camera = AgentCamera(self.world)
        self._mujoco = load_mujoco()

    def frame(self, observation: Observation) -> NDArray[np.uint8]:
        """Renders one observation, uint8 [32, 32, 1]."""
        qpos, gripper = self.world.data.qpos, observation["gripper"]
        qpos[:3], qpos[3], qpos[4:6] = observation["hand"], gripper[4], gripper[5] * FINGER_TRAVEL
        qpos[6:].reshape(DATA_BLOCKS, 7)[:, :3] = observation["blocks"]
        self._mujoco.mj_kinematics(self.world.model, self.world.data)
        self._mujoco.mj_camlight(self.world.model, self.world.data)
        return self.camera.image()


def generated(count: int, *, frames: bool) -> list[Episode]:
    """Generates the first successful episodes of seed 0."""
    world = BlockWorld(DATA_BLOCKS)
    camera = AgentCamera(world) if frames else None
    attempts = (demonstrate(world, camera, np.random.default_rng((0, i)), f"e{i}", *_NOISE) for i in range(count))
    episodes = [episode for episode in attempts if episode is not None]
    if camera is not None:
        camera.close()
    return episodes


def written(episodes: list[Episode], file: Path, kept: Features) -> float:
    """Writes episodes as the import does, and returns the bytes for each step."""
    table = episodes_to_table(episodes, kept, SPEC.action_dim)
    pq.write_table(table, file, compression="zstd", write_page_checksum=True)
    return file.stat().st_size / sum(episode.length for episode in episodes)


def measure(count: int) -> list[Row]:
    """Measures each way, and returns a row for each."""
    rows: list[Row] = []
    kept: dict[str, list[NDArray[np.uint8]]] = {}
    for way in ("stored", "rendered"):
        stored = way == "stored"
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "episodes.parquet"
            started = time.process_time()
            episodes = generated(count, frames=stored)
            declared = features(DATA_BLOCKS, camera=stored)
            size = written(episodes, file, declared)
            generate_s = (time.process_time() - started) / len(episodes)
            eye = None if stored else NumbersCamera()
            started = time.process_time()
            loaded = table_to_episodes(pq.read_table(file), declared, SPEC.action_dim)
            if eye is not None:
                kept[way] = [
                    np.stack([eye.frame({n: v[t] for n, v in e.observations.items()}) for t in range(e.length + 1)])
                    for e in loaded
                ]
            else:
                kept[way] = [np.asarray(e.observations["camera"], np.uint8) for e in loaded]
            load_s = (time.process_time() - started) / len(episodes)
        rows.append(
            {
                "way": way,
                "episodes": len(episodes),
                "attempts": count,
                "steps_per_episode": round(float(np.mean([episode.length for episode in episodes])), 1),
                "generate_s": round(generate_s, 4),
                "load_s": round(load_s, 5),
                "total_s": round(generate_s + TRAININGS * load_s, 4),
                "bytes_per_step": round(size, 1),
            }
        )
    pairs = zip(kept["stored"], kept["rendered"], strict=True)
    difference = float(np.mean([np.abs(one.astype(float) - other).mean() for one, other in pairs]))
    for row, value in zip(rows, (0.0, difference), strict=True):
        row |= {"pixel_difference": round(value, 3), "cpu": hardware()["cpu"], "commit": commit()}
    return rows


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.block_frames", description=__doc__.splitlines()[0])
    parser.add_argument("--episodes", type=int, default=60, help="attempts of the expert")
    parser.add_argument("--out", type=Path, help="CSV file to write")
    options = parser.parse_args(arguments)
    try:
        rows = measure(options.episodes)
    except SpirlError as error:
        print(error, file=sys.stderr)
        return 2
    for row in rows:
        print(row)
    if options.out is not None:
        write_csv(options.out, rows)
    return 0


if __name__ == "__main__":
    sys.exit(main())
