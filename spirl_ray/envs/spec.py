"""What the rest of the program knows about an environment."""

from __future__ import annotations

import pkgutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray
from pydantic import TypeAdapter, ValidationError

from spirl_ray.envs.metrics import Scores, undeclared
from spirl_ray.episodes.features import Feature, FeatureName, Features, Observation
from spirl_ray.errors import SpirlError


@dataclass(frozen=True)
class PositionTarget:
    """The environment turns an action into a position target, ``target = q + gain * action``.

    This is what target-preserving augmentation needs: moving ``q`` by d and the action by ``-d / gain``
    leaves the target where the demonstration had it.
    """

    feature: str
    """Name of the vector feature that holds q."""
    positions: tuple[int, ...]
    """Entries of that feature, one for each action dimension."""
    gain: tuple[float, ...]
    """Position units that an action of 1 moves the target by, one for each action dimension."""
    objects: tuple[str, ...] = ()
    """Names of features that are not under direct control and may be perturbed without relabelling."""


Renderer = Callable[[NDArray[np.int64], Observation], NDArray[np.uint8]]
"""Episode numbers [B] and, by name, the stored features [B, ...] of these steps that are no images -> images uint8
[B, height, width, channels]."""
MakeRenderer = Callable[[Sequence[Mapping[str, Any]]], Renderer]
"""The metadata of episodes -> what renders a feature of these episodes; they are numbered as in the sequence."""
RenderRecorded = Callable[[Mapping[str, Any], Observation, Sequence[int]], list[NDArray[np.uint8]]]
"""The metadata of an episode, its stored features [T+1, ...] by name, and some of its steps -> a picture of each of
these steps, uint8 [height, width, 3]."""


@dataclass(frozen=True)
class FloorPlan:
    """Where an agent can be, for environments in which it moves over a floor of cells."""

    feature: str
    """Name of the vector feature whose first two entries are the agent's position, in cells."""
    walls: NDArray[np.bool_]
    """[X, Y]; cell (i, j) spans positions from i - 0.5 to i + 0.5 and from j - 0.5 to j + 0.5."""
    start: tuple[int, int] | None
    goal: tuple[int, int] | None
    goal_radius: float


@dataclass(frozen=True, eq=False)
class EnvironmentSpec:
    """Facts about one environment id that data, skills and training share.

    Raises:
        SpirlError: the facts contradict each other; the message names the environment and the field.
    """

    id: str
    features: Features
    """The features of an observation by name, with their shapes in datasets. An environment that is made with other
    arguments may have another number of objects, see `spirl_ray.envs.observed_features`."""
    action_dim: int
    """Actions are float32 in [-1, 1]."""
    max_episode_steps: int
    """Primitive steps."""
    metrics: Callable[[Mapping[str, Any]], Scores] | None = None
    """From the constructor's arguments to the metrics of an episode and the score (`spirl_ray.envs.metrics.declare`).
    None: the return is the score, or success where the environment's info tells it."""
    position_target: PositionTarget | None = None
    expert: str | None = None
    """What `generate` gives, as "module:function"; imported when it is asked for."""
    renderers: Mapping[str, MakeRenderer] = field(default_factory=dict)
    """What renders the features that episodes do not store, by their names."""
    render_recorded: RenderRecorded | None = None
    """Draws recorded episodes for people, in contact sheets and videos."""
    floor_plan: Callable[[Any], FloorPlan] | None = None
    """The plan of an environment that has been made, where exploration can be drawn."""
    minari_observations: Callable[[Any], Observation] | None = None
    """Maps the observations of a Minari episode (array [T+1, ·] or dict of them) to the stored features by name, each
    [T+1, *shape]."""
    completed: Callable[[Observation], list[str]] | None = None
    """The subtasks completed along recorded features [T+1, ...] by name, in order, for sources that do not tell."""

    def __post_init__(self) -> None:
        try:
            TypeAdapter(dict[FeatureName, Feature]).validate_python(dict(self.features))
        except ValidationError as error:
            fault = error.errors()[0]
            raise self._wrong(f"features: {fault['loc'][0]}: {fault['msg']}") from error
        for name in self.features:
            if self.features[name].stored == (name in self.renderers):
                raise self._wrong(f"features: {name!r} must be either stored or have a renderer")
        if unknown := sorted(set(self.renderers) - set(self.features)):
            raise self._wrong(f"renderers: there is no feature {unknown[0]!r}")
        for name, feature in self.features.items():
            if feature.objects is not None:
                self._vector("objects.agent of " + name, feature.objects.agent, feature.shape[1])
        if (target := self.position_target) is not None:
            self._vector("position_target.feature", target.feature, 1 + max(target.positions, default=0))
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

    @property
    def generate(self) -> Callable[..., Iterator[Any]]:
        """The scripted expert: ``generate(indices, seed, **kwargs)`` yields an `Episode` for each index, or None.

        An episode depends on (seed, index, kwargs) alone, so any number of workers produces the same data.

        Raises:
            SpirlError: the environment has no expert.
        """
        if self.expert is None:
            raise SpirlError(f"environment {self.id!r} has no scripted expert to generate data with")
        found: Callable[..., Iterator[Any]] = pkgutil.resolve_name(self.expert)
        return found

    def scores(self, kwargs: Mapping[str, Any]) -> Scores:
        """The metrics of the environment's episodes when it is made with these arguments."""
        return undeclared() if self.metrics is None else self.metrics(kwargs)


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
