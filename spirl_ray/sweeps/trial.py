"""One trial of a sweep inside Ray: both stages of the pipeline, with reports to Tune while they run.

Tune's actor of a trial only supervises. The work is a task beside it that is not captured by the trial's placement
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
from pyarrow.fs import LocalFileSystem
from ray import tune
from ray.exceptions import RayError

from spirl_ray.config import Experiment
from spirl_ray.errors import SpirlError
from spirl_ray.files import layout
from spirl_ray.files.atomic import partial_folder, read_json, write_json
from spirl_ray.files.fingerprint import fingerprint
from spirl_ray.files.shared import require_seen
from spirl_ray.pipeline import stages as pipeline
from spirl_ray.pipeline.events import Progress
from spirl_ray.pipeline.results import EvaluationResult, TrainingResult
from spirl_ray.pipeline.scores import experiment_scores
from spirl_ray.pipeline.session import readable_cause
from spirl_ray.pipeline.trained import read_trained
from spirl_ray.pipeline.training import checkpoints, joined_commits, read_provenance
from spirl_ray.pipeline.workspace import Trial, Workspace
from spirl_ray.sweeps.sweep_file import TrialResources

_POLL_S = 0.5
_SHOW_EVERY_S = 1.0
FINAL = "final"
"""The key that marks the report that ends a trial."""
Row = dict[str, Any]


@dataclass(frozen=True)
class TrialRequest:
    """The work of a trial, which is sent to Ray."""

    experiment: Experiment
    """The experiment, with an absolute output."""
    resources: TrialResources
    max_failures: int
    population: bool = False
    """True where other trials can take over the trial's checkpoints."""
    parent: str | None = None
    """The parent checkpoint of the policy that an interrupted member of a population was training."""


@dataclass(frozen=True)
class Origin:
    """A checkpoint, and the policy and trial that wrote it."""

    trial: str
    policy: str
    config_hash: str
    parent: str | None
    env_steps: int


class TrialStatus:
    """The reports, progress and failures of all trials, and who may run: an actor without a CPU on the node of the
    sweep's driver.

    Args:
        room: the number of trials that may run at the same time.
    """

    def __init__(self, room: int) -> None:
        self._room = room
        self._present: list[str] = []
        self._progress: dict[str, Row] = {}
        self._reports: dict[str, list[Row]] = {}
        self._failures: dict[str, str] = {}

    def may_run(self, trial: str) -> bool:
        """True for a trial among the oldest for which there is room; one that asks for the first time is the
        youngest."""
        if trial not in self._present:
            self._present.append(trial)
        return self._present.index(trial) < self._room

    def leave(self, trial: str) -> None:
        if trial in self._present:
            self._present.remove(trial)

    def limit(self, room: int) -> None:
        self._room = room

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


def supervise(request: TrialRequest, name: str, status: Any) -> None:
    """Starts a trial's work inside Tune's actor when there is room, passes its reports on, and restarts it if it is
    lost, or has been set aside.

    A failure is stored, not raised, because Tune would restart a trial that must fail again.
    """
    if (given := tune.get_checkpoint()) is not None:
        with given.as_directory() as folder:
            request = _continue(request, name, Path(folder))
    seen = len(ray.get(status.reports.remote(name, 0)))
    failures = 0
    while True:
        while not ray.get(status.may_run.remote(name)):
            status.show.remote(name, {"stage": "waits for room", "done": 0.0, "total": 1.0})
            time.sleep(_POLL_S)
        task = _start(request, name, status)
        finished: list[Any] = []
        aside = False
        while not finished:
            finished, _ = ray.wait([task], timeout=_POLL_S)
            for row in ray.get(status.reports.remote(name, seen)):
                seen += 1
                _report(row, request)
            if not finished and not aside and not ray.get(status.may_run.remote(name)):
                aside = True
                ray.cancel(task, force=True)  # it continues from its last checkpoint
        try:
            tune.report({**ray.get(task), FINAL: True})
            return
        except RayError as error:
            if aside:
                continue
            known = readable_cause(error)
            if known is not None or failures == request.max_failures:
                ray.get(status.fail.remote(name, str(known or error)))
                return
            failures += 1


def _start(request: TrialRequest, name: str, status: Any) -> ray.ObjectRef:
    wanted = request.resources
    task: Any = ray.remote(
        num_cpus=wanted.cpus,
        num_gpus=wanted.gpus,
        resources=wanted.custom,
        max_retries=0,
        scheduling_strategy="DEFAULT",  # any other one is captured by the placement group of Tune's actor
    )(run_trial)
    return task.options(name=f"trial {name}").remote(request, name, status)


def run_trial(request: TrialRequest, name: str, status: Any) -> Row:
    """Runs data, skills, policy and final evaluation of every method and seed of a trial.

    Returns:
        The means of the final evaluations, the total steps and seconds of training, and the folders.

    Raises:
        SpirlError: a stage raises it.
    """
    require_seen(request.experiment.folder)
    shown = 0.0

    def stage(text: str) -> Progress:
        def progress(done: float, total: float, **newest: object) -> None:
            nonlocal shown
            if time.monotonic() - shown > _SHOW_EVERY_S or done >= total:
                shown = time.monotonic()
                status.show.remote(name, {"stage": text, "done": done, "total": total})

        progress(0.0, 1.0)
        return progress

    def say_waiting(target: Path) -> None:
        status.show.remote(name, {"stage": f"waits for {target.name}", "done": 0.0, "total": 1.0})

    workspace = Workspace(request.experiment, say_waiting)
    workspace.reserve()
    pipeline.prepare_data(workspace, stage("data"))
    trials = [replace(trial, parent=request.parent) for trial in workspace.trials()]

    def report(trial: Trial, row: Row) -> None:
        # The last snapshot counts once it is evaluated in full; several trainings cannot be reported as one curve.
        if len(trials) == 1 and row["env_steps"] < trial.experiment.train.env_steps:
            ray.get(status.report.remote(name, row | _where(trial)))

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
    """Raises `SpirlError` for a policy that has been trained for more steps, because it would win by its steps."""
    train, found = trial.experiment.train, read_trained(trial.policy)
    if found is not None and found.env_steps >= train.env_steps + train.evaluate_every:
        raise SpirlError(
            f"{trial.policy} has been trained for {found.env_steps:,} steps, this sweep asks for "
            f"{train.env_steps:,}, so it could not be compared. Give the sweep a folder of its own with --set "
            "output=…, or raise train.env_steps."
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
    for key in ("policy", "config_hash", "commit", "skills"):
        row[key] = "+".join(dict.fromkeys(str(where[key]) for where in everywhere))
    row["parent"] = everywhere[0]["parent"]
    return row


def _where(trial: Trial) -> Row:
    return {
        "policy": trial.policy.name,
        "config_hash": trial.config_hash,
        "commit": joined_commits(read_provenance(trial.policy)),
        "skills": trial.skills.name,
        "parent": trial.parent,
    }


# --- population based training: checkpoints that go from one trial to another ---


def _report(row: Row, request: TrialRequest) -> None:
    """Passes an evaluated snapshot on to Tune; in a population, with a copy of the newest checkpoint before it."""
    if not request.population:
        tune.report(row)
        return
    folder = Workspace(request.experiment).folder / layout.POLICIES / row["policy"]
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
        tune.report(row, checkpoint=tune.Checkpoint(copy, LocalFileSystem()))


def _continue(request: TrialRequest, name: str, given: Path) -> TrialRequest:
    """The request of a trial that starts from a checkpoint: its own policy continues, another policy is copied.

    A policy that was trained with other settings before is not the one of its config from the start, so its folder
    is named after where it comes from, too.
    """
    origin = Origin(**read_json(given / layout.ORIGIN))
    [own] = Workspace(request.experiment).trials()
    if origin.trial == name and origin.config_hash == own.config_hash:
        return replace(request, parent=origin.parent)
    copy = replace(own, parent=fingerprint(name, origin.policy, origin.env_steps))
    if not checkpoints(copy.policy):
        [source] = layout.step_folders(given)
        with partial_folder(copy.policy / layout.CHECKPOINTS / source.name) as folder:
            shutil.copytree(source, folder, dirs_exist_ok=True)
            write_json(copy.policy / layout.ORIGIN, vars(origin))
    return replace(request, parent=copy.parent)
