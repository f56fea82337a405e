"""How much of the machine both stages reach: ``python -m benchmarks.speed [--quick] [--out results.csv]``.

The last line that is printed is one JSON object. Rates are per second, and every process has one torch thread. Each
ratio compares things that ran in turns in this one run; the result is the median of the ratios:

- ``stage1_pipeline_over_loop``: windows/s of `spirl_ray.skills.pretrain.pretrain` (Ray Train and Ray Data, one worker,
  kitchen sizes, augmentation; from update 50 on) over those of a bare loop in this process, before and after each
  pipeline, with the same model, optimiser and batch size on one fixed batch. ``stage1_startup_s`` is the time before
  the pipeline's first update.
- ``stage1_two_workers``: windows/s of two workers over one, with the same batch for each worker;
  ``stage1_two_workers_same_batch`` halves it, so that the global batch stays the same (measured once).
- ``stage2_algorithm_over_loop``: updates/s of the local learner of `SkillPriorSAC`, with sampling from the replay and
  logging, over those of a hand-written loop with copies of its networks and a fixed batch.
- ``stage2_update_over_0_1``: time of an update of the learner, 16 in a call, over that of the learner of version 0.1: a
  plain loop with separate critics, which also fills every new tensor, because the deterministic mode that RLlib turns
  on did so. ``stage2_ten_critics_over_0_1`` has ten critics, two of them in the minimum, and
  ``stage2_ten_critics_all_over_0_1`` all ten, over the loop with two. ``stage2_one_update_a_call_over_16`` is the time
  of an update where each is a call of its own.
- ``stage2_two_learners``: decisions a second that two learners learn from, in processes of their own, over one's.
- ``stage2_round_over_max``: wall-clock time of a round of `train()` over the longer of its sampling (one env runner in
  the kitchen) and its learning: 1 is a perfect overlap.
- ``stage*_share_of_peak``: the rate times the floating-point operations of the matrix products of an update, forward
  and backward, over ``matrix_peak_gflops``, the best float32 `torch.mm` of one thread. The rate is that of the Ray
  side.

It needs no data: episodes, skills and the first decisions in the replay are random. Run it on a quiet machine.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from benchmarks.learners import kitchen_training
from benchmarks.learning_speed import LearningPlan, measure_learning
from benchmarks.pretraining_speed import BATCH, PretrainingPlan, measure_pretraining
from spirl_ray.config import RaySettings
from spirl_ray.errors import SpirlError
from spirl_ray.files.tables import read_csv, write_csv
from spirl_ray.pipeline.provenance import commit, hardware, versions
from spirl_ray.pipeline.session import ray_session

_SHAPES = ((1024, 1024, 1024), (512, 512, 512), (1280, 128, 512), (1280, 128, 128), (256, 256, 256))
"""A large product, where the peak is, and those of the two stages: rows, inner dimension, columns."""
Measured = dict[str, float | None]


def matrix_peak(repeats: int) -> float:
    """Measures the best GFLOP/s of float32 ``torch.mm`` on one thread, over the shapes."""
    best = 0.0
    for rows, inner, columns in _SHAPES:
        left, right, out = torch.randn(rows, inner), torch.randn(inner, columns), torch.empty(rows, columns)
        torch.mm(left, right, out=out)
        for _ in range(repeats):
            started = time.perf_counter()
            torch.mm(left, right, out=out)
            best = max(best, 2e-9 * rows * inner * columns / (time.perf_counter() - started))
    return best


def measure(pretraining: PretrainingPlan, learning: LearningPlan, repeats: int) -> Measured:
    """Measures everything, in its own Ray session and temporary folder."""
    torch.set_num_threads(1)
    started = time.perf_counter()
    peaks = [matrix_peak(repeats)]
    with tempfile.TemporaryDirectory() as name, ray_session(RaySettings()):
        folder = Path(name)
        stage1 = measure_pretraining(folder / "stage1", pretraining, os.cpu_count() or 1)
        _tell(stage1)
        peaks.append(matrix_peak(repeats))
        stage2 = measure_learning(folder / "stage2", learning)
        _tell(stage2)
    peaks.append(matrix_peak(repeats))
    peak = max(peaks)
    gflops1 = (stage1["stage1_windows_per_s"] or 0.0) / BATCH * (stage1["stage1_update_gflop"] or 0.0)
    gflops2 = (stage2["stage2_updates_per_s"] or 0.0) * (stage2["stage2_update_gflop"] or 0.0)
    return {
        **stage1,
        "stage1_share_of_peak": gflops1 / peak,
        **stage2,
        "stage2_share_of_peak": gflops2 / peak,
        "matrix_peak_gflops": peak,
        "benchmark_s": time.perf_counter() - started,
    }


def _tell(values: Measured) -> None:
    for name, value in values.items():
        print(f"{name:34s} {'-' if value is None else format(value, '.4g')}", flush=True)


def append_row(path: Path, values: Measured, quick: bool) -> None:
    """Adds the measured values as a row to a CSV file, see `add_row`."""
    train = kitchen_training()
    row = {
        "plan": "quick" if quick else "full",
        "stage1_batch": BATCH,
        "stage2_batch": train.batch_size,
        "decisions_per_round": train.decisions_per_round,
        **{name: "" if value is None else f"{value:.5g}" for name, value in values.items()},
    }
    add_row(path, row)


def add_row(path: Path, values: Mapping[str, Any]) -> None:
    """Adds values, the hardware, versions and commit as a row to a CSV file.

    Raises:
        SpirlError: the file has other columns, or cannot be written.
    """
    row = {
        **{name: str(value) for name, value in values.items()},
        **{f"hardware_{name}": value for name, value in hardware().items()},
        **{f"version_{name}": value for name, value in versions().items()},
        "commit": commit(),
    }
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        earlier = [before.cells for before in read_csv(path)]
        if any(list(cells) != list(row) for cells in earlier):
            raise SpirlError(f"{path} has other columns than this benchmark writes: choose another --out.")
        write_csv(path, [*earlier, row])
    except OSError as error:
        raise SpirlError(f"Cannot write {path}: {error.strerror}.") from error


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.speed", description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a smoke run: the numbers mean nothing")
    parser.add_argument("--out", type=Path, help="CSV file that gets a row with the result")
    options = parser.parse_args(arguments)
    if options.quick:
        plans = PretrainingPlan(rounds=1, updates=50, loop_updates=20), LearningPlan(pairs=2, updates=32, rounds=3)
    else:
        plans = PretrainingPlan(), LearningPlan()
    try:
        values = measure(*plans, repeats=5 if options.quick else 40)
        if options.out is not None:
            append_row(options.out, values, options.quick)
    except SpirlError as error:
        print(error, file=sys.stderr)
        return 2
    print(json.dumps(values))
    return 0


if __name__ == "__main__":
    sys.exit(main())
