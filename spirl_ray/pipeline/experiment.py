"""An experiment at work: its settings are checked, its folder is reserved, Ray runs, and its stages report to a
listener."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

from spirl_ray.config import EnvSettings, Experiment
from spirl_ray.envs.recorded import recorded_images
from spirl_ray.episodes.dataset import read_card
from spirl_ray.errors import SpirlError
from spirl_ray.files import layout
from spirl_ray.pipeline import stages
from spirl_ray.pipeline.checks import check_experiments
from spirl_ray.pipeline.events import Event, Listener, Progress, Stage, ignore
from spirl_ray.pipeline.exploration import exploring_trials, run_exploration
from spirl_ray.pipeline.offline import check_labels
from spirl_ray.pipeline.resources import needs_of, said_while_waiting
from spirl_ray.pipeline.results import (
    DataResult,
    DemonstrationsResult,
    EvaluationResult,
    ExplorationResult,
    Finding,
    SkillsResult,
    StageResult,
    TrainingResult,
)
from spirl_ray.pipeline.session import ray_session, readable_cause
from spirl_ray.pipeline.status import StageKey, StatusLog
from spirl_ray.pipeline.tracking import Tracking
from spirl_ray.pipeline.workspace import Trial, Workspace
from spirl_ray.rl.methods import METHODS

Result = TypeVar("Result", bound=StageResult)


class ExperimentRun:
    """The stages of an experiment in a reserved folder, which report start, progress and end to a listener.

    Every stage but the evaluation of the bare prior needs those before it.
    """

    def __init__(self, workspace: Workspace, listener: Listener = ignore) -> None:
        self.workspace = workspace
        self.experiment = workspace.experiment
        self._listener = listener
        self._one_at_a_time = threading.RLock()
        self._stage: Stage | None = None
        self._status = StatusLog(workspace.folder)
        self.tracking = Tracking(workspace, self._note)
        workspace.on_wait = self._tell_waiting

    @property
    def trials(self) -> list[Trial]:
        """Every method with every seed, in the order in which they run."""
        return self.workspace.trials()

    @contextlib.contextmanager
    def planned(self, stages: Sequence[Stage]) -> Iterator[None]:
        """Notes for ``spirl status`` what the block is going to do, and at its end that it has done it.

        Args:
            stages: the stages in their order; those of trials stand for every method with every seed. None leave the
                plan of another command as it is.
        """
        if not stages:
            yield
            return
        keys = [key for name in stages for key in self._keys(name)]
        self._status.plan(keys)
        yield
        self._status.plan(keys, ended=True)

    def _keys(self, name: Stage) -> list[StageKey]:
        if name not in ("skills", "prior", "training", "evaluation"):
            return [StageKey(stage=name)]
        return [
            StageKey(stage=name, method=trial.method, seed=trial.seed)
            for trial in self.trials
            if name != "prior" or METHODS[trial.method].uses_prior(trial.experiment.train)
        ]

    def stage(self, name: Stage, work: Callable[[Progress], Result], trial: Trial | None = None) -> Result:
        """Runs one stage and reports it to the listener.

        Args:
            name: name of the stage.
            work: function that runs the stage, and calls its argument with its progress.
            trial: the trial of the stage; None for a stage that all trials share.
        """
        method, seed = (None, None) if trial is None else (trial.method, trial.seed)

        def tell(**fields: Any) -> None:
            self._tell(Event(stage=name, method=method, seed=seed, **fields))

        def progress(done: float, total: float, **newest: Any) -> None:
            moved()
            tell(happening="progress", done=done, total=total, **newest)

        self._stage = name
        tell(happening="started")
        try:
            with said_while_waiting(lambda text: tell(happening="waiting", resources=text)) as moved:
                result = work(progress)
        finally:
            self._stage = None
        tell(happening="finished", result=result)
        return result

    def data(self) -> DataResult | None:
        """Imports or generates the dataset; None where there are skills already, and no data."""
        if not self.workspace.has_data:
            return None
        found = self.stage("data", lambda progress: stages.prepare_data(self.workspace, progress))
        if self.experiment.env.id is not None:
            for trial in {trial.method: trial for trial in self.trials}.values():  # the same for every seed
                check_labels(trial)
        return found

    def require_data(self) -> None:
        """Raises `SpirlError` unless there is a dataset, or none is needed."""
        if self.workspace.has_data and not (self.workspace.dataset / layout.DATASET_CARD).exists():
            raise SpirlError(
                f"There is no dataset in {self.workspace.dataset}. Run spirl run, or spirl data import, with the same "
                "config and --set options first."
            )

    def demonstrations(self) -> DemonstrationsResult | None:
        """Records a video of the dataset; None where no videos are wanted, or the environment cannot render
        episodes."""
        if not self.workspace.has_data or not self.experiment.evaluate.videos:
            return None
        if recorded_images(read_card(self.workspace.dataset)) is None:
            return None
        return self.stage("demonstrations", lambda _: stages.show_demonstrations(self.workspace))

    def skills(self, trial: Trial) -> SkillsResult:
        """Trains the skills of a trial (stage 1)."""
        return self.stage("skills", lambda progress: stages.train_skills(trial, progress), trial)

    def prior(self, trial: Trial, *, videos: bool = True) -> EvaluationResult:
        """Runs episodes of the trial's bare prior."""
        return self.stage("prior", lambda progress: stages.roll_out_prior(trial, progress, videos=videos), trial)

    def train(self, trial: Trial) -> TrainingResult:
        """Trains the policy of a trial (stage 2)."""
        return self.stage("training", lambda progress: stages.train(trial, progress), trial)

    def trained(self, trial: Trial, trained_as: Experiment | None) -> Trial:
        """Returns the trial itself if its policy has been trained, or else the one of another experiment in the same
        folder.

        Raises:
            SpirlError: neither has a trained policy.
        """
        if (trial.policy / layout.TRAINED).exists():
            return trial
        origin = (
            trial if trained_as is None else Workspace(trained_as, self._tell_waiting).trial(trial.method, trial.seed)
        )
        if not (origin.policy / layout.TRAINED).exists():
            raise SpirlError(
                f"There is no trained policy for {trial.method}, seed {trial.seed} in {origin.policy}. Run spirl train "
                "with the same config and --set options first."
            )
        return origin

    def evaluate(self, trial: Trial, *, videos: bool = True, env: EnvSettings | None = None) -> EvaluationResult:
        """Evaluates a trial's policy finally, in another environment if one is given."""
        return self.stage(
            "evaluation", lambda progress: stages.evaluate_policy(trial, progress, videos=videos, env=env), trial
        )

    def explore(self) -> ExplorationResult:
        """Draws the exploration figure, with the skills that it needs."""
        for trial in exploring_trials(self.workspace):
            self.skills(trial)
        return self.stage("exploration", lambda progress: run_exploration(self.workspace, progress))

    def _tell_waiting(self, target: Path) -> None:
        self._tell(Event(happening="waiting", stage=self._stage, folder=target))

    def _note(self, text: str, warning: bool) -> None:
        self._tell(Event(happening="noted", findings=(Finding(text, warning),)))

    def _tell(self, event: Event) -> None:
        with self._one_at_a_time:
            self._status(event)
            self.tracking(event)
            self._listener(event)


@contextlib.contextmanager
def experiment_run(
    experiment: Experiment,
    listener: Listener = ignore,
    *,
    stages: Sequence[Stage] = (),
    ray: bool = True,
    create: bool = True,
) -> Iterator[ExperimentRun]:
    """Checks an experiment's settings, reserves its folder, and connects to Ray or starts it until the block ends.

    Args:
        experiment: the experiment to run.
        listener: callback that gets the events.
        stages: what the block is going to do, see `ExperimentRun.planned`.
        ray: False for work that needs neither Ray nor the environment.
        create: False for work that needs an existing folder.

    Raises:
        SpirlError: settings do not fit, the folder belongs to something else, or a cluster cannot be reached; also an
            error that a user can repair, if the block raises it from inside Ray.
    """
    check_experiments([experiment], make=ray)
    with readable():
        workspace = Workspace(experiment)
        run, fetches = ExperimentRun(workspace, listener), workspace.storage is not None
        if fetches:
            workspace.reserve(create=create)  # first, because it fetches a dataset whose sources may not be here
        if ray and workspace.has_data:
            _ = workspace.dataset  # opens the sources, so that what is wrong with them is said before any work
        if not fetches:
            workspace.reserve(create=create)
        session = ray_session(experiment.ray, needs_of([experiment]), experiment.submit.ship)
        with session if ray else contextlib.nullcontext(), run.planned(stages), run.tracking:
            yield run


@contextlib.contextmanager
def readable() -> Iterator[None]:
    """Converts an error from inside Ray that a user can repair to the `SpirlError` that it holds."""
    try:
        yield
    except SpirlError:
        raise
    except Exception as error:
        known = readable_cause(error)
        if known is None:
            raise
        raise known from error
