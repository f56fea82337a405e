"""Images of recorded episodes for people: drawn by the environment, or those that the episodes hold."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from spirl_ray.envs import ENVIRONMENTS, EnvironmentEntry
from spirl_ray.envs.spec import RenderRecorded
from spirl_ray.episodes.dataset import DatasetCard
from spirl_ray.episodes.features import Observation


def recorded_images(card: DatasetCard) -> RenderRecorded | None:
    """What renders the episodes of a dataset: the environment, or else the first feature that is an image; None where
    there is neither."""
    if card.environment in ENVIRONMENTS:
        entry: object = ENVIRONMENTS[card.environment]  # a class or function, where an entry point names one
        if isinstance(entry, EnvironmentEntry) and entry.spec is not None and entry.spec.render_recorded is not None:
            return entry.spec.render_recorded
    stored = [name for name, feature in card.features.items() if feature.is_image and feature.stored]
    return partial(_stored_images, stored[0]) if stored else None


def _stored_images(
    name: str, metadata: Mapping[str, Any], observations: Observation, steps: Sequence[int]
) -> list[NDArray[np.uint8]]:
    images = observations[name][list(steps)]
    return [np.repeat(image, 3, axis=-1) if image.shape[-1] == 1 else image for image in images]
