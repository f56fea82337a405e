"""spirl-ray: skill-prior reinforcement learning as a distributed training service on Ray.

The public names are imported when they are first used, so ``import spirl_ray`` is fast and needs neither Ray nor torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from spirl_ray.api import evaluate, pretrain, run, train
    from spirl_ray.config import load_experiment
    from spirl_ray.datasets.sources import register_source
    from spirl_ray.envs import register_environment
    from spirl_ray.episodes.features import Feature
    from spirl_ray.episodes.writer import DatasetWriter
    from spirl_ray.errors import SpirlError
    from spirl_ray.policy.policy import load_policy
    from spirl_ray.skills.artifact import load_skills

__version__ = "0.2.0.dev0"
__all__ = [
    "DatasetWriter",
    "Feature",
    "SpirlError",
    "evaluate",
    "load_experiment",
    "load_policy",
    "load_skills",
    "pretrain",
    "register_environment",
    "register_source",
    "run",
    "train",
]
_MODULES = {
    "DatasetWriter": "spirl_ray.episodes.writer",
    "Feature": "spirl_ray.episodes.features",
    "SpirlError": "spirl_ray.errors",
    "evaluate": "spirl_ray.api",
    "load_experiment": "spirl_ray.config",
    "load_policy": "spirl_ray.policy.policy",
    "load_skills": "spirl_ray.skills.artifact",
    "pretrain": "spirl_ray.api",
    "register_environment": "spirl_ray.envs",
    "register_source": "spirl_ray.datasets.sources",
    "run": "spirl_ray.api",
    "train": "spirl_ray.api",
}
"""The module in which each public name is defined."""


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(_MODULES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
