"""The writing of a dataset: its Parquet files, episode by episode, and its card."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from spirl_ray import __version__
from spirl_ray.episodes.dataset import GROUP_BYTES, DatasetCard, FileEntry, is_full_group
from spirl_ray.episodes.episode import Episode
from spirl_ray.episodes.features import Features
from spirl_ray.episodes.table import episodes_to_table, schema
from spirl_ray.episodes.validation import content_digest, file_digest
from spirl_ray.files import layout
from spirl_ray.files.atomic import write_json


class DatasetFile:
    """One Parquet file of a dataset while it is written. The end of its context closes it, whatever is missing.

    Args:
        path: the file.
        features: features of the dataset.
        action_dim: width of an action.
        group_bytes: size of a row group in memory at which it is written.
    """

    def __init__(self, path: Path, features: Features, action_dim: int, group_bytes: float = GROUP_BYTES) -> None:
        self.path = path
        self.digests: list[tuple[str, str]] = []
        """The id and `episode_digest` of each episode."""
        self.steps = 0
        self._kind = (features, action_dim)
        self._group_bytes = group_bytes
        self._group: list[Episode] = []
        self._writer = pq.ParquetWriter(path, schema(*self._kind), compression="zstd", write_page_checksum=True)

    def __enter__(self) -> DatasetFile:
        return self

    def __exit__(self, *error: object) -> None:
        self._writer.close()

    def add(self, episode: Episode, digest: str) -> None:
        """Adds an episode that has been checked, with its `episode_digest`."""
        self._group.append(episode)
        if is_full_group(self._group, self._group_bytes):
            self._write_group()
        self.digests.append((episode.id, digest))
        self.steps += episode.length

    def finish(self) -> FileEntry:
        """Writes the episodes that wait and closes the file; returns its entry in the card."""
        self._write_group()
        self._writer.close()
        return FileEntry(sha256=file_digest(self.path), bytes=self.path.stat().st_size, rows=len(self.digests))

    def _write_group(self) -> None:
        group, self._group = self._group, []
        if group:
            self._writer.write_table(episodes_to_table(group, *self._kind))


def write_card(
    folder: Path, files: Mapping[str, FileEntry], digests: Collection[tuple[str, str]], steps: int, **described: Any
) -> DatasetCard:
    """Writes the card of a dataset into its folder.

    Args:
        folder: folder of the dataset.
        files: entries of its files by name.
        digests: id and `episode_digest` of every episode.
        steps: number of actions in all episodes together.
        described: the fields of `DatasetCard` that are not counted: environment, features, source, and so on.
    """
    card = DatasetCard(
        **described,
        episodes=len(digests),
        steps=steps,
        content_sha256=content_digest(digests),
        files=dict(files),
        created_by=f"spirl-ray {__version__}",
    )
    write_json(folder / layout.DATASET_CARD, card.model_dump(mode="json"))
    return card
