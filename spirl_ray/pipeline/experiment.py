"""An experiment at work: its settings are checked, its folder is reserved, Ray runs, and its stages report to a
listener."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from spirl_ray import envs
from spirl_ray.config import EnvSettings, Experiment
from spirl_ray.envs.recorded import recorded_images
from spirl_ray.episodes.dataset import read_card
from spirl_ray.errors import SpirlError
from spirl_ray.files import layout
from spirl_ray.files.fingerprint import fingerprint
from spirl_ray.pipeline import stages
from spirl_ray.pipeline.events import Event, Listener, Progress, Stage, ignore
from spirl_ray.pipeline.exploration import exploring_trials, run_exploration
from spirl_ray.pipeline.kinds import check_kinds
from spirl_ray.pipeline.offline import check_labels
from spirl_ray.pipeline.parts import check_parts
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
from spirl_ray.pipeline.trackers import check_trackers
from spirl_ray.pipeline.tracking import Tracking
from spirl_ray.pipeline.user_code import make_importable
from spirl_ray.pipeline.workspace import Trial, Workspace, given_skills
from spirl_ray.rl.methods import METHODS, skill_spec
from spirl_ray.rl.policy_network import policy_features
from spirl_ray.skills.artifact import check_fit, read_skill_card
from spirl_ray.skills.decoders import DECODERS
from spirl_ray.skills.own_codec import trust

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

        def progress(done: float, total: float, metrics: dict[str, Any]) -> None:
            moved()
            tell(
                happening="progress",
                done=done,
                total=total,
                metrics=_numbers(metrics),
                scores=metrics.get("scores") or {},
                findings=metrics.get("findings") or (),
            )

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


def _numbers(metrics: Mapping[str, Any]) -> dict[str, float]:
    return {name: value for name, value in metrics.items() if isinstance(value, int | float)}


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
        if workspace.storage is not None:
            workspace.reserve(create=create)  # it fetches a dataset whose sources may not be here
        if ray and workspace.has_data:
            _ = workspace.dataset  # opens the sources, so that what is wrong with them is said before any work
        run = ExperimentRun(workspace, listener)
        workspace.reserve(create=create)
        session = ray_session(experiment.ray, needs_of([experiment]), experiment.submit.ship)
        with session if ray else contextlib.nullcontext(), run.planned(stages), run.tracking:
            yield run


def check_experiments(experiments: Sequence[Experiment], *, make: bool = True) -> None:
    """Checks before any work what would otherwise fail later: names of kinds, features, arguments of environments.

    Args:
        experiments: the experiments whose settings are checked.
        make: True makes each environment and all networks once.

    Raises:
        SpirlError: a setting is wrong; the message names its key.
    """
    made: set[str] = set()
    for experiment in experiments:
        make_importable(experiment.submit.ship)
        check_kinds(experiment)
        check_trackers(experiment)
        _check_options(experiment)
        for method in experiment.methods:
            own = experiment.for_method(method)
            trust(own.skills)
            _check_files(own)
        if experiment.env.id is None:
            continue  # the data say what their features are
        env = experiment.environment
        spec = envs.environment(env)
        artifact = given_skills(experiment)
        given = None if artifact is None else read_skill_card(artifact).spec
        if given is not None:
            check_fit(given, spec.features, spec.action_dim, spec.actions, f"The skills in {artifact} and {spec.id}")
        for method in experiment.methods:
            own = experiment.for_method(method)
            skills = given or skill_spec(own.skills, method, spec.features, spec.action_dim)
            policy_features(own.train.features, spec.features, skills)
        if not make:
            continue
        check_parts(experiment, spec, given)
        if (key := fingerprint(env)) not in made:
            made.add(key)
            envs.try_out(env)


def _check_options(experiment: Experiment) -> None:
    """Raises `SpirlError` for options that no method has, or that are given to one whose skills have none."""
    without = [method for method in experiment.methods if not DECODERS[METHODS[method].decoder].takes_options]
    if experiment.skills.decoder_options and len(without) == len(experiment.methods):
        names = ", ".join(without)
        raise SpirlError(f"skills.decoder_options: the skills of {names} have no options. Leave it out.")
    for method in without:
        if experiment.for_method(method).skills.decoder_options != experiment.skills.decoder_options:
            raise SpirlError(
                f"overrides.{method}: skills.decoder_options: the skills of {method} have no options. Leave it out."
            )


def _check_files(experiment: Experiment) -> None:
    """Raises `SpirlError` where an import, which may take hours, would write fewer files than there are workers."""
    workers, files = experiment.pretrain.workers, experiment.data.shards
    if workers > files and all(source.type != "folder" for source in experiment.data.sources):
        raise SpirlError(
            f"pretrain.workers: {workers} training workers need at least as many data files, and data.shards is "
            f"{files}. Set data.shards to {workers} or more, or lower pretrain.workers."
        )


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
