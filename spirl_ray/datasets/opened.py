"""The data of an experiment, opened but not read: its source, features and actions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from spirl_ray.config import DataSettings, Outside
from spirl_ray.config_environment import InterfaceSettings
from spirl_ray.datasets.folder import FolderSource, fitted
from spirl_ray.datasets.joined import JoinedSource
from spirl_ray.datasets.mapping import (
    Columns,
    MappedSource,
    fitting_features,
    map_recordings,
    recorded_actions,
    recorded_range,
    without_goals,
)
from spirl_ray.datasets.sources import EpisodeSource, RecordingSettings, make_sources
from spirl_ray.envs.interface import action_range, choose_features, position_target
from spirl_ray.envs.spec import EnvironmentSpec
from spirl_ray.episodes.actions import ActionRange
from spirl_ray.episodes.features import Feature, Features
from spirl_ray.episodes.recording import RecordingReader
from spirl_ray.errors import SpirlError
from spirl_ray.settings import Settings

DATA_ALONE = "data"
"""The name of what data are described by where there is no environment."""


@dataclass(frozen=True)
class OpenedData:
    """The source of the episodes of an experiment, and what they hold."""

    source: EpisodeSource
    spec: EnvironmentSpec
    """The description of the environment, or of the data where there is none."""
    features: dict[str, Feature]
    """The features of the dataset: those of the environment, without goals that were not recorded."""
    rewards: bool
    """False where a source has no rewards."""

    @property
    def action_dim(self) -> int:
        return self.spec.action_dim

    @property
    def actions(self) -> ActionRange | None:
        return self.spec.actions


def open_data(data: DataSettings, interface: InterfaceSettings, spec: EnvironmentSpec | None) -> OpenedData:
    """Opens the sources of an experiment: their files are looked at, and episodes are not read.

    With ``data.actions_outside: rescale``, all actions are read for their range.

    Args:
        data: settings of the data.
        interface: how data without an environment are read.
        spec: description of the environment; None where there is none.

    Raises:
        SpirlError: a source is missing, damaged, or does not fit; the message says what to write.
    """
    made = make_sources(data.sources, spec)
    wheres = [f"data.sources.{place} ({source.type})" for place, source in enumerate(data.sources)]
    if spec is None:
        spec = _described_by(made, interface, wheres)
    readers = [(m, where) for (m, _), where in zip(made, wheres, strict=True) if not isinstance(m, EpisodeSource)]
    if data.actions_outside == "rescale":
        if len(readers) != len(made):
            raise SpirlError(
                "data.actions_outside: rescale needs recorded sources alone; use clip or interface.action."
            )
        spec = replace(spec, actions=_common_range([recorded_range(r, where) for r, where in readers], spec.action_dim))
    sources: list[EpisodeSource] = []
    features, rewards = fitting_features(spec.features, spec), True
    for (source, options), where in zip(made, wheres, strict=True):
        opened, own, rewarded = _opened(source, options, spec, data.actions_outside, where)
        features = {name: feature for name, feature in features.items() if name in own}
        rewards &= rewarded
        sources.append(opened)
    rendered = {name: feature for name, feature in spec.features.items() if not feature.stored}
    kept = [without_goals(s, features) if isinstance(s, MappedSource) else s for s in sources]
    joined = kept[0] if len(kept) == 1 else JoinedSource(tuple(kept))
    ordered = {name: feature for name, feature in spec.features.items() if name in features or name in rendered}
    return OpenedData(joined, spec, ordered, rewards)


def _opened(
    source: EpisodeSource | RecordingReader, options: Settings, spec: EnvironmentSpec, outside: Outside, where: str
) -> tuple[EpisodeSource, Features, bool]:
    """The source of episodes as the environment has them, their features, and False where it has no rewards."""
    if isinstance(source, FolderSource):
        return fitted(source, spec), source.card.features, source.card.rewards
    if isinstance(source, EpisodeSource):
        return source, spec.features, True
    assert isinstance(options, RecordingSettings)
    mapped = map_recordings(source, options, spec, outside, where)
    own = {n: f for n, f in spec.features.items() if mapped.from_recordings is not None or n in mapped.readers}
    return mapped, own, source.layout().rewards


def _common_range(ranges: Sequence[ActionRange | None], action_dim: int) -> ActionRange | None:
    ones = (1.0,) * action_dim
    known = [r or ActionRange(low=tuple(-one for one in ones), high=ones) for r in ranges]
    return ActionRange.around(
        np.min([r.low for r in known], axis=0).tolist(), np.max([r.high for r in known], axis=0).tolist()
    )


def _described_by(
    made: Sequence[tuple[EpisodeSource | RecordingReader, object]], interface: InterfaceSettings, wheres: Sequence[str]
) -> EnvironmentSpec:
    """Describes data without an environment by their first source."""
    (source, options), where = made[0], wheres[0]
    if isinstance(source, FolderSource):
        card = source.card
        return EnvironmentSpec(
            id=card.environment or DATA_ALONE,
            features={n: f for n, f in card.features.items() if f.stored},
            action_dim=card.action_dim,
            max_episode_steps=1,
            actions=card.actions,
            position_target=position_target(interface, card.features, card.action_dim),
        )
    if isinstance(source, EpisodeSource):
        raise SpirlError(f"{where}: such episodes belong to an environment; name it as env.id.")
    assert isinstance(options, RecordingSettings)
    layout = source.layout()
    found = choose_features(Columns.of(layout, options, where).layouts, interface, where)
    features = {name: reader.feature for name, reader in found.items()}
    recorded = recorded_actions(layout, where)
    unit = np.ones(int(np.prod(recorded.shape)))
    low = -unit if layout.action_low is None else np.array(layout.action_low)
    high = unit if layout.action_high is None else np.array(layout.action_high)
    low, high = np.where(np.isfinite(low), low, -unit), np.where(np.isfinite(high), high, unit)
    actions = action_range(recorded, low, high, interface.action, where)
    return EnvironmentSpec(
        id=DATA_ALONE,
        features=features,
        action_dim=len(unit),
        max_episode_steps=1,
        actions=actions,
        position_target=position_target(interface, features, len(unit)),
        keys={name: reader.key for name, reader in found.items()},
    )
