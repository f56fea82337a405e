"""The folder of an experiment: one sub-folder for each result, named by a hash of the settings on which it depends.

Nothing is overwritten: changed settings lead to another folder, unchanged ones to the same, and an unfinished
folder is continued. Several processes may share it; each result has a lock.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from filelock import FileLock, Timeout

from spirl_ray.config import EnvSettings, Experiment
from spirl_ray.config_environment import ActionSettings
from spirl_ray.datasets.opened import OpenedData, open_data
from spirl_ray.envs import EnvironmentSpec, environment
from spirl_ray.episodes.dataset import read_card
from spirl_ray.errors import SpirlError
from spirl_ray.files import layout
from spirl_ray.files.atomic import read_json, write_json
from spirl_ray.files.fingerprint import fingerprint
from spirl_ray.files.mirror import OWNER, PARTIAL, Storage
from spirl_ray.pipeline.imports import Imports
from spirl_ray.pipeline.keys import acting_environment, offline_key, policy_key, skills_key
from spirl_ray.policy.policy import read_policy_card
from spirl_ray.rl.methods import METHODS, MethodConfig, method_config, skill_spec
from spirl_ray.skills.artifact import read_skill_card
from spirl_ray.skills.spec import SkillSpec

_PASSING = "working_dir_files"
"""A part of the path of every folder that Ray makes for a job's files, and removes after the job."""
_FORMAT = 1
_LOCK_POLL_S = 0.5


class Workspace:
    """The folder of an experiment, ``experiment.folder``, on disk."""

    def __init__(self, experiment: Experiment, on_wait: Callable[[Path], None] = lambda target: None) -> None:
        self.experiment = experiment
        self.on_wait = on_wait
        """A callback that gets a result on which another process works, before waiting for it."""
        self.folder = experiment.folder.absolute()
        self.storage = None if experiment.storage is None else Storage(self.folder, experiment.storage)

    def reserve(self, *, create: bool = True) -> None:
        """Marks the folder as this experiment's.

        Args:
            create: False for commands that only read; a missing folder is then an error.

        Raises:
            SpirlError: the folder holds another experiment or other files, cannot be written, or is removed with a job.
        """
        if _PASSING in self.folder.parts:
            raise SpirlError(
                f"output: {self.experiment.folder} would be in the job's own folder, which Ray removes when the job "
                "ends. Name a folder that every node sees: --set output=/shared/folder."
            )
        mine = {"name": self.experiment.name, "environment": self.experiment.env.id, "format": _FORMAT}
        mark = self.folder / layout.EXPERIMENT
        try:
            if self.storage is not None:
                self._refuse_foreign_files()
                with self.locked(self.folder):
                    self.storage.attach(layout.EXPERIMENT)
            if not mark.exists():
                if not create:
                    raise SpirlError(
                        f"There is no experiment in {self.folder}. Run spirl run first, or point --set output=… to "
                        "the folder that it wrote."
                    )
                self._refuse_foreign_files()
                write_json(mark, mine)
        except OSError as error:
            raise SpirlError(f"Cannot use {self.folder} as the output: {error.strerror}.") from error
        # Read back, because another process may have reserved the folder at the same moment.
        found = read_json(mark)
        if found != mine:
            raise SpirlError(
                f"{self.folder} belongs to the experiment {found.get('name')!r} on {found.get('environment')}, "
                f"this is {mine['name']!r} on {mine['environment']}. Nothing was written. Choose another folder with "
                "--set output=…, or give the experiment that name."
            )
        if self.storage is not None:
            with self.locked(self.folder):
                self.storage.copy(mark)

    def _refuse_foreign_files(self) -> None:
        if not self.folder.exists():
            return
        # Another process that reserves the folder now has a partial mark in it, or files from a storage.
        ours = (layout.EXPERIMENT, f".{layout.EXPERIMENT}", OWNER, PARTIAL)
        foreign = [path for path in self.folder.iterdir() if not path.name.startswith(ours)]
        if foreign and not (self.folder / layout.EXPERIMENT).exists():
            raise SpirlError(
                f"{self.folder} is not empty and is no experiment folder ({layout.EXPERIMENT} is missing): nothing was "
                "written. Choose another folder with --set output=…."
            )

    @contextlib.contextmanager
    def locked(self, target: Path) -> Iterator[None]:
        """Lets one process at a time work on ``target``; the others report that they wait. Its copy in the storage
        follows."""
        path = target.with_name(f".{target.name}.lock")
        lock = FileLock(path)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            try:
                lock.acquire(timeout=0.0)
            except Timeout:
                self.on_wait(target)
                lock.acquire(poll_interval=_LOCK_POLL_S)
        except OSError as error:
            raise SpirlError(
                f"Cannot write {path}: {error.strerror}. Fix permissions, or choose another folder with --set output=…."
            ) from error
        storage = self.storage if target != self.folder else None
        try:
            with contextlib.nullcontext() if storage is None else storage.mirrored(target):
                yield
        finally:
            lock.release()

    # --- data ---

    @cached_property
    def data(self) -> OpenedData:
        """The source of the dataset's episodes, and what they hold."""
        experiment = self.experiment
        spec = None if experiment.env.id is None else environment(experiment.environment)
        return open_data(experiment.data, experiment.interface, spec)

    @cached_property
    def dataset(self) -> Path:
        """The folder of the dataset, see `Imports.find`."""
        return self._imports.find()

    @property
    def described(self) -> EnvironmentSpec:
        """The description of the environment, or of the data where there is none."""
        if self.experiment.env.id is not None:
            return environment(self.experiment.environment)
        return self.data.spec

    def remember_import(self) -> None:
        """Notes by what the dataset is found again, also without its sources and in a copy of the folder elsewhere."""
        self._imports.remember(self.dataset, contents=self.storage is not None)
        if self.storage is not None:
            self.storage.copy(self._imports.file)

    @property
    def _imports(self) -> Imports:
        return Imports(self.folder, self.experiment, lambda: self.data)

    @property
    def has_data(self) -> bool:
        """False for an experiment that uses skills trained before, and names no data."""
        return bool(self.experiment.data.sources) or self.experiment.skills.artifact is None

    @property
    def demonstrations(self) -> Path:
        """The folder of the dataset's video."""
        return self.folder / layout.DEMONSTRATIONS / self.dataset.name

    def exploration(self, skills: Sequence[Path]) -> Path:
        """The folder of an exploration with these skill artifacts."""
        explore = self.experiment.explore.model_dump(mode="json", exclude={"in_run"})
        key = fingerprint(acting_environment(self.experiment), explore, [folder.name for folder in skills])
        return self.folder / layout.EXPLORATION / key

    # --- one method with one seed ---

    def trial(self, method: str, seed: int) -> Trial:
        """The paths and settings of a method with a seed. The dataset must exist."""
        experiment = self.experiment.for_method(method)
        if experiment.data.actions_outside == "rescale":
            found = read_card(self.dataset).actions
            if found is not None:
                action = ActionSettings(low=found.low, high=found.high)
                interface = experiment.interface.model_copy(update={"action": action})
                experiment = experiment.model_copy(update={"interface": interface})
        return Trial(self, experiment, method, seed)

    def trials(self) -> list[Trial]:
        """All methods with all seeds, in the order in which they run."""
        return [self.trial(m, s) for s in self.experiment.seeds for m in self.experiment.methods]


@dataclass(frozen=True)
class Trial:
    """One method with one seed: the settings of its results, and their folders."""

    workspace: Workspace
    experiment: Experiment
    method: str
    seed: int
    parent: str | None = None
    """A hash of the other policy's checkpoint from which this one continues (population based training)."""
    saved: Path | None = None
    """The folder of a policy that was trained elsewhere; None where the trial trains its own."""

    @property
    def artifact(self) -> Path | None:
        """The folder of skills that were trained before; None where the trial trains its own."""
        return given_skills(self.experiment)

    @cached_property
    def spec(self) -> SkillSpec:
        if self.artifact is not None:
            return read_skill_card(self.artifact).spec
        card = read_card(self.workspace.dataset)
        return skill_spec(self.experiment.skills, self.method, card.features, card.action_dim, card.actions)

    @cached_property
    def method_config(self) -> MethodConfig:
        return method_config(self.method, self.experiment.train, self.spec)

    @cached_property
    def skills_key(self) -> str:
        if self.artifact is not None:
            return fingerprint("artifact", read_skill_card(self.artifact).sha256)
        pretrain = self.experiment.pretrain.model_dump(
            mode="json", exclude={"log_every", "checkpoint_every", "max_failures", "use_gpu"}
        )
        content = read_card(self.workspace.dataset).content_sha256
        held_out = self.experiment.data.validation_fraction
        rest, target = [content, held_out, self.seed], self.experiment.interface.position_target
        if target is not None and self.experiment.pretrain.augmentation.kind != "none":
            rest.append(target.model_dump(mode="json"))
        return skills_key(self.spec, pretrain, *rest)

    @cached_property
    def skills(self) -> Path:
        """The folder of the skill artifact; methods with the same decoder and settings share it."""
        if self.artifact is not None:
            return self.artifact
        decoder = METHODS[self.method].decoder
        return self.workspace.folder / layout.SKILLS / f"{decoder}-h{self.spec.horizon}-s{self.seed}-{self.skills_key}"

    @cached_property
    def offline(self) -> Path | None:
        """The folder of the demonstrations as decisions; None for a method without offline decisions.

        Raises:
            SpirlError: there are no demonstrations.
        """
        method = self.method_config
        if not method.offline_fraction:
            return None
        if not self.workspace.has_data:
            raise SpirlError(
                f"{self.method} also learns from the demonstrations in stage 2 (train.offline_fraction "
                f"{method.offline_fraction}), and there are none: name them in data.sources."
            )
        content = read_card(self.workspace.dataset).content_sha256
        key = offline_key(content, self.skills_key, self.seed, self.experiment, method)
        return self.workspace.folder / layout.OFFLINE / f"{METHODS[self.method].decoder}-s{self.seed}-{key}"

    @cached_property
    def config_hash(self) -> str:
        """The hash of everything that determines what the policy learns, without the length of training and
        evaluations. That of a policy that was trained elsewhere is in its card, because its demonstrations may be gone.
        """
        if self.saved is not None:
            return read_policy_card(self.saved).config_hash
        offline = None if self.offline is None else self.offline.name
        return policy_key(self.skills_key, self.experiment, self.method_config, offline)

    @cached_property
    def policy(self) -> Path:
        """The folder of the trained policy."""
        if self.saved is not None:
            return self.saved
        name = f"{self.method}-s{self.seed}-{self.config_hash}"
        return self.workspace.folder / layout.POLICIES / (name if self.parent is None else f"{name}-from-{self.parent}")

    @property
    def evaluation(self) -> Path:
        """The folder of the final evaluation of the policy as it is now; a policy trained further is evaluated anew."""
        return self.evaluation_in(self.experiment.env)

    def evaluation_in(self, env: EnvSettings) -> Path:
        """The folder of an evaluation in an environment that may differ from the one of the training."""
        card = self.policy / layout.POLICY_CARD
        policy = read_policy_card(self.policy).sha256 if card.exists() else None
        # The hash of a policy that was trained elsewhere does not say in what environment it is evaluated here.
        where = acting_environment(self.experiment.model_copy(update={"env": env}))
        key = fingerprint(self.config_hash, policy, where, self.experiment.evaluate.episodes, self._episode_settings)
        return self.workspace.folder / layout.EVALUATION / f"{self.method}-s{self.seed}-{key}"

    @property
    def has_prior(self) -> bool:
        """False for methods that neither start from a learned prior nor stay close to one."""
        return self.method_config.uses_prior

    @cached_property
    def prior_rollouts(self) -> Path:
        """The folder of the episodes of the bare prior."""
        key = fingerprint(
            self.skills_key,
            acting_environment(self.experiment),
            self.experiment.evaluate.prior_episodes,
            self._episode_settings,
        )
        return self.workspace.folder / layout.PRIOR / f"{METHODS[self.method].decoder}-s{self.seed}-{key}"

    @property
    def _episode_settings(self) -> dict[str, object]:
        """The settings that determine episodes whoever acts, without their number and the settings of videos."""
        evaluate = self.experiment.evaluate
        return evaluate.model_dump(mode="json", exclude={"episodes", "videos", "video_fps", "prior_episodes", "score"})


def given_skills(experiment: Experiment) -> Path | None:
    """The folder of skills that were trained before; None where the experiment trains its own.

    Raises:
        SpirlError: ``skills.artifact`` is no folder of skills.
    """
    given = experiment.skills.artifact
    if given is None:
        return None
    folder = given.expanduser().absolute()
    if not (folder / layout.SKILL_CARD).exists():
        raise SpirlError(
            f"skills.artifact: {folder} is no folder of skills, because it has no {layout.SKILL_CARD}. Name a "
            "folder that spirl pretrain has written, such as runs/NAME/skills/FOLDER."
        )
    return folder
