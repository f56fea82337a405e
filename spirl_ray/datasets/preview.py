"""A look at sources before they are imported: what they hold, how it would be mapped, what would be refused."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from spirl_ray.config import DataSettings
from spirl_ray.config_environment import InterfaceSettings
from spirl_ray.datasets.importing import OUTSIDE_HINT
from spirl_ray.datasets.joined import JoinedSource
from spirl_ray.datasets.mapping import MappedSource
from spirl_ray.datasets.opened import OpenedData, open_data
from spirl_ray.datasets.sources import EpisodeSource, make_sources
from spirl_ray.envs.spec import EnvironmentSpec
from spirl_ray.episodes.validation import check_episode
from spirl_ray.errors import SpirlError


@dataclass(frozen=True)
class SourcePreview:
    """What one source holds, as its files say it."""

    place: str
    """The place in the settings and the type, such as ``data.sources.0 (npz)``."""
    origin: str
    keys: dict[str, str]
    """The keys of observations with type and shape; empty for sources that give episodes."""
    actions: str
    episodes: int
    rewards: bool


@dataclass
class DataPreview:
    """What an import would read, map and refuse."""

    sources: list[SourcePreview]
    mapping: dict[str, str] = field(default_factory=dict)
    """The recorded keys of each feature."""
    looked_at: int = 0
    """The number of episodes that have been read."""
    episodes: int = 0
    """The number of episodes there are."""
    lengths: list[int] = field(default_factory=list)
    low: npt.NDArray[Any] | None = None
    """The least value of each entry of the actions, in units of the source."""
    high: npt.NDArray[Any] | None = None
    problem: str | None = None
    """What would stop the import."""


def preview_data(
    data: DataSettings, interface: InterfaceSettings, spec: EnvironmentSpec | None, seconds: float = 30.0
) -> DataPreview:
    """Reads sources without writing anything.

    Args:
        data: settings of the data.
        interface: how data without an environment are read.
        spec: description of the environment; None where there is none.
        seconds: time after which no further episode is read.

    Raises:
        SpirlError: a source cannot be looked at at all. What would stop an import later is `DataPreview.problem`.
    """
    found = DataPreview(_sources(data, spec))
    try:
        opened = open_data(data, interface, spec)
    except SpirlError as error:
        found.problem = str(error)
        return found
    found.mapping = _mapping(opened)
    _read(found, opened, time.monotonic() + seconds)
    return found


def _sources(data: DataSettings, spec: EnvironmentSpec | None) -> list[SourcePreview]:
    previews = []
    for place, (source, _) in enumerate(make_sources(data.sources, spec)):
        name = f"data.sources.{place} ({data.sources[place].type})"
        episodes = sum(map(len, source.chunks()))
        if isinstance(source, EpisodeSource):
            previews.append(SourcePreview(name, source.description().source, {}, "", episodes, True))
            continue
        layout = source.layout()
        keys = {key: f"{known.dtype} {list(known.shape)}" for key, known in layout.observations.items()}
        actions = "none" if layout.actions is None else f"{layout.actions.dtype} {list(layout.actions.shape)}"
        previews.append(SourcePreview(name, source.origin(), keys, actions, episodes, layout.rewards))
    return previews


def _mapping(opened: OpenedData) -> dict[str, str]:
    parts: Sequence[EpisodeSource] = opened.source.parts if isinstance(opened.source, JoinedSource) else [opened.source]
    mapping: dict[str, str] = {}
    for part in parts:
        if isinstance(part, MappedSource):
            if part.from_recordings is not None:
                mapping |= dict.fromkeys(opened.features, " + ".join(part.keys))
            for name, reader in part.readers.items():
                keys = " + ".join(part.columns.names[reader.key])
                mapping[name] = keys if mapping.get(name, keys) == keys else f"{mapping[name]} or {keys}"
    return {name: mapping.get(name, name) for name in opened.features}


def _read(found: DataPreview, opened: OpenedData, until: float) -> None:
    chunks = opened.source.chunks()
    found.episodes = sum(map(len, chunks))
    lows, highs = [], []
    for chunk in chunks:
        try:
            for episode in opened.source.read(chunk):
                found.looked_at += 1
                found.lengths.append(episode.length)
                actions = episode.actions
                if actions.ndim == 2 and len(actions) and actions.shape[1] == opened.action_dim:
                    own = actions if opened.actions is None else opened.actions.restored(actions)
                    lows.append(own.min(axis=0))
                    highs.append(own.max(axis=0))
                problems = check_episode(episode, opened.features, opened.action_dim, opened.actions)
                if problems and found.problem is None:
                    name, what = problems[0]
                    hint = f". {OUTSIDE_HINT}" if "outside" in what else ""
                    found.problem = f"{opened.source.description().source}: {episode.id}: {name}: {what}{hint}"
                if time.monotonic() > until:
                    break
        except SpirlError as error:
            found.problem = found.problem or str(error)
            break
        if time.monotonic() > until:
            break
    if lows:
        found.low, found.high = np.min(lows, axis=0), np.max(highs, axis=0)
