"""The rows of ``metrics.csv`` in stage 2: what is in them, and where they are written."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from torch.utils.tensorboard import SummaryWriter

from spirl_ray.errors import SpirlError
from spirl_ray.files import layout
from spirl_ray.files.tables import read_csv, write_csv
from spirl_ray.rl.algorithm import SkillPriorSAC

_A_ROW_EVERY = 1000
_PROGRESS = ("env_steps", "offline_updates")
"""The counters of which either makes a row: updates on offline decisions alone come without any step."""
Row = dict[str, Any]


class TrainingClock:
    """Counts the seconds of a training, those before its checkpoint included, and makes the rows of ``metrics.csv``,
    which hold the speeds since the row before."""

    def __init__(self, algorithm: SkillPriorSAC) -> None:
        self._algorithm = algorithm
        self._counters = algorithm.counters
        self._began = time.perf_counter() - self._counters.setdefault("wall_clock_s", 0.0)
        self._last = dict(self._counters)

    def tick(self) -> None:
        """Sets ``wall_clock_s`` among the counters of the algorithm."""
        self._counters["wall_clock_s"] = time.perf_counter() - self._began

    def row_is_due(self, *, now: bool) -> bool:
        """True where there is enough for another row, or anything at all if one is wanted ``now``."""
        return any(self._counters[name] - self._last[name] >= (1 if now else _A_ROW_EVERY) for name in _PROGRESS)

    def row(self) -> Row:
        """The next row of metrics."""
        algorithm, now, last = self._algorithm, dict(self._counters), self._last
        self._last = now
        seconds = now["wall_clock_s"] - last["wall_clock_s"]
        return {
            **{name: now[name] for name in ("env_steps", "decisions", "updates", "offline_updates", "episodes")},
            "wall_clock_s": round(now["wall_clock_s"], 2),
            **algorithm.episodes.mean(),
            **algorithm.learner_metrics,
            "reward_scale": algorithm.rewards.factor,
            "env_steps_per_s": (now["env_steps"] - last["env_steps"]) / seconds,
            "updates_per_s": (now["updates"] - last["updates"]) / seconds,
        }


class MetricsLog:
    """``metrics.csv`` and TensorBoard. Rows from after the restored checkpoint are dropped when a run resumes."""

    def __init__(self, out: Path, env_steps: int, updates: int) -> None:
        self.path = out / layout.METRICS
        self.rows: list[Row] = [
            dict(row.cells)
            for row in read_csv(self.path, ["env_steps", "updates"])
            if row.number("env_steps") <= env_steps and row.number("updates") <= updates
        ]
        try:
            self.board = SummaryWriter(out / layout.TENSORBOARD, purge_step=env_steps + 1)
        except OSError as error:
            raise SpirlError(f"Cannot write to {out}: {error.strerror}. Choose another `output`.") from error

    def add(self, row: Row) -> None:
        self.rows.append(row)
        write_csv(self.path, self.rows)
        for name, value in row.items():
            self.board.add_scalar(f"train/{name}", value, row["env_steps"])

    def close(self) -> None:
        self.board.close()
