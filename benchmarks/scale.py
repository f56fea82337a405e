"""What would limit many env runners: ``python -m benchmarks.scale [--gpu gpu.csv] [--out FILE.csv]``.

For 1, 2, 4 and 8 env runners in the kitchen, it measures the primitive steps per second on this machine's cores, and
where the CPU time goes: how much the driver spends on one fragment of samples (fetching, bookkeeping, replay, metrics,
sending weights), how much an env runner spends on it, and how many bytes move. It takes CPU time, not wall-clock time,
because 8 runners share a few cores. This separates the cost of Ray and RLlib from that of physics, which only the
runners pay.

From the figures at the largest measured number it predicts 64 and 512 runners, each on a core of its own: a runner
gives a fragment every ``runner_s``, the driver needs ``driver_s`` for each, and a learner that makes one update for
each decision needs ``update_s`` for each of them. The slowest of the three is the bottleneck. ``--gpu`` also predicts
a learner in a process of its own on the card of a file that ``python -m benchmarks.gpu`` wrote. The network's bandwidth
is not modelled; ``mbytes_per_s`` says how much would have to pass through the driver's node.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from ray import cloudpickle
from ray.rllib.core import DEFAULT_MODULE_ID

from benchmarks.learners import kitchen_training, random_decisions, random_skills
from benchmarks.pretraining_speed import ENVIRONMENT, kitchen_skills
from spirl_ray.config import EnvSettings, Experiment, RaySettings
from spirl_ray.errors import SpirlError
from spirl_ray.files.tables import read_csv, write_csv
from spirl_ray.pipeline.provenance import commit, hardware
from spirl_ray.pipeline.resources import Needs
from spirl_ray.pipeline.session import ray_session
from spirl_ray.pipeline.training_run import TrainingRun, algorithm_config
from spirl_ray.rl.algorithm import SkillPriorSAC
from spirl_ray.rl.methods import method_config

MEASURED, PREDICTED = (1, 2, 4, 8), (64, 512)
_WARM_ROUNDS, _FRAGMENTS, _UPDATES = 3, 48, 64
Row = dict[str, Any]


def _processor_seconds(runner: Any) -> float:
    return time.process_time()


def _sample_bytes(runner: Any) -> int:
    return len(cloudpickle.dumps((runner.sample(), runner.get_metrics())))


def measure(skills: Path, runners: int) -> Row:
    """Measures one row for a number of env runners; updates are made before, not between, the rounds that are timed."""
    train = kitchen_training().model_copy(update={"env_runners": runners})
    experiment = Experiment(name="scale", env=EnvSettings(id=ENVIRONMENT), train=train)
    method = method_config("spirl_cl", experiment.train, kitchen_skills())
    run = TrainingRun(experiment, method, 0, skills, skills.parent / "policy", "scale")
    algorithm: SkillPriorSAC = algorithm_config(run).build_algo()
    try:
        algorithm.learners.add(1, random_decisions(20_000))
        algorithm.counters["decisions"] = 20_000
        algorithm._owed_updates = float(_UPDATES)
        started = time.process_time()
        algorithm._learn()
        update_s = (time.process_time() - started) / _UPDATES
        algorithm.settings = algorithm.settings.model_copy(update={"updates_per_decision": 1e-9})
        group = algorithm.env_runner_group
        for _ in range(_WARM_ROUNDS):
            algorithm.train()
        before = dict(algorithm.counters)
        theirs = sum(group.foreach_env_runner(_processor_seconds, local_env_runner=False))
        wall, mine = time.perf_counter(), time.process_time()
        per_fragment = train.decisions_per_round
        while algorithm.counters["decisions"] - before["decisions"] < _FRAGMENTS * per_fragment:
            algorithm.train()
        wall, mine = time.perf_counter() - wall, time.process_time() - mine
        theirs = sum(group.foreach_env_runner(_processor_seconds, local_env_runner=False)) - theirs
        fragments = (algorithm.counters["decisions"] - before["decisions"]) / per_fragment
        steps = algorithm.counters["env_steps"] - before["env_steps"]
        learners: Any = algorithm.learner_group
        weights = learners._learner.get_state(components="rl_module", inference_only=True)
        return {
            "runners": runners,
            "kind": "measured",
            "env_steps_per_s": steps / wall,
            "steps_per_fragment": steps / fragments,
            "decisions_per_fragment": float(per_fragment),
            "driver_s": mine / fragments,
            "runner_s": theirs / fragments,
            "update_s": update_s,
            "sample_bytes": group.foreach_env_runner(_sample_bytes, local_env_runner=False)[0],
            "weight_bytes": len(cloudpickle.dumps(weights["rl_module"][DEFAULT_MODULE_ID])),
        }
    finally:
        algorithm.stop()


def predict(measured: Row, runners: int, *, learns: bool, updates_per_s: float | None = None) -> Row:
    """Returns the fragments a second of the slowest part, in primitive steps.

    Args:
        measured: a row of `measure`.
        runners: number of env runners.
        learns: False for sampling alone.
        updates_per_s: of a learner in a process of its own; None is the local learner, as it was measured.
    """
    limits = {
        "env runners": runners / measured["runner_s"],
        "driver": 1.0 / measured["driver_s"],
    }
    if learns and updates_per_s is not None:
        limits["learner"] = updates_per_s / measured["decisions_per_fragment"]
    elif learns:
        # The local learner and the driver share a process.
        spent = measured["driver_s"] + measured["decisions_per_fragment"] * measured["update_s"]
        limits["learner"] = 1.0 / spent
    bottleneck = min(limits, key=lambda name: limits[name])
    moved = measured["sample_bytes"] + measured["weight_bytes"]
    where = "" if updates_per_s is None else ", learner on a GPU"
    return {
        "runners": runners,
        "kind": f"predicted, one update a decision{where}" if learns else "predicted, sampling alone",
        "env_steps_per_s": limits[bottleneck] * measured["steps_per_fragment"],
        "bottleneck": bottleneck,
        "mbytes_per_s": limits[bottleneck] * moved / 1e6,
    }


def captured_updates(path: Path) -> float:
    """The updates/s of captured updates, batch 256 and two critics, in a file of ``benchmarks.gpu``."""
    wanted = {"what": "stage2", "way": "graph", "batch": "256", "critics": "2", "updates_a_call": "16"}
    for row in read_csv(path):
        if all(row.cells[name] == value for name, value in wanted.items()):
            return row.number("per_s")
    raise SpirlError(f"{path} has no row of captured updates: run python -m benchmarks.gpu where there is a card.")


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gpu", type=Path, help="CSV file of benchmarks.gpu")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    rows = []
    with tempfile.TemporaryDirectory() as name, ray_session(RaySettings(), Needs(max(MEASURED))):
        skills = random_skills(Path(name) / "skills")
        for runners in MEASURED:
            rows.append(measure(skills, runners))
            print(rows[-1], flush=True)
    most = rows[-1]
    rows += [predict(most, runners, learns=learns) for learns in (False, True) for runners in PREDICTED]
    if options.gpu is not None:
        per_s = captured_updates(options.gpu)
        rows += [predict(most, runners, learns=True, updates_per_s=per_s) for runners in PREDICTED]
    facts = {"commit": commit(), **hardware()}
    rows = [{name: round(v, 6) if isinstance(v, float) else v for name, v in row.items()} | facts for row in rows]
    for row in rows[len(MEASURED) :]:
        print(row)
    if options.out is not None:
        write_csv(options.out, rows)


if __name__ == "__main__":
    main()
