"""Worker nodes that are killed under a sweep, which continues with those that are left, for `benchmarks.recovery`."""

from __future__ import annotations

import json
import subprocess
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import yaml

from benchmarks.ray_nodes import RayNodes, kill_session
from benchmarks.recovery_run import EXPERIMENT, POLL_S, resumed_at, start
from spirl_ray.errors import SpirlError
from spirl_ray.files import layout
from spirl_ray.files.tables import read_csv

_TOGETHER, _CPUS = 2, "--num-cpus=3"
_PATIENCE_S, _SILENCE_S = 900.0, 300.0
_COUNTS = {"skills": ("update", layout.SKILL_CARD), "policy": ("env_steps", layout.TRAINED)}
"""By stage: the column of its progress, and the file that completes it."""


def _write(folder: Path, trials: int) -> None:
    base = {
        **EXPERIMENT,
        "output": str(folder / "out"),
        "pretrain": {**EXPERIMENT["pretrain"], "updates": 1000, "log_every": 50, "checkpoint_every": 250},
        "train": {**EXPERIMENT["train"], "env_steps": 6000, "checkpoint_every": 2000},
        "evaluate": {"episodes": 1, "prior_episodes": 1},
    }
    space = {"seeds": {"grid": list(range(trials))}}  # each trial has skills of its own
    sweep = {"name": "recovery", "base": base, "space": space, "concurrency": _TOGETHER, "max_failures": 1000}
    (folder / "experiment.yaml").write_text(yaml.safe_dump(sweep))


class SweepRun:
    """A process of ``spirl sweep``, with the progress of every stage of every trial.

    Args:
        folder: where the sweep and its log are.
        nodes: the cluster.
        trials: the number of trials.
    """

    def __init__(self, folder: Path, nodes: RayNodes, trials: int) -> None:
        _write(folder, trials)
        self.folder, self.trials = folder, trials
        self.process: subprocess.Popen[bytes] = start(
            "sweep", folder, {**nodes.environment, "RAY_ADDRESS": nodes.address}
        )
        self._seen: object = None
        self._moved = time.monotonic()

    def running(self) -> dict[Path, float]:
        """The folders of the stages that have rows of metrics and are not complete, with how far they are."""
        found = {}
        for kind, (column, _) in _COUNTS.items():
            for file in (self.folder / "out" / kind).glob(f"*/{layout.METRICS}"):
                try:
                    rows = read_csv(file)
                except (SpirlError, OSError):
                    continue
                if rows and not _is_complete(file.parent):
                    found[file.parent] = rows[-1].number(column)
        return found

    def wait(self, condition: Callable[[dict[Path, float]], bool], seconds: float = _PATIENCE_S) -> None:
        """Waits for a condition on what runs.

        Raises:
            RuntimeError: the sweep has ended before.
            TimeoutError: it does not come true, or nothing was printed and no trial got further for five minutes.
        """
        deadline = time.monotonic() + seconds
        while not condition(running := self.running()):
            log = (self.folder / "log.txt").read_text()
            seen = (len(log), running)
            if seen != self._seen:
                self._seen, self._moved = seen, time.monotonic()
            if self.process.poll() is not None:
                raise RuntimeError(f"the sweep ended with status {self.process.returncode}: {log[-2000:]}")
            if time.monotonic() > min(deadline, self._moved + _SILENCE_S):
                raise TimeoutError(log[-2000:])
            time.sleep(POLL_S)

    def finish(self) -> None:
        """Waits for the end of the sweep.

        Raises:
            RuntimeError: its status is not 0, or a trial has not finished.
            TimeoutError: see `wait`.
        """
        self.wait(lambda _: self.process.poll() is not None, 3600.0)
        files = (self.folder / "out" / layout.SWEEPS).glob(f"*/{layout.TRIALS}/*.json")
        states = Counter(json.loads(file.read_text())["status"] for file in files)
        if self.process.returncode != 0 or states != {"finished": self.trials}:
            raise RuntimeError(f"status {self.process.returncode}, trials {dict(states)}")


def node_in_a_sweep(folder: Path, kills: int, say: Callable[[float, float], None]) -> None:
    """Kills one of the two worker nodes of a sweep of two trials at a time, in stage 1 and in stage 2 in turn.

    After each kill, the sweep has room for one trial only. When every stage that ran at the kill has got further, or is
    complete, another node joins. At the end, all trials must have finished.

    Args:
        folder: an empty folder.
        kills: the number of kills.
        say: gets the seconds until then, and the greatest number of updates or env steps that a stage repeated.
    """
    nodes = RayNodes()
    try:
        nodes.start_head("--num-cpus=0")
        for _ in range(2):
            nodes.start_worker(_CPUS)
        nodes.wait(lambda: len(nodes.alive_nodes()) == 3)
        sweep = SweepRun(folder, nodes, trials=kills + _TOGETHER)
        try:
            for number in range(kills):
                stage = ("skills", "policy")[number % 2]
                sweep.wait(lambda found, stage=stage: len(found) == _TOGETHER and _has_begun(found, stage))  # type: ignore[misc]
                before, killed, since = sweep.running(), time.monotonic(), time.time()
                nodes.kill(1)
                lowest = dict(before)
                sweep.wait(lambda found, before=before, lowest=lowest: _all_further(found, before, lowest))  # type: ignore[misc]
                seconds = time.monotonic() - killed
                say(seconds, max(_repeated(one, before[one], lowest[one], since) for one in before))
                nodes.start_worker(_CPUS)
                nodes.wait(lambda: len(nodes.alive_nodes()) == 3)
            sweep.finish()
        finally:
            kill_session(sweep.process)
    finally:
        nodes.stop()


def _has_begun(found: dict[Path, float], stage: str) -> bool:
    return any(folder.parent.name == stage for folder in found)


def _all_further(found: dict[Path, float], before: dict[Path, float], lowest: dict[Path, float]) -> bool:
    """True when no stage is where it was or behind; the least that was seen of each is noted in ``lowest``."""
    for folder in before:
        lowest[folder] = min(lowest[folder], found.get(folder, before[folder]))
    return all(found.get(folder, -1.0) > steps or _is_complete(folder) for folder, steps in before.items())


def _is_complete(folder: Path) -> bool:
    return (folder / _COUNTS[folder.parent.name][1]).exists()


def _repeated(folder: Path, steps: float, lowest: float, since: float) -> float:
    resumed = resumed_at(folder, since)
    return steps - lowest if resumed is None else max(0.0, steps - resumed)
