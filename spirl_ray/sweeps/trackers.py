"""The trackers of a sweep, through the callbacks that come with Tune; which packages a sweep needs."""

from __future__ import annotations

from typing import Any

from spirl_ray.pipeline.trackers import asked_trackers, require_package
from spirl_ray.sweeps.sweep_file import Sweep


def needed_modules(sweep: Sweep) -> list[str]:
    """The modules that a sweep imports and that come with no plain installation of this package."""
    return asked_trackers(sweep.base) + (["optuna"] if sweep.file.search == "optuna" else [])


def check_packages(sweep: Sweep) -> None:
    """Raises `SpirlError`, before any work, where a package that the sweep needs is not installed."""
    if sweep.file.search == "optuna":
        require_package("optuna", f"{sweep.origin}: search", "sweep")


def callbacks(sweep: Sweep) -> list[Any]:
    """Makes Tune's callbacks for the trackers that the base experiment asks for."""
    tracking, found = sweep.base.tracking, list[Any]()
    if tracking.wandb is not None:
        from ray.air.integrations.wandb import WandbLoggerCallback

        settings = tracking.wandb.model_dump()
        group = settings.pop("group") or sweep.file.name
        found.append(WandbLoggerCallback(group=group, **settings))
    if tracking.mlflow is not None:
        from ray.air.integrations.mlflow import MLflowLoggerCallback

        settings = tracking.mlflow.model_dump()
        experiment = settings.pop("experiment_name") or sweep.file.name
        found.append(MLflowLoggerCallback(experiment_name=experiment, **settings))
    return found
