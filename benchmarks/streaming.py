"""Stage 1 on images that do not fit in memory: ``python -m benchmarks.streaming [--gigabytes 5] [--out results.csv]``.

It writes a dataset of 64 × 64 RGB frames of the kitchen, of the given size in memory, and trains the same model twice a
round, in turns: on a part that fits into ``in_memory_limit_mb``, from memory, and on all of it, streamed. The model is
the open-loop one, which observes one frame of a window, so that a pass over the data takes as few updates as possible.

- ``ratio``: windows/s of the streamed training over those from memory, from update 50 on (the worker's own clock); the
  median over the rounds. ``streamed_passes`` says how often the measured updates went through all windows.
- ``*_thread_ms``: CPU time of the worker's training thread for each update, from update 50 on, and ``cpu_ratio`` that
  from memory over the streamed one: the ratio of rates where every thread finds a free core. ``*_process_ms`` is the
  CPU time of all threads of the worker, and ``*_draw_share`` the share of the wall-clock time that goes into drawing
  batches, waiting included.
- ``*_startup_s``: from the call to the first update. This is where statistics and validation windows are read.
- ``*_peak_mb``: the most private memory (unique set size) of the training worker, in 2**20 bytes. ``model_peak_mb`` is
  that of a short training on two episodes, so ``*_data_mb``, the difference, is what the data need.
  ``in_memory_limit_mb`` bounds it, but for held-out windows and what is decompressed at once.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import sys
import tempfile
import threading
import time
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.kitchen_clips import ACTION_DIM, clips, features
from spirl_ray.config import PretrainSettings, RaySettings, SkillSettings
from spirl_ray.datasets.windows import Batch
from spirl_ray.episodes.dataset import episode_index
from spirl_ray.episodes.episode import Episode
from spirl_ray.episodes.writer import DatasetWriter
from spirl_ray.errors import SpirlError
from spirl_ray.files.tables import write_csv
from spirl_ray.pipeline.provenance import commit, hardware, versions
from spirl_ray.pipeline.session import ray_session
from spirl_ray.rl.methods import skill_spec
from spirl_ray.skills import pretrain as pretraining
from spirl_ray.skills.batches import MEGABYTE, Batches, PretrainJob

SIZE, BATCH, WARM_UPDATES, CLIPS = 64, 128, 50, 4
Row = dict[str, Any]


def vary(rendered: list[Episode], number: int) -> Episode:
    """Another episode: a clip with other brightness and colours, shifted, perhaps mirrored, and its actions."""
    rng, source = np.random.default_rng(number), rendered[number % len(rendered)]
    gains = (256 * rng.uniform(0.6, 1.0, 3)).astype(np.uint16)
    frames = (np.asarray(source.observations["front"], np.uint16) * gains >> 8).astype(np.uint8)
    frames = np.roll(frames, rng.integers(0, SIZE, 2), (1, 2))[:, :, :: rng.choice((-1, 1))]
    robot = source.observations["robot"] + rng.normal(0.0, 0.1, 9).astype(np.float32)
    return replace(source, id=f"{number:06d}", observations={"robot": robot, "front": np.ascontiguousarray(frames)})


def write_dataset(rendered: list[Episode], folder: Path, size: float) -> None:
    """Writes episodes until they have ``size`` bytes in memory."""
    written = 0
    # The environment's id is needed for features that are rendered, of which there are none.
    with DatasetWriter(
        folder, features=features(SIZE), action_dim=ACTION_DIM, environment="spirl/Kitchen-v0"
    ) as writer:
        for number in range(10**9):
            episode = vary(rendered, number)
            writer.add(observations=episode.observations, actions=episode.actions, id=episode.id)
            written += episode.nbytes
            if written >= size:
                return


# --- the training worker ---


def private_memory() -> float:
    """The memory of this process alone (its unique set size) in MB (2**20 bytes): what is shared with others, as Ray's
    object store and libraries are, does not count."""
    lines = Path("/proc/self/smaps_rollup").read_text().splitlines()[1:]
    fields = dict(line.split(":", 1) for line in lines)
    return sum(int(fields[name].split()[0]) for name in ("Private_Clean", "Private_Dirty")) / 1024


class Watch:
    """A watch on the memory, the CPU time and the draws of a training worker; one thread does the training."""

    def __init__(self) -> None:
        self.peak = private_memory()
        self.drawing = 0.0
        self.marks: list[tuple[float, float, float, float]] = []
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> Watch:
        self._thread.start()
        draw, numbers = Batches.draw, pretraining.update_generator

        def timed_draw(batches: Batches, update: int, generator: torch.Generator) -> Batch:
            started = time.perf_counter()
            drawn = draw(batches, update, generator)
            self.drawing += time.perf_counter() - started
            return drawn

        def marked(seed: int, update: int, rank: int) -> torch.Generator:
            if update % WARM_UPDATES == 0:
                self.mark()
            return numbers(seed, update, rank)

        # The worker is a process of its own, which ends with the training.
        setattr(Batches, "draw", timed_draw)  # noqa: B010
        pretraining.update_generator = marked
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()

    def mark(self) -> None:
        self.marks.append((time.perf_counter(), time.thread_time(), time.process_time(), self.drawing))

    def results(self) -> Row:
        """The memory in MB, and times for each update between the first and the last mark after the warm-up."""
        (wall, thread, process, drawing), updates = self.marks[1], WARM_UPDATES * (len(self.marks) - 2)
        last = self.marks[-1]
        return {
            "thread_ms": 1e3 * (last[1] - thread) / updates,
            "process_ms": 1e3 * (last[2] - process) / updates,
            "draw_share": (last[3] - drawing) / (last[0] - wall),
            "peak_mb": self.peak,
        }

    def _watch(self) -> None:
        while not self._ended.wait(0.1):
            self.peak = max(self.peak, private_memory())


def watched_worker(result: str, config: dict[str, Any]) -> None:
    """The training worker of stage 1, which is watched."""
    with Watch() as watch:
        pretraining._train_worker(config)  # the worker's own module, in which nothing has been replaced
    Path(result).write_text(json.dumps(watch.results()))


def train(dataset: Path, out: Path, updates: int, limit_mb: float, *, in_memory: bool) -> Row:
    """Trains, and returns windows/s, the start's time and the worker's memory."""
    spec = skill_spec(SkillSettings(), "spirl", features(SIZE), ACTION_DIM)
    total = WARM_UPDATES + updates
    settings = PretrainSettings(updates=total, batch_size=BATCH, log_every=WARM_UPDATES, checkpoint_every=total)
    job = PretrainJob(str(dataset), spec, settings, 0, pretraining.held_out(dataset, 0.02, 0), limit_mb)
    rows: list[tuple[float, dict[str, float]]] = []
    watched, unwatched = out.with_suffix(".json"), pretraining._train_worker
    pretraining._train_worker = partial(watched_worker, str(watched))
    called = time.perf_counter()
    try:
        pretraining.pretrain(job, out, in_memory=in_memory, on_row=lambda row: rows.append((time.perf_counter(), row)))
    finally:
        pretraining._train_worker = unwatched
    windows = [BATCH * row["update"] for _, row in rows]
    elapsed = [count / row["windows_per_s"] for count, (_, row) in zip(windows, rows, strict=True)]
    return {
        "windows_per_s": (windows[-1] - windows[0]) / (elapsed[-1] - elapsed[0]),
        "slowest_windows_per_s": min(
            (windows[i + 1] - windows[i]) / (elapsed[i + 1] - elapsed[i]) for i in range(len(rows) - 1)
        ),
        "startup_s": rows[0][0] - called - elapsed[0],
        **json.loads(watched.read_text()),
    }


def measure(folder: Path, gigabytes: float, limit_mb: float, updates: int, rounds: int) -> Row:
    """Generates the data, and trains on them from memory and streamed."""
    rendered = clips(CLIPS, SIZE)
    tiny, part, whole = folder / "tiny", folder / "part", folder / "whole"
    write_dataset(rendered, tiny, 2 * rendered[0].nbytes)
    write_dataset(rendered, part, 0.9 * limit_mb * MEGABYTE)
    write_dataset(rendered, whole, gigabytes * 1e9)
    spec = skill_spec(SkillSettings(), "spirl", features(SIZE), ACTION_DIM)
    windows = sum(max(0, entry.length - spec.horizon + 1) for entry in episode_index(whole))
    found: dict[str, list[Row]] = {"memory": [], "streamed": []}
    with ray_session(RaySettings()):
        model_peak = train(tiny, folder / "model", 2 * WARM_UPDATES, limit_mb, in_memory=True)["peak_mb"]
        for number in range(rounds):
            for way, dataset in (("memory", part), ("streamed", whole)):
                row = train(dataset, folder / f"{way}-{number}", updates, limit_mb, in_memory=way == "memory")
                row["data_mb"] = row["peak_mb"] - model_peak
                print(way, {name: round(value, 3) for name, value in row.items()}, flush=True)
                found[way].append(row)
    pairs = zip(found["streamed"], found["memory"], strict=True)
    ratios = [streamed["windows_per_s"] / memory["windows_per_s"] for streamed, memory in pairs]
    medians = {
        f"{way}_{name}": round(statistics.median(row[name] for row in rows), 3)
        for way, rows in found.items()
        for name in rows[0]
    }
    return {
        "gigabytes": gigabytes,
        "limit_mb": limit_mb,
        "file_gigabytes": round(sum(file.stat().st_size for file in whole.iterdir()) / 1e9, 3),
        "windows": windows,
        "batch_size": BATCH,
        "horizon": spec.horizon,
        "decoder": spec.decoder,
        "image_size": SIZE,
        "model_peak_mb": round(model_peak, 3),
        "updates": updates,
        "rounds": rounds,
        "streamed_passes": round((WARM_UPDATES + updates) * BATCH / windows, 2),
        "ratio": round(statistics.median(ratios), 3),
        "least_ratio": round(min(ratios), 3),
        "cpu_ratio": round(medians["memory_thread_ms"] / medians["streamed_thread_ms"], 3),
        **medians,
        **{f"hardware_{name}": value for name, value in hardware().items()},
        **{f"version_{name}": versions()[name] for name in ("python", "ray", "torch", "pyarrow")},
        "commit": commit(),
    }


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.streaming", description=__doc__.splitlines()[0])
    parser.add_argument("--gigabytes", type=float, default=5.0, help="size of the data in memory, in 10**9 bytes")
    parser.add_argument("--limit-mb", type=float, default=512.0, help="in_memory_limit_mb")
    parser.add_argument("--updates", type=int, default=3000, help="measured updates of each training")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--folder", type=Path, help="where the data go, which are removed at the end")
    parser.add_argument("--out", type=Path, help="CSV file to write")
    options = parser.parse_args(arguments)
    folder = Path(tempfile.mkdtemp(prefix="streaming-", dir=options.folder))
    try:
        row = measure(folder, options.gigabytes, options.limit_mb, options.updates, options.rounds)
    except SpirlError as error:
        print(error, file=sys.stderr)
        return 2
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    print(json.dumps(row))
    if options.out is not None:
        write_csv(options.out, [row])
    return 0


if __name__ == "__main__":
    sys.exit(main())
