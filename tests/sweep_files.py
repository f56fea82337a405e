"""Sweeps over the toy experiment, for tests."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml
from toy import write_config

from spirl_ray.sweeps.sweep_file import Sweep, load_sweep

RATES: dict[str, Any] = {"train.actor_lr": {"loguniform": [1e-4, 1e-3]}}


def write_sweep(folder: Path, space: dict[str, Any], **changes: Any) -> Path:
    """A sweep over the toy experiment."""
    if not (folder / "toy.yaml").exists():
        write_config(folder)
    path = folder / "sweep.yaml"
    path.write_text(yaml.safe_dump({"name": "small", "base": "toy.yaml", "space": space, **changes}))
    return path


def sweep(folder: Path, space: dict[str, Any], *overrides: str, **changes: Any) -> Sweep:
    return load_sweep(write_sweep(folder, space, **changes), overrides)
