"""Checks that keep bad episodes out of training: checks of one episode, and of a whole dataset on disk."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import numpy as np

from spirl_ray.episodes.actions import ActionRange
from spirl_ray.episodes.dataset import read_card, read_tables
from spirl_ray.episodes.episode import Episode, metadata_json
from spirl_ray.episodes.features import Array, Features, stored_features
from spirl_ray.episodes.table import table_to_episodes
from spirl_ray.errors import SpirlError
from spirl_ray.files import layout

ACTION_TOLERANCE = 1e-6
"""The distance by which an action may be outside [-1, 1], because the recorder rounds."""


class Problem(NamedTuple):
    """A problem of a file, or of one episode in it."""

    file: str
    """The path of the file, or the source that the episode was to be read from."""
    episode: str
    """The id of the episode; empty where the whole file is meant."""
    field: str
    """The name of the feature, or of another part of the episode or file."""
    message: str

    def __str__(self) -> str:
        return ": ".join(part for part in (self.file, self.episode, self.field, self.message) if part)


def check_episode(
    episode: Episode, features: Features, action_dim: int, actions: ActionRange | None = None
) -> list[tuple[str, str]]:
    """Lists the problems of an episode as pairs (field, problem); the list of a good one is empty.

    It checks that T ≥ 1; T + 1 values of each stored feature and of no other, T actions and rewards; shapes and types;
    finiteness (first bad row and column); actions within [-1, 1] up to 1e-6.

    Args:
        episode: the episode to check.
        features: features of the dataset.
        action_dim: width of an action.
        actions: range of the actions in units of the source, in which problems are told.
    """
    problems: list[tuple[str, str]] = []
    steps = len(episode.actions)
    if steps < 1:
        problems.append(("actions", "an episode needs at least one action, this one has none"))
    parts: list[tuple[str, Array, list[int], type[np.generic]]] = []
    for name, feature in stored_features(features).items():
        if name in episode.observations:
            parts.append((name, episode.observations[name], [steps + 1, *feature.shape], feature.dtype))
        else:
            problems.append((name, "missing: the environment has this feature"))
    for name in sorted(set(episode.observations) - set(stored_features(features))):
        problems.append((name, "not a feature that episodes of this environment hold"))
    parts.append(("actions", episode.actions, [steps, action_dim], np.float32))
    parts.append(("rewards", episode.rewards, [steps], np.float32))
    for name, array, expected, dtype in parts:
        found = list(array.shape)
        if array.dtype != dtype:
            problems.append((name, f"dtype {array.dtype}, expected {np.dtype(dtype)}"))
        if len(found) != len(expected) or found[1:] != expected[1:]:
            problems.append((name, f"shape {found}, expected {expected}"))
            continue
        if len(array) != expected[0]:
            problems.append((name, f"{len(array)} rows, expected {expected[0]} for {steps} actions"))
        bad = np.argwhere(~np.isfinite(array))
        if len(bad):
            problems.append((name, f"{_place(bad[0])} is {array[tuple(bad[0])]} ({len(bad)} such values)"))
    if episode.actions.ndim == 2:
        outside = np.argwhere(np.abs(episode.actions.astype(np.float64)) > 1 + ACTION_TOLERANCE)
        outside = outside[np.isfinite(episode.actions[tuple(outside.T)])]
        if len(outside):
            row, column = outside[0]
            value, low, high = episode.actions[row, column], -1.0, 1.0
            if actions is not None:
                value, low, high = (
                    actions.restored(episode.actions[row])[column],
                    actions.low[column],
                    actions.high[column],
                )
            where = f"{_place(outside[0])} is {value:g}, outside [{low:g}, {high:g}]"
            problems.append(("actions", f"{where} ({len(outside)} such values)"))
    return problems


def episode_digest(episode: Episode) -> str:
    """The SHA-256 of everything that an episode holds, whatever the file format."""
    digest = hashlib.sha256()
    flags = f"{int(episode.terminated)}{int(episode.truncated)}"
    for text in (episode.id, flags, metadata_json(episode)):
        data = text.encode()
        digest.update(len(data).to_bytes(8, "little") + data)
    named = sorted((f"observation.{name}", values) for name, values in episode.observations.items())
    for name, array in (*named, ("actions", episode.actions), ("rewards", episode.rewards)):
        stored = np.ascontiguousarray(array, dtype="u1" if array.dtype == np.uint8 else "<f4")
        digest.update(f"{name} {stored.dtype.str} {list(stored.shape)} ".encode())
        digest.update(stored.tobytes())
    return digest.hexdigest()


def content_digest(episodes: Iterable[tuple[str, str]]) -> str:
    """The SHA-256 of a dataset from pairs (episode id, `episode_digest`), in any order."""
    digest = hashlib.sha256()
    for identifier, episode in sorted(episodes):
        digest.update(f"{episode} {identifier}\n".encode())
    return digest.hexdigest()


def file_digest(file: str | Path) -> str:
    """The SHA-256 of a file's bytes."""
    with open(file, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def validate_dataset(path: str | Path) -> list[Problem]:
    """Lists every problem of a dataset folder: damaged or missing files, wrong counts, bad episodes.

    Raises:
        SpirlError: the folder or its card cannot be read at all.
    """
    folder = Path(path).absolute()
    card = read_card(folder)
    problems: list[Problem] = []
    digests: dict[str, str] = {}
    steps = 0
    for name, entry in sorted(card.files.items()):
        file = str(folder / name)
        rows = 0
        try:
            if file_digest(file) != entry.sha256:
                problems.append(Problem(file, "", "sha256", f"{layout.DATASET_CARD} names other bytes"))
            for table in read_tables(file, card):
                lengths = table["length"].to_pylist()
                episodes = table_to_episodes(table, card.features, card.action_dim, where=file)
                for episode, length in zip(episodes, lengths, strict=True):
                    found = check_episode(episode, card.features, card.action_dim, card.actions)
                    problems += [Problem(file, episode.id, field, what) for field, what in found]
                    if length != episode.length:
                        what = f"column says {length}, there are {episode.length} actions"
                        problems.append(Problem(file, episode.id, "length", what))
                    if episode.id in digests:
                        problems.append(Problem(file, episode.id, "episode_id", "more than one episode has it"))
                    digests[episode.id] = episode_digest(episode)
                    steps += episode.length
                    rows += 1
        except SpirlError as error:
            problems.append(Problem(file, "", "file", str(error).removeprefix(f"{file}: ")))
            continue
        except OSError as error:
            problems.append(Problem(file, "", "file", error.strerror or str(error)))
            continue
        if rows != entry.rows:
            problems.append(Problem(file, "", "rows", f"{rows} episodes, {layout.DATASET_CARD} says {entry.rows}"))
    unreadable = any(problem.field == "file" for problem in problems)
    if not unreadable:
        # If a file is unreadable, these would only report the same problem again.
        counted = {
            "episodes": len(digests),
            "steps": steps,
            "content_sha256": content_digest(digests.items()),
        }
        for name, value in counted.items():
            if value != getattr(card, name):
                what = f"the files hold {value}, the card says {getattr(card, name)}"
                problems.append(Problem(str(folder / layout.DATASET_CARD), "", name, what))
    extra = sorted({file.name for file in folder.glob("*.parquet")} - set(card.files))
    problems += [Problem(str(folder / name), "", "file", f"not named in {layout.DATASET_CARD}") for name in extra]
    return problems


def _place(index: np.ndarray) -> str:
    row, *columns = index.tolist()
    if not columns:
        return f"row {row}"
    return f"row {row}, column {columns[0] if len(columns) == 1 else columns}"
