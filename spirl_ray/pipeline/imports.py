"""The datasets that an experiment has imported, found by their sources' files, what these hold, or the settings."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from spirl_ray.config import Experiment, SourceSettings
from spirl_ray.datasets.opened import OpenedData
from spirl_ray.episodes.dataset import FORMAT_VERSION
from spirl_ray.errors import SpirlError
from spirl_ray.files import layout
from spirl_ray.files.atomic import read_json, write_json
from spirl_ray.files.fingerprint import FilesIdentity, fingerprint
from spirl_ray.pipeline.keys import digest_of_file

_LONGEST_NAME = 120
"""The most characters of a dataset folder's name before its key; the names of many joined sources are longer."""


class Imports:
    """The datasets in an experiment's folder.

    The key of a dataset is made of the names, sizes and times of change of its sources' files, which are looked up in a
    moment; whatever changes leads to another dataset. Files that were copied or downloaded once more, as on another
    machine, hold the same under other times. Where there is no dataset for the times, the contents decide: a dataset
    whose files had the same names, sizes and SHA-256 is taken, and a file that was changed in place is imported again,
    even with its old size. Contents are read only where the names and sizes are those of a dataset, and only for
    datasets of an experiment with a storage, because recordings can be large.

    Args:
        folder: folder of the experiment.
        experiment: the experiment.
        data: opens the sources.
    """

    def __init__(self, folder: Path, experiment: Experiment, data: Callable[[], OpenedData]) -> None:
        self.folder = folder / layout.DATA
        self.file = self.folder / layout.IMPORTS
        """A JSON file with the names of datasets by what they are found by."""
        self._experiment, self._data = experiment, data

    def find(self) -> Path:
        """Finds the folder of the dataset, or the one for it where it has not been imported.

        Where the sources are gone, it is the one that was imported with the same settings.

        Raises:
            SpirlError: a source cannot be opened, and its files are there or it has not been imported either.
        """
        try:
            found = self._of_sources()
        except SpirlError:
            known = self._known(self._settings)
            if known is None or not any(map(_may_be_gone, self._experiment.data.sources)):
                raise  # what is there is wrong, such as a file that has been replaced
            return known
        if (found / layout.DATASET_CARD).exists():
            return found
        return self._known(found.name) or self._of_same_contents() or found

    def remember(self, dataset: Path, *, contents: bool) -> None:
        """Notes by what a dataset is found again that was imported or found just now.

        Args:
            dataset: its folder.
            contents: True reads the files of its sources, unless that has been done.
        """
        noted = {self._settings: dataset.name}
        with contextlib.suppress(SpirlError):  # the sources may be gone
            own = self._of_sources()
            if own != dataset:
                if self._of_same_contents() == dataset:  # else a file has changed since it was imported
                    noted[own.name] = dataset.name  # so these times need no look at the contents
            elif contents and self._known(sizes := self._key(_sizes)) != dataset:
                key = self._key(_contents)
                if self._of_sources() == dataset:  # else a file has changed meanwhile
                    noted |= {sizes: dataset.name, key: dataset.name}
        known = self._noted()
        if not noted.items() <= known.items():
            write_json(self.file, {**known, **noted})

    def _of_same_contents(self) -> Path | None:
        """The folder of a dataset whose files had the same names, sizes and contents; None where there is none."""
        return self._known(self._key(_contents)) if self._known(self._key(_sizes)) else None

    def _noted(self) -> dict[str, str]:
        return read_json(self.file) if self.file.exists() else {}

    def _known(self, key: str) -> Path | None:
        """The folder of the dataset that is noted under a key; None where it is not there."""
        name = self._noted().get(key)
        there = name is not None and (self.folder / name / layout.DATASET_CARD).exists()
        return self.folder / str(name) if there else None

    @property
    def _settings(self) -> str:
        data = self._experiment.data.model_dump(
            mode="json", exclude={"shards", "validation_fraction", "in_memory_limit_mb"}
        )
        return fingerprint(self._experiment.environment, data)

    def _of_sources(self) -> Path:
        name = re.sub(r"[^A-Za-z0-9_.-]", "-", self._data().source.identity().name)[:_LONGEST_NAME]
        return self.folder / f"{name}-{self._key()}"

    def _key(self, instead: Callable[[FilesIdentity], Any] | None = None) -> str:
        """The key of the sources' episodes, in which something may stand instead of their files' names, sizes and
        times."""
        data = self._data()
        features = {name: feature.model_dump(mode="json") for name, feature in data.features.items()}
        identity: Any = data.source.identity().settings
        if instead is not None:
            try:
                identity = _with_files(identity, instead)
            except OSError as error:
                raise SpirlError(f"{error.filename}: cannot be read: {error.strerror}.") from error
        parts = (features, data.action_dim, data.actions, identity, self._experiment.data.skip_bad)
        return fingerprint(FORMAT_VERSION, *parts)


def _sizes(files: FilesIdentity) -> Any:
    return [entry[:2] for entry in files]


def _contents(files: FilesIdentity) -> Any:
    return [[str(name), digest_of_file(files.root / str(name))] for name, *_ in files]


def _with_files(identity: Any, instead: Callable[[FilesIdentity], Any]) -> Any:
    """The identity of a source, with something instead of each `FilesIdentity` in it."""
    if isinstance(identity, FilesIdentity):
        return instead(identity)
    if isinstance(identity, Mapping):
        return {name: _with_files(value, instead) for name, value in identity.items()}
    if isinstance(identity, list | tuple):
        return [_with_files(value, instead) for value in identity]
    return identity


def _may_be_gone(source: SourceSettings) -> bool:
    """False where the files of a source are in their place, so that an error is about what they hold."""
    given = (source.model_extra or {}).get("path")
    paths = [given] if isinstance(given, str) else given
    if not isinstance(paths, list | tuple):
        return source.type != "generated"  # only the source itself knows what it reads
    return not all(map(_holds_something, paths))


def _holds_something(path: str) -> bool:
    place = Path(path).expanduser()
    try:
        return any(place.iterdir()) if place.is_dir() else place.exists()  # an empty folder may be a disk that is away
    except OSError:
        return False
