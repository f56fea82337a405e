"""The Python interface: whole experiments as calls. The command line is a user of it, and `spirl_ray` has its names.

Every call checks the settings first, works in the experiment's folder, skips what is done and resumes what was
interrupted. It starts a local Ray for its duration unless one is running, or ``ray.address`` or ``RAY_ADDRESS`` names
one; several calls in one program are faster after a ``ray.init()`` of one's own. A `SpirlError` says what is wrong and
what to do.

Example:
    >>> import spirl_ray as spirl
    >>> experiment = spirl.load_experiment("quickstart", {"train.env_steps": 20_000})
    >>> result = spirl.run(experiment, on_event=lambda event: print(event.stage, event.happening))
    >>> result.evaluations[0].mean("deterministic")
    >>> policy = spirl.load_policy(result.policies[0].folder)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from spirl_ray.config import Experiment
from spirl_ray.errors import SpirlError
from spirl_ray.files import layout
from spirl_ray.pipeline.events import Listener, Progress, Stage, ignore
from spirl_ray.pipeline.ray_environment import prepare_ray
from spirl_ray.pipeline.results import (
    DataResult,
    EvaluationResult,
    ExperimentResult,
    ExplorationResult,
    ReportResult,
    SkillsResult,
    TrainingResult,
)

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    from spirl_ray.pipeline.experiment import ExperimentRun
    from spirl_ray.sweeps.run import SweepListener, SweepResult

_IN_PYTHON = 'spirl.run(spirl.load_experiment("my_experiment.yaml"))  # in Python; the settings are below'


def run(experiment: Experiment, *, on_event: Listener = ignore, command: str = _IN_PYTHON) -> ExperimentResult:
    """Does everything: data, skills, rollouts of the bare prior, training, evaluation, report.

    Args:
        experiment: see `spirl_ray.load_experiment`.
        on_event: callback that gets the events, see `spirl_ray.pipeline.events.Event`.
        command: what reproduces the experiment, for the report.

    Raises:
        SpirlError: settings are wrong, or another error that a user can repair stops the experiment.
    """
    skills, priors, policies, evaluations = [], [], [], []
    _in_environment(experiment)
    optional: list[Stage] = ["prior"] if experiment.evaluate.prior_episodes else []
    optional += ["exploration"] if experiment.explore.in_run else []
    with _at_work(experiment, on_event, "data", "skills", *optional, "training", "evaluation", "report") as running:
        data = running.data()
        running.demonstrations()
        seed_of_videos = experiment.seeds[0]
        for trial in running.trials:
            skills.append(running.skills(trial))
            if trial.has_prior and experiment.evaluate.prior_episodes:
                priors.append(running.prior(trial, videos=trial.seed == seed_of_videos))
        exploration = running.explore() if experiment.explore.in_run else None
        for trial in running.trials:
            policies.append(running.train(trial))
            evaluations.append(running.evaluate(trial, videos=trial.seed == seed_of_videos))
        files = _report(running, command)
    folder = running.workspace.folder
    return ExperimentResult(folder, data, skills, priors, policies, evaluations, exploration, files)


def import_data(experiment: Experiment, *, on_event: Listener = ignore) -> DataResult:
    """Imports or generates the dataset, and checks every episode.

    Raises:
        SpirlError: bad settings, episodes that are not valid, or a source that cannot be read.
    """
    with _at_work(experiment, on_event, "data") as running:
        found = running.data()
    if found is None:
        raise SpirlError("data.sources is empty, because skills.artifact needs no data; there is nothing to import.")
    return found


def pretrain(experiment: Experiment, *, on_event: Listener = ignore) -> tuple[SkillsResult, ...]:
    """Stage 1: learns skills and skill prior from the dataset, which is imported first if need be.

    Args:
        experiment: see `spirl_ray.load_experiment`.
        on_event: told of what happens.

    Returns:
        A result for every method with every seed; those that share an artifact have the same folder.

    Raises:
        SpirlError: as `run`.
    """
    with _at_work(experiment, on_event, "data", "skills") as running:
        running.data()
        return tuple(running.skills(trial) for trial in running.trials)


def prior(experiment: Experiment, *, on_event: Listener = ignore) -> tuple[EvaluationResult, ...]:
    """Runs episodes of the bare prior, with videos; data and skills come first if need be.

    Raises:
        SpirlError: as `run`, or there is no prior to roll out.
    """
    _in_environment(experiment)
    with _at_work(experiment, on_event, "data", "skills", "prior") as running:
        running.data()
        trials = [trial for trial in running.trials if trial.has_prior]
        if not trials or not experiment.evaluate.prior_episodes:
            raise SpirlError(
                "There is no prior to roll out: none of the methods uses one, or evaluate.prior_episodes is 0. "
                "Add a method such as spirl_cl, or set evaluate.prior_episodes."
            )
        found = []
        for trial in trials:
            running.skills(trial)
            found.append(running.prior(trial))
        return tuple(found)


def train(experiment: Experiment, *, on_event: Listener = ignore) -> tuple[TrainingResult, ...]:
    """Stage 2: trains the high-level policies; data and skills come first if need be.

    Args:
        experiment: see `spirl_ray.load_experiment`. A higher ``train.env_steps`` trains a finished policy further.
        on_event: told of what happens.

    Returns:
        A result for every method with every seed.

    Raises:
        SpirlError: as `run`.
    """
    _in_environment(experiment)
    with _at_work(experiment, on_event, "data", "skills", "training") as running:
        running.data()
        found = []
        for trial in running.trials:
            running.skills(trial)
            found.append(running.train(trial))
        return tuple(found)


def evaluate_policy(
    folder: str | Path, overrides: Sequence[str] = (), *, on_event: Listener = ignore
) -> EvaluationResult:
    """Evaluates a saved policy, wherever it was trained, and records videos.

    Args:
        folder: folder of a policy artifact, such as ``artifacts/kitchen_play``.
        overrides: changes of settings as after ``--set``, such as ``["evaluate.episodes=20", "output=FOLDER"]``. The
            environment is that of the training, unless they change it.
        on_event: told of what happens.

    Returns:
        The result, in the folder ``runs/NAME/evaluation``, where NAME is that of the policy's folder.

    Raises:
        SpirlError: as `run`, or the folder holds no policy.
    """
    from spirl_ray.pipeline.saved_policy import policy_experiment

    with _at_work(policy_experiment(Path(folder), overrides), on_event) as running:
        return running.evaluate(replace(running.trials[0], saved=Path(folder).resolve()))


def evaluate(
    experiment: Experiment, *, trained_as: Experiment | None = None, on_event: Listener = ignore
) -> tuple[EvaluationResult, ...]:
    """Evaluates the trained policies in the experiment's environment, and records videos.

    Args:
        experiment: whose policies, and where to evaluate.
        trained_as: the experiment that trained the policies, where it had other settings of ``env`` and ``experiment``
            itself has trained none: a policy is then evaluated in another environment than it was trained in.
        on_event: told of what happens.

    Returns:
        A result for every method with every seed.

    Raises:
        SpirlError: as `run`, or there is no trained policy.
    """
    _in_environment(experiment)
    with _at_work(experiment, on_event, "evaluation", create=False) as running:
        running.require_data()
        return tuple(
            running.evaluate(running.trained(trial, trained_as), env=experiment.env) for trial in running.trials
        )


def explore(experiment: Experiment, *, on_event: Listener = ignore) -> ExplorationResult:
    """Draws how far skills from the prior get without a policy, in environments with a floor plan.

    Raises:
        SpirlError: as `run`, or the environment has no floor plan.
    """
    _in_environment(experiment)
    with _at_work(experiment, on_event, "data", "exploration") as running:
        running.data()
        return running.explore()


def report(experiment: Experiment, *, on_event: Listener = ignore, command: str = _IN_PYTHON) -> ReportResult:
    """Writes the report from what is there, also while a training is running; it needs no Ray.

    Args:
        experiment: whose folder to report on.
        on_event: told of what happens.
        command: what reproduces the experiment, for the page.

    Raises:
        SpirlError: there is no dataset yet, or a file is damaged.
    """
    with _at_work(experiment, on_event, ray=False, create=False) as running:
        running.require_data()
        return _report(running, command)


def sweep(path: str | Path, overrides: Sequence[str] = (), *, listener: SweepListener | None = None) -> SweepResult:
    """Runs the remaining trials of a sweep with Ray Tune, and writes its results.

    Args:
        path: the sweep's YAML file, such as ``tune_configs/smoke_sweep.yaml``.
        overrides: changes of settings as after ``--set``, such as ``["samples=20", "output=FOLDER"]``.
        listener: told of what happens.

    Returns:
        The result, also where trials have failed; their records say why.

    Raises:
        SpirlError: as `run`.
    """
    prepare_ray()  # before the import that imports Ray
    from spirl_ray.sweeps import run as sweeps

    return sweeps.run(sweeps.prepare(Path(path), overrides), listener or sweeps.SweepListener())


def _in_environment(experiment: Experiment) -> None:
    """Raises `SpirlError` where there are data alone, before any work."""
    if experiment.env.id is None:
        raise SpirlError(
            "env.id is missing: data alone are enough for spirl data import and spirl pretrain. To train and evaluate "
            "a policy, name a Gymnasium id, module:Id, or package.module:callable."
        )


def _at_work(
    experiment: Experiment, on_event: Listener, *stages: Stage, ray: bool = True, create: bool = True
) -> AbstractContextManager[ExperimentRun]:
    prepare_ray()  # before the import that imports Ray
    from spirl_ray.pipeline.experiment import experiment_run

    return experiment_run(experiment, on_event, stages=stages, ray=ray, create=create)


def _report(running: ExperimentRun, command: str) -> ReportResult:
    from spirl_ray.reports.gather import gather
    from spirl_ray.reports.report import write_report

    out = running.workspace.folder / layout.REPORTS

    def write(progress: Progress) -> ReportResult:
        with running.workspace.locked(out):
            files = write_report(out, gather(running.workspace, command))
        return ReportResult(folder=out, ran=True, html=files.html, csv=files.csv, json=files.json)

    return running.stage("report", write)
