"""Runs a sweep with Ray Tune: the remaining trials, searcher and scheduler, and the result of each trial.

A continued sweep starts Tune anew: the ledger determines which trials remain, and scheduler and searcher get the
results in it. So Tune's pickled state is never read back.
"""

from __future__ import annotations

import contextlib
import math
import os
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import ray
from pyarrow.fs import LocalFileSystem
from ray import tune
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from spirl_ray.config_file import to_yaml
from spirl_ray.envs.metrics import MODES
from spirl_ray.errors import SpirlError
from spirl_ray.files import layout
from spirl_ray.files.atomic import write_atomically
from spirl_ray.pipeline.resources import Needs, check_resources, is_own_instance, needs_of, waited_for
from spirl_ray.pipeline.session import ray_session, readable_cause
from spirl_ray.sweeps.concurrency import ClusterState, TrialSlots
from spirl_ray.sweeps.ledger import Ledger, TrialRecord
from spirl_ray.sweeps.results import write_results
from spirl_ray.sweeps.search import NUMBER, PARENT, decode, scheduler, searcher
from spirl_ray.sweeps.sweep_file import Sweep
from spirl_ray.sweeps.trackers import callbacks
from spirl_ray.sweeps.trial import FINAL, TrialRequest, TrialStatus, supervise

_SCRATCH = ".tune"
_KEPT_CHECKPOINTS = 4
_LOOK_S = 3.0
_ENVIRONMENT = {
    # The ledger and the policies' folders hold everything that Tune's files would.
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S": "0",
    "RAY_AIR_NEW_OUTPUT": "0",
    # Ctrl-C ends the sweep at once; Tune would first write a state that is never read.
    "TUNE_DISABLE_SIGINT_HANDLER": "1",
}
Row = dict[str, Any]
OnChange = Callable[[TrialRecord], None]
OnRoom = Callable[[str], None]
"""A callback that gets the words for a changed number of trials at the same time."""
OnProgress = Callable[[dict[int, Row]], None]
"""A callback that gets the progress of the running trials by number: ``stage``, ``done``, ``total``."""


# --- resources ---


def cpus_of_a_trial(sweep: Sweep) -> float:
    """The number of logical CPUs that a trial keeps busy: its driver, and the env runners and learners or the training
    workers."""
    return sweep.file.resources.cpus + needs_of(sweep.examples()).processes


def _needs(sweep: Sweep, concurrency: int) -> Needs:
    """What this number of trials hold at the same time."""
    each, resources = needs_of(sweep.examples()), sweep.file.resources
    return Needs(
        math.ceil(concurrency * cpus_of_a_trial(sweep)),
        concurrency * (each.gpus + resources.gpus),
        {name: concurrency * amount for name, amount in resources.custom.items()},
        cpu_keys=f"{concurrency} trial(s) at the same time (concurrency)",
        gpu_keys=each.gpu_keys or "resources.gpus",
    )


@contextlib.contextmanager
def ray_for(sweep: Sweep) -> Iterator[int]:
    """Connects to Ray, with CPUs for a number of trials at the same time, and yields that number.

    One CPU always remains for the short tasks of all trials, because otherwise trials that do not all fit could each
    hold some of the CPUs for which the others wait.

    Raises:
        SpirlError: the cluster has too few CPUs for the sweep, or the local Ray too little of anything.
    """
    settings, each = sweep.base.ray, cpus_of_a_trial(sweep)
    asked = sweep.file.samples if sweep.file.scheduler.kind == "pbt" else sweep.file.concurrency
    address = settings.address or os.environ.get("RAY_ADDRESS")
    if not ray.is_initialized() and address in (None, "", "local"):
        cores = settings.num_cpus - 1 if settings.num_cpus is not None else os.cpu_count() or 1
        concurrency = asked or max(1, int(cores // each))
        with ray_session(settings, _needs(sweep, concurrency), sweep.base.submit.ship):
            yield concurrency
        return
    with ray_session(settings, ship=sweep.base.submit.ship):
        cpus = ray.cluster_resources().get("CPU", 0.0)
        concurrency = asked or max(1, int((cpus - 1) // each))
        if concurrency * each + 1 > cpus:
            raise SpirlError(
                f"{concurrency} trial(s) at the same time need {concurrency * each + 1:g} CPUs ({each:g} each, and one "
                f"for tasks beside them), the cluster has {cpus:g}. Lower concurrency, or start more nodes first."
            )
        if is_own_instance():
            check_resources(_needs(sweep, concurrency), ray.cluster_resources())
        yield concurrency


# --- Tune ---


def reserve(sweep: Sweep) -> list[Path]:
    """Makes the folder of a sweep, and writes into it what the sweep is.

    Returns:
        The folders of other sweeps of the same name, from before the file was changed.
    """
    folder = sweep.folder
    if not (folder / layout.SWEEP).exists():
        text = f"# {sweep.origin}, with the base experiment in full\n" + to_yaml(
            sweep.file.model_copy(update={"base": sweep.base.model_dump(mode="json")})
        )
        write_atomically(folder / layout.SWEEP, text)
    others = folder.parent.glob(f"{sweep.file.name}-{'[0-9a-f]' * len(sweep.key)}")
    return [other for other in sorted(others) if other != folder]


def run_sweep(sweep: Sweep, concurrency: int, on_change: OnChange, on_progress: OnProgress, on_room: OnRoom) -> Ledger:
    """Runs all trials that have not ended yet. Ray must be connected, and the data must exist.

    Args:
        sweep: the sweep to run.
        concurrency: number of trials at the same time.
        on_change: callback that gets the record of a trial that starts, reports or ends.
        on_progress: callback that gets the progress of the running trials by number.
        on_room: callback that gets the words for a changed number of trials at the same time.

    Returns:
        The records of all trials.
    """
    os.environ.update(_ENVIRONMENT)
    ledger = Ledger(sweep.folder / layout.TRIALS)
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    status = ray.remote(num_cpus=0, scheduling_strategy=here)(TrialStatus).remote(concurrency)
    search, space, samples = searcher(sweep, ledger, concurrency)
    if samples == 0:
        return ledger
    scratch = sweep.folder / _SCRATCH
    shutil.rmtree(scratch, ignore_errors=True)
    slots = None if is_own_instance() else _WatchedSlots(concurrency, cpus_of_a_trial(sweep), status, on_room)
    recorder = _Recorder(sweep, ledger, status, on_change, on_progress, slots)
    tuner = tune.Tuner(
        tune.with_resources(
            tune.with_parameters(_trial, sweep=sweep, output=sweep.base.folder.absolute(), status=status),
            # Tune's actor only supervises; it asks for a byte of memory, because a trial must ask for something.
            tune.PlacementGroupFactory([{"memory": 1}]),
        ),
        param_space=space,
        tune_config=tune.TuneConfig(
            search_alg=search,
            scheduler=scheduler(sweep, ledger),
            num_samples=samples,
            trial_name_creator=_name,
            trial_dirname_creator=_name,
        ),
        run_config=tune.RunConfig(
            name=_SCRATCH,
            # With a file system, Tune takes the path as it is; alone, it would be read as a URI.
            storage_path=str(sweep.folder),
            storage_filesystem=LocalFileSystem(),
            callbacks=[recorder, *callbacks(sweep)],
            failure_config=tune.FailureConfig(max_failures=sweep.file.max_failures),
            # No limit to a population's checkpoints: Tune numbers them anew after a pause, and then fails to delete
            # those that it has deleted already.
            verbose=0,
        ),
    )
    tuner.fit()
    shutil.rmtree(scratch, ignore_errors=True)
    return ledger


def _name(trial: Any) -> str:
    number = trial.config.get(NUMBER)
    return f"trial-{trial.trial_id}" if number is None else f"trial-{number:04d}"


def _trial(config: Row, sweep: Sweep, output: Path, status: Any) -> None:
    """The function that Tune runs for a trial."""
    experiment = sweep.experiment(decode(sweep, config))
    population = sweep.file.scheduler.kind == "pbt"
    if population:
        # One checkpoint for every evaluated snapshot, which stays long enough to be copied.
        train = experiment.train.model_copy(
            update={"checkpoint_every": experiment.train.evaluate_every, "keep_checkpoints": _KEPT_CHECKPOINTS}
        )
        experiment = experiment.model_copy(update={"train": train})
    request = TrialRequest(
        experiment=experiment.model_copy(update={"output": output}),
        resources=sweep.file.resources,
        max_failures=sweep.file.max_failures,
        population=population,
        parent=config.get(PARENT),
    )
    supervise(request, tune.get_context().get_trial_name(), status)


class _WatchedSlots:
    """The slots for trials on a cluster whose nodes come and go: looked at now and then, told to the trials and the
    user."""

    def __init__(self, most: int, each: float, status: Any, say: OnRoom) -> None:
        self.status, self.say = status, say
        self._slots = TrialSlots(most, each, self._state())
        if self._slots.trials < most:
            self._tell()

    def look(self) -> None:
        if time.monotonic() - self._looked_s > _LOOK_S and self._slots.look(self._state()):
            self._tell()

    def _state(self) -> ClusterState:
        self._looked_s = time.monotonic()
        cpus, free = (found.get("CPU", 0.0) for found in (ray.cluster_resources(), ray.available_resources()))
        self._there = f"the cluster has {cpus:g} CPUs ({free:g} free), and a trial takes"
        return ClusterState(self._looked_s, cpus, free, bool(waited_for()))

    def _tell(self) -> None:
        self.status.limit.remote(self._slots.trials)
        self.say(f"room for {self._slots.trials} of {self._slots.most} trial(s): {self._there} {self._slots.each:g}")


class _Recorder(tune.Callback):
    """Records in the ledger what Tune's trials do, and shows it."""

    def __init__(
        self,
        sweep: Sweep,
        ledger: Ledger,
        status: Any,
        on_change: OnChange,
        on_progress: OnProgress,
        slots: _WatchedSlots | None,
    ) -> None:
        self.sweep, self.ledger, self.status = sweep, ledger, status
        self.on_change, self.on_progress, self.slots = on_change, on_progress, slots
        self._records: dict[str, TrialRecord] = {}
        self._asked: Any = None

    def __getstate__(self) -> Row:
        """Returns nothing, because Tune pickles its callbacks only for a restore, which this sweep never uses."""
        return {}

    def _record(self, trial: Any) -> TrialRecord:
        if trial.trial_id not in self._records:
            parameters = decode(self.sweep, trial.config)
            if self.sweep.file.scheduler.kind == "pbt":
                record = self.ledger.member(trial.config[NUMBER], parameters)
            else:
                record = self.ledger.record_of(parameters)
            self._records[trial.trial_id] = record
        return self._records[trial.trial_id]

    def _save(self, record: TrialRecord) -> None:
        self.ledger.save(record)
        if record.status != "running":
            write_results(self.sweep, self.ledger)
        self.on_change(record)

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        record = self._record(trial)
        record.status, record.error = "running", None
        parameters = decode(self.sweep, trial.config)
        if parameters != record.parameters:
            newest = trial.checkpoint and trial.run_metadata.checkpoint_manager.latest_checkpoint_result.metrics
            taken = {name: (newest or {}).get(name) for name in ("env_steps", "policy")}
            record.changes.append({**taken, "before": record.parameters, "after": parameters})
            record.parameters = parameters
        self._save(record)

    def on_trial_result(self, iteration: int, trials: list[Any], trial: Any, result: Row, **info: Any) -> None:
        record = self._record(trial)
        metrics = tuple(f"{mode}_" for mode in MODES)
        row = {name: value for name, value in result.items() if name in _REPORTED or name.startswith(metrics)}
        if result.get(FINAL):
            record.result = row
        else:
            record.add(row)
        self._save(record)

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        record = self._record(trial)
        self.status.leave.remote(str(trial))
        failure = ray.get(self.status.failure.remote(str(trial)))
        if failure is not None:
            record.status, record.error = "failed", failure
        else:
            record.status = "finished" if record.result is not None else "stopped"
        self._save(record)

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        record = self._record(trial)
        self.status.leave.remote(str(trial))
        error = trial.get_error()
        known = readable_cause(error) if error is not None else None
        record.status, record.error = "failed", str(known or error or "lost")
        self._save(record)

    def on_step_end(self, iteration: int, trials: list[Any], **info: Any) -> None:
        if self.slots is not None:
            self.slots.look()
        if self._asked is None:
            self._asked = self.status.progress.remote()
        if not ray.wait([self._asked], timeout=0)[0]:
            return
        by_name = ray.get(self._asked)
        self._asked = None
        running = {str(trial): self._record(trial).number for trial in trials if trial.status == "RUNNING"}
        self.on_progress({running[name]: row for name, row in by_name.items() if name in running})


_REPORTED = ("env_steps", "wall_clock_s", "config_hash", "commit", "policy", "skills", "parent")
"""The keys of a report that its record keeps, besides the metrics of the evaluated episodes."""


def searches_data(sweep: Sweep) -> bool:
    """True where trials may use different data, so that each has to prepare its own."""
    return any(key == "data" or key.startswith("data.") for key in sweep.space)
