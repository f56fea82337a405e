"""The description of an environment: what the rest of the program knows about it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray
from pydantic import TypeAdapter, ValidationError

from spirl_ray.envs.judgement import Judge
from spirl_ray.envs.metrics import Scores
from spirl_ray.episodes.actions import ActionRange
from spirl_ray.episodes.episode import Tries
from spirl_ray.episodes.features import Array, Feature, FeatureName, Features, Observation
from spirl_ray.errors import SpirlError
from spirl_ray.settings import in_words


@dataclass(frozen=True)
class PositionTarget:
    """An environment that turns an action into a position target, ``target = q + gain * action``.

    This is what target-preserving augmentation needs: moving ``q`` by d and the action by ``-d / gain``
    leaves the target where the demonstration had it.
    """

    feature: str
    """The name of the vector feature that holds q."""
    positions: tuple[int | None, ...]
    """The entry of that feature that each action dimension moves; None for an action that moves none."""
    gain: tuple[float, ...]
    """The distance (position units) by which an action of 1 moves the target, one for each action dimension."""
    objects: tuple[str, ...] = ()
    """The names of the features that are not under direct control and may be perturbed without relabelling."""


Renderer = Callable[[NDArray[np.int64], Observation], NDArray[np.uint8]]
"""A function from episode numbers [B] and the stored features [B, ...] of these steps by name (no images among them)
to rendered images, uint8 [B, height, width, channels]."""
MakeRenderer = Callable[[Sequence[Mapping[str, Any]]], Renderer]
"""A function from the metadata of episodes to a renderer of one feature; episodes are numbered as in the sequence."""
RenderRecorded = Callable[[Mapping[str, Any], Observation, Sequence[int]], list[NDArray[np.uint8]]]
"""A function from the metadata of an episode, its stored features [T+1, ...] by name, and some of its steps to a
rendered image of each of these steps, uint8 [height, width, 3]."""


class FromRecordings(NamedTuple):
    """What turns somebody else's recordings into the features of an environment."""

    keys: tuple[str, ...]
    """The keys of a recording that it reads."""
    features: Callable[[Mapping[str, Array]], Observation]
    """A function from the values of these keys, each [T+1, ...], to the stored features by name, each [T+1, *shape]."""


@dataclass(frozen=True)
class FloorPlan:
    """The floor of an environment in which an agent moves over cells: walls, start and goal."""

    feature: str
    """The name of the vector feature whose first two entries are the agent's position, in cells."""
    walls: NDArray[np.bool_]
    """The walls, [X, Y]; cell (i, j) spans positions from i - 0.5 to i + 0.5 and from j - 0.5 to j + 0.5."""
    start: tuple[int, int] | None
    goal: tuple[int, int] | None
    goal_radius: float


@dataclass(frozen=True, eq=False)
class EnvironmentSpec:
    """The description of one environment id, which data, skills and training share.

    Raises:
        SpirlError: the fields contradict each other; the message names the environment and the field.
    """

    id: str
    features: Features
    """The features of an observation by name, with their shapes in datasets. An environment made with other
    arguments may have another number of objects, see `spirl_ray.envs.observed_features`."""
    action_dim: int
    """The width of an action."""
    max_episode_steps: int
    """The time limit of an episode in primitive steps."""
    actions: ActionRange | None = None
    """The range of the actions in the environment's own units; None is [-1, 1]. Agents act in [-1, 1], and
    `spirl_ray.envs.make` sees to the rest."""
    metrics: Callable[[Mapping[str, Any]], Scores] | None = None
    """A function from the constructor's arguments to the metrics of an episode and the score, see
    `spirl_ray.envs.metrics.declare`. None: the score is the return, or success where the environment reports it."""
    position_target: PositionTarget | None = None
    expert: str | None = None
    """The scripted expert as "module:function", which is imported when needed: ``generate(indices, seed, **options)``
    yields an `Episode` for each index, or None. An episode depends on (seed, index, options) alone, so any number of
    workers produces the same data."""
    expert_tries: Tries | None = None
    """A function that finds in the metadata of the expert's episodes which subtasks it tried, for ``spirl data
    inspect``."""
    renderers: Mapping[str, MakeRenderer] = field(default_factory=dict)
    """The renderers of the features that episodes do not store, by the features' names."""
    render_recorded: RenderRecorded | None = None
    """A function that renders recorded episodes for people, in contact sheets and videos."""
    floor_plan: Callable[[Any], FloorPlan] | None = None
    """A function from a made environment to its floor plan, on which exploration is drawn."""
    keys: Mapping[str, str] = field(default_factory=dict)
    """The key of each feature in the observations of the environment and of recordings, where it is not the name."""
    from_recordings: FromRecordings | None = None
    """What turns recordings whose keys are not those of the environment into features."""
    completed: Callable[[Observation], list[str]] | None = None
    """A function from recorded features [T+1, ...] by name to the subtasks completed along them, in order. It is needed
    where the source of the data does not report them."""
    judge: Judge | None = None
    """A function that says what this environment, made with these arguments, would have said of recorded steps. It
    labels demonstrations for stage 2, see `spirl_ray.rl.offline_decisions`."""

    def __post_init__(self) -> None:
        try:
            TypeAdapter(dict[FeatureName, Feature]).validate_python(dict(self.features))
        except ValidationError as error:
            fault = error.errors()[0]
            raise self._wrong(f"features: {fault['loc'][0]}: {in_words(fault)}") from error
        for name in self.features:
            if self.features[name].stored == (name in self.renderers):
                raise self._wrong(f"features: {name!r} must be either stored or have a renderer")
        if unknown := sorted(set(self.renderers) - set(self.features)):
            raise self._wrong(f"renderers: there is no feature {unknown[0]!r}")
        for name, feature in self.features.items():
            if feature.objects is not None:
                self._vector("objects.agent of " + name, feature.objects.agent, feature.shape[1])
        if (target := self.position_target) is not None:
            self._vector(
                "position_target.feature",
                target.feature,
                1 + max((p for p in target.positions if p is not None), default=0),
            )
            for name in target.objects:
                if name not in self.features or self.features[name].is_image:
                    raise self._wrong(f"position_target.objects: {name!r} is not the name of a feature of numbers")
            if not len(target.positions) == len(target.gain) == self.action_dim:
                raise self._wrong(f"position_target: needs a position and a gain for each of {self.action_dim} actions")

    def _vector(self, where: str, name: str, entries: int) -> None:
        if name not in self.features or len(shape := self.features[name].shape) != 1 or shape[0] < entries:
            raise self._wrong(f"{where}: {name!r} is not the name of a vector feature of {entries} or more entries")

    def _wrong(self, what: str) -> SpirlError:
        return SpirlError(f"environment {self.id!r}: {what}")


def observation_space(features: Features, limit: float = np.inf) -> spaces.Dict:
    """The space of an observation with these features: a Box of `Feature.observed_shape` for each.

    Args:
        features: by name.
        limit: numbers are between -limit and limit; image entries always are from 0 to 255.
    """
    return spaces.Dict(
        {
            name: spaces.Box(0, 255, feature.observed_shape, np.uint8)
            if feature.is_image
            else spaces.Box(-limit, limit, feature.observed_shape, np.float32)
            for name, feature in features.items()
        }
    )
