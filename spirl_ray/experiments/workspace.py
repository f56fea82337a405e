"""The folder of an experiment: one sub-folder for each result, named by a hash of what it depends on.

Nothing is overwritten: changed settings lead to another folder, unchanged ones to the same, and an unfinished
folder is gone on with. Several processes may share it; each result has a lock.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from filelock import FileLock, Timeout

from spirl_ray.config import Experiment, MethodName, fingerprint
from spirl_ray.data.sources import EpisodeSource, GeneratedSource, MinariSource
from spirl_ray.data.trajectories import read_card
from spirl_ray.envs import environment
from spirl_ray.errors import SpirlError
from spirl_ray.methods import METHODS, ResolvedMethod, resolve, skill_spec
from spirl_ray.skills.artifact import read_json, write_json
from spirl_ray.skills.model import SkillSpec

_MARK = "experiment.json"
_FORMAT = 1


class Workspace:
    """``experiment.folder`` on disk."""

    def __init__(self, experiment: Experiment) -> None:
        self.experiment = experiment
        self.folder = experiment.folder.absolute()

    def claim(self) -> None:
        """Marks the folder as this experiment's.

        Raises:
            SpirlError: if it holds another experiment or other files, or cannot be written.
        """
        mine = {"name": self.experiment.name, "environment": self.experiment.env.id, "format": _FORMAT}
        mark = self.folder / _MARK
        if mark.exists():
            found = read_json(mark)
            if found != mine:
                raise SpirlError(
                    f"{self.folder} belongs to the experiment {found.get('name')!r} on {found.get('environment')}, "
                    f"this is {mine['name']!r} on {mine['environment']}. Choose another folder with "
                    "--set output=…, or give the experiment that name."
                )
            return
        try:
            if self.folder.exists() and any(self.folder.iterdir()):
                raise SpirlError(
                    f"{self.folder} is not empty and is no experiment folder ({_MARK} is missing): nothing was "
                    "written. Choose another folder with --set output=…."
                )
        except OSError as error:
            raise SpirlError(f"Cannot use {self.folder} as the output: {error.strerror}.") from error
        write_json(mark, mine)

    @contextlib.contextmanager
    def locked(self, target: Path) -> Iterator[None]:
        """Only one process works on ``target`` at a time; the others wait."""
        path = target.with_name(f".{target.name}.lock")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with FileLock(path):
                yield
        except Timeout as error:  # pragma: no cover - FileLock waits for ever by default
            raise SpirlError(f"Another process holds {path}.") from error
        except OSError as error:
            if error.filename is None or Path(str(error.filename)) != path:
                raise
            raise SpirlError(f"Cannot write {path}: {error.strerror}.") from error

    # --- data ---

    @property
    def source(self) -> EpisodeSource:
        data, env = self.experiment.data, self.experiment.env
        if data.source == "generated":
            return GeneratedSource(env.id, data.episodes, data.seed, data.generate)
        if data.dataset is None:
            raise SpirlError("data.source: minari needs data.dataset, a Minari id such as D4RL/kitchen/complete-v2.")
        return MinariSource(data.dataset, data.minari_root, env.id)

    @property
    def dataset(self) -> Path:
        """Folder of the imported dataset."""
        data, env = self.experiment.data, self.experiment.env
        if data.source == "generated":
            key = fingerprint(env.id, data.episodes, data.seed, data.generate, data.skip_bad)
            return self.folder / "data" / f"generated-{data.episodes}-{key}"
        key = fingerprint(env.id, data.dataset, data.skip_bad)
        return self.folder / "data" / f"{str(data.dataset).replace('/', '-')}-{key}"

    # --- one method with one seed ---

    def trial(self, method: MethodName, seed: int) -> Trial:
        """Paths and resolved settings of a method with a seed. The dataset must be there."""
        return Trial(self, self.experiment.for_method(method), method, seed)

    def trials(self) -> list[Trial]:
        """All methods with all seeds, in the order in which they run."""
        return [self.trial(m, s) for s in self.experiment.seeds for m in self.experiment.methods]


@dataclass(frozen=True)
class Trial:
    """One method with one seed: what is built, and where."""

    workspace: Workspace
    experiment: Experiment
    method: MethodName
    seed: int

    @cached_property
    def spec(self) -> SkillSpec:
        facts = environment(self.experiment.env.id)
        return skill_spec(self.experiment, self.method, facts.state_dim, facts.action_dim)

    @cached_property
    def resolved(self) -> ResolvedMethod:
        return resolve(self.experiment, self.method, self.spec.latent_dim)

    @cached_property
    def skills_key(self) -> str:
        pretrain = self.experiment.pretrain.model_dump(
            mode="json", exclude={"log_every", "checkpoint_every", "max_failures", "use_gpu"}
        )
        content = read_card(self.workspace.dataset).content_sha256
        held_out = self.experiment.data.validation_fraction
        return fingerprint(self.spec, pretrain, content, held_out, self.seed)

    @cached_property
    def skills(self) -> Path:
        """Folder of the skill artifact; methods with the same decoder and settings share it."""
        decoder = METHODS[self.method].decoder
        return self.workspace.folder / "skills" / f"{decoder}-h{self.spec.horizon}-s{self.seed}-{self.skills_key}"

    @cached_property
    def config_hash(self) -> str:
        """Everything that decides what the policy learns; not how long, nor how often it is looked at."""
        train = self.experiment.train.model_dump(
            mode="json",
            exclude={
                "env_steps",
                "evaluate_every",
                "evaluate_episodes",
                "checkpoint_every",
                "keep_checkpoints",
                "target_divergence",
                "latent_limit",
                "policy_init",
            },
        )
        return fingerprint(
            self.skills_key, self.experiment.env, train, vars(self.resolved), METHODS[self.method].summary
        )

    @cached_property
    def policy(self) -> Path:
        """Folder of the trained policy."""
        return self.workspace.folder / "policy" / f"{self.method}-s{self.seed}-{self.config_hash}"

    @cached_property
    def evaluation(self) -> Path:
        """Folder of the final evaluation of the policy at the experiment's number of steps."""
        key = fingerprint(self.config_hash, self.experiment.train.env_steps, self._episodes)
        return self.workspace.folder / "evaluation" / f"{self.method}-s{self.seed}-{key}"

    @cached_property
    def prior_rollouts(self) -> Path:
        """Folder of the episodes of the bare prior."""
        key = fingerprint(self.skills_key, self.experiment.env, self.experiment.evaluate.prior_episodes, self._episodes)
        return self.workspace.folder / "prior" / f"{METHODS[self.method].decoder}-s{self.seed}-{key}"

    @property
    def _episodes(self) -> dict[str, object]:
        return self.experiment.evaluate.model_dump(mode="json", exclude={"videos", "video_fps", "prior_episodes"})
