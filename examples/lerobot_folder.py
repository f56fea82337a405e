"""Writes a small LeRobot dataset (v3.0) after its documented layout; `lerobot_folder.yaml` learns skills from it.

    python examples/lerobot_folder.py                   # writes data/lerobot_reach
    spirl data import examples/lerobot_folder.yaml --dry-run
    spirl pretrain examples/lerobot_folder.yaml         # skills from data alone: no environment is needed

A robot with two joints reaches to random places, seen by one camera. The lerobot package is not needed.
"""

from __future__ import annotations

import argparse
import json
import subprocess
from pathlib import Path
from typing import Any

import imageio_ffmpeg
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

FPS, SIZE, LINK = 20, 64, 0.45
CAMERA = "observation.images.front"
FEATURES: dict[str, Any] = {
    "observation.state": {"dtype": "float32", "shape": [2], "names": ["shoulder", "elbow"]},
    "action": {"dtype": "float32", "shape": [2], "names": ["shoulder", "elbow"]},
    CAMERA: {"dtype": "video", "shape": [SIZE, SIZE, 3], "names": ["height", "width", "channels"]},
    "timestamp": {"dtype": "float32", "shape": [1], "names": None},
    **{
        name: {"dtype": "int64", "shape": [1], "names": None}
        for name in ("frame_index", "episode_index", "index", "task_index")
    },
}


def reach(rng: np.random.Generator, rows: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Joint angles and commanded angles (degrees), each [rows, 2]: the arm follows what it is told with a delay."""
    state, command = np.zeros((rows, 2), np.float32), np.zeros((rows, 2), np.float32)
    angles, target = rng.uniform(-60.0, 60.0, 2), rng.uniform(-90.0, 90.0, 2)
    for row in range(rows):
        if row % 25 == 0:
            target = rng.uniform(-90.0, 90.0, 2)
        state[row] = angles
        command[row] = angles + np.clip(target - angles, -8.0, 8.0) + rng.normal(0.0, 0.3, 2)
        angles = angles + 0.7 * (command[row] - angles)
    return state, command


def image(angles: NDArray[np.float32]) -> NDArray[np.uint8]:
    """The camera's image of the arm, uint8 [64, 64, 3]."""
    image = np.full((SIZE, SIZE, 3), 230, np.uint8)
    first, second = np.deg2rad(angles[0]), np.deg2rad(angles[0] + angles[1])
    elbow = LINK * np.array([np.cos(first), np.sin(first)])
    hand = elbow + LINK * np.array([np.cos(second), np.sin(second)])
    for start, end, colour in ((np.zeros(2), elbow, (30, 60, 160)), (elbow, hand, (190, 60, 30))):
        for share in np.linspace(0.0, 1.0, 24):
            x, y = start + share * (end - start)
            row, column = int((1.0 - y) * SIZE / 2), int((1.0 + x) * SIZE / 2)
            image[max(row - 1, 0) : row + 2, max(column - 1, 0) : column + 2] = colour
    return image


def write(root: Path, lengths: list[int]) -> None:
    """Writes the dataset: all episodes in one Parquet file and one video."""
    episodes, tables, frames, recorded = [], [], [], []
    for episode, rows in enumerate(lengths):
        state, command = reach(np.random.default_rng(episode), rows)
        first = sum(lengths[:episode])
        number = np.arange(rows)
        tables.append(
            pa.table(
                {
                    "observation.state": pa.FixedSizeListArray.from_arrays(pa.array(state.ravel()), 2),
                    "action": pa.FixedSizeListArray.from_arrays(pa.array(command.ravel()), 2),
                    "timestamp": pa.array((number / FPS).astype(np.float32)),
                    "frame_index": pa.array(number),
                    "episode_index": pa.array(np.full(rows, episode)),
                    "index": pa.array(first + number),
                    "task_index": pa.array(np.zeros(rows, np.int64)),
                }
            )
        )
        episodes.append(
            {
                "episode_index": episode,
                "tasks": ["reach"],
                "length": rows,
                "data/chunk_index": 0,
                "data/file_index": 0,
                "dataset_from_index": first,
                "dataset_to_index": first + rows,
                f"videos/{CAMERA}/chunk_index": 0,
                f"videos/{CAMERA}/file_index": 0,
                f"videos/{CAMERA}/from_timestamp": first / FPS,
                f"videos/{CAMERA}/to_timestamp": (first + rows) / FPS,
            }
        )
        frames += [image(angles) for angles in state]
        recorded.append(command)
    place = "chunk-000/file-000"
    for folder in ("meta/episodes/chunk-000", "data/chunk-000", f"videos/{CAMERA}/chunk-000"):
        (root / folder).mkdir(parents=True)
    pq.write_table(pa.concat_tables(tables), root / f"data/{place}.parquet")
    pq.write_table(pa.Table.from_pylist(episodes), root / f"meta/episodes/{place}.parquet")
    pq.write_table(pa.table({"task": ["reach"], "task_index": [0]}), root / "meta/tasks.parquet")
    encode(root / f"videos/{CAMERA}/{place}.mp4", np.stack(frames))
    commands = np.concatenate(recorded)
    ends = {"min": commands.min(0).tolist(), "max": commands.max(0).tolist()}
    (root / "meta/stats.json").write_text(json.dumps({"action": ends}))
    info = {
        "codebase_version": "v3.0",
        "fps": FPS,
        "total_episodes": len(lengths),
        "total_frames": sum(lengths),
        "chunks_size": 1000,
        "data_path": "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet",
        "video_path": "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4",
        "features": FEATURES,
    }
    (root / "meta/info.json").write_text(json.dumps(info, indent=2))


def encode(file: Path, frames: NDArray[np.uint8]) -> None:
    """Writes frames [n, height, width, 3] as H.264."""
    command = [
        *(imageio_ffmpeg.get_ffmpeg_exe(), "-y", "-loglevel", "error", "-f", "rawvideo", "-pix_fmt", "rgb24"),
        *("-s", f"{frames.shape[2]}x{frames.shape[1]}", "-r", str(FPS), "-i", "-"),
        *("-c:v", "libx264", "-pix_fmt", "yuv420p", "-g", "2", str(file)),
    ]
    subprocess.run(command, input=frames.tobytes(), check=True)


def main() -> None:
    parser = argparse.ArgumentParser(description="Writes a small LeRobot dataset of version v3.0.")
    parser.add_argument("--path", type=Path, default=Path("data/lerobot_reach"), help="the folder to make")
    parser.add_argument("--episodes", type=int, default=40)
    asked = parser.parse_args()
    lengths = [80 + 10 * (episode % 3) for episode in range(asked.episodes)]
    write(asked.path, lengths)
    print(f"{asked.path}: {len(lengths)} episodes, {sum(lengths)} rows")


if __name__ == "__main__":
    main()
