"""Recordings of LeRobot datasets: what is said where a file is missing or damaged."""

from __future__ import annotations

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets.formats.lerobot_folders import (
    CAMERAS,
    LENGTHS,
    PICTURE,
    STATE,
    Folder,
    assert_says,
    edit_column,
    edit_feature,
    edit_info,
    error,
)

from spirl_ray.datasets.formats.lerobot import LeRobotReader
from spirl_ray.errors import SpirlError


def test_an_unknown_version_is_named_with_those_that_are_read(folder: Folder) -> None:
    edit_info(folder, codebase_version="v4.0")
    assert_says(error(folder), "info.json", "v4.0", "v2.1", "v3.0")


def test_an_unknown_key_lists_those_that_are_there(written: dict[str, Folder], version: str) -> None:
    message = error(written[version], "observation.images.back")
    assert all(key in message for key in ("observation.images.back", STATE, *CAMERAS))


def test_data_without_actions_are_refused(folder: Folder) -> None:
    features = json.loads((folder.root / "meta/info.json").read_text())["features"]
    del features["action"]
    edit_info(folder, features=features)
    assert LeRobotReader(folder.root).layout().actions is None
    assert "'action'" in error(folder, STATE)


def test_a_missing_folder_or_meta_file_is_named(folder: Folder) -> None:
    with pytest.raises(SpirlError, match="nowhere"):
        LeRobotReader(folder.root / "nowhere").layout()
    episodes = folder.root / "meta" / ("episodes" if folder.version == "v3.0" else "episodes.jsonl")
    episodes.rename(folder.root / "aside")
    assert str(episodes) in error(folder)
    info = folder.root / "meta/info.json"
    info.unlink()
    assert str(info) in error(folder)


@pytest.mark.parametrize("text", ["{", "[]", '{"codebase_version": "v2.1"}'])
def test_a_damaged_info_is_named(folder: Folder, text: str) -> None:
    (folder.root / "meta/info.json").write_text(text)
    assert "info.json" in error(folder)


def test_a_damaged_list_of_episodes_is_named_with_its_line(folder: Folder) -> None:
    if folder.version == "v2.1":
        file = folder.root / "meta/episodes.jsonl"
        lines = file.read_text().splitlines()
        for bad in ("{", "[]", "{}"):
            file.write_text("\n".join([lines[0], bad, lines[2]]))
            message = error(folder)
            assert str(file) in message
            assert "line 2" in message
    else:
        file = folder.root / "meta/episodes/chunk-000/file-000.parquet"
        file.write_bytes(file.read_bytes()[:-100])
        assert str(file) in error(folder)


def test_damaged_statistics_are_named(folder: Folder) -> None:
    file = folder.root / "meta" / ("stats.json" if folder.version == "v3.0" else "episodes_stats.jsonl")
    file.write_text(json.dumps({"action": {"min": [0]}, "stats": {"action": {"min": [0]}}}))
    with pytest.raises(SpirlError, match=file.name):
        LeRobotReader(folder.root).layout()


def test_a_missing_file_is_named(folder: Folder) -> None:
    video = folder.video_file(1, 2)
    video.unlink()
    assert_says(error(folder, CAMERAS[1]), str(video), CAMERAS[1])
    data = folder.data_file(2)
    data.unlink()
    assert str(data) in error(folder)
    with pytest.raises(SpirlError, match=data.name):
        LeRobotReader(folder.root).identity()


def test_a_truncated_table_is_named(folder: Folder) -> None:
    file = folder.data_file(2)
    file.write_bytes(file.read_bytes()[:-500])
    assert str(file) in error(folder)


def test_a_path_of_another_layout_is_named(folder: Folder) -> None:
    edit_info(folder, data_path="data/{episode}.parquet")
    assert "data/{episode}.parquet" in error(folder)


def test_a_missing_column_is_named_with_those_that_are_there(folder: Folder) -> None:
    edit_column(folder, 2, STATE, None)
    message = error(folder, STATE)
    assert_says(message, str(folder.data_file(2)), STATE, "action")


def test_rows_that_are_missing_or_out_of_order_are_refused(folder: Folder) -> None:
    file, rows = folder.data_file(2), LENGTHS[2]
    edit_column(folder, 2, "frame_index", pa.array([1, 0, *range(2, rows)], pa.int64()))
    assert_says(error(folder), str(file), "episode 2", "frame_index")
    pq.write_table(pq.read_table(file).slice(0, rows - 3), file)
    assert_says(error(folder), str(file), "episode 2", str(rows), str(rows - 3))


@pytest.mark.parametrize(
    "column",
    [
        pa.array([[1.0, 2.0]] * LENGTHS[2]),
        pa.array([None] + [[1.0, 2.0, 3.0]] * (LENGTHS[2] - 1)),
        pa.array([["a", "b", "c"]] * LENGTHS[2]),
    ],
    ids=["width", "null", "text"],
)
def test_a_column_of_another_shape_is_refused(folder: Folder, column: pa.Array) -> None:
    edit_column(folder, 2, STATE, column)
    assert_says(error(folder, STATE), str(folder.data_file(2)), "episode 2", STATE)


def test_an_image_that_cannot_be_read_is_named_with_its_row(folder: Folder) -> None:
    images = pq.read_table(folder.data_file(2))[PICTURE].to_pylist()
    images[4]["bytes"] = images[4]["bytes"][:60]
    edit_column(folder, 2, PICTURE, pa.array(images))
    assert_says(error(folder, PICTURE), "episode 2", PICTURE, "row 4")


@pytest.mark.parametrize("key", [CAMERAS[0], PICTURE])
def test_images_of_another_size_are_refused(folder: Folder, key: str) -> None:
    edit_feature(folder, key, shape=[32, 48, 3], names=["height", "width", "channels"])
    assert_says(error(folder, key), key, "64 x 64", "32 x 48", "episode 0")
