"""Episodes of every kind of feature, and datasets on disk without an import, in any shape that a test needs."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from spirl_ray.episodes.dataset import DatasetCard, FileEntry
from spirl_ray.episodes.episode import Episode
from spirl_ray.episodes.features import Feature, Features
from spirl_ray.episodes.table import episodes_to_table
from spirl_ray.episodes.validation import content_digest, episode_digest, file_digest

FEATURES = {
    "arm": Feature(shape=(3,), role="proprioception"),
    "things": Feature(shape=(2, 3)),
    "grey": Feature(shape=(4, 5, 1), role="image", frames=2),
    "left": Feature(shape=(3, 2, 3), role="image"),
    "rendered": Feature(shape=(8, 8, 1), role="image", stored=False),
}
STORED = ["arm", "things", "grey", "left"]
ACTION_DIM = 2


def make_episode(number: int = 0, length: int = 4) -> Episode:
    """An episode of random numbers and images, the same for the same arguments."""
    rng = np.random.default_rng(number)
    return Episode(
        id=f"episode {number}",
        observations={
            name: rng.integers(0, 256, (length + 1, *FEATURES[name].shape), dtype=np.uint8)
            if FEATURES[name].is_image
            else rng.normal(size=(length + 1, *FEATURES[name].shape)).astype(np.float32)
            for name in STORED
        },
        actions=rng.uniform(-1, 1, (length, ACTION_DIM)).astype(np.float32),
        rewards=rng.random(length).astype(np.float32),
        terminated=number % 2 == 0,
        truncated=number % 2 == 1,
        metadata={"number": number},
    )


def assert_same(found: Episode, expected: Episode) -> None:
    """Fails unless both episodes hold the same in the same types."""
    for name in ("id", "terminated", "truncated", "metadata"):
        assert getattr(found, name) == getattr(expected, name)
    assert set(found.observations) == set(expected.observations)
    pairs = [(found.observations[name], values) for name, values in expected.observations.items()]
    for one, other in [*pairs, (found.actions, expected.actions), (found.rewards, expected.rewards)]:
        assert one.dtype == other.dtype
        np.testing.assert_array_equal(one, other)


def write_dataset(
    folder: Path, files: Sequence[Sequence[Episode] | pa.Table], features: Features, action_dim: int, **card: Any
) -> Path:
    """A dataset with these files, each of episodes or a table as it is; ``card`` replaces entries of its card."""
    folder.mkdir()
    entries, episodes = {}, [episode for file in files if not isinstance(file, pa.Table) for episode in file]
    for number, file in enumerate(files):
        table = file if isinstance(file, pa.Table) else episodes_to_table(file, features, action_dim)
        path = folder / f"episodes-{number:05d}-of-{len(files):05d}.parquet"
        pq.write_table(table, path)
        entries[path.name] = FileEntry(sha256=file_digest(path), bytes=path.stat().st_size, rows=table.num_rows)
    fields: dict[str, Any] = dict(
        environment="spirl/Test-v0",
        features=features,
        action_dim=action_dim,
        episodes=len(episodes),
        steps=sum(episode.length for episode in episodes),
        source="test",
        licence="none",
        attribution="nobody",
        content_sha256=content_digest((episode.id, episode_digest(episode)) for episode in episodes),
        files=entries,
        created_by="test",
    )
    (folder / "card.json").write_text(DatasetCard(**(fields | card)).model_dump_json())
    return folder


def rewrite_card(folder: Path, **changes: Any) -> None:
    card = json.loads((folder / "card.json").read_text())
    (folder / "card.json").write_text(json.dumps(card | changes))
