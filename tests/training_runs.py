"""Trainings in a folder, for tests of the driver of stage 2 that train nothing."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

from toy import TOY

from spirl_ray.config import parse_experiment
from spirl_ray.envs import environment
from spirl_ray.pipeline import snapshots
from spirl_ray.pipeline.training_run import TrainingRun
from spirl_ray.rl.methods import method_config, skill_spec


def run_in(folder: Path, **train: Any) -> TrainingRun:
    experiment = parse_experiment({**TOY, "train": {**TOY["train"], **train}}, "test")
    pads = environment(experiment.environment)
    spec = skill_spec(experiment.skills, "spirl_cl", pads.features, pads.action_dim)
    method = method_config("spirl_cl", experiment.train, spec)
    return TrainingRun(experiment, method, 0, folder / "skills", folder / "out", "hash")


TOTALS = dict(env_steps=400, decisions=40, updates=7, wall_clock_s=1.5, config_hash="hash", commit="abc")
"""What ``trained.json`` says of a training beside its snapshots."""


def evaluated(out: Path, subtasks: dict[int, tuple[float, float]], name: str = "subtasks") -> None:
    """Snapshots with this score, deterministic and sampled, by their steps."""
    for steps, values in subtasks.items():
        folder = snapshots.snapshot_folder(out, steps)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "policy.safetensors").write_text(f"weights {steps}")
        for mode, value in zip(("deterministic", "sampled"), values, strict=True):
            result = {"env_steps": steps, "mode": mode, "episodes": 5, name: value, "return": -steps}
            (folder / f"evaluation-{mode}.json").write_text(json.dumps(result))


def steps_in(path: Path) -> list[int]:
    """The steps of the rows of a CSV file."""
    with path.open(newline="") as file:
        return [int(row["env_steps"]) for row in csv.DictReader(file)]
