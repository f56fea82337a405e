"""A writer of datasets: episodes are added as arrays, checked, and written as they arrive."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from pydantic import TypeAdapter, ValidationError

from spirl_ray.episodes.actions import ActionRange
from spirl_ray.episodes.dataset import GROUP_BYTES
from spirl_ray.episodes.dataset_file import DatasetFile, write_card
from spirl_ray.episodes.episode import Episode
from spirl_ray.episodes.features import Array, Feature, FeatureName, stored_features
from spirl_ray.episodes.validation import check_episode, episode_digest
from spirl_ray.errors import SpirlError
from spirl_ray.files import layout
from spirl_ray.files.atomic import partial_folder
from spirl_ray.settings import in_words

_FEATURES = TypeAdapter(dict[FeatureName, Feature])
_OPEN_BYTES = 32 * 2**20
"""The size of the row groups of all files together at which one is written, so that memory stays bounded."""
_SHOWN_PROBLEMS = 10


class _Abandoned(Exception):
    """The error that the block of a writer has raised, so that what it has written is removed."""


class DatasetWriter:
    """Writes a dataset folder from arrays, an episode at a time; the folder appears complete or not at all.

    Example:
        >>> features = {"position": Feature(shape=(2,)), "front": Feature(shape=(64, 64, 3), role="image")}
        >>> with DatasetWriter("data/mine", features=features, action_dim=2, environment="mine/Reach-v0") as writer:
        ...     for trajectory in recorded:
        ...         writer.add(
        ...             observations={"position": trajectory.positions, "front": trajectory.frames},
        ...             actions=trajectory.actions,
        ...             rewards=trajectory.rewards,
        ...             terminated=trajectory.solved,
        ...         )

    An experiment reads it with ``data: {sources: [{type: folder, path: data/mine}]}``. An exception within the block
    removes what has been written.

    Args:
        path: the folder to make; it must not exist, or be empty.
        features: features of the environment by name, as `Feature` or as its fields in a dict. Features that the
            environment renders (``stored=False``) are declared as well, but episodes leave them out.
        action_dim: width of an action.
        environment: id of the environment that the episodes belong to; None for data alone.
        actions: range of the actions as pairs (low, high), one for each entry; None is [-1, 1].
        source: origin of the episodes, for the card.
        licence: licence of the episodes, for the card.
        attribution: people or papers to name, for the card.
        shards: number of Parquet files, if there are as many episodes; at least as many as training workers.

    Raises:
        SpirlError: impossible features, a folder that holds something, or storage that fails.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        features: Mapping[str, Feature | Mapping[str, Any]],
        action_dim: int,
        environment: str | None = None,
        actions: Sequence[tuple[float, float]] | None = None,
        source: str = "DatasetWriter",
        licence: str = "unknown",
        attribution: str = "unknown",
        shards: int = 8,
    ) -> None:
        self.path = Path(path).absolute()
        self._where = f"dataset {self.path}"
        try:
            self.features = _FEATURES.validate_python(dict(features))
        except ValidationError as error:
            fault = error.errors()[0]
            raise SpirlError(f"{self._where}: features: {fault['loc'][0]}: {in_words(fault)}") from error
        if not stored_features(self.features):
            raise SpirlError(f"{self._where}: features: none of them is stored, so episodes would hold no observation")
        for name, value in (("action_dim", action_dim), ("shards", shards)):
            if value < 1:
                raise SpirlError(f"{self._where}: {name} must be ≥ 1, not {value}")
        self.action_dim = action_dim
        self.actions = self._range(actions)
        self._rewards = True
        self.environment = environment
        self._source, self._licence, self._attribution = source, licence, attribution
        self._shards = shards
        self._open = ExitStack()
        self._files: list[DatasetFile] = []
        self._identifiers: set[str] = set()
        self._entered = False

    def _range(self, ends: Sequence[tuple[float, float]] | None) -> ActionRange | None:
        if ends is None:
            return None
        try:
            pairs = [(low, high) for low, high in ends]
        except TypeError:
            raise SpirlError(
                f"{self._where}: actions must be a pair (low, high) for each entry of an action, such as "
                f"{[(-1.0, 1.0)] * self.action_dim}, not {ends!r}"
            ) from None
        if len(pairs) != self.action_dim:
            raise SpirlError(
                f"{self._where}: actions has {len(pairs)} ranges for {self.action_dim} entries of an action"
            )
        try:
            return ActionRange.around([low for low, _ in pairs], [high for _, high in pairs])
        except ValidationError as error:
            raise SpirlError(f"{self._where}: actions: {in_words(error.errors()[0])}") from error

    @property
    def episodes(self) -> int:
        """The number of episodes that have been added."""
        return len(self._identifiers)

    def __enter__(self) -> DatasetWriter:
        if os.path.lexists(self.path) and not (self.path.is_dir() and not any(self.path.iterdir())):
            raise SpirlError(f"{self._where}: there is something already; choose another folder, or remove it")
        self._folder = partial_folder(self.path)
        self._partial = self._folder.__enter__()
        self._entered = True
        return self

    def add(
        self,
        *,
        observations: Mapping[str, npt.ArrayLike],
        actions: npt.ArrayLike,
        rewards: npt.ArrayLike | None = None,
        terminated: bool = False,
        truncated: bool | None = None,
        id: str | None = None,
        metadata: Mapping[str, Any] | None = None,
    ) -> None:
        """Checks an episode of T actions and adds it.

        Args:
            observations: [T + 1, *shape] for each stored feature by name, the last row after the last action: integers
                from 0 to 255 for images, else numbers, which are kept as float32.
            actions: [T, action_dim] in the range of the writer's ``actions``.
            rewards: [T]; None where there are none.
            terminated: the task ended the episode.
            truncated: a time limit or the recording ended it; None is the opposite of ``terminated``, which wins where
                both are set.
            id: unique in the dataset; None numbers the episodes.
            metadata: JSON-able information; ``completed`` lists the subtasks in the order of completion.

        Raises:
            SpirlError: the episode is wrong; the message has field and row. The episode is not added then, and the
                dataset still can be finished without it.
        """
        if not self._entered:
            raise SpirlError(f"{self._where}: episodes can be added within the `with` block only")
        identifier = f"episode-{self.episodes:06d}" if id is None else id
        if identifier in self._identifiers:
            raise SpirlError(f"{self._where}: there is an episode {identifier!r} already; ids must be unique")
        acted = self._numbers(identifier, "actions", actions)
        if self.actions is not None and acted.ndim == 2 and acted.shape[1] == self.action_dim:
            acted = self.actions.normalised(acted)
        self._rewards &= rewards is not None
        episode = Episode(
            id=identifier,
            observations={name: self._observed(identifier, name, values) for name, values in observations.items()},
            actions=acted,
            rewards=np.zeros(len(acted), np.float32)
            if rewards is None
            else self._numbers(identifier, "rewards", rewards),
            terminated=bool(terminated),
            truncated=not terminated if truncated is None else bool(truncated) and not terminated,
            metadata=dict(metadata or {}),
        )
        if problems := check_episode(episode, self.features, self.action_dim, self.actions):
            listing = "\n".join(f"  {field}: {what}" for field, what in problems[:_SHOWN_PROBLEMS])
            raise SpirlError(f"{self._where}: episode {identifier!r} is not valid:\n{listing}")
        try:
            digest = episode_digest(episode)
            self._file(self.episodes % self._shards).add(episode, digest)
        except SpirlError as error:  # metadata that are not JSON-able
            raise SpirlError(f"{self._where}: {error}") from error
        except (OSError, pa.ArrowException) as error:
            raise self._storage(error) from error
        self._identifiers.add(identifier)

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        self._entered = False
        with suppress(_Abandoned), ExitStack() as stack:
            stack.push(self._folder)
            stack.callback(self._open.close)
            if error is not None:
                raise _Abandoned  # what the block raised is not an error of writing
            self._finish()

    def _observed(self, identifier: str, name: str, values: npt.ArrayLike) -> Array:
        """Converts the values of a feature to its dtype; unknown names and wrong shapes are left to `check_episode`."""
        feature = self.features.get(name)
        if feature is None or not feature.is_image:
            return self._numbers(identifier, name, values)
        found = np.asarray(values)
        if found.dtype.kind not in "iu" or (found.size and (found.min() < 0 or found.max() > 255)):
            raise SpirlError(
                f"{self._where}: episode {identifier!r}: {name} is an image and must hold integers from 0 to 255, not "
                f"{found.dtype}" + (f" from {found.min()} to {found.max()}" if found.size else "")
            )
        return found.astype(np.uint8)

    def _numbers(self, identifier: str, name: str, values: npt.ArrayLike) -> npt.NDArray[np.float32]:
        try:
            found = np.asarray(values, dtype=np.float32)
        except (TypeError, ValueError) as error:
            raise SpirlError(
                f"{self._where}: episode {identifier!r}: {name} is not an array of numbers: {error}"
            ) from error
        if found.ndim == 0:
            raise SpirlError(f"{self._where}: episode {identifier!r}: {name} is a single number, not an array")
        return found.copy()  # the caller may fill the same array again

    def _file(self, shard: int) -> DatasetFile:
        if shard == len(self._files):
            path, group_bytes = self._partial / f"shard-{shard:05d}", min(GROUP_BYTES, _OPEN_BYTES / self._shards)
            file = DatasetFile(path, self.features, self.action_dim, group_bytes)
            self._files.append(self._open.enter_context(file))
        return self._files[shard]

    def _finish(self) -> None:
        if not self._identifiers:
            raise SpirlError(f"{self._where}: no episode has been added")
        try:
            entries = [file.finish() for file in self._files]
        except pa.ArrowException as error:
            raise self._storage(error) from error
        files = {layout.episodes_file(shard, len(entries)): entry for shard, entry in enumerate(entries)}
        for file, name in zip(self._files, files, strict=True):
            file.path.rename(self._partial / name)
        write_card(
            self._partial,
            files,
            [pair for file in self._files for pair in file.digests],
            sum(file.steps for file in self._files),
            environment=self.environment,
            features=self.features,
            action_dim=self.action_dim,
            actions=self.actions,
            rewards=self._rewards,
            source=self._source,
            licence=self._licence,
            attribution=self._attribution,
        )

    def _storage(self, error: Exception) -> SpirlError:
        name, reason = getattr(error, "filename", None) or self.path, getattr(error, "strerror", None) or error
        return SpirlError(f"{self._where}: {name}: {reason}; nothing is left of it. Free space or fix permissions.")
