"""What the folder ``meta`` of a LeRobot dataset says: features, episodes, and the files in which they are."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import BaseModel, Field

from spirl_ray.errors import SpirlError
from spirl_ray.files.untrusted import parse_json, validate_card

VERSIONS = ("v2.0", "v2.1", "v3.0")
"""The versions of the layout that are read. v2.0 differs from v2.1 in its statistics alone."""


class FeatureInfo(BaseModel):
    """A feature as ``meta/info.json`` describes it."""

    dtype: str
    """``video``, ``image``, the name of a NumPy type, or something else, such as ``string``."""
    shape: tuple[int, ...]
    names: Any = None
    info: dict[str, Any] | None = None

    @property
    def is_image(self) -> bool:
        return self.dtype in ("image", "video")

    @property
    def is_depth(self) -> bool:
        """True for depth maps, whose videos hold quantised distances in place of colours."""
        return any((self.info or {}).get(name) for name in ("is_depth_map", "video.is_depth_map"))

    def image_shape(self) -> tuple[int, int, int] | None:
        """Height, width and channels of an image; None where the shape is no image's. Files have channels first or
        last, and the names of axes are not always those of the shape."""
        if len(self.shape) != 3:
            return None
        first, last = self.shape[0] in (1, 3), self.shape[2] in (1, 3)
        names = [str(name).lower() for name in self.names] if isinstance(self.names, list) else []
        if first and (not last or names[:1] in (["channels"], ["channel"], ["c"])):
            return self.shape[1], self.shape[2], self.shape[0]
        return (self.shape[0], self.shape[1], self.shape[2]) if last else None


class Info(BaseModel):
    """The file ``meta/info.json``, as far as it is read."""

    codebase_version: str
    fps: float = Field(gt=0)
    features: dict[str, FeatureInfo]
    data_path: str
    video_path: str | None = None
    chunks_size: int = Field(default=1000, ge=1)


@dataclass(frozen=True)
class VideoPlace:
    """The place of an episode's frames in a video."""

    file: Path
    start: float
    """Seconds from the beginning of the file."""
    end: float | None = None
    """The end in seconds, where other episodes may follow in the file."""


@dataclass(frozen=True)
class EpisodePlace:
    """An episode's files."""

    index: int
    """The ``episode_index`` of the dataset."""
    rows: int
    tasks: tuple[str, ...]
    data: Path
    videos: Mapping[str, VideoPlace]


@dataclass(frozen=True)
class Meta:
    """The features and the episodes of a dataset."""

    info: Info
    episodes: Mapping[int, EpisodePlace]
    """The episodes by ``episode_index``, ascending."""


def read_info(root: Path) -> Info:
    """Reads ``meta/info.json``.

    Raises:
        SpirlError: the file is missing or damaged, or its ``codebase_version`` is another one than `VERSIONS`.
    """
    file = root / "meta" / "info.json"
    if not root.is_dir():
        raise SpirlError(f"{root}: no such folder.")
    raw = parse_json(_bytes(file), file)
    if (version := raw.get("codebase_version")) not in VERSIONS:
        raise SpirlError(
            f"{file}: codebase_version is {version!r}; this program reads {', '.join(VERSIONS)}. Convert the dataset "
            "with the lerobot package."
        )
    return validate_card(raw, Info, f"{file} does not describe a LeRobot dataset")


def read_meta(root: Path) -> Meta:
    """Reads which episodes there are, and where.

    Raises:
        SpirlError: a file below ``meta`` is missing or damaged; the message names it.
    """
    info = read_info(root)
    videos = [name for name, feature in info.features.items() if feature.dtype == "video"]
    if videos and info.video_path is None:
        raise SpirlError(f"{root / 'meta/info.json'}: video_path is missing, but {videos[0]!r} is a video.")
    found = _read_v3(root, info, videos) if info.codebase_version == "v3.0" else _read_v2(root, info, videos)
    episodes = {episode.index: episode for episode in sorted(found, key=lambda episode: episode.index)}
    return Meta(info, episodes)


def meta_files(root: Path) -> list[Path]:
    """All files below ``meta``, on which the episodes depend."""
    return [file for file in sorted((root / "meta").rglob("*")) if file.is_file()]


def action_bounds(root: Path, key: str) -> tuple[tuple[float, ...], tuple[float, ...]] | None:
    """The least and greatest value of each entry of a feature by the dataset's statistics; None where there are none.

    Raises:
        SpirlError: the file of statistics is damaged.
    """
    whole, by_episode = root / "meta" / "stats.json", root / "meta" / "episodes_stats.jsonl"
    if whole.is_file():
        file, found = whole, [parse_json(_bytes(whole), whole)]
    elif by_episode.is_file():
        file, found = by_episode, [line.get("stats", {}) for line in _lines(by_episode)]
    else:
        return None
    try:
        stats = [entry[key] for entry in found if key in entry]
        lows, highs = (np.array([np.ravel(entry[name]) for entry in stats], np.float64) for name in ("min", "max"))
    except (TypeError, KeyError, ValueError) as error:
        raise SpirlError(f"{file}: the statistics of {key!r} cannot be read: {error!r}.") from error
    if not stats:
        return None
    return tuple(lows.min(0).tolist()), tuple(highs.max(0).tolist())


def read_parquet(file: Path, columns: Iterable[str], filters: Any = None) -> pa.Table:
    """Reads columns of a Parquet file.

    Raises:
        SpirlError: the file is missing or damaged, or has no such column.
    """
    if not file.is_file():
        raise SpirlError(f"{file}: the file is missing; the dataset is incomplete.")
    try:
        with pq.ParquetFile(file) as opened:
            there = opened.schema_arrow.names
        if missing := [name for name in columns if name not in there]:
            raise SpirlError(f"{file}: has no column {missing[0]!r}; found: {', '.join(there)}.")
        return pq.read_table(file, columns=list(columns), filters=filters, partitioning=None)
    except (OSError, pa.ArrowException) as error:
        raise SpirlError(f"{file}: not a readable Parquet file: {error}") from error


def _read_v2(root: Path, info: Info, videos: list[str]) -> list[EpisodePlace]:
    """One Parquet file and one video a camera for each episode."""
    file, episodes = root / "meta" / "episodes.jsonl", []
    for number, line in enumerate(_lines(file), start=1):
        try:
            index, rows = int(line["episode_index"]), int(line["length"])
        except (KeyError, TypeError, ValueError) as error:
            raise SpirlError(f"{file}: line {number} has no episode_index and length: {error!r}.") from error
        names = {"episode_chunk": index // info.chunks_size, "episode_index": index}
        data = _path(root, info.data_path, **names)
        places = {key: VideoPlace(_path(root, info.video_path or "", video_key=key, **names), 0.0) for key in videos}
        episodes.append(EpisodePlace(index, rows, _texts(line.get("tasks")), data, places))
    return episodes


def _read_v3(root: Path, info: Info, videos: list[str]) -> list[EpisodePlace]:
    """Several episodes in a Parquet file and in a video."""
    files = sorted((root / "meta" / "episodes").glob("*/*.parquet"))
    if not files:
        raise SpirlError(f"{root / 'meta/episodes'}: holds no chunk-*/file-*.parquet; the dataset is incomplete.")
    columns = ["episode_index", "length", "tasks", "data/chunk_index", "data/file_index"]
    columns += [f"videos/{key}/{name}" for key in videos for name in _PLACE]
    episodes = []
    for file in files:
        for row in read_parquet(file, columns).to_pylist():
            if empty := [name for name in columns if row[name] is None]:
                raise SpirlError(f"{file}: episode {row['episode_index']} has no {empty[0]}.")
            places = {}
            for key in videos:
                chunk, number, start, end = (row[f"videos/{key}/{name}"] for name in _PLACE)
                path = _path(root, info.video_path or "", video_key=key, chunk_index=chunk, file_index=number)
                places[key] = VideoPlace(path, start, end)
            data = _path(root, info.data_path, chunk_index=row["data/chunk_index"], file_index=row["data/file_index"])
            episodes.append(EpisodePlace(row["episode_index"], row["length"], _texts(row["tasks"]), data, places))
    return episodes


_PLACE = ("chunk_index", "file_index", "from_timestamp", "to_timestamp")


def _path(root: Path, template: str, **values: Any) -> Path:
    try:
        return root / template.format(**values)
    except (KeyError, IndexError, ValueError, AttributeError) as error:
        raise SpirlError(
            f"{root / 'meta/info.json'}: the path {template!r} does not fit this version of the layout, which has "
            f"{', '.join(values)}: {error!r}."
        ) from error


def _texts(value: Any) -> tuple[str, ...]:
    return tuple(map(str, value)) if isinstance(value, list) else ()


def _lines(file: Path) -> list[dict[str, Any]]:
    """The JSON objects of a file with one in each line."""
    found = []
    for number, line in enumerate(_bytes(file).splitlines(), start=1):
        try:
            value = json.loads(line)
        except ValueError as error:
            raise SpirlError(f"{file}: line {number} is not valid JSON: {error}") from error
        if not isinstance(value, dict):
            raise SpirlError(f"{file}: line {number} must hold a JSON object.")
        found.append(value)
    return found


def _bytes(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError as error:
        raise SpirlError(f"{file}: cannot be read: {error.strerror}; the dataset is incomplete.") from error
