"""Windows: H consecutive observations and actions cut from an episode, the unlabelled samples of stage 1."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from spirl_ray.envs.spec import MakeRenderer, Renderer
from spirl_ray.episodes.episode import Episode
from spirl_ray.episodes.features import Array, Features
from spirl_ray.errors import SpirlError

Batch = tuple[dict[str, Tensor], Tensor]
"""A batch of B windows: observations [B, n, *feature.observed_shape] by name (float32, images uint8), and actions [B,
H, A]."""
_ACTIONS = ""
"""The name of the actions among the columns, which no feature can have."""
_ORDER_BYTES = 8
"""The bytes of a window's place in the shuffled order."""
_IMAGES_AT_A_TIME = 8192
_OTHER_LENGTH = "The episodes have other lengths than their dataset says: import them again."


class WindowTable:
    """All windows of a set of episodes, held as one tensor for each feature.

    Every offset of every episode is one window, T - H + 1 of them, and none crosses the end of an episode.

    Args:
        episodes: episodes from which windows are cut.
        horizon: H, primitive steps in a window.
        features: features of the windows, by name; no other feature of the episodes is kept, except those that
            renderers need.
        renderers: renderers of the features that episodes do not store (`EnvironmentSpec.renderers`).
        observed: n, the number of steps of a window with observations; None is all H. Images are costly, and an
            open-loop model needs the first alone.
        steps: the number of actions of all episodes together, where it is known; the episodes are then copied one
            after the other, and need not be in memory together.
        frame_cache_bytes: rendered images are kept if they fit, and are otherwise rendered for each batch.

    Raises:
        SpirlError: there is no window, a feature is neither in the episodes nor rendered, or ``steps`` is wrong.
    """

    def __init__(
        self,
        episodes: Iterable[Episode],
        horizon: int,
        features: Features,
        *,
        renderers: Mapping[str, MakeRenderer] | None = None,
        observed: int | None = None,
        steps: int | None = None,
        frame_cache_bytes: float = 0,
    ) -> None:
        if steps is None:
            episodes = list(episodes)
            steps = sum(episode.length for episode in episodes)
        self.horizon, self.features = horizon, dict(features)
        self._offsets = torch.arange(horizon)
        self._observed = horizon if observed is None else observed
        rendered = [name for name, feature in self.features.items() if not feature.stored]
        if missing := sorted(set(rendered) - set(renderers or {})):
            raise SpirlError(f"The feature {missing[0]!r} is not stored, and nothing renders it.")
        kept = _Columns(steps, [name for name in self.features if name not in rendered], rendered)
        for episode in episodes:
            kept.add(episode)
        kept.check_full()
        lengths = np.array(kept.lengths, np.int64)
        counts = np.maximum(lengths - horizon + 1, 0)
        self._count = int(counts.sum())
        if not self._count:
            raise SpirlError(
                f"No episode has a window of {horizon} steps: lower skills.horizon, or import longer episodes "
                "(a worker's share needs at least one)."
            )
        self._first_rows, self._first_windows = np.cumsum(lengths) - lengths, np.cumsum(counts) - counts
        self._columns = {name: torch.from_numpy(values) for name, values in kept.columns.items()}
        self._renderings: dict[str, _Rendering] = {}
        for name in rendered:
            feature, make = self.features[name], (renderers or {})[name]
            rendering = _Rendering(make(kept.metadata), kept.numbers)
            if steps * feature.size <= frame_cache_bytes:
                frame_cache_bytes -= steps * feature.size
                self._columns[name] = rendering.all(lengths, feature.shape)
            else:
                self._renderings[name] = rendering

    def __len__(self) -> int:
        return self._count

    def rows(self, windows: Tensor) -> Batch:
        """Returns the observations and actions of windows by number [B]."""
        numbers = windows.numpy()
        episodes = np.searchsorted(self._first_windows, numbers, side="right") - 1
        starts = torch.from_numpy(self._first_rows[episodes] + numbers - self._first_windows[episodes])
        rows = starts.unsqueeze(1) + self._offsets
        seen = rows[:, : self._observed]
        observations = {name: self._observations(name, episodes, seen) for name in self.features}
        return observations, _at(self._columns[_ACTIONS], rows)

    def sample(self, batch_size: int, generator: torch.Generator) -> Batch:
        """Draws windows uniformly, with replacement."""
        return self.rows(torch.randint(len(self), (batch_size,), generator=generator))

    def shuffled(self, batch_size: int, generator: torch.Generator, *, skip: int = 0) -> Iterator[Batch]:
        """Yields every window once in random order, without the first ``skip`` batches; a short rest is topped up with
        random windows."""
        order = torch.randperm(len(self), generator=generator)
        for first in range(skip * batch_size, len(order), batch_size):
            chosen = order[first : first + batch_size]
            if len(chosen) < batch_size:
                extra = torch.randint(len(self), (batch_size - len(chosen),), generator=generator)
                chosen = torch.cat([chosen, extra])
            yield self.rows(chosen)

    def _observations(self, name: str, episodes: NDArray[np.int64], rows: Tensor) -> Tensor:
        """Returns a feature in the successive rows [B, n]; images with those before them, the newest last."""
        feature = self.features[name]
        if not feature.is_image:
            return _at(self._columns[name], rows)
        before = torch.arange(1 - feature.frames, rows.shape[1])
        # Before an episode's first image there is none, so the first one is repeated.
        firsts = torch.from_numpy(self._first_rows[episodes]).unsqueeze(1)
        rows = torch.maximum(rows[:, :1] + before, firsts)
        images = _at(self._columns[name], rows) if name in self._columns else self._renderings[name](episodes, rows)
        return images.unfold(1, feature.frames, 1).movedim(-1, 2).contiguous()


def step_bytes(features: Features, recorded: Features, action_dim: int) -> int:
    """The memory in bytes that a `WindowTable` takes for each step.

    Args:
        features: features of the windows.
        recorded: features of the episodes.
        action_dim: width of an action.
    """
    kept = {name: feature for name, feature in features.items() if feature.stored}
    if len(kept) < len(features):  # renderers need all numbers
        kept |= {name: feature for name, feature in recorded.items() if not feature.is_image}
    return sum(f.size * np.dtype(f.dtype).itemsize for f in kept.values()) + 4 * action_dim + _ORDER_BYTES


def _at(values: Tensor, rows: Tensor) -> Tensor:
    """Returns ``values[rows]`` in half the time."""
    return values.index_select(0, rows.reshape(-1)).unflatten(0, rows.shape)


class _Columns:
    """The features and actions of episodes, joined; memory is allocated once, and no episode is kept."""

    def __init__(self, steps: int, stored: Sequence[str], rendered: Sequence[str]) -> None:
        self._steps, self._stored, self._rendered = steps, stored, rendered
        self.columns: dict[str, Array] = {}
        self.numbers: dict[str, Array] = {}
        """The features that are not images, which renderers need."""
        self.lengths: list[int] = []
        self.metadata: list[Mapping[str, Any]] = []
        self._filled = 0

    def add(self, episode: Episode) -> None:
        """Copies an episode, without the observations after its last action."""
        observations, first, end = episode.observations, self._filled, self._filled + episode.length
        if end > self._steps:
            raise SpirlError(_OTHER_LENGTH)
        if missing := [name for name in self._stored if name not in observations]:
            raise SpirlError(
                f"Episode {episode.id!r} does not hold the feature {missing[0]!r}: the dataset is not of this "
                "environment, or was cut down."
            )
        values = {_ACTIONS: episode.actions, **{name: observations[name] for name in self._stored}}
        numbers = {n: v for n, v in observations.items() if v.dtype != np.uint8} if self._rendered else {}
        for name, value in {**values, **numbers}.items():
            if name not in self.columns:
                self.columns[name] = np.empty((self._steps, *value.shape[1:]), value.dtype)
            self.columns[name][first:end] = value[: episode.length]
        self.numbers = {name: self.columns[name] for name in numbers}
        self.lengths.append(episode.length)
        if self._rendered:
            self.metadata.append(episode.metadata)
        self._filled = end

    def check_full(self) -> None:
        """Raises `SpirlError` where rows have not been filled."""
        if self._filled != self._steps:
            raise SpirlError(_OTHER_LENGTH)


class _Rendering:
    """Images that are rendered."""

    def __init__(self, render: Renderer, numbers: Mapping[str, Array]) -> None:
        self._render, self._numbers = render, numbers

    def __call__(self, episodes: NDArray[np.int64], rows: Tensor) -> Tensor:
        """Renders the rows [B, n] of the episodes [B]."""
        return self._rows(np.repeat(episodes, rows.shape[1]), rows.reshape(-1).numpy()).unflatten(0, rows.shape)

    def all(self, lengths: NDArray[np.int64], shape: Sequence[int]) -> Tensor:
        """Renders all rows, images of a shape."""
        rows, episode = np.arange(lengths.sum()), np.repeat(np.arange(len(lengths)), lengths)
        parts = np.array_split(rows, 1 + len(rows) // _IMAGES_AT_A_TIME)
        images = torch.empty((len(rows), *shape), dtype=torch.uint8)
        for part in parts:
            images[part[0] : part[-1] + 1] = self._rows(episode[part], part)
        return images

    def _rows(self, episodes: NDArray[np.int64], rows: NDArray[np.int64]) -> Tensor:
        return torch.from_numpy(self._render(episodes, {name: values[rows] for name, values in self._numbers.items()}))
