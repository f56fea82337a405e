"""Checks that keep bad episodes out of training: of one episode, and of a whole dataset on disk."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import numpy as np

from spirl_ray.episodes.dataset import (
    CARD,
    Episode,
    FloatArray,
    metadata_json,
    read_card,
    read_tables,
    table_to_episodes,
)
from spirl_ray.errors import SpirlError

ACTION_TOLERANCE = 1e-6
"""How far outside [-1, 1] an action may be (rounding of the recorder)."""


class Problem(NamedTuple):
    """Something wrong with a file or with one episode in it."""

    file: str
    """Path of the file, or the source that the episode was to be read from."""
    episode: str
    """Id of the episode; empty where the whole file is meant."""
    field: str
    message: str

    def __str__(self) -> str:
        return ": ".join(part for part in (self.file, self.episode, self.field, self.message) if part)


def check_episode(
    episode: Episode, state_dim: int, action_dim: int, frame_size: int | None = None
) -> list[tuple[str, str]]:
    """What is wrong with an episode, as pairs (field, what); an empty list for a good one.

    Checked: T ≥ 1, T + 1 states, T actions and rewards, shapes, dtype float32, finiteness (first bad row and
    column), actions within [-1, 1] up to 1e-6, not both terminated and truncated; T + 1 frames uint8 [N, N] if
    ``frame_size`` is N, and none otherwise.
    """
    problems = []
    steps = len(episode.actions)
    if steps < 1:
        problems.append(("actions", "no step: an episode needs at least one action"))
    widths: tuple[tuple[str, FloatArray, int, tuple[int, ...]], ...] = (
        ("states", episode.states, steps + 1, (state_dim,)),
        ("actions", episode.actions, steps, (action_dim,)),
        ("rewards", episode.rewards, steps, ()),
    )
    for name, array, rows, width in widths:
        if array.dtype != np.float32:
            problems.append((name, f"dtype {array.dtype}, expected float32"))
        if array.ndim != 1 + len(width) or array.shape[1:] != width:
            problems.append((name, f"shape {list(array.shape)}, expected {[rows, *width]}"))
            continue
        if len(array) != rows:
            problems.append((name, f"{len(array)} rows, expected {rows} for {steps} actions"))
        bad = np.argwhere(~np.isfinite(array))
        if len(bad):
            problems.append((name, f"{_place(bad[0])} is {array[tuple(bad[0])]} ({len(bad)} such values)"))
    if episode.actions.ndim == 2:
        outside = np.argwhere(np.abs(episode.actions.astype(np.float64)) > 1 + ACTION_TOLERANCE)
        outside = outside[np.isfinite(episode.actions[tuple(outside.T)])]
        if len(outside):
            value = episode.actions[tuple(outside[0])]
            problems.append(
                (
                    "actions",
                    f"{_place(outside[0])} is {value:g}, outside [-1, 1] ({len(outside)} such values)",
                )
            )
    frames = episode.frames
    expected = None if frame_size is None else [steps + 1, frame_size, frame_size]
    if (None if frames is None else list(frames.shape)) != expected or (
        frames is not None and frames.dtype != np.uint8
    ):
        found = "none" if frames is None else f"{frames.dtype} {list(frames.shape)}"
        problems.append(("frames", f"{found}, expected {'none' if expected is None else f'uint8 {expected}'}"))
    if episode.terminated and episode.truncated:
        problems.append(("terminated", "both terminated and truncated are set"))
    return problems


def episode_digest(episode: Episode) -> str:
    """SHA-256 of everything that an episode holds, whatever the file format."""
    digest = hashlib.sha256()
    flags = f"{int(episode.terminated)}{int(episode.truncated)}"
    for text in (episode.id, flags, metadata_json(episode)):
        data = text.encode()
        digest.update(len(data).to_bytes(8, "little") + data)
    for array in (episode.states, episode.actions, episode.rewards):
        digest.update(np.asarray(array.shape, dtype="<i8").tobytes())
        digest.update(np.ascontiguousarray(array, dtype="<f4").tobytes())
    if episode.frames is not None:
        digest.update(np.asarray(episode.frames.shape, dtype="<i8").tobytes())
        digest.update(np.ascontiguousarray(episode.frames).tobytes())
    return digest.hexdigest()


def content_digest(episodes: Iterable[tuple[str, str]]) -> str:
    """SHA-256 of a dataset from pairs (episode id, `episode_digest`), in any order."""
    digest = hashlib.sha256()
    for identifier, episode in sorted(episodes):
        digest.update(f"{episode} {identifier}\n".encode())
    return digest.hexdigest()


def file_digest(file: str | Path) -> str:
    """SHA-256 of a file's bytes."""
    with open(file, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def validate_dataset(path: str | Path) -> list[Problem]:
    """Every problem of a dataset folder: damaged or missing files, wrong counts, bad episodes.

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
                problems.append(Problem(file, "", "sha256", f"the bytes are not those that {CARD} names"))
            for table in read_tables(file, card):
                lengths = table["length"].to_pylist()
                for episode, length in zip(table_to_episodes(table, where=file), lengths, strict=True):
                    found = check_episode(episode, card.state_dim, card.action_dim, card.frame_size)
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
            problems.append(Problem(file, "", "rows", f"{rows} episodes, {CARD} says {entry.rows}"))
    unreadable = any(problem.field == "file" for problem in problems)
    if not unreadable:
        # With a file unreadable these would only say the same thing again.
        counted = {
            "episodes": len(digests),
            "steps": steps,
            "content_sha256": content_digest(digests.items()),
        }
        for name, value in counted.items():
            if value != getattr(card, name):
                what = f"the files hold {value}, the card says {getattr(card, name)}"
                problems.append(Problem(str(folder / CARD), "", name, what))
    extra = sorted({file.name for file in folder.glob("*.parquet")} - set(card.files))
    problems += [Problem(str(folder / name), "", "file", f"not named in {CARD}") for name in extra]
    return problems


def _place(index: np.ndarray) -> str:
    return f"row {index[0]}" + (f", column {index[1]}" if len(index) > 1 else "")
