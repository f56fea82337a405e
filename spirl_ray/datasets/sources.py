"""Where episodes come from: a Minari dataset, an environment's scripted expert, or several of these."""

from __future__ import annotations

import inspect
import itertools
import json
import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from filelock import FileLock

from spirl_ray import __version__
from spirl_ray.envs import environment
from spirl_ray.episodes.dataset import Episode
from spirl_ray.errors import SpirlError

Chunk = tuple[int, ...]
"""Indices of episodes within a source. Chunks may be joined: reading is a matter of the indices alone."""


@dataclass(frozen=True)
class Description:
    """Facts about a source that a dataset's card repeats."""

    source: str
    licence: str
    attribution: str


class EpisodeSource(Protocol):
    """Episodes by index; picklable, and read in any number of processes with the same result."""

    def chunks(self) -> list[Chunk]:
        """Every episode's index once, in the order of the dataset: 0, 1, 2, …"""

    def read(self, chunk: Chunk) -> Iterator[Episode]:
        """The episodes with these indices, in order; an index may have none (an expert that failed)."""

    def description(self) -> Description:
        """Facts for the card."""


_D4RL = "D4RL (Fu et al. 2020, arXiv:2004.07219)"
_KNOWN_ORIGINS = {
    "D4RL/kitchen/": ("CC BY 4.0", f"{_D4RL}; Relay Policy Learning (Gupta et al. 2019, arXiv:1910.11956)"),
    "D4RL/": ("CC BY 4.0", _D4RL),
}


@dataclass(frozen=True)
class MinariSource:
    """A dataset of the Minari collection, local or downloaded.

    Observations become states through ``environment(environment_id).minari_states``; actions and rewards
    are taken as recorded, never clipped. Completed subtasks, which Minari does not record, are found by
    ``environment(environment_id).completed`` where there is one.
    """

    dataset: str
    """Minari id, e.g. ``D4RL/kitchen/complete-v2``."""
    root: Path | None
    """Folder of local Minari datasets. None: Minari's own, and what is missing there is downloaded."""
    environment: str
    """spirl id."""
    _own_root: str | None = field(
        default_factory=lambda: os.environ.get("MINARI_DATASETS_PATH"), init=False, repr=False
    )

    def __post_init__(self) -> None:
        if self.root is not None:
            object.__setattr__(self, "root", Path(self.root).expanduser().absolute())
        if environment(self.environment).minari_states is None:
            raise SpirlError(
                f"environment {self.environment!r} has no mapping from Minari observations to states; "
                f"generate data for it or choose another environment for {self.dataset!r}"
            )

    def chunks(self) -> list[Chunk]:
        return [(index,) for index in range(self._load().total_episodes)]

    def read(self, chunk: Chunk) -> Iterator[Episode]:
        spec = environment(self.environment)
        to_states = spec.minari_states
        assert to_states is not None
        episodes = self._load().iterate_episodes(list(chunk))
        for index in chunk:
            # One at a time, so that the error of a damaged file names the episode.
            try:
                recorded = next(episodes)
                # What is too large for float32 becomes inf, which validation reports with its place.
                with np.errstate(over="ignore"):
                    states, actions, rewards = (
                        np.asarray(values).astype(np.float32)
                        for values in (
                            to_states(recorded.observations),
                            recorded.actions,
                            recorded.rewards,
                        )
                    )
                metadata: dict[str, Any] = {"minari_episode": index}
                if spec.completed is not None:
                    metadata["completed"] = spec.completed(states)
                episode = Episode(
                    id=f"{self.dataset}:{index:05d}",
                    states=states,
                    actions=actions,
                    rewards=rewards,
                    terminated=bool(np.any(recorded.terminations[-1:])),
                    truncated=bool(np.any(recorded.truncations[-1:])),
                    metadata=metadata,
                )
            except SpirlError as error:
                raise SpirlError(f"{self._folder()}: episode {index}: {error}") from error
            except (OSError, KeyError, IndexError, ValueError, TypeError, AssertionError) as error:
                raise SpirlError(
                    f"{self._folder()}: episode {index} cannot be read as {self.environment!r}: "
                    f"{type(error).__name__}: {error}"
                ) from error
            yield episode

    def description(self) -> Description:
        for prefix, (licence, attribution) in _KNOWN_ORIGINS.items():
            if self.dataset.startswith(prefix):
                return Description(f"minari:{self.dataset}", licence, attribution)
        authors = self._load().storage.metadata.get("author") or "unknown author"
        authors = authors if isinstance(authors, str) else ", ".join(map(str, authors))
        return Description(f"minari:{self.dataset}", "unknown: see the dataset's page", authors)

    def _folder(self) -> Path:
        root = self.root or Path(self._own_root or "~/.minari/datasets").expanduser().absolute()
        return root / self.dataset

    def _load(self) -> Any:
        import minari  # here, because it takes a second and most commands never need it

        data = self._folder() / "data"
        if not data.is_dir():
            if self.root is not None:
                raise SpirlError(_not_there(self.root, self.dataset))
            self._download()
        try:
            return minari.MinariDataset(str(data))
        except (OSError, KeyError, ValueError, TypeError, AssertionError) as error:
            raise SpirlError(f"{data}: not a readable Minari dataset: {error}") from error

    def _download(self) -> None:
        import minari

        root = Path(str(self._folder()).removesuffix(self.dataset))
        how = (
            "without network access, copy the dataset from another machine and give the folder that holds "
            f"{self.dataset!r} as the Minari root"
        )
        try:
            root.mkdir(parents=True, exist_ok=True)
            # Several tasks on a node may miss the dataset at the same time.
            with FileLock(root / ".spirl-download.lock"), _minari_root(root):
                if not (self._folder() / "data").is_dir():
                    minari.download_dataset(self.dataset)
        except ImportError as error:
            raise SpirlError(
                f"Minari dataset {self.dataset!r} is not in {root} and cannot be downloaded: {error}; {how}"
            ) from error
        except Exception as error:  # whatever the remote's client raises: network, HTTP, unknown dataset
            raise SpirlError(
                f"Minari dataset {self.dataset!r} is not in {root} and its download failed: "
                f"{type(error).__name__}: {error}; check the id and the network; {how}"
            ) from error


@dataclass(frozen=True)
class GeneratedSource:
    """Episodes of an environment's scripted expert; each depends only on (seed, index, kwargs)."""

    environment: str
    """spirl id."""
    episodes: int
    """Attempts; the expert may give up on some."""
    seed: int = 0
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    """Keyword arguments of the environment's ``generate``."""

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


@dataclass(frozen=True)
class JoinedSource:
    """The episodes of several sources, one source after the other."""

    parts: tuple[EpisodeSource, ...]

    def chunks(self) -> list[Chunk]:
        return [
            tuple(first + index for index in chunk)
            for first, part in zip(self._firsts, self.parts, strict=True)
            for chunk in part.chunks()
        ]

    def read(self, chunk: Chunk) -> Iterator[Episode]:
        for first, end, part in zip(self._firsts, [*self._firsts[1:], sys.maxsize], self.parts, strict=True):
            if own := tuple(index - first for index in chunk if first <= index < end):
                yield from part.read(own)

    def description(self) -> Description:
        parts = [part.description() for part in self.parts]
        return Description(*(" + ".join(getattr(part, fact.name) for part in parts) for fact in fields(Description)))

    @property
    def _firsts(self) -> list[int]:
        """The index of each part's first episode."""
        counts = [sum(map(len, part.chunks())) for part in self.parts[:-1]]
        return list(itertools.accumulate(counts, initial=0))


def _not_there(root: Path, dataset: str) -> str:
    if not root.is_dir():
        return f"{root}: no such folder; it was given as the root of the Minari dataset {dataset!r}"
    there = sorted(str(file.parent.parent.relative_to(root)) for file in root.rglob("data/metadata.json"))
    return (
        f"{root}: holds no Minari dataset {dataset!r}; found there: {', '.join(there) or 'none'}. "
        "The root is the folder in which the dataset's id is a path"
    )


@contextmanager
def _minari_root(root: Path) -> Iterator[None]:
    """Minari takes its root from the environment only; put back what was there."""
    before = os.environ.get("MINARI_DATASETS_PATH")
    os.environ["MINARI_DATASETS_PATH"] = str(root)
    try:
        yield
    finally:
        if before is None:
            del os.environ["MINARI_DATASETS_PATH"]
        else:
            os.environ["MINARI_DATASETS_PATH"] = before
