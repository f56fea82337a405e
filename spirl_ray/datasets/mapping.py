"""Recordings become episodes: features are found by name, actions are rescaled to [-1, 1], alike for every format."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import PurePath
from typing import Any, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

from spirl_ray.config import Outside
from spirl_ray.datasets.sources import NOT_FEATURES, Chunk, Description, Identity, RecordingSettings
from spirl_ray.envs.interface import FeatureReader, feature_name
from spirl_ray.envs.spec import EnvironmentSpec, FromRecordings
from spirl_ray.episodes.actions import ActionRange
from spirl_ray.episodes.episode import Episode
from spirl_ray.episodes.features import Array, Feature, Features, Observation, stored_features
from spirl_ray.episodes.recording import KeyLayout, Recording, RecordingLayout, RecordingReader
from spirl_ray.errors import SpirlError


@dataclass(frozen=True)
class Columns:
    """The keys of recordings under the names that ``columns`` gives them.

    Raises:
        SpirlError: a column names a key that is not there.
    """

    layout: RecordingLayout
    names: Mapping[str, tuple[str, ...]]
    """The keys that together are one column, by the column's name."""

    @classmethod
    def of(cls, layout: RecordingLayout, settings: RecordingSettings, where: str) -> Columns:
        """The columns that a source's options name, and every other key under its own name.

        Raises:
            SpirlError: a key is not there.
        """
        named = {
            name: (keys,) if isinstance(keys, str) else tuple(keys)
            for name, keys in settings.columns.items()
            if name not in NOT_FEATURES
        }
        for name, keys in named.items():
            for key in keys:
                if key not in layout.observations:
                    raise SpirlError(
                        f"{where}: columns.{name}: there is no key {key!r}; there are "
                        f"{', '.join(layout.observations) or 'none'}."
                    )
        taken = {key for keys in named.values() for key in keys}
        return cls(layout, {**named, **{key: (key,) for key in layout.observations if key not in taken}})

    @cached_property
    def layouts(self) -> dict[str, KeyLayout]:
        """The layout of each column."""
        found = {}
        for name, keys in self.names.items():
            parts = [self.layout.observations[key] for key in keys]
            size = sum(math.prod(part.shape) for part in parts)
            found[name] = parts[0] if len(parts) == 1 else KeyLayout((size,), np.dtype(np.float32))
        return found

    def value(self, name: str, observations: Mapping[str, npt.NDArray[Any]]) -> npt.NDArray[Any]:
        """The values [T+1, *shape] of a column."""
        parts = [np.asarray(observations[key]) for key in self.names[name]]
        return parts[0] if len(parts) == 1 else np.concatenate([p.reshape(len(p), -1) for p in parts], axis=1)


def match_features(spec: EnvironmentSpec, columns: Columns, where: str) -> dict[str, FeatureReader]:
    """Finds each stored feature of an environment in recordings; goals that were not recorded are left out.

    Raises:
        SpirlError: a feature is not there, or has another size; the message lists what is there.
    """
    found: dict[str, FeatureReader] = {}
    layouts = columns.layouts
    for name, feature in stored_features(spec.features).items():
        key = _named(name, spec.keys.get(name, name), layouts) or _only_one(feature, layouts, spec)
        if key is None:
            if feature.role == "goal":
                continue
            raise SpirlError(
                f"{where}: nothing there is the feature {name!r} {list(feature.shape)} of {spec.id}. Name it with "
                f"columns: {{{name}: KEY}}; there are {_listed(layouts)}."
            )
        if not feature.is_image and math.prod(layouts[key].shape) != feature.size:
            raise SpirlError(
                f"{where}: {key!r} has {math.prod(layouts[key].shape)} numbers, the feature {name!r} of {spec.id} has "
                f"{feature.size}. Name another key with columns: {{{name}: KEY}}; there are {_listed(layouts)}."
            )
        found[name] = FeatureReader(key, feature)
    return found


def _named(name: str, key: str, layouts: Mapping[str, KeyLayout]) -> str | None:
    for candidate in (name, key, f"{key}s", f"{name}s"):
        if candidate in layouts:
            return candidate
    ends = [
        recorded for recorded in layouts if feature_name(recorded) == name or recorded.endswith((f".{name}", f".{key}"))
    ]
    return ends[0] if len(ends) == 1 else None


def _only_one(feature: Feature, layouts: Mapping[str, KeyLayout], spec: EnvironmentSpec) -> str | None:
    """The one key of recordings that can be meant, where the environment has one such feature."""
    if feature.role == "goal":
        return None
    alike = [f for f in spec.features.values() if f.is_image == feature.is_image and f.role != "goal"]
    if feature.is_image:
        fitting = [key for key, found in layouts.items() if found.dtype == np.uint8 and len(found.shape) >= 2]
    else:
        fitting = [key for key, found in layouts.items() if math.prod(found.shape) == feature.size]
    return fitting[0] if len(alike) == len(fitting) == 1 else None


def _listed(layouts: Mapping[str, KeyLayout]) -> str:
    return ", ".join(f"{key} {list(found.shape)}" for key, found in layouts.items()) or "none"


@dataclass(frozen=True)
class MappedSource:
    """The source of the episodes that a reader's recordings become."""

    reader: RecordingReader
    columns: Columns
    readers: Mapping[str, FeatureReader]
    """The features and their columns, by name."""
    action_dim: int
    actions: ActionRange | None
    """The range of the recorded actions; None is [-1, 1]."""
    outside: Outside = "refuse"
    from_recordings: FromRecordings | None = None
    """What makes the features in place of ``readers``."""
    completed: Callable[[Observation], list[str]] | None = None
    """What finds the completed subtasks in recorded features."""

    @property
    def attempts(self) -> int:
        return 0

    def chunks(self) -> list[Chunk]:
        return self.reader.chunks()

    def read(self, chunk: Chunk) -> Iterator[Episode]:
        for recording in self.reader.read(chunk, self.keys):
            try:
                yield self._episode(recording)
            except SpirlError as error:
                raise SpirlError(f"{self.reader.origin()}: episode {recording.id!r}: {error}") from error

    @property
    def keys(self) -> tuple[str, ...]:
        """The keys of recordings that the features need."""
        if self.from_recordings is not None:
            return self.from_recordings.keys
        return tuple(dict.fromkeys(key for r in self.readers.values() for key in self.columns.names[r.key]))

    def _episode(self, recording: Recording) -> Episode:
        with np.errstate(over="ignore", invalid="ignore"):  # validation reports what becomes infinite
            observations = self._observations(recording.observations)
            actions = np.asarray(recording.actions)
            actions = actions.reshape(len(actions), -1)
            if self.actions is not None and actions.shape[1] == self.action_dim:
                actions = self.actions.normalised(actions)
            actions = actions.astype(np.float32)
            rewards = recording.rewards
            rewards = np.zeros(len(actions), np.float32) if rewards is None else np.asarray(rewards).astype(np.float32)
        if self.outside == "clip":
            actions = np.clip(actions, -1.0, 1.0)
        metadata = dict(recording.metadata)
        if self.completed is not None:
            metadata["completed"] = self.completed(observations)
        return Episode(
            id=recording.id,
            observations=observations,
            actions=actions,
            rewards=rewards.reshape(-1),
            terminated=recording.terminated,
            truncated=recording.truncated and not recording.terminated,
            metadata=metadata,
        )

    def _observations(self, recorded: Mapping[str, npt.NDArray[Any]]) -> dict[str, Array]:
        if self.from_recordings is not None:
            return dict(self.from_recordings.features(recorded))
        return {name: reader.read(self.columns.value(reader.key, recorded), 1) for name, reader in self.readers.items()}

    def description(self) -> Description:
        return Description(self.reader.origin(), self.reader.licence(), self.reader.attribution())

    def identity(self) -> Identity:
        readers = {
            name: [self.columns.names[r.key], r.feature.model_dump(mode="json")] for name, r in self.readers.items()
        }
        mapping = {"readers": readers, "outside": self.outside, "actions": _plain(self.actions), "keys": self.keys}
        place = PurePath(self.reader.origin().rpartition(":")[2])
        name = (place.name if place.is_absolute() else str(place)) or "data"
        return Identity(
            re.sub(r"[^A-Za-z0-9_.-]", "-", name), {"recordings": self.reader.identity(), "mapping": mapping}
        )


def _plain(actions: ActionRange | None) -> Any:
    return None if actions is None else actions.model_dump(mode="json")


def map_recordings(
    reader: RecordingReader, settings: RecordingSettings, spec: EnvironmentSpec, outside: Outside, where: str
) -> MappedSource:
    """Maps the recordings of a reader to the features and actions of an environment.

    Args:
        reader: reader of the recordings.
        settings: options of the source, of which ``columns`` matter here.
        spec: description of the environment, or of the data where there is none.
        outside: what happens to actions outside the range.
        where: name of the source in messages.

    Raises:
        SpirlError: they do not fit together; the message says what to write.
    """
    layout = reader.layout()
    check_actions(layout, spec, where)
    columns = Columns.of(layout, settings, where)
    own = spec.from_recordings if not columns.names.keys() - layout.observations.keys() else None
    if own is not None and (missing := [key for key in own.keys if key not in layout.observations]):
        raise SpirlError(
            f"{where}: recordings of {spec.id} hold the key {missing[0]!r}; these hold "
            f"{', '.join(layout.observations) or 'none'}."
        )
    readers = {} if own is not None else match_features(spec, columns, where)
    return MappedSource(
        reader=_scaled(reader, readers, columns),
        columns=columns,
        readers=readers,
        action_dim=spec.action_dim,
        actions=spec.actions,
        outside=outside,
        from_recordings=own,
        completed=spec.completed,
    )


@runtime_checkable
class ScalingReader(RecordingReader, Protocol):
    """A reader that scales images while it decodes them, which needs less memory than scaling them afterwards."""

    def scaled(self, sizes: Mapping[str, tuple[int, int]]) -> RecordingReader:
        """The same reader with the images of these keys in another height and width."""


def _scaled(reader: RecordingReader, readers: Mapping[str, FeatureReader], columns: Columns) -> RecordingReader:
    if not isinstance(reader, ScalingReader):
        return reader
    sizes = {columns.names[r.key][0]: r.feature.shape[:2] for r in readers.values() if r.feature.is_image}
    return reader.scaled({key: (height, width) for key, (height, width) in sizes.items()})


def recorded_actions(layout: RecordingLayout, where: str) -> KeyLayout:
    """The layout of the actions, or a `SpirlError` where recordings have none."""
    if layout.actions is None:
        raise SpirlError(
            f"{where}: there are no actions, of which skills are made. Name them with columns: {{action: KEY}}."
        )
    return layout.actions


def check_actions(layout: RecordingLayout, spec: EnvironmentSpec, where: str) -> None:
    """Raises `SpirlError` unless recordings have actions of the environment's size."""
    found = math.prod(recorded_actions(layout, where).shape)
    if found != spec.action_dim:
        raise SpirlError(f"{where}: actions have {found} entries, those of {spec.id} have {spec.action_dim}.")


def fitting_features(features: Features, spec: EnvironmentSpec) -> dict[str, Feature]:
    """The stored features of an environment, without the goals that these features lack."""
    return {
        name: feature
        for name, feature in stored_features(spec.features).items()
        if feature.role != "goal" or name in features
    }


def recorded_range(reader: RecordingReader, where: str) -> ActionRange | None:
    """The range from the least to the greatest action of all recordings, which are read for it.

    Raises:
        SpirlError: there is no finite action.
    """
    ends: list[npt.NDArray[np.float64]] = []
    for chunk in reader.chunks():
        for recording in reader.read(chunk, ()):
            actions = np.asarray(recording.actions, np.float64)
            if len(actions):
                flat = actions.reshape(len(actions), -1)
                ends += [flat.min(axis=0), flat.max(axis=0)]
    if not ends or not np.isfinite(ends).all():
        raise SpirlError(
            f"{where}: data.actions_outside: rescale needs finite actions; check the data, or set interface.action."
        )
    return ActionRange.of_data(np.min(ends, axis=0), np.max(ends, axis=0))


def without_goals(source: MappedSource, kept: Features) -> MappedSource:
    """The same source without features that are not kept."""
    return replace(source, readers={name: r for name, r in source.readers.items() if name in kept})
