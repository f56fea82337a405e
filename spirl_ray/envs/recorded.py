"""An environment knows images of recorded episodes for people, and the tries of its expert."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from spirl_ray.envs import ENVIRONMENTS, EnvironmentEntry
from spirl_ray.envs.spec import EnvironmentSpec, RenderRecorded
from spirl_ray.episodes.dataset import DatasetCard
from spirl_ray.episodes.episode import Tries
from spirl_ray.episodes.features import Observation


def recorded_images(card: DatasetCard) -> RenderRecorded | None:
    """What renders the episodes of a dataset: the environment, or else the first feature that is an image; None where
    there is neither."""
    spec = _described(card)
    if spec is not None and spec.render_recorded is not None:
        return spec.render_recorded
    stored = [name for name, feature in card.features.items() if feature.is_image and feature.stored]
    return partial(_stored_images, stored[0]) if stored else None


def recorded_tries(card: DatasetCard) -> Tries | None:
    """The function that finds the tries of a dataset's scripted expert; None where its environment has none."""
    spec = _described(card)
    return None if spec is None else spec.expert_tries


def _described(card: DatasetCard) -> EnvironmentSpec | None:
    if card.environment not in ENVIRONMENTS:
        return None
    entry: object = ENVIRONMENTS[card.environment]
    return entry.spec if isinstance(entry, EnvironmentEntry) else None  # an entry point may be a class or function


def _stored_images(
    name: str, metadata: Mapping[str, Any], observations: Observation, steps: Sequence[int]
) -> list[NDArray[np.uint8]]:
    images = observations[name][list(steps)]
    return [np.repeat(image, 3, axis=-1) if image.shape[-1] == 1 else image for image in images]
