"""A dataset: a folder of Parquet files with episodes, and one ``card.json`` that describes them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import BaseModel, ConfigDict, Field, field_validator

from spirl_ray.episodes.actions import ActionRange
from spirl_ray.episodes.episode import Episode
from spirl_ray.episodes.features import Feature, FeatureName, stored_features
from spirl_ray.episodes.table import check_schema, column_name, table_to_episodes
from spirl_ray.errors import SpirlError
from spirl_ray.files import layout, untrusted
from spirl_ray.files.shared import require_seen

FORMAT_VERSION = 2
GROUP_EPISODES, GROUP_BYTES = 64, 8 * 2**20
"""The most episodes of a row group of a dataset file, and its size in bytes in memory at which it is written. No more
is decompressed at once where a file is read."""
_FILE_BUFFER = 2**20
"""The number of bytes of a file that are read at once."""
_LARGEST = 2**24
"""The most numbers in one value of a feature, or in an action; a card with more is not of real data."""


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class FileEntry(_Frozen):
    """The entry of one Parquet file in the card."""

    sha256: str
    bytes: int
    rows: int


class DatasetCard(_Frozen):
    """The contents of ``card.json``: what a dataset holds, where it comes from and what its files must hash to."""

    format_version: int = FORMAT_VERSION
    environment: str | None
    """The id of the environment that the episodes belong to; None for data alone."""
    features: Annotated[dict[FeatureName, Feature], Field(min_length=1)]
    """The features of the environment, by name; episodes hold those that are stored."""
    action_dim: int = Field(gt=0, le=_LARGEST)
    actions: ActionRange | None = None
    """The range in units of the source that the actions, which are stored in [-1, 1], stand for; None is [-1, 1]."""
    rewards: bool = True
    """False where the source has no rewards; those in the files are 0 then."""
    episodes: int
    steps: int
    """The number of actions in all episodes together."""
    source: str
    licence: str
    attribution: str
    content_sha256: str
    """The hash of the episodes themselves, whatever the number, order and compression of the files."""
    files: dict[str, FileEntry]
    created_by: str

    @field_validator("features")
    @classmethod
    def _possible_sizes(cls, features: dict[str, Feature]) -> dict[str, Feature]:
        for name, feature in features.items():
            if feature.size > _LARGEST:
                raise ValueError(f"{name!r} has {feature.size} numbers in one value; at most {_LARGEST} are possible")
        return features

    @field_validator("files")
    @classmethod
    def _plain_names(cls, files: dict[str, FileEntry]) -> dict[str, FileEntry]:
        for name in files:
            if name != Path(name).name or name.startswith("."):
                raise ValueError(f"{name!r} is not a plain file name")
        return files


class EpisodeEntry(NamedTuple):
    """One line of a dataset's index."""

    id: str
    length: int
    """The number of actions, T."""
    file: str
    """The absolute path of the Parquet file that holds the episode."""


def is_full_group(episodes: Sequence[Episode], most_bytes: float = GROUP_BYTES) -> bool:
    """True where episodes are enough for a row group."""
    return len(episodes) == GROUP_EPISODES or sum(episode.nbytes for episode in episodes) >= most_bytes


def read_card(path: str | Path) -> DatasetCard:
    """Reads the card of the dataset in the folder ``path``.

    Raises:
        SpirlError: there is no such folder or card, or this version cannot read the card.
    """
    folder = Path(path).absolute()
    file = folder / layout.DATASET_CARD
    require_seen(folder)
    if not folder.is_dir():
        raise SpirlError(f"{folder}: no such dataset folder; import or generate the data first")
    if not file.exists():
        raise SpirlError(f"{folder}: not a dataset, it has no {layout.DATASET_CARD}")
    values = untrusted.read_card(file)
    if values.get("format_version") != FORMAT_VERSION:
        raise SpirlError(
            f"{file}: format_version is {values.get('format_version')!r}, this version of spirl-ray reads "
            f"{FORMAT_VERSION}; import the data again or use the version that wrote it "
            f"({values.get('created_by', 'unknown')})"
        )
    return untrusted.validate_card(values, DatasetCard, str(file))


def dataset_files(path: str | Path) -> list[str]:
    """The absolute paths of the dataset's Parquet files, in order.

    Raises:
        SpirlError: the card cannot be read, or a file that it names is missing or a symbolic link.
    """
    folder = Path(path).absolute()
    files = [folder / name for name in sorted(read_card(folder).files)]
    for file in files:
        if file.is_symlink():
            raise SpirlError(f"{file}: is a symbolic link, which is refused; a dataset consists of plain files")
        if not file.is_file():
            raise SpirlError(f"{file}: missing, but named in {folder / layout.DATASET_CARD}; import the data again")
    return [str(file) for file in files]


def episode_index(path: str | Path) -> list[EpisodeEntry]:
    """The id, length and file of every episode, in the order of `read_episodes`, without reading the arrays.

    Raises:
        SpirlError: see `read_episodes`.
    """
    card = read_card(path)
    entries = []
    for file in dataset_files(path):
        for table in read_tables(file, card, columns=["episode_id", "length"]):
            pairs = zip(table["episode_id"].to_pylist(), table["length"].to_pylist(), strict=True)
            entries += [EpisodeEntry(identifier, length, file) for identifier, length in pairs]
    return entries


def read_episodes(path: str | Path) -> Iterator[Episode]:
    """Reads every episode, file after file, with a few at a time in memory.

    Raises:
        SpirlError: folder, card or a file is missing, a Parquet file is damaged, or its columns contradict the card.
    """
    card = read_card(path)
    for file in dataset_files(path):
        yield from read_file(file, card)


def read_file(file: str, card: DatasetCard) -> Iterator[Episode]:
    """Reads every episode of one file of a dataset, as `read_episodes`."""
    for table in read_tables(file, card):
        yield from table_to_episodes(table, card.features, card.action_dim, where=file)


def group_sizes(file: str, card: DatasetCard) -> list[int]:
    """The number of episodes in each row group of a dataset file.

    Raises:
        SpirlError: see `read_tables`.
    """
    with _opened(file, card) as parquet:
        return [parquet.metadata.row_group(number).num_rows for number in range(parquet.num_row_groups)]


def read_tables(
    file: str, card: DatasetCard, columns: list[str] | None = None, *, groups: Sequence[int] | None = None
) -> Iterator[pa.Table]:
    """Reads one dataset file as tables of at most `GROUP_EPISODES` episodes, and of about `GROUP_BYTES` of these
    columns or of one episode.

    Args:
        file: path of the file.
        card: card of its dataset.
        columns: names of the columns to read; None is all.
        groups: numbers of the row groups to read; None is all.

    Raises:
        SpirlError: the file is missing or damaged, or its columns contradict the card.
    """
    stored = stored_features(card.features).items()
    read = [feature for name, feature in stored if columns is None or column_name(name) in columns]
    step = sum(feature.size * np.dtype(feature.dtype).itemsize for feature in read) + 4 * card.action_dim
    episode = step * card.steps / max(1, card.episodes)
    rows = int(min(max(1, GROUP_BYTES // max(1, episode)), GROUP_EPISODES))
    with _opened(file, card) as parquet:
        batches = parquet.iter_batches(rows, row_groups=groups, columns=columns, use_threads=False)
        # A loop's variable would keep a batch in memory while the next one is read.
        yield from map(pa.Table.from_batches, zip(batches, strict=True))


@contextmanager
def _opened(file: str, card: DatasetCard) -> Iterator[pq.ParquetFile]:
    """Opens a dataset file, whose errors become `SpirlError`."""
    try:
        with pq.ParquetFile(file, page_checksum_verification=True, buffer_size=_FILE_BUFFER) as parquet:
            check_schema(parquet.schema_arrow, card.features, card.action_dim, where=file)
            yield parquet
    except FileNotFoundError:
        require_seen(Path(file))
        raise SpirlError(f"{file}: missing, but named in the dataset's {layout.DATASET_CARD}") from None
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise SpirlError(f"{file}: not readable as Parquet (damaged or cut short): {error}") from error
