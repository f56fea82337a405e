"""Weights & Biases and MLflow, through the callbacks that come with Tune; which packages a sweep needs."""

from __future__ import annotations

import importlib
from typing import Any

from spirl_ray.errors import SpirlError
from spirl_ray.sweeps.sweep_file import Sweep

_CALLBACKS = {
    "wandb": ("ray.air.integrations.wandb", "WandbLoggerCallback"),
    "mlflow": ("ray.air.integrations.mlflow", "MLflowLoggerCallback"),
}


def needed_modules(sweep: Sweep) -> list[str]:
    """The modules that a sweep imports and that come with no plain installation of this package."""
    asked = [name for name in _CALLBACKS if getattr(sweep.file.trackers, name) is not None]
    return asked + (["optuna"] if sweep.file.search == "optuna" else [])


def check_packages(sweep: Sweep) -> None:
    """Checks before any work that what a sweep needs is installed, and that its trackers take their arguments.

    Raises:
        SpirlError: a package is missing, or an argument is wrong; the message names the key.
    """
    for name in needed_modules(sweep):
        try:
            importlib.import_module(name)
        except ImportError as error:
            key, how = (f"trackers.{name}", name) if name in _CALLBACKS else ("search", "spirl-ray[sweep]")
            raise SpirlError(
                f"{sweep.origin}: {key} needs the package {name}, which is not installed. Install it (pip install "
                f"{how}), or leave {key} out."
            ) from error
    trackers(sweep)


def trackers(sweep: Sweep) -> list[Any]:
    """Makes the callbacks that the sweep's file asks for.

    Raises:
        SpirlError: the arguments of a tracker are wrong.
    """
    callbacks = []
    for name, (module, kind) in _CALLBACKS.items():
        arguments: dict[str, Any] | None = getattr(sweep.file.trackers, name)
        if arguments is None:
            continue
        try:
            callbacks.append(getattr(importlib.import_module(module), kind)(**arguments))
        except TypeError as error:
            raise SpirlError(f"{sweep.origin}, trackers.{name}: {error}.") from error
    return callbacks
