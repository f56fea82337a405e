"""The file of a sweep: base experiment, search space, searcher and scheduler, and the experiments that follow from
it."""

from __future__ import annotations

import copy
import functools
import itertools
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from spirl_ray.config import Experiment, parse_experiment
from spirl_ray.config_file import assign, assign_for_all, read_mapping, split_override, validated
from spirl_ray.envs.metrics import MODES, SCORE, EpisodeMetric
from spirl_ray.errors import SpirlError
from spirl_ray.files import layout
from spirl_ray.files.fingerprint import fingerprint
from spirl_ray.pipeline.keys import NOT_LEARNED_FROM, named_content
from spirl_ray.pipeline.kinds import check_kinds
from spirl_ray.pipeline.scores import experiment_scores
from spirl_ray.pipeline.user_code import make_importable
from spirl_ray.pipeline.workspace import Workspace
from spirl_ray.settings import MANY, Name, Seed, Settings, expanded

Parameters = dict[str, Any]
"""The values of a trial, by config key such as ``train.actor_lr``."""
_NOT_SEARCHED = {
    "name": "it names the folder that all trials share",
    "output": "all trials share one folder",
    "ray": "all trials run in one Ray",
    "tracking": "it does not change what is learned",
    "overrides": "search the key itself; it applies to every method of a trial",
    "explore": "no trial draws the exploration figure",
    "env.id": "a folder belongs to one environment; write a sweep for each",
    **{f"train.{name}": "it does not change what is learned" for name in sorted(NOT_LEARNED_FROM)},
    "train.env_steps": f"a longer training resumes in the shorter one's folder; {layout.EVALUATIONS} has its curve",
    "evaluate": "trials would be measured in different ways",
}
_WHILE_TRAINING = (
    "train.actor_lr",
    "train.critic_lr",
    "train.alpha_lr",
    "train.fixed_alpha",
    "train.alpha_min",
    "train.target_divergence",
    "train.polyak",
    "train.batch_size",
    "train.updates_per_decision",
)
"""The settings that population based training can change during a training."""
_INSIDE = 0.381966
"""The share of a range at which it is tried inside: a number that no one would choose, as most of a search are."""


class Dimension(Settings):
    """The values that one key may have; exactly one of these fields is set."""

    grid: tuple[Any, ...] | None = Field(default=None, min_length=1)
    """Takes every value, in all combinations with the other grids."""
    choice: tuple[Any, ...] | None = Field(default=None, min_length=1)
    """Draws one of these values."""
    uniform: tuple[float, float] | None = None
    """Draws a number between these two."""
    loguniform: tuple[float, float] | None = None
    """Draws a number between these two, with a uniform logarithm."""
    intuniform: tuple[int, int] | None = None
    """Draws a whole number from the first to the second, both included."""

    @model_validator(mode="after")
    def _one_kind(self) -> Dimension:
        given = [name for name in type(self).model_fields if getattr(self, name) is not None]
        if len(given) != 1:
            raise ValueError(
                "give exactly one of grid, choice, uniform, loguniform, intuniform, such as {grid: [1, 5, 20]}"
            )
        if self.values is None and self.bounds[0] >= self.bounds[1]:
            raise ValueError(f"{given[0]}: the first number must be below the second, not {list(self.bounds)}")
        if self.loguniform is not None and self.loguniform[0] <= 0.0:
            raise ValueError("loguniform: both numbers must be above 0")
        if self.values is not None and len({repr(value) for value in self.values}) < len(self.values):
            raise ValueError(f"{given[0]}: the same value occurs twice")
        try:
            json.dumps(self.values, allow_nan=False)
        except (TypeError, ValueError) as error:
            raise ValueError(f"{given[0]}: values are numbers, text, lists and mappings of these: {error}") from error
        return self

    @property
    def values(self) -> tuple[Any, ...] | None:
        """The values of a grid or a choice; None for a range."""
        return self.grid if self.grid is not None else self.choice

    @property
    def bounds(self) -> tuple[float, float]:
        """The first and last value of a range."""
        found = self.uniform or self.loguniform or self.intuniform
        assert found is not None
        return found

    @property
    def samples(self) -> tuple[Any, ...]:
        """The values that represent all: each of a grid or choice, or of a range the ends and one between them."""
        if self.values is not None:
            return self.values
        low, high = self.bounds
        if self.loguniform is not None:
            return low, low * (high / low) ** _INSIDE, high
        inside = low + _INSIDE * (high - low)
        return low, int(inside) if self.intuniform is not None else inside, high


class SchedulerSettings(Settings):
    kind: Literal["none", "asha", "pbt"] = "none"
    """``asha`` stops the trials that lag behind (Li et al. 2020); ``pbt`` lets them continue from the checkpoint of a
    better one with changed settings (Jaderberg et al. 2017)."""
    grace_steps: int = Field(default=50_000, ge=1, le=MANY)
    """asha: the number of primitive steps before which no trial is stopped."""
    reduction: float = Field(default=3.0, gt=1.0, le=1e6)
    """asha: one in this many trials continues at each rung; a rung has this many times the steps of the one before."""
    perturb_every: int = Field(default=50_000, ge=1, le=MANY)
    """pbt: the number of primitive steps between two comparisons."""
    quantile: float = Field(default=0.25, gt=0.0, le=0.5)
    """pbt: the share of worst trials, which take over checkpoints from the same share of best ones."""
    resample: float = Field(default=0.25, ge=0.0, le=1.0)
    """pbt: the probability that a setting is drawn anew instead of multiplied by 0.8 or 1.2."""


class TrialResources(Settings):
    """The resources of a trial's driver; env runners and training workers take one CPU each in addition."""

    cpus: float = Field(default=1.0, ge=0.0, le=100_000.0)
    """The number of CPUs; the driver itself learns, unless train.learners is set."""
    gpus: float = Field(default=0.0, ge=0.0, le=1000.0)
    custom: dict[str, float] = Field(default_factory=dict)
    """Ray's custom resources, such as ``{on_demand: 0.01}``, to keep drivers off preemptible nodes."""


class SweepFile(Settings):
    """The keys of a sweep's YAML file."""

    name: Name
    base: str | dict[str, Any]
    """The experiment that trials start from: a YAML file, relative to this one, or its settings."""
    changes: dict[str, Any] = Field(default_factory=dict)
    """The keys of the base that have another value in this sweep, such as ``train.env_steps``."""
    space: dict[str, Dimension] = Field(min_length=1)
    search: Literal["random", "optuna"] = "random"
    """``random`` takes every combination of the grids, and draws the rest (Tune's BasicVariant)."""
    seed: Seed = 0
    """The seed of the search, not of the trials."""
    samples: int = Field(default=1, ge=1, le=1_000_000)
    """The number of draws from the space, or of draws for each combination of the grids. Raising it continues a
    sweep."""
    scheduler: SchedulerSettings = SchedulerSettings()
    metric: str = "deterministic_score"
    """``deterministic_`` or ``sampled_``, then ``score`` or another metric of the environment's episodes."""
    mode: Literal["max", "min"] = "max"
    concurrency: int | None = Field(default=None, ge=1, le=100_000)
    """The number of trials at the same time; None means as many as fit, and all for pbt."""
    resources: TrialResources = TrialResources()
    max_failures: int = Field(default=1, ge=0, le=MANY)
    """The number of times that a lost trial is restarted; it resumes from its checkpoint."""
    heat_map: tuple[str, str] | None = None
    """The two keys of the heat map, across and up; None draws one if exactly two keys vary."""

    @model_validator(mode="before")
    @classmethod
    def _trackers_of_version_0_1(cls, raw: Any) -> Any:
        if isinstance(raw, Mapping) and "trackers" in raw:
            raise ValueError(
                "trackers is how version 0.1 wrote it. The base experiment says where to track: write changes: "
                f"{{tracking: {json.dumps(raw['trackers'], default=str)}}}"
            )
        return raw

    @field_validator("space", mode="before")
    @classmethod
    def _explain_bare_values(cls, space: Any) -> Any:
        for key, dimension in space.items() if isinstance(space, dict) else ():
            kinds = Dimension.model_fields
            if not isinstance(dimension, Mapping | Dimension) or (
                isinstance(dimension, Mapping) and not set(dimension) <= set(kinds)
            ):
                raise ValueError(
                    f"{key}: write {{grid: […]}} or {{uniform: [from, to]}}, not {dimension!r}. Keys have dots, such "
                    f"as train.actor_lr; kinds are {', '.join(kinds)}"
                )
        return space

    @model_validator(mode="after")
    def _fits_together(self) -> SweepFile:
        grids = [key for key, dimension in self.space.items() if dimension.grid is not None]
        if self.search == "optuna" and grids:
            raise ValueError(f"search: optuna chooses values itself; {grids[0]} must be a choice or range, not a grid")
        if self.search == "random" and len(grids) == len(self.space) and self.samples > 1:
            raise ValueError(
                "samples: the whole space is a grid, so more samples would repeat it; add seeds to the space"
            )
        for key in self.heat_map or ():
            if key not in self.space or key == "seeds":
                reason = "averaged over" if key == "seeds" else "not in the space"
                raise ValueError(f"heat_map: {key} is {reason}")
        if self.scheduler.kind == "pbt":
            self._check_population(grids)
        return self

    def _check_population(self, grids: Sequence[str]) -> None:
        if self.search != "random" or grids:
            raise ValueError("scheduler.kind: pbt needs search: random and a space without grids")
        if fixed := [key for key in self.space if key not in _WHILE_TRAINING]:
            raise ValueError(
                f"scheduler.kind: pbt cannot change {fixed[0]} while training; it can change "
                f"{', '.join(_WHILE_TRAINING)}"
            )
        if self.samples < 2:
            raise ValueError("samples: a population for pbt needs 2 members or more")
        if self.concurrency is not None and self.concurrency != self.samples:
            raise ValueError("concurrency: all members of a population for pbt train at the same time; leave it out")


class Sweep:
    """A sweep: its file with its base experiment."""

    def __init__(self, file: SweepFile, base: Experiment, origin: str) -> None:
        self.file = file
        self.base = base
        self.origin = origin
        self.space = dict(sorted(file.space.items()))
        """The dimensions sorted by key, so that the order in the file does not matter."""

    @property
    def folder(self) -> Path:
        """The folder of the sweep's files, inside the folder of its experiment."""
        return self.base.folder.absolute() / layout.SWEEPS / f"{self.file.name}-{self.key}"

    @functools.cached_property
    def key(self) -> str:
        """The identity of space, search and trials, without the number of samples and where they run.

        Raises:
            SpirlError: a source of the data cannot be opened.
        """
        file, base = self.file, self.base.model_dump(mode="json", exclude={"output", "ray", "explore", "tracking"})
        population = file.samples if file.scheduler.kind == "pbt" else None
        space = {key: dimension.model_dump(mode="json", exclude_none=True) for key, dimension in self.space.items()}
        searched = (space, file.search, file.seed, file.scheduler, file.metric, file.mode, population)
        # What the settings name can change while they stay the same: code, weights, recordings.
        named = named_content(self.base)
        if any(source.type != "generated" for source in self.base.data.sources):
            named.append(Workspace(self.base).dataset.name)
        return fingerprint(base, *searched, *named)

    @property
    def metric(self) -> EpisodeMetric:
        """The metric that is optimised, as the base's environment declares it."""
        scores, name = experiment_scores(self.base), self.file.metric.partition("_")[2]
        return scores[scores.preferred[0] if name == SCORE else name]

    def experiment(self, parameters: Parameters) -> Experiment:
        """The experiment of a trial.

        Raises:
            SpirlError: a key is unknown or has an impossible value; the message names it.
        """
        raw = self.base.model_dump(mode="json")
        for key, value in parameters.items():
            assign_for_all(raw, key, value, self.origin, Experiment)
        return parse_experiment(raw, f"{self.origin}, space: {_shown(parameters)}")

    def examples(self) -> list[Experiment]:
        """Makes an experiment for every value that the space names, the ends of every range and one between them."""
        first = {key: dimension.samples[0] for key, dimension in self.space.items()}
        return [
            self.experiment({**first, key: value})
            for key, dimension in self.space.items()
            for value in dimension.samples
        ]

    def check(self) -> None:
        """Tries every value that the space names, and its ranges at their ends and inside, before anything is trained.

        Raises:
            SpirlError: a key is unknown or cannot be searched, a value is impossible, or settings do not fit together.
        """
        for key in self.space:
            self._check_key(key)
        examples = self.examples()
        for experiment in examples:
            self._check_experiment(experiment)
        for one, other in itertools.combinations(self.space, 2):
            if other.startswith(f"{one}."):
                raise SpirlError(f"{self.origin}, space: {one} contains {other}; search only one of them.")

    def _check_key(self, key: str) -> None:
        for name, reason in _NOT_SEARCHED.items():
            if key == name or key.startswith(f"{name}."):
                raise SpirlError(f"{self.origin}, space: {key} cannot be searched: {reason}.")

    def _check_metric(self, experiment: Experiment) -> None:
        scores = experiment_scores(experiment)
        known = [f"{mode}_{name}" for mode in MODES for name in (SCORE, *scores.names)]
        if self.file.metric not in known:
            raise SpirlError(f"{self.origin}: unknown metric {self.file.metric!r}; known metrics: {', '.join(known)}.")
        name = self.file.metric.partition("_")[2]
        measured = [scores[one] for one in (scores.preferred if name == SCORE else (name,))]
        if "mode" not in self.file.model_fields_set and any(metric.sign < 0 for metric in measured):
            raise SpirlError(f"{self.origin}: less of {self.file.metric} is better, so write mode: min (or max).")

    def _check_experiment(self, experiment: Experiment) -> None:
        scheduler = self.file.scheduler
        check_kinds(experiment, self.origin)
        self._check_metric(experiment)
        mode = self.file.metric.partition("_")[0]
        if mode not in experiment.evaluate.modes:
            raise SpirlError(
                f"{self.origin}: metric {self.file.metric} needs {mode} among evaluate.modes of the base experiment."
            )
        if scheduler.kind == "none":
            return
        if len(experiment.methods) * len(experiment.seeds) > 1:
            raise SpirlError(
                f"{self.origin}: scheduler.kind {scheduler.kind} compares trainings while they run, so a trial must "
                "be one method with one seed. Put methods and seeds into the space, or one of each into the base."
            )
        steps, every = experiment.train.env_steps, experiment.train.evaluate_every
        first = scheduler.grace_steps if scheduler.kind == "asha" else scheduler.perturb_every
        name = "grace_steps" if scheduler.kind == "asha" else "perturb_every"
        compared = math.ceil(first / every) * every
        if first < every or compared >= steps:
            raise SpirlError(
                f"{self.origin}: scheduler.{name} {first} must be at least train.evaluate_every ({every}), where "
                f"trials are compared, and the first comparison ({compared}) below train.env_steps ({steps})."
            )


def load_sweep(path: Path, overrides: Sequence[str] = ()) -> Sweep:
    """Reads a sweep file with its base experiment.

    Args:
        path: the YAML file; a bare name means ``tune_configs/<name>.yaml``.
        overrides: ``key=value``; keys of the sweep file (such as ``samples``) change the sweep, others the base.

    Raises:
        SpirlError: something is unreadable, unknown or does not fit; the message names file and key.
    """
    raw, path = read_mapping(path, SweepFile)
    of_base: list[str] = []
    for override in overrides:
        if override.partition("=")[0].strip().partition(".")[0] in SweepFile.model_fields:
            assign(raw, *split_override(override, SweepFile), f"--set {override}", SweepFile)
        else:
            of_base.append(override)
    file = validated(SweepFile, raw, str(path))
    sweep = Sweep(file, _base(file, path, of_base), str(path))
    make_importable(sweep.base.submit.ship)
    sweep.check()
    return sweep


def _base(file: SweepFile, path: Path, overrides: Sequence[str]) -> Experiment:
    if isinstance(file.base, str):
        beside = path.parent / expanded(file.base)
        raw, found = read_mapping(beside if beside.exists() else Path(file.base), Experiment)
        origin = str(found)
    else:
        raw, origin = copy.deepcopy(file.base), f"{path}, base"
    for key, value in file.changes.items():
        assign_for_all(raw, key, value, f"{path}, changes", Experiment)
    for override in overrides:
        assign_for_all(raw, *split_override(override, Experiment), f"--set {override}", Experiment)
    experiment = parse_experiment(raw, origin if not file.changes else f"{origin} with changes of {path}")
    for method in experiment.overrides:
        experiment.for_method(method)
    return experiment


def _shown(parameters: Parameters) -> str:
    return ", ".join(f"{key}={value}" for key, value in parameters.items())
