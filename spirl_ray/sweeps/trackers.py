"""Weights & Biases and MLflow, through the callbacks that come with Tune."""

from __future__ import annotations

import importlib
from typing import Any

from spirl_ray.errors import SpirlError
from spirl_ray.sweeps.sweep_file import Sweep

_CALLBACKS = {
    "wandb": ("ray.air.integrations.wandb", "WandbLoggerCallback"),
    "mlflow": ("ray.air.integrations.mlflow", "MLflowLoggerCallback"),
}


def trackers(sweep: Sweep) -> list[Any]:
    """Makes the callbacks that the sweep's file asks for.

    Raises:
        SpirlError: the tracker's package is not installed, or its arguments are wrong.
    """
    callbacks = []
    for name, (module, kind) in _CALLBACKS.items():
        arguments: dict[str, Any] | None = getattr(sweep.file.trackers, name)
        if arguments is None:
            continue
        try:
            importlib.import_module(name)
        except ImportError as error:
            raise SpirlError(
                f"trackers.{name} needs the package {name}, which is not installed. Install it (pip install {name}), "
                f"or remove trackers.{name} from {sweep.origin}."
            ) from error
        try:
            callbacks.append(getattr(importlib.import_module(module), kind)(**arguments))
        except TypeError as error:
            raise SpirlError(f"{sweep.origin}, trackers.{name}: {error}.") from error
    return callbacks
