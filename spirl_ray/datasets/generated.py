"""Episodes of an environment's scripted expert."""

from __future__ import annotations

import inspect
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from spirl_ray import __version__
from spirl_ray.config import DataSettings
from spirl_ray.datasets.sources import Chunk, Description, Identity, refuse_options, register_source
from spirl_ray.envs import environment
from spirl_ray.episodes.episode import Episode
from spirl_ray.errors import SpirlError


@dataclass(frozen=True)
class GeneratedSource:
    """The source of episodes of an environment's scripted expert; each depends only on (seed, index, kwargs)."""

    environment: str
    """The id of the environment."""
    episodes: int
    """The number of attempts; the expert may give up on some."""
    seed: int = 0
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    """The keyword arguments of the environment's ``generate``."""

    def __post_init__(self) -> None:
        generate = environment(self.environment).generate
        if self.episodes < 1:
            raise SpirlError(f"generated data for {self.environment!r}: episodes must be ≥ 1, not {self.episodes}")
        parameters = inspect.signature(generate).parameters
        if not any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
            known = [name for name in parameters if name not in ("indices", "seed")]
            for name in self.kwargs:
                if name not in known:
                    raise SpirlError(
                        f"generated data for {self.environment!r}: unknown option {name!r}; "
                        f"known: {', '.join(known) or 'none'}"
                    )

    def chunks(self) -> list[Chunk]:
        return [(index,) for index in range(self.episodes)]

    def read(self, chunk: Chunk) -> Iterator[Episode]:
        for episode in environment(self.environment).generate(chunk, self.seed, **self.kwargs):
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


def make(data: DataSettings, env_id: str) -> GeneratedSource:
    """Makes the source of ``data.episodes`` attempts of the environment's expert."""
    refuse_options(data)
    return GeneratedSource(env_id, data.episodes, data.seed, data.generate)


register_source("generated", make)
