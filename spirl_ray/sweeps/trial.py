"""One trial of a sweep inside Ray: both stages of the pipeline, with news for Tune while they run.

Tune's own actor of a trial only watches. The work is a task beside it that is not captured by the trial's placement
group, so env runners, training workers and Ray Data are placed as in ``spirl run``; the sweep keeps within the CPUs
by the number of trials at the same time.
"""

from __future__ import annotations

import shutil
import tempfile
import time
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import ray
from ray import tune
from ray.exceptions import RayError

from spirl_ray.config import Experiment
from spirl_ray.errors import SpirlError
from spirl_ray.files import layout
from spirl_ray.files.atomic import partial_folder, read_json, write_json
from spirl_ray.files.fingerprint import fingerprint
from spirl_ray.pipeline import stages as pipeline
from spirl_ray.pipeline.events import Progress
from spirl_ray.pipeline.results import EvaluationResult, TrainingResult
from spirl_ray.pipeline.scores import experiment_scores
from spirl_ray.pipeline.session import readable_cause
from spirl_ray.pipeline.training import checkpoints
from spirl_ray.pipeline.workspace import Trial, Workspace
from spirl_ray.sweeps.sweep_file import TrialResources

_POLL_S = 0.5
_SHOW_EVERY_S = 1.0
FINAL = "final"
"""Marks the report that ends a trial."""
Row = dict[str, Any]


@dataclass(frozen=True)
class Order:
    """What a trial has to do; travels to Ray."""

    experiment: Experiment
    """With an absolute output."""
    resources: TrialResources
    max_failures: int
    population: bool = False
    """Its checkpoints can be taken over by others."""
    parent: str | None = None
    """Of the policy that an interrupted member of a population was training."""


@dataclass(frozen=True)
class Origin:
    """A checkpoint, and the policy and trial that wrote it."""

    trial: str
    policy: str
    config_hash: str
    parent: str | None
    env_steps: int


class Board:
    """Where trials pin their news; an actor without a CPU, beside the driver of the sweep."""

    def __init__(self) -> None:
        self._progress: dict[str, Row] = {}
        self._reports: dict[str, list[Row]] = {}
        self._failures: dict[str, str] = {}

    def show(self, trial: str, progress: Row) -> None:
        self._progress[trial] = progress

    def report(self, trial: str, row: Row) -> None:
        self._reports.setdefault(trial, []).append(row)

    def reports(self, trial: str, after: int) -> list[Row]:
        return self._reports.get(trial, [])[after:]

    def fail(self, trial: str, message: str) -> None:
        self._failures[trial] = message

    def failure(self, trial: str) -> str | None:
        return self._failures.get(trial)

    def progress(self) -> dict[str, Row]:
        return dict(self._progress)


def watch(order: Order, name: str, board: Any) -> None:
    """Runs inside Tune's actor: starts the trial's work, passes its reports on, starts it again if it is lost.

    A failure is pinned to the board, not raised: Tune would start again what is bound to fail.
    """
    if (given := tune.get_checkpoint()) is not None:
        with given.as_directory() as folder:
            order = _continue(order, name, Path(folder))
    seen = len(ray.get(board.reports.remote(name, 0)))
    for failures in range(order.max_failures + 1):
        task = _start(order, name, board)
        finished: list[Any] = []
        while not finished:
            finished, _ = ray.wait([task], timeout=_POLL_S)
            for row in ray.get(board.reports.remote(name, seen)):
                seen += 1
                _report(row, order)
        try:
            tune.report({**ray.get(task), FINAL: True})
            return
        except RayError as error:
            known = readable_cause(error)
            if known is not None or failures == order.max_failures:
                ray.get(board.fail.remote(name, str(known or error)))
                return


def _start(order: Order, name: str, board: Any) -> ray.ObjectRef:
    wanted = order.resources
    task: Any = ray.remote(
        num_cpus=wanted.cpus,
        num_gpus=wanted.gpus,
        resources=wanted.custom,
        max_retries=0,
        scheduling_strategy="DEFAULT",  # any other one is captured by the placement group of Tune's actor
    )(run_trial)
    return task.options(name=f"trial {name}").remote(order, name, board)


def run_trial(order: Order, name: str, board: Any) -> Row:
    """Data, skills, policy and final evaluation of every method and seed of a trial.

    Returns:
        Means of the final evaluations, steps and seconds of training in all, and where it all is.

    Raises:
        SpirlError: whatever a stage raises.
    """
    shown = 0.0

    def stage(text: str) -> Progress:
        def progress(done: float, total: float, facts: Row) -> None:
            nonlocal shown
            if time.monotonic() - shown > _SHOW_EVERY_S or done >= total:
                shown = time.monotonic()
                board.show.remote(name, {"stage": text, "done": done, "total": total})

        progress(0.0, 1.0, {})
        return progress

    def say_waiting(target: Path) -> None:
        board.show.remote(name, {"stage": f"waits for {target.name}", "done": 0.0, "total": 1.0})

    workspace = Workspace(order.experiment, say_waiting)
    workspace.claim()
    pipeline.prepare_data(workspace, stage("data"))
    trials = [replace(trial, parent=order.parent) for trial in workspace.trials()]

    def report(trial: Trial, row: Row) -> None:
        # The last one counts once it is evaluated in full; several trainings cannot be told as one course.
        if len(trials) == 1 and row["env_steps"] < trial.experiment.train.env_steps:
            ray.get(board.report.remote(name, row | _where(trial)))

    results = []
    for trial in trials:
        label = "" if len(trials) == 1 else f" {trial.method} {trial.seed}"
        pipeline.train_skills(trial, stage(f"skills{label}"))
        _check_steps(trial)
        trained = pipeline.train(trial, stage(f"training{label}"), partial(report, trial))
        evaluated = pipeline.evaluate_policy(trial, stage(f"evaluation{label}"), videos=False)
        results.append((trial, trained, evaluated))
    return _result(results)


def _check_steps(trial: Trial) -> None:
    """A policy that is further than the others would win by its steps."""
    train, result = trial.experiment.train, trial.policy / layout.TRAINED
    if not result.exists():
        return
    found = read_json(result)["env_steps"]
    if found >= train.env_steps + train.evaluate_every:
        raise SpirlError(
            f"{trial.policy} has been trained for {found:,} steps, this sweep asks for {train.env_steps:,}: it could "
            "not be compared. Give the sweep a folder of its own with --set output=…, or raise train.env_steps."
        )


def _result(results: list[tuple[Trial, TrainingResult, EvaluationResult]]) -> Row:
    row: Row = {
        "env_steps": sum(trained.env_steps for _, trained, _ in results),
        "wall_clock_s": round(sum(trained.wall_clock_s for _, trained, _ in results), 1),
    }
    scores = experiment_scores(results[0][0].experiment)
    for mode in results[0][2].modes:
        means = scores.mean(found.modes[mode] for _, _, found in results)
        row |= {f"{mode}_{name}": value for name, value in scores.with_score(means).items()}
    everywhere = [_where(trial) for trial, _, _ in results]
    for key in ("policy", "config_hash", "skills"):
        row[key] = "+".join(dict.fromkeys(str(where[key]) for where in everywhere))
    row["parent"] = everywhere[0]["parent"]
    row["commit"] = "+".join(dict.fromkeys(trained.commit for _, trained, _ in results))
    return row


def _where(trial: Trial) -> Row:
    return {
        "policy": trial.policy.name,
        "config_hash": trial.config_hash,
        "skills": trial.skills.name,
        "parent": trial.parent,
    }


# --- population based training: checkpoints that go from one trial to another ---


def _report(row: Row, order: Order) -> None:
    """Passes an evaluated snapshot on to Tune; in a population, with a copy of the newest checkpoint before it."""
    if not order.population:
        tune.report(row)
        return
    folder = Workspace(order.experiment).folder / layout.POLICIES / row["policy"]
    saved = [path for path in checkpoints(folder) if layout.steps_of(path) <= row["env_steps"]]
    if not saved:
        tune.report(row)
        return
    with tempfile.TemporaryDirectory() as copy:
        target = Path(copy) / saved[-1].name
        shutil.copytree(saved[-1], target)
        origin = Origin(
            tune.get_context().get_trial_name(),
            row["policy"],
            row["config_hash"],
            row["parent"],
            layout.steps_of(saved[-1]),
        )
        write_json(Path(copy) / layout.ORIGIN, vars(origin))
        tune.report(row, checkpoint=tune.Checkpoint.from_directory(copy))


def _continue(order: Order, name: str, given: Path) -> Order:
    """The order of a trial that starts from a checkpoint: its own policy goes on, another one's is copied.

    A policy that was trained with other settings before is not the one of its config from the start, so its folder
    is named after where it comes from, too.
    """
    origin = Origin(**read_json(given / layout.ORIGIN))
    [own] = Workspace(order.experiment).trials()
    if origin.trial == name and origin.config_hash == own.config_hash:
        return replace(order, parent=origin.parent)
    copy = replace(own, parent=fingerprint(name, origin.policy, origin.env_steps))
    if not checkpoints(copy.policy):
        [source] = layout.step_folders(given)
        with partial_folder(copy.policy / layout.CHECKPOINTS / source.name) as folder:
            shutil.copytree(source, folder, dirs_exist_ok=True)
            write_json(copy.policy / layout.ORIGIN, vars(origin))
    return replace(order, parent=copy.parent)
