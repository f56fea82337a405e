"""Recordings of LeRobot datasets, versions v2.0, v2.1 and v3.0, with their videos."""

from __future__ import annotations

import io
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import groupby
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import yaml
from numpy.typing import NDArray
from PIL import Image

from spirl_ray.datasets.formats.arrays import without_last_action
from spirl_ray.datasets.formats.lerobot_meta import (
    EpisodePlace,
    FeatureInfo,
    Meta,
    action_bounds,
    meta_files,
    read_info,
    read_meta,
    read_parquet,
)
from spirl_ray.datasets.formats.tables import column_values
from spirl_ray.datasets.formats.videos import Clip, decode_clip
from spirl_ray.datasets.sources import RecordingSettings, register_source
from spirl_ray.envs.spec import EnvironmentSpec
from spirl_ray.episodes.recording import NUMBERS, KeyLayout, Recording, RecordingLayout, Values
from spirl_ray.errors import SpirlError
from spirl_ray.files.fingerprint import files_identity
from spirl_ray.settings import SettingPath

_ACTION, _REWARD, _DONE, _SUCCESS = "action", "next.reward", "next.done", "next.success"
_COUNTERS = ("timestamp", "frame_index", "episode_index", "index", "task_index")
"""Features that every dataset has and that are no observations."""
_EPISODES_A_CHUNK = 8
"""The most episodes of a chunk. A file of version 3.0 can hold a whole dataset, which several tasks shall share."""


class LeRobotSettings(RecordingSettings):
    """An entry of ``data.sources`` of type ``lerobot``."""

    type: Literal["lerobot"] = "lerobot"
    path: SettingPath
    """The folder that holds ``meta``, ``data`` and ``videos``."""
    episodes: tuple[int, ...] | None = None
    """The ``episode_index`` of the episodes to read; all by default."""


@dataclass(frozen=True)
class LeRobotReader:
    """The reader of a LeRobot dataset in a local folder.

    A row of the files is one step: an observation, and the action that was chosen there. No observation follows the
    last action, so an episode of N rows becomes N observations and T = N - 1 actions; the last action is left out, and
    its reward is added to the one before. ``next.done`` is set at the last row of every recording, so there it means
    that the task has ended the episode only where ``next.success`` is set as well.
    """

    root: Path
    episodes: tuple[int, ...] | None = None
    """The ``episode_index`` of the episodes, in the order of the dataset; None is all of them."""
    image_size: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    """The height and width to which the images of a key are scaled while they are decoded, which needs less memory
    than scaling them afterwards; other keys keep their size."""

    def scaled(self, sizes: Mapping[str, tuple[int, int]]) -> LeRobotReader:
        """The same reader with the images of these keys in another height and width."""
        return replace(self, image_size=dict(sizes))

    def layout(self) -> RecordingLayout:
        info = read_info(self.root)
        action = info.features.get(_ACTION)
        bounds = action_bounds(self.root, _ACTION) if action is not None else None
        return RecordingLayout(
            observations={key: layout for key, (_, layout) in self._keys(info.features).items()},
            actions=_numbers_layout(action) if action is not None else None,
            action_low=bounds[0] if bounds else None,
            action_high=bounds[1] if bounds else None,
            rewards=_REWARD in info.features,
        )

    def chunks(self) -> list[tuple[int, ...]]:
        found: list[tuple[int, ...]] = []
        for _, group in groupby(enumerate(self._episodes(read_meta(self.root))), key=lambda pair: pair[1].data):
            indices = [index for index, _ in group]
            found += [
                tuple(indices[first : first + _EPISODES_A_CHUNK]) for first in range(0, len(indices), _EPISODES_A_CHUNK)
            ]
        return found

    def read(self, chunk: Sequence[int], keys: Sequence[str]) -> Iterator[Recording]:
        meta = read_meta(self.root)
        there = self._keys(meta.info.features)
        if unknown := [key for key in keys if key not in there]:
            raise SpirlError(f"{self.root}: has no observations {unknown[0]!r}; found: {', '.join(there) or 'none'}.")
        if _ACTION not in meta.info.features:
            raise SpirlError(f"{self.root}: has no feature {_ACTION!r}; found: {', '.join(meta.info.features)}.")
        places = self._episodes(meta)
        for file, group in groupby((places[index] for index in chunk), key=lambda place: place.data):
            joined = list(group)
            for first in range(0, len(joined), _EPISODES_A_CHUNK):
                some = joined[first : first + _EPISODES_A_CHUNK]
                table = self._rows(meta, file, [place.index for place in some], keys)
                for place in some:
                    yield self._recording(meta, place, table, {key: there[key] for key in keys})

    def origin(self) -> str:
        return f"lerobot:{self.root}"

    def licence(self) -> str:
        header = re.match(r"---\n(.*?)\n---\n", self._readme(), re.DOTALL)
        try:
            card = yaml.safe_load(header[1]) if header else None
        except yaml.YAMLError:
            card = None
        return str(card.get("license") or "unknown") if isinstance(card, dict) else "unknown"

    def attribution(self) -> str:
        lines = re.findall(r"^- \*\*(?:Paper|Homepage):\*\* *(.+)$", self._readme(), re.MULTILINE)
        return "; ".join(line for line in lines if "More Information Needed" not in line) or "unknown"

    def identity(self) -> dict[str, Any]:
        meta = read_meta(self.root)
        places = self._episodes(meta)
        data = {place.data for place in places}
        videos = {video.file for place in places for video in place.videos.values()}
        try:
            # A missing video is an error only if its camera is read.
            files = files_identity([*meta_files(self.root), *data, *filter(Path.is_file, videos)], self.root)
        except OSError as error:
            raise SpirlError(f"{error.filename}: the file is missing; the dataset is incomplete.") from error
        options = {"episodes": self.episodes, "image_size": {key: list(v) for key, v in self.image_size.items()}}
        return {"format": "lerobot", **options, "files": files}

    def _readme(self) -> str:
        try:
            return (self.root / "README.md").read_text(errors="replace")
        except OSError:
            return ""

    def _episodes(self, meta: Meta) -> list[EpisodePlace]:
        if self.episodes is None:
            return list(meta.episodes.values())
        if unknown := [index for index in self.episodes if index not in meta.episodes]:
            count = len(meta.episodes)
            raise SpirlError(f"{self.root}: there is no episode {unknown[0]}; the dataset has {count} episodes.")
        return [meta.episodes[index] for index in self.episodes]

    def _keys(self, features: Mapping[str, FeatureInfo]) -> dict[str, tuple[FeatureInfo, KeyLayout]]:
        """The features that can be observed, with their layouts; without texts and depth maps."""
        found = {}
        for key, feature in features.items():
            if key in _COUNTERS or key == _ACTION or key.startswith("next."):
                continue
            layout = self._image_layout(key, feature) if feature.is_image else _numbers_layout(feature)
            if layout is not None:
                found[key] = (feature, layout)
        return found

    def _image_layout(self, key: str, feature: FeatureInfo) -> KeyLayout | None:
        shape = feature.image_shape()
        if shape is None or feature.is_depth:
            return None
        return KeyLayout((*self.image_size.get(key, shape[:2]), shape[2]), np.dtype(np.uint8))

    def _rows(self, meta: Meta, file: Path, episodes: list[int], keys: Sequence[str]) -> pa.Table:
        features = meta.info.features
        columns = [_ACTION, *keys, *(name for name in (_REWARD, _DONE, _SUCCESS, "frame_index") if name in features)]
        columns = [name for name in columns if features[name].dtype != "video"]
        return read_parquet(file, ["episode_index", *columns], [("episode_index", "in", episodes)])

    def _recording(
        self, meta: Meta, place: EpisodePlace, table: pa.Table, keys: Mapping[str, tuple[FeatureInfo, KeyLayout]]
    ) -> Recording:
        where = f"{place.data}: episode {place.index}"
        rows = table.filter(pa.compute.equal(table["episode_index"], place.index)).combine_chunks()
        if len(rows) != place.rows:
            raise SpirlError(f"{where}: has {len(rows)} rows, but the dataset's meta folder says {place.rows}.")
        if len(rows) < 2:
            raise SpirlError(f"{where}: has {len(rows)} rows; an episode needs 2 or more. Leave it out by `episodes`.")
        columns = {}
        for name in (_ACTION, _REWARD, _DONE, _SUCCESS, "frame_index"):
            if name in rows.column_names:
                columns[name] = _numbers(rows[name], meta.info.features[name], f"{where}: {name}")
        if "frame_index" in columns and np.any(columns["frame_index"].ravel() != np.arange(len(rows))):
            raise SpirlError(f"{where}: frame_index does not count 0, 1, 2, …: the rows are not in order.")
        metadata: dict[str, Any] = {"lerobot_episode": place.index, "tasks": list(place.tasks)}
        if _SUCCESS in columns:
            metadata["success"] = bool(columns[_SUCCESS].any())
        actions, rewards = without_last_action(
            columns[_ACTION], columns[_REWARD].ravel() if _REWARD in columns else None
        )
        done, success = (columns[name].ravel()[-2:] if name in columns else [False] * 2 for name in (_DONE, _SUCCESS))
        terminated = bool(done[0] or (done[1] and success[1]))
        return Recording(
            id=f"episode_{place.index:06d}",
            observations={
                key: self._observations(meta, place, rows, key, feature, layout, where)
                for key, (feature, layout) in keys.items()
            },
            actions=actions,
            rewards=rewards,
            terminated=terminated,
            truncated=not terminated,
            metadata=metadata,
        )

    def _observations(
        self,
        meta: Meta,
        place: EpisodePlace,
        rows: pa.Table,
        key: str,
        feature: FeatureInfo,
        layout: KeyLayout,
        where: str,
    ) -> Values:
        if feature.dtype == "image":
            return _images(rows[key], layout.shape, key in self.image_size, f"{where}: {key}")
        if feature.dtype != "video":
            return _numbers(rows[key], feature, f"{where}: {key}")
        video, rate = place.videos[key], meta.info.fps
        if video.end is not None and (frames := round((video.end - video.start) * rate)) < place.rows:
            raise SpirlError(
                f"{video.file}: episode {place.index}, {key}: the video has {frames} frames from {video.start:.3f} s "
                f"to {video.end:.3f} s, but the episode has {place.rows} rows."
            )
        height, width, channels = layout.shape
        try:
            clip = Clip(video.file, video.start, place.rows, rate)
            return decode_clip(clip, (height, width, channels), scaled=key in self.image_size)
        except SpirlError as error:
            raise SpirlError(f"episode {place.index}, {key}: {error}") from error


def _numbers_layout(feature: FeatureInfo) -> KeyLayout | None:
    """The layout of a feature of numbers or truth values; None for others, such as texts."""
    try:
        dtype = np.dtype(feature.dtype)
    except TypeError:
        return None
    return KeyLayout(feature.shape, dtype) if dtype.kind in NUMBERS else None


def _numbers(column: pa.ChunkedArray, feature: FeatureInfo, where: str) -> Values:
    """A column of numbers as an array [rows, *shape]."""
    layout, rows = _numbers_layout(feature), len(column)
    if layout is None:
        raise SpirlError(f"{where}: is of type {feature.dtype}, not numbers.")
    values = column_values(column, where)
    if values.size != rows * int(np.prod(layout.shape)):
        raise SpirlError(
            f"{where}: {values.size} numbers in {rows} rows, but meta/info.json says {list(layout.shape)} in each row."
        )
    return values.astype(layout.dtype, copy=False).reshape(rows, *layout.shape)


def _images(column: pa.ChunkedArray, shape: tuple[int, ...], scaled: bool, where: str) -> NDArray[np.uint8]:
    """A column of encoded images (PNG or another format that Pillow reads) as uint8 [rows, *shape]."""
    found = np.empty((len(column), *shape), np.uint8)
    for row, value in enumerate(column):
        try:
            with Image.open(io.BytesIO(value.as_py()["bytes"])) as file:
                image = file.convert("L" if shape[2] == 1 else "RGB")
        except (OSError, TypeError, KeyError, ValueError, SyntaxError) as error:
            raise SpirlError(f"{where}: row {row} holds no readable image: {error}") from error
        if scaled:
            image = image.resize((shape[1], shape[0]), Image.Resampling.BOX)
        if image.size != (shape[1], shape[0]):
            raise SpirlError(
                f"{where}: row {row} has an image of {image.height} x {image.width} pixels (height x width), but "
                f"meta/info.json says {shape[0]} x {shape[1]}."
            )
        found[row] = np.asarray(image).reshape(shape)
    return found


def make(settings: LeRobotSettings, spec: EnvironmentSpec | None) -> LeRobotReader:
    """Makes the reader of an entry of type ``lerobot``.

    Raises:
        SpirlError: actions or rewards are renamed, which have one name in LeRobot's format.
    """
    settings.refuse_renamed(f"lerobot:{settings.path}", "has one name in LeRobot's format")
    return LeRobotReader(settings.path.expanduser().absolute(), settings.episodes)


register_source("lerobot", LeRobotSettings, make)
