"""Weights & Biases and MLflow: one tracked run in each, through their own clients; which packages they need."""

from __future__ import annotations

import importlib
import math
import os
import time
import uuid
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from spirl_ray.config import Experiment
from spirl_ray.config_tracking import MlflowSettings, WandbSettings
from spirl_ray.errors import SpirlError

_METRICS_AT_A_TIME, _PARAMETERS_AT_A_TIME = 1000, 100
_LONGEST_PARAMETER = 6000
"""MLflow refuses more metrics or parameters in one request, and longer parameters."""


@dataclass(frozen=True)
class Point:
    """Metrics at one step."""

    step: int
    values: Mapping[str, float]


@dataclass(frozen=True)
class Described:
    """What a tracker shows of a run besides its metrics."""

    experiment: str
    name: str
    step: str
    """What steps are: ``env_steps`` or ``update``."""
    settings: Mapping[str, Any]
    """The settings by key, such as ``train.actor_lr``."""
    folder: Path
    """The experiment's folder."""


class Tracked(Protocol):
    """One run in a tracker. Everything may raise what the tracker's client raises."""

    id: str
    """The run's name in the tracker, by which it is resumed."""
    address: str | None
    """Where to look at it."""

    def log(self, points: Sequence[Point]) -> None:
        """Sends metrics."""

    def attach(self, file: Path, name: str) -> None:
        """Sends a video or a page; ``name`` is where the tracker shows it: folders, and the file's own name."""

    def close(self, *, ended: bool) -> None:
        """Ends the run; False where it was interrupted, and may be resumed."""


class WandbRun:
    """A run in Weights & Biases.

    Args:
        settings: where it is.
        run: what it is.
        known: the id of the run that is resumed; None begins one.
    """

    def __init__(self, settings: WandbSettings, run: Described, known: str | None) -> None:
        import wandb

        mode = settings.mode or os.environ.get("WANDB_MODE") or "online"
        if mode == "online" and not wandb.login(prompt=False):  # wandb.init would ask on the terminal
            raise SpirlError(
                "there is no key. Set WANDB_API_KEY, run wandb login, or set tracking.wandb.mode: offline."
            )
        self.id = known or uuid.uuid4().hex[:12]
        self._wandb, self._step = wandb, run.step
        self._run = wandb.init(
            project=settings.project,
            entity=settings.entity,
            group=settings.group or run.experiment,
            name=run.name,
            tags=settings.tags,
            mode=settings.mode,
            config=dict(run.settings),
            id=self.id,
            resume="allow",
            reinit="create_new",  # several runs are open at the same time
            dir=str(run.folder),
            settings=wandb.Settings(silent=True, console="off"),
        )
        # A step of its own, because W&B refuses steps that go back, as those of evaluations do, which end later.
        self._run.define_metric(run.step, hidden=True)
        self._run.define_metric("*", step_metric=run.step)
        self.address: str | None = None if self._run.offline else self._run.url

    def log(self, points: Sequence[Point]) -> None:
        for point in points:
            self._run.log({**point.values, self._step: point.step})

    def attach(self, file: Path, name: str) -> None:
        if file.suffix == ".html":
            shown: Any = self._wandb.Html(file.read_text(encoding="utf-8"), inject=False)
        else:
            kind: Any = file.suffix.removeprefix(".")
            shown = self._wandb.Video(str(file), format=kind)
        self._run.log({str(Path(name).with_suffix("")): shown})

    def close(self, *, ended: bool) -> None:
        self._run.finish(exit_code=0 if ended else 1)


class MlflowRun:
    """A run in MLflow; see `WandbRun` for the arguments."""

    def __init__(self, settings: MlflowSettings, run: Described, known: str | None) -> None:
        # Its defaults try for minutes, in which a thread of ours could say nothing.
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "20")
        os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")  # we say it ourselves, once
        from mlflow import MlflowClient
        from mlflow.entities import Param

        self._client = MlflowClient(tracking_uri=settings.tracking_uri)
        if known is not None:
            found = self._client.get_run(known)
            self._client.update_run(known, status="RUNNING")
        else:
            tags = {"experiment": run.experiment, **settings.tags}
            found = self._client.create_run(
                self._experiment(settings.experiment_name or run.experiment), run_name=run.name, tags=tags
            )
            parameters = [Param(key, str(value)[:_LONGEST_PARAMETER]) for key, value in run.settings.items()]
            for some in _batches(parameters, _PARAMETERS_AT_A_TIME):
                self._client.log_batch(found.info.run_id, params=some)
        self.id = str(found.info.run_id)
        uri = settings.tracking_uri or os.environ.get("MLFLOW_TRACKING_URI", "")
        page = f"{uri.rstrip('/')}/#/experiments/{found.info.experiment_id}/runs/{self.id}"
        self.address = page if uri.startswith("http") else None

    def _experiment(self, name: str) -> str:
        found = self._client.get_experiment_by_name(name)
        return str(self._client.create_experiment(name) if found is None else found.experiment_id)

    def log(self, points: Sequence[Point]) -> None:
        from mlflow.entities import Metric

        now = int(1000 * time.time())
        metrics = [Metric(name, value, now, one.step) for one in points for name, value in one.values.items()]
        for some in _batches(metrics, _METRICS_AT_A_TIME):
            self._client.log_batch(self.id, metrics=some)

    def attach(self, file: Path, name: str) -> None:
        folder = str(Path(name).parent)
        self._client.log_artifact(self.id, str(file), None if folder == "." else folder)

    def close(self, *, ended: bool) -> None:
        self._client.set_terminated(self.id, status="FINISHED" if ended else "KILLED")


TRACKERS: dict[str, Callable[[Any, Described, str | None], Tracked]] = {"wandb": WandbRun, "mlflow": MlflowRun}
"""The trackers by the names of their settings, which are those of their packages and of the extras that install
them."""


def open_run(name: str, settings: Any, run: Described, known: str | None) -> Tracked:
    """Begins a run in a tracker, or resumes one.

    Args:
        name: of the tracker.
        settings: of the tracker.
        run: what it is.
        known: the id of the run that is resumed; None begins one.
    """
    return TRACKERS[name](settings, run, known)


def _batches(entries: Sequence[Any], size: int) -> Iterable[list[Any]]:
    return (list(entries[first : first + size]) for first in range(0, len(entries), size))


def finite(values: Mapping[str, Any]) -> dict[str, float]:
    """The values that are finite numbers, also where they are written as text."""
    found: dict[str, float] = {}
    for name, value in values.items():
        try:
            number = float(value)
        except (TypeError, ValueError):
            continue
        if math.isfinite(number):
            found[name] = number
    return found


# --- packages ---


def asked_trackers(experiment: Experiment) -> list[str]:
    """The trackers of an experiment's settings."""
    return [name for name in TRACKERS if getattr(experiment.tracking, name) is not None]


def check_trackers(experiment: Experiment) -> None:
    """Raises `SpirlError` where the package of a tracker that the settings ask for is not installed."""
    for name in asked_trackers(experiment):
        require_package(name, f"tracking.{name}", name)


def require_package(package: str, key: str, extra: str) -> None:
    """Raises `SpirlError`, which says how to install a package that a setting needs, where it is not installed.

    Args:
        package: the name by which it is imported.
        key: the setting.
        extra: the extra of this package that installs it.
    """
    try:
        importlib.import_module(package)
    except ImportError as error:
        raise SpirlError(
            f"{key} needs the package {package}, which is not installed. Install it (pip install "
            f"'spirl-ray[{extra}]'), or leave {key} out."
        ) from error
