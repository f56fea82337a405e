"""The format ``minari``: datasets of the Minari collection, local or downloaded."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import gymnasium
import numpy as np
from filelock import FileLock

from spirl_ray.datasets.formats.arrays import assemble, leaves, missing
from spirl_ray.datasets.sources import RecordingSettings, register_source
from spirl_ray.envs.interface import ONLY, flattened
from spirl_ray.envs.spec import EnvironmentSpec
from spirl_ray.episodes.recording import NUMBERS, KeyLayout, Recording, RecordingLayout, RecordingReader
from spirl_ray.errors import SpirlError
from spirl_ray.files.fingerprint import files_identity
from spirl_ray.settings import SettingPath

_D4RL = "D4RL (Fu et al. 2020, arXiv:2004.07219)"
_KNOWN_ORIGINS = {
    "D4RL/kitchen/": ("CC BY 4.0", f"{_D4RL}; Relay Policy Learning (Gupta et al. 2019, arXiv:1910.11956)"),
    "D4RL/": ("CC BY 4.0", _D4RL),
}
_DATA, _METADATA = "data", "metadata.json"
"""The folder within a dataset's folder that holds its files, and the file that describes them."""
_INFOS = "infos."
_GROUPS = (Mapping, tuple)
"""The types of nested observations and infos."""
_FAULTS = (OSError, KeyError, IndexError, ValueError, TypeError, AssertionError, RuntimeError)
"""What Minari, h5py and pyarrow raise for damaged files."""


class MinariSettings(RecordingSettings):
    """The options of an entry ``{type: minari, id: …}``."""

    type: Literal["minari"] = "minari"
    id: str
    """The Minari id, such as ``D4RL/kitchen/complete-v2``."""
    root: SettingPath | None = None
    """The folder of local Minari datasets. None: Minari's own folder, to which missing datasets are downloaded."""


@dataclass(frozen=True)
class MinariReader:
    """The reader of a dataset of the Minari collection, as HDF5, Arrow or Parquet.

    The keys of nested observations are joined by dots, entries of a tuple by their numbers. What ``infos`` holds for
    every observation is a key ``infos.NAME``.
    """

    dataset: str
    """The Minari id."""
    root: Path | None = None
    """The folder of local Minari datasets. None: Minari's own folder, to which missing datasets are downloaded."""
    _own_root: str | None = field(
        default_factory=lambda: os.environ.get("MINARI_DATASETS_PATH"), init=False, repr=False
    )

    def __post_init__(self) -> None:
        if self.root is not None:
            object.__setattr__(self, "root", Path(self.root).expanduser().absolute())

    def layout(self) -> RecordingLayout:
        """Reads the dataset's spaces, and its first episode, because nothing else says what ``infos`` holds.

        Raises:
            SpirlError: there is no such dataset, it is damaged or of another version, or its actions are no Box.
        """
        data = self._load()
        actions = data.action_space
        if not isinstance(actions, gymnasium.spaces.Box):
            raise SpirlError(f"{self._folder()}: has actions {actions}; only those of a Box can be imported.")
        observations = {
            key: KeyLayout(part.shape or (1,), part.dtype)
            for key, part in flattened(data.observation_space).items()
            if part.shape is not None and part.dtype is not None and part.dtype.kind in NUMBERS
        }
        if data.total_episodes:
            recorded = self._recorded(data, 0)
            rows = len(recorded.actions) + 1
            for key, values in leaves(recorded.infos or {}, _INFOS, _GROUPS):
                array = np.asarray(values) if isinstance(values, np.ndarray) else np.zeros(0, object)
                if array.dtype.kind in NUMBERS and array.ndim and len(array) == rows:
                    observations[key] = KeyLayout(array.shape[1:] or (1,), array.dtype)
        bounds = [
            tuple(bound.reshape(-1).tolist()) if np.all(np.isfinite(bound)) else None
            for bound in (actions.low, actions.high)
        ]
        return RecordingLayout(
            observations, KeyLayout(actions.shape or (1,), np.dtype(actions.dtype)), bounds[0], bounds[1], rewards=True
        )

    def chunks(self) -> list[tuple[int, ...]]:
        """Every episode by itself, because Minari finds each at once."""
        return [(index,) for index in range(self._load().total_episodes)]

    def read(self, chunk: Sequence[int], keys: Sequence[str]) -> Iterator[Recording]:
        """Reads episodes; see `RecordingReader.read`."""
        data = self._load()
        for index in chunk:
            where = f"{self._folder()}: episode {index}"
            recorded = self._recorded(data, index)
            nested = recorded.observations
            single = not isinstance(nested, _GROUPS)
            there = dict(leaves({ONLY: nested} if single else nested, groups=_GROUPS))
            there |= leaves(recorded.infos or {}, _INFOS, _GROUPS)
            for key in keys:
                if key not in there:
                    raise missing(where, key, there)
            yield assemble(
                where,
                f"{self.dataset}:{index:05d}",
                {key: there[key] for key in keys},
                recorded.actions,
                recorded.rewards,
                recorded.terminations,
                recorded.truncations,
                {"minari_episode": index},
            )

    def origin(self) -> str:
        return f"minari:{self.dataset}"

    def licence(self) -> str:
        """The licence of D4RL's datasets; "unknown" for others, because Minari's files name none."""
        return next(
            (licence for prefix, (licence, _) in _KNOWN_ORIGINS.items() if self.dataset.startswith(prefix)), "unknown"
        )

    def attribution(self) -> str:
        """The papers of D4RL's datasets; for others, the authors in the dataset's metadata."""
        for prefix, (_, attribution) in _KNOWN_ORIGINS.items():
            if self.dataset.startswith(prefix):
                return attribution
        authors = self._load().storage.metadata.get("author") or "unknown"
        return authors if isinstance(authors, str) else ", ".join(sorted(map(str, authors)))

    def identity(self) -> dict[str, Any]:
        """The id, and the sizes and times of the dataset's files, wherever the root is."""
        self._load()
        data = self._folder() / _DATA
        try:
            files = files_identity((file for file in data.rglob("*") if file.is_file()), data)
        except OSError as error:
            raise SpirlError(f"{error.filename}: cannot be read: {error.strerror}.") from error
        return {"minari": self.dataset, "files": files}

    def _recorded(self, data: Any, index: int) -> Any:
        """One episode, by itself, so that the error of a damaged file names it."""
        try:
            return next(iter(data.iterate_episodes([index])))
        except (*_FAULTS, StopIteration) as error:
            raise SpirlError(
                f"{self._folder()}: episode {index} cannot be read: {type(error).__name__}: {error}."
            ) from error

    def _folder(self) -> Path:
        root = self.root or Path(self._own_root or "~/.minari/datasets").expanduser().absolute()
        return root / self.dataset

    def _load(self) -> Any:
        import minari  # here, because it takes a second and most commands never need it

        data = self._folder() / _DATA
        if not data.is_dir():
            if self.root is not None:
                raise SpirlError(_not_there(self.root, self.dataset))
            self._download()
        try:
            version = json.loads((data / _METADATA).read_text()).get("minari_version")
            if version is not None and version not in minari.supported_dataset_versions:
                raise SpirlError(
                    f"{data}: was written by Minari {version}; Minari {minari.__version__} is installed and reads "
                    f"{', '.join(sorted(minari.supported_dataset_versions))}. Get the dataset in one of these "
                    "versions, or install a Minari that reads it."
                )
            return minari.MinariDataset(str(data))
        except (*_FAULTS, AttributeError) as error:
            raise SpirlError(f"{data}: not a readable Minari dataset: {type(error).__name__}: {error}.") from error

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
                if not (self._folder() / _DATA).is_dir():
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
    there = sorted(str(file.parent.parent.relative_to(root)) for file in root.rglob(f"{_DATA}/{_METADATA}"))
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


def make(settings: MinariSettings, spec: EnvironmentSpec | None) -> RecordingReader:
    """Makes the reader of an entry of type ``minari``.

    Raises:
        SpirlError: actions or rewards are renamed, which have one name in Minari.
    """
    settings.refuse_renamed(f"minari:{settings.id}", "has one name in Minari and cannot be chosen")
    return MinariReader(settings.id, settings.root)


register_source("minari", MinariSettings, make)
