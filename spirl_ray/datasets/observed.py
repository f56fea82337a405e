"""Observations at the steps of a recorded episode, as its environment gave them."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from spirl_ray.envs.spec import MakeRenderer, Renderer
from spirl_ray.episodes.episode import Episode
from spirl_ray.episodes.features import Features
from spirl_ray.errors import SpirlError


class RecordedObservations:
    """The observations of an episode, with the images that it does not store, and with those before each image.

    Args:
        episode: the recorded episode.
        features: the features that are observed.
        renderers: renderers of the features that episodes do not store (`EnvironmentSpec.renderers`).

    Raises:
        SpirlError: the episode lacks a feature, or has it in another shape.
    """

    def __init__(self, episode: Episode, features: Features, renderers: Mapping[str, MakeRenderer]) -> None:
        self._episode, self._features = episode, features
        self._renderers: dict[str, Renderer] = {}
        for name, feature in features.items():
            stored = episode.observations.get(name)
            if stored is None and name in renderers:
                self._renderers[name] = renderers[name]([episode.metadata])
            elif stored is None or stored.shape[1:] != feature.shape:
                found = "does not hold it" if stored is None else f"holds it with the shape {list(stored.shape[1:])}"
                raise SpirlError(
                    f"The feature {name!r} is observed with the shape {list(feature.shape)}, and episode "
                    f"{episode.id!r} {found}: these demonstrations cannot be decisions in this environment. "
                    "Choose a method that does not learn from them a second time (docs/methods.md)."
                )

    def __call__(self, steps: NDArray[np.int64]) -> dict[str, Tensor]:
        """The observations at steps [B], from 0 to T: [B, *feature.observed_shape] by name."""
        return {name: torch.from_numpy(self._feature(name, steps)) for name in self._features}

    def _feature(self, name: str, steps: NDArray[np.int64]) -> NDArray[np.generic]:
        feature = self._features[name]
        if not feature.is_image:
            return np.ascontiguousarray(self._episode.observations[name][steps])
        # Before an episode's first image there is none, so the first one is repeated.
        rows = np.maximum(steps[:, None] + np.arange(1 - feature.frames, 1), 0).reshape(-1)
        if name in self._renderers:
            numbers = {n: v[rows] for n, v in self._episode.observations.items() if v.dtype != np.uint8}
            images = self._renderers[name](np.zeros(len(rows), np.int64), numbers)
        else:
            images = self._episode.observations[name][rows]
        return images.reshape(len(steps), *feature.observed_shape)
