"""Opened data of environments, for tests that import without a config."""

from __future__ import annotations

from typing import Any

from spirl_ray.config import DataSettings, EnvironmentSettings, InterfaceSettings
from spirl_ray.datasets.opened import OpenedData, open_data
from spirl_ray.datasets.sources import EpisodeSource
from spirl_ray.envs import environment
from spirl_ray.envs.spec import EnvironmentSpec
from spirl_ray.episodes.episode import Episode


def sources(*entries: dict[str, Any], env: EnvironmentSettings | str) -> OpenedData:
    """The entries of ``data.sources`` for an environment."""
    return open_data(DataSettings.model_validate({"sources": entries}), InterfaceSettings(), environment(env))


def generated(env: EnvironmentSettings | str, episodes: int, **options: Any) -> OpenedData:
    """Episodes of an environment's expert; ``options`` are those of ``type: generated``."""
    return sources({"type": "generated", "episodes": episodes, **options}, env=env)


def expert_episodes(env: EnvironmentSettings | str, count: int, seed: int = 0, **options: Any) -> list[Episode]:
    """Episodes of an environment's expert with these options."""
    source = generated(env, count, seed=seed, options=options).source
    return [episode for chunk in source.chunks() for episode in source.read(chunk)]


def given(source: EpisodeSource, spec: EnvironmentSpec) -> OpenedData:
    """A source that a test has made, whose episodes have all features of this environment."""
    return OpenedData(source, spec, dict(spec.features), rewards=True)
