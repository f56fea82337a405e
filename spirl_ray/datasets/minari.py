"""Episodes recorded by others: datasets of the Minari collection."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock

from spirl_ray.config import DataSettings
from spirl_ray.datasets.sources import Chunk, Description, Identity, refuse_options, register_source
from spirl_ray.envs import environment
from spirl_ray.episodes.episode import Episode
from spirl_ray.errors import SpirlError

_D4RL = "D4RL (Fu et al. 2020, arXiv:2004.07219)"
_KNOWN_ORIGINS = {
    "D4RL/kitchen/": ("CC BY 4.0", f"{_D4RL}; Relay Policy Learning (Gupta et al. 2019, arXiv:1910.11956)"),
    "D4RL/": ("CC BY 4.0", _D4RL),
}


@dataclass(frozen=True)
class MinariSource:
    """The source of a dataset of the Minari collection, local or downloaded.

    Observations become features through ``environment(environment_id).minari_observations``; actions and rewards
    are taken as recorded, never clipped. Completed subtasks, which Minari does not record, are found by
    ``environment(environment_id).completed`` where there is one.
    """

    dataset: str
    """The Minari id, such as ``D4RL/kitchen/complete-v2``."""
    root: Path | None
    """The folder of local Minari datasets. None: Minari's own folder, to which missing datasets are downloaded."""
    environment: str
    """The id of the environment."""
    _own_root: str | None = field(
        default_factory=lambda: os.environ.get("MINARI_DATASETS_PATH"), init=False, repr=False
    )

    def __post_init__(self) -> None:
        if self.root is not None:
            object.__setattr__(self, "root", Path(self.root).expanduser().absolute())
        if environment(self.environment).minari_observations is None:
            raise SpirlError(
                f"environment {self.environment!r} has no mapping from Minari observations to its features; "
                f"generate data for it or choose another environment for {self.dataset!r}"
            )

    def chunks(self) -> list[Chunk]:
        return [(index,) for index in range(self._load().total_episodes)]

    def read(self, chunk: Chunk) -> Iterator[Episode]:
        spec = environment(self.environment)
        to_features = spec.minari_observations
        assert to_features is not None
        episodes = self._load().iterate_episodes(list(chunk))
        for index in chunk:
            # One at a time, so that the error of a damaged file names the episode.
            try:
                recorded = next(episodes)
                # What is too large for float32 becomes inf, which validation reports with its place.
                with np.errstate(over="ignore"):
                    observations = {
                        name: np.asarray(values).astype(spec.features[name].dtype)
                        for name, values in to_features(recorded.observations).items()
                    }
                    actions, rewards = (
                        np.asarray(values).astype(np.float32) for values in (recorded.actions, recorded.rewards)
                    )
                metadata: dict[str, Any] = {"minari_episode": index}
                if spec.completed is not None:
                    metadata["completed"] = spec.completed(observations)
                episode = Episode(
                    id=f"{self.dataset}:{index:05d}",
                    observations=observations,
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

    def identity(self) -> Identity:
        return Identity(self.dataset, {"minari": self.dataset})

    @property
    def attempts(self) -> int:
        return 0

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
    """Sets Minari's root, which Minari takes from an environment variable, and restores the variable at the end."""
    before = os.environ.get("MINARI_DATASETS_PATH")
    os.environ["MINARI_DATASETS_PATH"] = str(root)
    try:
        yield
    finally:
        if before is None:
            del os.environ["MINARI_DATASETS_PATH"]
        else:
            os.environ["MINARI_DATASETS_PATH"] = before


def make(data: DataSettings, env_id: str) -> MinariSource:
    """Makes the source of the dataset that ``data.dataset`` names."""
    refuse_options(data)
    if data.dataset is None:
        raise SpirlError(
            f"data.source: {data.source} needs data.dataset, a Minari id such as D4RL/kitchen/complete-v2."
        )
    return MinariSource(data.dataset, data.minari_root, env_id)


register_source("minari", make)
