"""Episodes of an existing dataset folder, such as one that `spirl_ray.DatasetWriter` has written."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

from spirl_ray.config import Settings
from spirl_ray.datasets.sources import Chunk, Description, Identity, register_source
from spirl_ray.envs.spec import EnvironmentSpec
from spirl_ray.episodes.actions import described
from spirl_ray.episodes.dataset import DatasetCard, dataset_files, read_card, read_tables
from spirl_ray.episodes.episode import Episode
from spirl_ray.episodes.features import Feature, Features, stored_features
from spirl_ray.episodes.table import table_to_episodes
from spirl_ray.errors import SpirlError
from spirl_ray.settings import SettingPath


class FolderSettings(Settings):
    """The options of ``type: folder``."""

    path: SettingPath
    """The folder of a dataset."""


@dataclass(frozen=True)
class FolderSource:
    """The source of episodes in a dataset folder. On a cluster, every node must be able to read it."""

    path: str
    """The absolute path of the folder."""
    features: Features | None = None
    """The features that its episodes are given, where the folder's own are more or have other shapes."""

    @cached_property
    def card(self) -> DatasetCard:
        """The card of the folder."""
        return read_card(self.path)

    def chunks(self) -> list[Chunk]:
        """The episodes of each Parquet file, because a file is read from its beginning."""
        chunks, first = [], 0
        for _, entry in sorted(self.card.files.items()):
            chunks.append(tuple(range(first, first + entry.rows)))
            first += entry.rows
        return chunks

    def read(self, chunk: Chunk) -> Iterator[Episode]:
        """Reads the episodes with these indices, which are in ascending order."""
        wanted, first = set(chunk), 0
        for file in dataset_files(self.path):
            rows = self.card.files[Path(file).name].rows
            if wanted.isdisjoint(range(first, first + rows)):
                first += rows
                continue
            for table in read_tables(file, self.card):
                for episode in table_to_episodes(table, self.card.features, self.card.action_dim, where=file):
                    if first in wanted:
                        yield self._as_features(episode)
                    first += 1

    def _as_features(self, episode: Episode) -> Episode:
        if self.features is None:
            return episode
        values = {n: episode.observations[n].reshape(-1, *f.shape) for n, f in self.features.items()}
        return replace(episode, observations=values)

    def description(self) -> Description:
        """The description in the folder's card."""
        return Description(self.card.source, self.card.licence, self.card.attribution)

    def identity(self) -> Identity:
        """The identity of the episodes' content, wherever the folder is."""
        return Identity(f"folder-{Path(self.path).name}", {"content_sha256": self.card.content_sha256})

    @property
    def attempts(self) -> int:
        """0, because the episodes are recorded."""
        return 0


def _listed(features: object, action_dim: int) -> str:
    assert isinstance(features, dict)
    named = ", ".join(f"{name} {list(feature.shape)}" for name, feature in features.items())
    return f"{named} and {action_dim} actions"


def _fits(held: Feature, wanted: Feature) -> bool:
    """True where values of a feature can be read as another: an image of that size, or that number of numbers."""
    alike = (held.is_image, held.stored) == (wanted.is_image, wanted.stored)
    return alike and (held.shape == wanted.shape or (held.size == wanted.size and not held.is_image))


def fitted(source: FolderSource, spec: EnvironmentSpec) -> FolderSource:
    """The source with its episodes as the features that an environment has. Roles are the environment's, numbers may be
    in another shape, and features that it does not have are left out, as in recordings of every other format.

    Raises:
        SpirlError: a feature is missing or has another size, or actions have another width or range.
    """
    card = source.card
    wanted = {n: f for n, f in spec.features.items() if f.role != "goal" or n in card.features}
    wrong = [n for n, f in wanted.items() if n not in card.features or not _fits(card.features[n], f)]
    if wrong or card.action_dim != spec.action_dim:
        raise SpirlError(
            f"data.sources: {source.path} holds episodes of {card.environment or 'no environment'} with "
            f"{_listed(card.features, card.action_dim)}; {spec.id} has {_listed(spec.features, spec.action_dim)}."
            + (f" What does not fit: {', '.join(wrong)}." if wrong else "")
        )
    if card.actions != spec.actions:
        raise SpirlError(
            f"data.sources: {source.path} has {described(card.actions, card.action_dim)} in units of its own; "
            f"{spec.id} has {described(spec.actions, spec.action_dim)}. Set interface.action to the former."
        )
    wanted = stored_features(wanted)
    return source if wanted == stored_features(card.features) else replace(source, features=wanted)


def make(options: FolderSettings, spec: EnvironmentSpec | None) -> FolderSource:
    """Makes the source of the dataset in the folder ``path``."""
    source = FolderSource(str(options.path.expanduser().absolute()))
    source.card  # noqa: B018  # reads it now, so that a folder without one is named before any work
    return source if spec is None else fitted(source, spec)


register_source("folder", FolderSettings, make)
