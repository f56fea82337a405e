"""How datasets should store frames: ``python -m benchmarks.frame_storage [--episodes 3] [--out results.csv]``.

Demonstrations in the kitchen are rendered at 64 × 64 and 128 × 128 pixels, RGB, without noise and with noise of
deviation ``noise`` (of 255 grey levels) in every byte, as a real camera has it, and written to one file in several
ways:

- ``raw_zstd``: bytes of the pixels in a column of Parquet with zstd, which is what datasets have;
- ``raw_zstd_9``: the same at level 9; ``raw_lz4``: the same with lz4;
- ``change_zstd``: the change of each byte since the frame before, with zstd;
- ``png``: each frame as a PNG file, in Parquet without compression; ``webp``: the same with lossless WebP;
- ``mp4_lossless`` and ``mp4``: one H.264 video an episode beside the numbers, without loss, and at crf 18 with 4:2:0
  colours; ``pixel_difference`` is the mean difference from what was rendered (0 to 255).

``write_ms``, ``read_ms`` and ``windows_ms`` are milliseconds of one core (of this process and its ffmpeg) for each
1,000 frames: of writing, of reading the file into episodes in memory, and of one pass of all windows of 10 steps with
all their frames, in batches of 128. ``total_ms`` is an import and one such pass; ``pass_ms`` is what each further pass
costs a training that streams. ``*_ratio`` is the same over that of ``raw_zstd``. The ways are measured in turns, once
to warm up and then as often as ``--rounds`` says, and the median counts.
"""

from __future__ import annotations

import argparse
import io
import itertools
import resource
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import imageio_ffmpeg
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from PIL import Image

from benchmarks.kitchen_clips import ACTION_DIM, Frames, clips, features
from spirl_ray.datasets.formats.videos import Clip, decode_clip
from spirl_ray.datasets.windows import WindowTable
from spirl_ray.episodes.episode import Episode
from spirl_ray.episodes.table import episodes_to_table, table_to_episodes
from spirl_ray.errors import SpirlError
from spirl_ray.files.tables import write_csv
from spirl_ray.pipeline.provenance import commit, hardware

HORIZON, BATCH, RATE = 10, 128, 12.5
SIZES, NOISE = (64, 128), (0.0, 2.0)
Row = dict[str, Any]
Write = Callable[[list[Episode], Path], None]
Read = Callable[[Path, int], list[Episode]]


class Way(NamedTuple):
    """A way to store frames: functions from episodes to a folder, and from a folder and a size to episodes."""

    write: Write
    read: Read


def cpu_seconds() -> float:
    """The CPU time of this process and of the programs that it has run."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in used)


# --- ways ---


def write_raw(compression: str, level: int | None, episodes: list[Episode], folder: Path) -> None:
    table = episodes_to_table(episodes, features(_size(episodes)), ACTION_DIM)
    file = folder / "episodes.parquet"
    pq.write_table(table, file, compression=compression, compression_level=level, write_page_checksum=True)


def read_raw(folder: Path, size: int) -> list[Episode]:
    table = pq.read_table(folder / "episodes.parquet", use_threads=False)
    return table_to_episodes(table, features(size), ACTION_DIM)


def write_changes(episodes: list[Episode], folder: Path) -> None:
    changes = [np.diff(episode.observations["front"], axis=0, prepend=np.uint8(0)) for episode in episodes]
    write_raw("zstd", None, _with_frames(episodes, changes), folder)


def read_changes(folder: Path, size: int) -> list[Episode]:
    found = read_raw(folder, size)
    return _with_frames(found, [np.cumsum(e.observations["front"], axis=0, dtype=np.uint8) for e in found])


def write_files(kind: str, options: dict[str, Any], episodes: list[Episode], folder: Path) -> None:
    encoded = []
    for episode in episodes:
        for frame in episode.observations["front"]:
            file = io.BytesIO()
            Image.fromarray(frame).save(file, kind, **options)
            encoded.append(file.getvalue())
    _write_numbers(episodes, folder)
    pq.write_table(pa.table({"front": pa.array(encoded, pa.binary())}), folder / "front.parquet", compression="none")


def read_files(folder: Path, size: int) -> list[Episode]:
    encoded, episodes, first = pq.read_table(folder / "front.parquet")["front"], _read_numbers(folder), 0
    frames: list[Frames] = []
    for episode in episodes:
        found = np.empty((episode.length + 1, size, size, 3), np.uint8)
        for row in range(len(found)):
            found[row] = np.asarray(Image.open(io.BytesIO(encoded[first + row].as_py())))
        frames.append(found)
        first += len(found)
    return _with_frames(episodes, frames)


def write_videos(options: tuple[str, ...], episodes: list[Episode], folder: Path) -> None:
    _write_numbers(episodes, folder)
    for number, episode in enumerate(episodes):
        frames = episode.observations["front"]
        command = [
            *(imageio_ffmpeg.get_ffmpeg_exe(), "-loglevel", "error", "-f", "rawvideo", "-pix_fmt", "rgb24"),
            *("-s", f"{frames.shape[2]}x{frames.shape[1]}", "-r", str(RATE), "-i", "-", "-threads", "1"),
            *(*options, str(folder / f"{number}.mp4")),
        ]
        subprocess.run(command, input=frames.tobytes(), check=True)


def read_videos(folder: Path, size: int) -> list[Episode]:
    episodes = _read_numbers(folder)
    parts = [Clip(folder / f"{i}.mp4", 0.0, episode.length + 1, RATE) for i, episode in enumerate(episodes)]
    return _with_frames(episodes, [decode_clip(part, (size, size, 3)) for part in parts])


WAYS: dict[str, Way] = {
    "raw_zstd": Way(partial(write_raw, "zstd", None), read_raw),
    "raw_zstd_9": Way(partial(write_raw, "zstd", 9), read_raw),
    "raw_lz4": Way(partial(write_raw, "lz4", None), read_raw),
    "change_zstd": Way(write_changes, read_changes),
    "png": Way(partial(write_files, "png", {}), read_files),
    "webp": Way(partial(write_files, "webp", {"lossless": True, "method": 0}), read_files),
    "mp4_lossless": Way(partial(write_videos, ("-c:v", "libx264rgb", "-qp", "0")), read_videos),
    "mp4": Way(partial(write_videos, ("-c:v", "libx264", "-pix_fmt", "yuv420p", "-crf", "18")), read_videos),
}


def _size(episodes: list[Episode]) -> int:
    return int(episodes[0].observations["front"].shape[1])


def _with_frames(episodes: list[Episode], frames: list[Frames]) -> list[Episode]:
    pairs = zip(episodes, frames, strict=True)
    return [replace(e, observations={"robot": e.observations["robot"], "front": found}) for e, found in pairs]


def _write_numbers(episodes: list[Episode], folder: Path) -> None:
    numbers = [replace(e, observations={"robot": e.observations["robot"]}) for e in episodes]
    robot = {"robot": features(1)["robot"]}
    pq.write_table(episodes_to_table(numbers, robot, ACTION_DIM), folder / "numbers.parquet", compression="zstd")


def _read_numbers(folder: Path) -> list[Episode]:
    return table_to_episodes(pq.read_table(folder / "numbers.parquet"), {"robot": features(1)["robot"]}, ACTION_DIM)


# --- measurement ---


def measure_once(way: Way, episodes: list[Episode]) -> tuple[Row, list[Episode]]:
    """Measures a way, and returns what it read."""
    frames = sum(episode.length + 1 for episode in episodes)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        marks = [cpu_seconds()]
        way.write(episodes, folder)
        marks.append(cpu_seconds())
        size = sum(file.stat().st_size for file in folder.iterdir())
        found = way.read(folder, _size(episodes))
        marks.append(cpu_seconds())
        for _ in WindowTable(found, HORIZON, features(_size(episodes))).shuffled(BATCH, torch.Generator()):
            pass
        marks.append(cpu_seconds())
    write, read, windows = (1e6 * (after - before) / frames for before, after in itertools.pairwise(marks))
    row = {"bytes_per_frame": size / frames, "write_ms": write, "read_ms": read, "windows_ms": windows}
    return row | {"pass_ms": read + windows, "total_ms": write + read + windows}, found


def with_noise(episodes: list[Episode], deviation: float) -> list[Episode]:
    """Adds Gaussian noise to every byte of the frames."""
    rng, noisy = np.random.default_rng(0), []
    for episode in episodes:
        frames = episode.observations["front"]
        values = frames + rng.normal(0.0, deviation, frames.shape).astype(np.float32)
        noisy.append(np.clip(np.rint(values), 0, 255).astype(np.uint8))
    return _with_frames(episodes, noisy)


def measure(episodes: list[Episode], noise: float, rounds: int) -> list[Row]:
    """Measures every way for frames of one size, and returns a row for each."""
    episodes = with_noise(episodes, noise)
    measured: dict[str, list[Row]] = {name: [] for name in WAYS}
    difference = {}
    for number in range(1 + rounds):
        for name, way in WAYS.items():
            row, found = measure_once(way, episodes)
            if number:
                measured[name].append(row)
            pairs = [(a.observations["front"], b.observations["front"]) for a, b in zip(episodes, found, strict=True)]
            difference[name] = float(np.mean([np.abs(a.astype(int) - b).mean() for a, b in pairs]))
    medians = {
        name: {column: statistics.median(row[column] for row in rows) for column in rows[0]}
        for name, rows in measured.items()
    }
    present = medians["raw_zstd"]
    ratios = ("bytes_per_frame", "pass_ms", "total_ms")
    return [
        {
            "size": _size(episodes),
            "noise": noise,
            "way": name,
            "frames": sum(episode.length + 1 for episode in episodes),
            "rounds": rounds,
            **{column: round(value, 2) for column, value in median.items()},
            **{f"{column.split('_')[0]}_ratio": round(median[column] / present[column], 3) for column in ratios},
            "pixel_difference": round(difference[name], 3),
            **hardware(),
            "commit": commit(),
        }
        for name, median in medians.items()
    ]


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.frame_storage", description=__doc__.splitlines()[0])
    parser.add_argument("--episodes", type=int, default=3, help="demonstrations to render")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--sizes", type=int, nargs="+", default=SIZES, help="height and width of a frame in pixels")
    parser.add_argument("--out", type=Path, help="CSV file to write")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    try:
        rows = []
        for size in options.sizes:
            episodes = clips(options.episodes, size)
            for noise in NOISE:
                rows += measure(episodes, noise, options.rounds)
    except SpirlError as error:
        print(error, file=sys.stderr)
        return 2
    for row in rows:
        print({name: value for name, value in row.items() if name not in hardware()})
    if options.out is not None:
        write_csv(options.out, rows)
    return 0


if __name__ == "__main__":
    sys.exit(main())
