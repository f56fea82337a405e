"""Windows: H consecutive observations and actions cut from an episode, the unlabelled samples of stage 1."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from spirl_ray.envs.spec import MakeRenderer
from spirl_ray.episodes.episode import Episode
from spirl_ray.episodes.features import Array, Feature, Features
from spirl_ray.errors import SpirlError

Batch = tuple[dict[str, Tensor], Tensor]
"""A batch of B windows: observations [B, n, *feature.observed_shape] by name (float32, images uint8), and actions [B,
H, A]."""
_IMAGES_AT_A_TIME = 8192


class WindowTable:
    """All windows of a set of episodes, held as flat tensors and an index of their first rows.

    Every offset of every episode is one window, T - H + 1 of them, and none crosses the end of an episode. Images that
    are stored are looked up in the episodes, because joining them into one array would need the memory twice.

    Args:
        episodes: episodes from which windows are cut.
        horizon: H, primitive steps in a window.
        features: features of the windows, by name; no other feature of the episodes is read, except those that
            renderers need.
        renderers: renderers of the features that episodes do not store (`EnvironmentSpec.renderers`).
        observed: n, the number of steps of a window with observations; None is all H. Images are costly, and an
            open-loop model needs the first alone.
        frame_cache_bytes: rendered images are kept if they fit, and are otherwise rendered for each batch.

    Raises:
        SpirlError: there is no window, or a feature is neither in the episodes nor rendered.
    """

    def __init__(
        self,
        episodes: Iterable[Episode],
        horizon: int,
        features: Features,
        *,
        renderers: Mapping[str, MakeRenderer] | None = None,
        observed: int | None = None,
        frame_cache_bytes: float = 0,
    ) -> None:
        kept = list(episodes)
        lengths = np.array([episode.length for episode in kept], np.int64)
        firsts = np.cumsum(lengths) - lengths
        starts = [np.arange(first, first + n - horizon + 1) for first, n in zip(firsts, lengths, strict=True)]
        self.horizon, self.features = horizon, dict(features)
        self.starts = torch.from_numpy(np.concatenate(starts) if starts else np.zeros(0, np.int64))
        if not len(self.starts):
            raise SpirlError(
                f"No episode has a window of {horizon} steps: lower skills.horizon, or import longer episodes "
                "(a worker's share needs at least one)."
            )
        self.actions = torch.from_numpy(np.concatenate([episode.actions for episode in kept]))
        self._offsets = torch.arange(horizon)
        self._observed = horizon if observed is None else observed
        self._episode, self._first = np.repeat(np.arange(len(kept)), lengths), firsts
        self.numbers: dict[str, Tensor] = {}
        """The features that are not images, float32 [rows, *shape], without the observations after the last actions."""
        self._images: dict[str, ImageSource] = {}
        for name, feature in self.features.items():
            if not feature.stored:
                make = (renderers or {}).get(name)
                if make is None:
                    raise SpirlError(f"The feature {name!r} is not stored, and nothing renders it.")
                source = _Rendered(feature, make, kept, frame_cache_bytes)
                frame_cache_bytes -= source.cached_bytes
                self._images[name] = source
            elif feature.is_image:
                self._images[name] = _Stored(_recorded(kept, name))
            else:
                self.numbers[name] = torch.from_numpy(np.concatenate(_recorded(kept, name)))

    def __len__(self) -> int:
        return len(self.starts)

    def rows(self, windows: Tensor) -> Batch:
        """Returns the observations and actions of windows by number [B]."""
        rows = self.starts[windows].unsqueeze(1) + self._offsets
        seen = rows[:, : self._observed]
        return {name: self._observations(name, seen) for name in self.features}, _at(self.actions, rows)

    def sample(self, batch_size: int, generator: torch.Generator) -> Batch:
        """Draws windows uniformly, with replacement."""
        return self.rows(torch.randint(len(self), (batch_size,), generator=generator))

    def shuffled(self, batch_size: int, generator: torch.Generator) -> Iterator[Batch]:
        """Yields every window once in random order; a short rest is topped up with random windows."""
        order = torch.randperm(len(self), generator=generator)
        for first in range(0, len(order), batch_size):
            chosen = order[first : first + batch_size]
            if len(chosen) < batch_size:
                extra = torch.randint(len(self), (batch_size - len(chosen),), generator=generator)
                chosen = torch.cat([chosen, extra])
            yield self.rows(chosen)

    def _observations(self, name: str, rows: Tensor) -> Tensor:
        """Returns a feature in the successive rows [B, n]; images with those before them, the newest last."""
        if name in self.numbers:
            return _at(self.numbers[name], rows)
        frames = self.features[name].frames
        before = np.arange(1 - frames, rows.shape[1])
        episode = self._episode[rows[:, 0].numpy()]
        # Before an episode's first image there is none, so the first one is repeated.
        steps = np.maximum(rows[:, :1].numpy() + before - self._first[episode][:, None], 0)
        images = torch.from_numpy(self._images[name](episode, steps))
        return images.unfold(1, frames, 1).movedim(-1, 2).contiguous()


def _at(values: Tensor, rows: Tensor) -> Tensor:
    """Returns ``values[rows]`` in half the time."""
    return values.index_select(0, rows.reshape(-1)).unflatten(0, rows.shape)


ImageSource = Callable[[NDArray[np.int64], NDArray[np.int64]], NDArray[np.uint8]]
"""A function from episode numbers [B] and steps in them [B, n], successive ones that may begin with repeated zeros, to
images uint8 [B, n, height, width, channels]."""


def _recorded(episodes: Sequence[Episode], name: str) -> list[Array]:
    """A feature of each episode [T, *shape], without what follows the last action."""
    if missing := [episode.id for episode in episodes if name not in episode.observations]:
        raise SpirlError(
            f"Episode {missing[0]!r} does not hold the feature {name!r}: the dataset is not of this environment, or "
            "was cut down."
        )
    return [episode.observations[name][: episode.length] for episode in episodes]


class _Stored:
    """Images that episodes store."""

    def __init__(self, images: list[Array]) -> None:
        self._images = images

    def __call__(self, episodes: NDArray[np.int64], steps: NDArray[np.int64]) -> NDArray[np.uint8]:
        found = np.empty((*steps.shape, *self._images[0].shape[1:]), np.uint8)
        repeated = (steps[:, :-1] == 0) & (steps[:, 1:] == 0)
        lasts, skipped = (steps[:, -1] + 1).tolist(), repeated.sum(1).tolist()
        for row, (episode, first, last, skip) in enumerate(
            zip(episodes.tolist(), steps[:, 0].tolist(), lasts, skipped, strict=True)
        ):
            images = self._images[episode]
            found[row, skip:] = images[first:last]
            if skip:
                found[row, :skip] = images[0]
        return found


class _Rendered:
    """Images that are rendered, all of them at once if they are to be kept."""

    def __init__(self, feature: Feature, make: MakeRenderer, episodes: Sequence[Episode], cache_bytes: float) -> None:
        self._shape = feature.shape
        self._render = make([episode.metadata for episode in episodes])
        lengths = [episode.length for episode in episodes]
        self._firsts = np.cumsum([0, *lengths[:-1]])
        # Only rows of numbers, because no image is rendered from stored images.
        self._numbers = {
            name: np.concatenate(_recorded(episodes, name))
            for name, values in episodes[0].observations.items()
            if values.dtype != np.uint8
        }
        self.cached_bytes = 0
        self._kept: NDArray[np.uint8] | None = None
        rows = sum(lengths)
        if rows * feature.size <= cache_bytes:
            parts = np.array_split(np.arange(rows), 1 + rows // _IMAGES_AT_A_TIME)
            episode = np.repeat(np.arange(len(episodes)), lengths)
            self._kept = np.concatenate([self._rows(episode[part], part) for part in parts])
            self.cached_bytes = self._kept.nbytes

    def __call__(self, episodes: NDArray[np.int64], steps: NDArray[np.int64]) -> NDArray[np.uint8]:
        rows = self._firsts[episodes][:, None] + steps
        if self._kept is not None:
            return self._kept[rows]
        images = self._rows(np.repeat(episodes, steps.shape[1]), rows.ravel())
        return images.reshape(*steps.shape, *self._shape)

    def _rows(self, episodes: NDArray[np.int64], rows: NDArray[np.int64]) -> NDArray[np.uint8]:
        return self._render(episodes, {name: values[rows] for name, values in self._numbers.items()})


def stream_windows(
    episodes: Iterable[Episode],
    horizon: int,
    batch_size: int,
    generator: torch.Generator,
    buffer_bytes: int,
    *,
    features: Features,
    renderers: Mapping[str, MakeRenderer] | None = None,
    observed: int | None = None,
) -> Iterator[Batch]:
    """One pass over episodes that do not fit in memory: shuffles within buffers of at most ``buffer_bytes``.

    An episode that is larger has a buffer to itself. Every window appears once a pass, up to the topping up of each
    buffer's last batch.
    """
    buffer: list[Episode] = []
    size = 0
    for episode in episodes:
        if len(episode.actions) < horizon:
            continue
        added = episode.nbytes
        if buffer and size + added > buffer_bytes:
            table = WindowTable(buffer, horizon, features, renderers=renderers, observed=observed)
            buffer, size = [], 0
            yield from table.shuffled(batch_size, generator)
            del table  # or its episodes would stay in memory with those of the next buffer
        buffer.append(episode)
        size += added
    if buffer:
        table = WindowTable(buffer, horizon, features, renderers=renderers, observed=observed)
        yield from table.shuffled(batch_size, generator)
