"""Small LeRobot datasets for tests, written after the documented layout of versions v2.1 and v3.0."""

from __future__ import annotations

import io
import json
import shutil
import subprocess
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import imageio_ffmpeg
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from numpy.typing import NDArray
from PIL import Image

from spirl_ray.datasets.formats.lerobot import LeRobotReader
from spirl_ray.episodes.recording import Recording
from spirl_ray.errors import SpirlError

FPS = 30
"""No power of two or ten, so that the times of frames are rounded."""
SIZE = 64
CAMERAS = ("observation.images.front", "observation.images.wrist.left")
PICTURE = "observation.picture"
STATE = "observation.state"
LENGTHS = (12, 9, 14)
_FEATURES: dict[str, Any] = {
    "observation.state": {"dtype": "float32", "shape": [3], "names": ["x", "y", "z"]},
    "observation.grid": {"dtype": "float32", "shape": [2, 2], "names": None},
    "action": {"dtype": "float32", "shape": [2], "names": {"motors": ["a", "b"]}},
    "next.reward": {"dtype": "float32", "shape": [1], "names": None},
    "next.done": {"dtype": "bool", "shape": [1], "names": None},
    "next.success": {"dtype": "bool", "shape": [1], "names": None},
    "note": {"dtype": "string", "shape": [1], "names": None},
    PICTURE: {"dtype": "image", "shape": [3, SIZE, SIZE], "names": ["channels", "height", "width"]},
    CAMERAS[0]: {"dtype": "video", "shape": [SIZE, SIZE, 3], "names": ["height", "width", "channels"]},
    CAMERAS[1]: {"dtype": "video", "shape": [3, SIZE, SIZE], "names": ["channels", "height", "width"]},
    **{name: {"dtype": "int64", "shape": [1], "names": None} for name in ("frame_index", "episode_index", "index")},
    "timestamp": {"dtype": "float32", "shape": [1], "names": None},
    "task_index": {"dtype": "int64", "shape": [1], "names": None},
}


def brightness(camera: int, episode: int, frame: int) -> int:
    """The code that all pixels of a frame have; no two neighbouring frames or episodes have codes within 8."""
    return 16 + (camera * 40 + episode * 71 + frame * 12) % 220


def encode(file: Path, frames: NDArray[np.uint8], *options: str, rate: float = FPS) -> None:
    """Writes frames [n, height, width, 3] as a video."""
    file.parent.mkdir(parents=True, exist_ok=True)
    command = [
        *(imageio_ffmpeg.get_ffmpeg_exe(), "-y", "-loglevel", "error", "-f", "rawvideo", "-pix_fmt", "rgb24"),
        *("-s", f"{frames.shape[2]}x{frames.shape[1]}", "-r", str(rate), "-i", "-", *(options or H264), str(file)),
    ]
    subprocess.run(command, input=frames.tobytes(), check=True)


H264 = ("-c:v", "libx264", "-pix_fmt", "yuv420p", "-g", "5")
"""Key frames at every fifth frame only, with B-frames between them."""


@dataclass(frozen=True)
class Folder:
    """A LeRobot dataset with three episodes; every value is a function of episode and row."""

    root: Path
    version: str
    codec: tuple[str, ...] = H264
    lengths: tuple[int, ...] = LENGTHS
    rate: float = FPS
    """Frames a second of the videos."""
    info: dict[str, Any] = field(default_factory=dict)

    def state(self, episode: int) -> NDArray[np.float32]:
        rows = np.arange(self.lengths[episode], dtype=np.float32)
        return np.stack([rows, rows * 0.5, np.full_like(rows, episode)], 1)

    def actions(self, episode: int) -> NDArray[np.float32]:
        return self.state(episode)[:, :2] * 10 - 30

    def write(self) -> Folder:
        for episode in range(len(self.lengths)):
            self._tables(episode)
        if self.version == "v3.0":
            self._join()
        self._videos()
        features = {**_FEATURES, **self.info.get("features", {})}
        info = {
            "codebase_version": self.version,
            "fps": FPS,
            "chunks_size": 2 if self.version != "v3.0" else 1000,
            "total_episodes": len(self.lengths),
            "total_frames": sum(self.lengths),
            "data_path": "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet"
            if self.version == "v3.0"
            else "data/chunk-{episode_chunk:03d}/episode_{episode_index:06d}.parquet",
            "video_path": "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4"
            if self.version == "v3.0"
            else "videos/chunk-{episode_chunk:03d}/{video_key}/episode_{episode_index:06d}.mp4",
            **self.info,
            "features": features,
        }
        (self.root / "meta").mkdir(parents=True, exist_ok=True)
        (self.root / "meta/info.json").write_text(json.dumps(info))
        self._stats()
        return self

    def data_file(self, episode: int) -> Path:
        if self.version == "v3.0":
            return self.root / f"data/chunk-000/file-{_FILES[episode]:03d}.parquet"
        return self.root / f"data/chunk-{episode // 2:03d}/episode_{episode:06d}.parquet"

    def video_file(self, camera: int, episode: int) -> Path:
        if self.version == "v3.0":
            return self.root / f"videos/{CAMERAS[camera]}/chunk-000/file-{_VIDEO_FILES[camera][episode]:03d}.mp4"
        return self.root / f"videos/chunk-{episode // 2:03d}/{CAMERAS[camera]}/episode_{episode:06d}.mp4"

    def _table(self, episode: int) -> pa.Table:
        rows = self.lengths[episode]
        last = [row == rows - 1 for row in range(rows)]
        state = self.state(episode)
        return pa.table(
            {
                "observation.state": pa.FixedSizeListArray.from_arrays(pa.array(state.ravel()), 3),
                "observation.grid": pa.array(
                    [[[r, 1.0], [2.0, 3.0]] for r in range(rows)], pa.list_(pa.list_(pa.float32()))
                ),
                "action": pa.array(self.actions(episode).tolist(), pa.list_(pa.float32())),
                "next.reward": pa.array(np.arange(rows, dtype=np.float32)),
                "next.done": pa.array(last),
                "next.success": pa.array([episode != 1 and end for end in last]),
                "note": pa.array(["text"] * rows),
                PICTURE: pa.array(
                    [{"bytes": png(frame_of(2, episode, row)), "path": f"frame-{row:06d}.png"} for row in range(rows)],
                    pa.struct([("bytes", pa.binary()), ("path", pa.string())]),
                ),
                "frame_index": pa.array(range(rows), pa.int64()),
                "episode_index": pa.array([episode] * rows, pa.int64()),
                "index": pa.array(range(sum(self.lengths[:episode]), sum(self.lengths[: episode + 1])), pa.int64()),
                "timestamp": pa.array(np.arange(rows, dtype=np.float32) / FPS),
                "task_index": pa.array([0] * rows, pa.int64()),
            }
        )

    def _tables(self, episode: int) -> None:
        if self.version == "v3.0":
            return
        file = self.data_file(episode)
        file.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(self._table(episode), file)
        (self.root / "meta").mkdir(exist_ok=True)
        with (self.root / "meta/episodes.jsonl").open("a") as lines:
            entry = {"episode_index": episode, "tasks": ["push"], "length": self.lengths[episode]}
            lines.write(json.dumps(entry) + "\n")

    def _join(self) -> None:
        """The files of version v3.0: episodes 0 and 1 in the first Parquet file, 2 in the second."""
        for number in sorted(set(_FILES)):
            episodes = [episode for episode in range(len(self.lengths)) if _FILES[episode] == number]
            file = self.data_file(episodes[0])
            file.parent.mkdir(parents=True, exist_ok=True)
            pq.write_table(pa.concat_tables([self._table(episode) for episode in episodes]), file)
        rows = []
        for episode, length in enumerate(self.lengths):
            first = sum(self.lengths[:episode])
            row: dict[str, Any] = {
                "episode_index": episode,
                "tasks": ["push"],
                "length": length,
                "data/chunk_index": 0,
                "data/file_index": _FILES[episode],
                "dataset_from_index": first,
                "dataset_to_index": first + length,
            }
            for camera, key in enumerate(CAMERAS):
                files = _VIDEO_FILES[camera]
                before = sum(n for e, n in enumerate(self.lengths[:episode]) if files[e] == files[episode])
                row |= {f"videos/{key}/chunk_index": 0, f"videos/{key}/file_index": files[episode]}
                row |= {
                    f"videos/{key}/from_timestamp": before / FPS,
                    f"videos/{key}/to_timestamp": (before + length) / FPS,
                }
            rows.append(row)
        file = self.root / "meta/episodes/chunk-000/file-000.parquet"
        file.parent.mkdir(parents=True)
        pq.write_table(pa.Table.from_pylist(rows), file)

    def _videos(self) -> None:
        for camera in range(len(CAMERAS)):
            parts: dict[Path, list[NDArray[np.uint8]]] = {}
            for episode in range(len(self.lengths)):
                parts.setdefault(self.video_file(camera, episode), []).append(self.frames(camera, episode))
            for file, frames in parts.items():
                encode(file, np.concatenate(frames), *self.codec, rate=self.rate)

    def frames(self, camera: int, episode: int) -> NDArray[np.uint8]:
        repeat = round(self.rate / FPS)
        frames = [frame_of(camera, episode, row) for row in range(self.lengths[episode])]
        # Between the rows' frames of a faster video are frames of another brightness.
        return np.stack([frame if i == 0 else 255 - frame for frame in frames for i in range(repeat)])

    def _stats(self) -> None:
        def limits(values: NDArray[np.float32]) -> dict[str, Any]:
            return {"action": {"min": values.min(0).tolist(), "max": values.max(0).tolist()}}

        each = [limits(self.actions(episode)) for episode in range(len(self.lengths))]
        if self.version == "v3.0":
            joined = np.concatenate([self.actions(episode) for episode in range(len(self.lengths))])
            (self.root / "meta/stats.json").write_text(json.dumps(limits(joined)))
        else:
            lines = [json.dumps({"episode_index": number, "stats": stats}) for number, stats in enumerate(each)]
            (self.root / "meta/episodes_stats.jsonl").write_text("\n".join(lines) + "\n")


_FILES = (0, 0, 1)
_VIDEO_FILES = ((0, 0, 0), (0, 1, 1))
"""The number of the file that holds each episode, by camera: the files of two cameras end at different episodes."""


def frame_of(camera: int, episode: int, row: int) -> NDArray[np.uint8]:
    """One frame, uint8 [64, 64, 3]: a brightness that says which frame it is, and a red left half."""
    frame = np.full((SIZE, SIZE, 3), brightness(camera, episode, row), np.uint8)
    frame[:, : SIZE // 2, 1:] //= 2
    return frame


def png(frame: NDArray[np.uint8]) -> bytes:
    file = io.BytesIO()
    Image.fromarray(frame).save(file, "png")
    return file.getvalue()


# --- what tests do with a folder ---


def copy(folder: Folder, to: Path) -> Folder:
    root = to / "set"
    shutil.copytree(folder.root, root)
    return Folder(root, folder.version)


def read(folder: Folder, *keys: str, episodes: tuple[int, ...] = (0, 1, 2), **options: Any) -> list[Recording]:
    return list(LeRobotReader(folder.root, **options).read(episodes, keys))


def error(folder: Folder, *keys: str, **options: Any) -> str:
    with pytest.raises(SpirlError) as caught:
        read(folder, *keys, **options)
    return str(caught.value)


def assert_says(message: str, *parts: str) -> None:
    assert [part for part in parts if part not in message] == [], message


def expected(camera: int, episode: int) -> NDArray[np.uint8]:
    return np.stack([frame_of(camera, episode, row) for row in range(LENGTHS[episode])])


def assert_frames(found: NDArray[Any], camera: int, episode: int) -> None:
    """Neighbouring frames differ by 12, so frames that are a row off are no codec's loss."""
    assert found.dtype == np.uint8
    assert found.shape == (LENGTHS[episode], SIZE, SIZE, 3)
    assert np.abs(found.astype(int) - expected(camera, episode)).mean((1, 2, 3)).max() < 3


def edit_info(folder: Folder, **changes: Any) -> None:
    file = folder.root / "meta/info.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def edit_feature(folder: Folder, name: str, **changes: Any) -> None:
    features = json.loads((folder.root / "meta/info.json").read_text())["features"]
    edit_info(folder, features={**features, name: features.get(name, {}) | changes})


def edit_column(folder: Folder, episode: int, name: str, column: pa.Array | None) -> None:
    """Replaces a column of the file that holds an episode, or removes it."""
    file = folder.data_file(episode)
    table = pq.read_table(file)
    at = table.column_names.index(name)
    pq.write_table(table.remove_column(at) if column is None else table.set_column(at, name, column), file)
