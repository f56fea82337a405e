"""Named observations: the name, shape, type and role of each part of an observation."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Annotated, Literal

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, Field, PositiveInt, model_validator

Role = Literal["proprioception", "state", "image", "goal"]
"""``proprioception`` is what the agent knows about itself and what means the same in every task, such as its velocity;
``state`` is the rest of what it senses as numbers; ``image`` is a camera; ``goal`` describes the aim, so the
policy and its critics observe it, and skills and their prior do not."""

FeatureName = Annotated[str, Field(pattern=r"^[A-Za-z][A-Za-z0-9_]{0,63}$")]
"""The name of a feature: letters, digits and underscores, because columns and parts of networks have it, too."""
Array = npt.NDArray[np.generic]
Observation = Mapping[str, Array]
"""One value, or a batch of values, for each feature by its name; see `Feature.observed_shape`."""


class ObjectSet(BaseModel):
    """The description of a feature that lists alike objects in an order without meaning."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    agent: str
    """The name of the feature that holds the agent's position, in the coordinates of the objects' positions."""
    up: int = Field(ge=0)
    """The index of the coordinate that is the height."""
    size: float = Field(gt=0.0, allow_inf_nan=False)
    """The size of an object, in these coordinates."""


class Feature(BaseModel):
    """One named part of an observation, as an environment declares it and a dataset holds it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    shape: Annotated[tuple[PositiveInt, ...], Field(min_length=1, max_length=3)]
    """The shape of one value: (D,) for a vector, (N, D) for N alike objects, (height, width, channels) for an image,
    whose channels are 1 (grey) or 3 (RGB)."""
    role: Role = "state"
    frames: PositiveInt = 1
    """The number of values of successive primitive steps that an observation holds, the newest last."""
    stored: bool = True
    """False where episodes leave the feature out, because it is rendered from the other features."""
    objects: ObjectSet | None = None
    """The description of the objects, for a feature of alike objects."""

    @model_validator(mode="after")
    def _fits_together(self) -> Feature:
        if (self.role == "image") != (len(self.shape) == 3):
            raise ValueError(
                f"an image has the shape (height, width, channels), other features have fewer axes, not {self.shape}"
            )
        if self.role == "image" and self.shape[2] not in (1, 3):
            raise ValueError(f"an image has 1 or 3 channels, not {self.shape[2]}")
        if self.objects is not None and (len(self.shape) != 2 or self.objects.up >= self.shape[1]):
            raise ValueError(
                f"objects have the shape (number, coordinates) with the height among them, not {self.shape}"
            )
        if self.role != "image" and self.frames != 1:
            raise ValueError("frames: only images can be stacked")
        return self

    @property
    def is_image(self) -> bool:
        return self.role == "image"

    @property
    def dtype(self) -> type[np.generic]:
        """uint8 for images, float32 for everything else."""
        return np.uint8 if self.is_image else np.float32

    @property
    def size(self) -> int:
        """The number of numbers in one value."""
        return math.prod(self.shape)

    @property
    def observed_shape(self) -> tuple[int, ...]:
        """The shape of the feature in an observation: `shape`, with a leading axis of `frames` for an image."""
        return (self.frames, *self.shape) if self.is_image else self.shape


Features = Mapping[str, Feature]
"""The features of an environment or a dataset, in the order in which they are declared."""


def stack_observations(observations: Sequence[Observation]) -> dict[str, Array]:
    """Stacks the features of successive observations, each [T, ...], by name."""
    return {name: np.stack([observation[name] for observation in observations]) for name in observations[0]}


def recorded(observation: Observation, features: Features) -> dict[str, Array]:
    """Selects what an episode stores of an observation: the stored features, and the newest of stacked images."""
    return {
        name: observation[name][-1] if feature.is_image else observation[name]
        for name, feature in features.items()
        if feature.stored
    }


def stored_features(features: Features) -> dict[str, Feature]:
    """The features that episodes store."""
    return {name: feature for name, feature in features.items() if feature.stored}
