"""Episodes of an environment's scripted expert."""

from __future__ import annotations

import json
import pkgutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from pydantic import Field

from spirl_ray import __version__
from spirl_ray.arguments import checked_arguments
from spirl_ray.config import Settings
from spirl_ray.datasets.sources import Chunk, Description, Identity, register_source
from spirl_ray.envs.spec import EnvironmentSpec
from spirl_ray.episodes.episode import Episode
from spirl_ray.errors import SpirlError
from spirl_ray.settings import MANY, Seed


class GeneratedSettings(Settings):
    """The options of ``type: generated``."""

    episodes: int = Field(default=100, ge=1, le=MANY)
    """The number of episodes to generate."""
    seed: Seed = 0
    options: dict[str, Any] = Field(default_factory=dict)
    """Options of the environment's scripted expert."""


@dataclass(frozen=True)
class GeneratedSource:
    """The source of episodes of an environment's scripted expert; each depends only on (seed, index, kwargs)."""

    environment: str
    """The id of the environment."""
    expert: str
    """The expert, as "module:function"."""
    episodes: int
    """The number of attempts; the expert may give up on some."""
    seed: int = 0
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    """The options of the expert."""

    def __post_init__(self) -> None:
        where = f"data.sources: options: the scripted expert of {self.environment}"
        kwargs = checked_arguments(self._generate, self.kwargs, where, apart=("indices", "seed"))
        object.__setattr__(self, "kwargs", kwargs)

    def chunks(self) -> list[Chunk]:
        return [(index,) for index in range(self.episodes)]

    def read(self, chunk: Chunk) -> Iterator[Episode]:
        for episode in self._generate(chunk, self.seed, **self.kwargs):
            if episode is not None:
                yield episode

    def description(self) -> Description:
        options = json.dumps(dict(self.kwargs), sort_keys=True, default=str)
        return Description(
            f"generated:{self.environment} episodes={self.episodes} seed={self.seed} options={options}",
            "Apache-2.0",
            f"scripted expert of spirl-ray {__version__}",
        )

    def identity(self) -> Identity:
        settings = {"episodes": self.episodes, "seed": self.seed, "options": dict(self.kwargs)}
        return Identity(f"generated-{self.episodes}", {"generated": settings})

    @property
    def attempts(self) -> int:
        return self.episodes

    @property
    def _generate(self) -> Callable[..., Iterator[Episode | None]]:
        found: Callable[..., Iterator[Episode | None]] = pkgutil.resolve_name(self.expert)
        return found


def make(options: GeneratedSettings, spec: EnvironmentSpec | None) -> GeneratedSource:
    """Makes the source of attempts of the environment's expert."""
    if spec is None or spec.expert is None:
        named = "there is no environment" if spec is None else f"environment {spec.id!r} has no scripted expert"
        raise SpirlError(f"data.sources: type generated needs a scripted expert, and {named}. Name recorded data.")
    return GeneratedSource(spec.id, spec.expert, options.episodes, options.seed, options.options)


register_source("generated", GeneratedSettings, make)
