"""A complete experiment that takes seconds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

TOY: dict[str, Any] = {
    "name": "toy",
    "methods": ["spirl_cl"],
    "env": {"id": "spirl/PointPads-v0"},
    "data": {"sources": [{"type": "generated", "episodes": 6}], "shards": 2},
    "skills": {"horizon": 10, "latent_dim": 2, "width": 8, "decoder_layers": 1, "prior_layers": 1},
    "pretrain": {"updates": 40, "batch_size": 16, "log_every": 10, "checkpoint_every": 10, "warmup_updates": 0},
    "train": {
        "env_steps": 400,
        "batch_size": 16,
        "warmup_decisions": 8,
        "critic_width": 8,
        "critic_layers": 1,
        "decisions_per_round": 4,
        "envs_per_runner": 1,
        "evaluate_every": 400,
        "evaluate_episodes": 1,
        "checkpoint_every": 100,
    },
    "evaluate": {"episodes": 2, "prior_episodes": 2, "videos": 1},
    "ray": {"object_store_mb": 80},
}


def write_config(folder: Path, **changes: Any) -> Path:
    """The toy experiment as a YAML file; its output is ``folder/out``. Keys with dots are written ``train__x``,
    ``data__sources__0__episodes``."""
    raw = yaml.safe_load(yaml.safe_dump({**TOY, "output": str(folder / "out")}))
    for name, value in changes.items():
        *groups, last = name.split("__")
        node = raw
        for group in groups:
            node = node[int(group)] if isinstance(node, list) else node.setdefault(group, {})
        node[last] = value
    path = folder / "toy.yaml"
    path.write_text(yaml.safe_dump(raw))
    return path
