"""Recordings of LeRobot datasets: what is read, and what is said where a file is missing or damaged."""

from __future__ import annotations

import json
import pickle
import shutil
import stat
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets.formats.lerobot_folders import CAMERAS, FPS, H264, LENGTHS, PICTURE, SIZE, Folder, encode, frame_of
from numpy.typing import NDArray

from spirl_ray.datasets.formats.lerobot import LeRobotReader, LeRobotSettings
from spirl_ray.datasets.formats.videos import Clip, decode_clip
from spirl_ray.episodes.recording import KeyLayout, Recording
from spirl_ray.errors import SpirlError

AV1 = ("-c:v", "libsvtav1", "-pix_fmt", "yuv420p", "-g", "4", "-preset", "12", "-crf", "30")
HEVC = ("-c:v", "libx265", "-pix_fmt", "yuv420p", "-x265-params", "log-level=error")
STATE = "observation.state"


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Folder]:
    root = tmp_path_factory.mktemp("lerobot")
    return {version: Folder(root / version, version).write() for version in ("v2.1", "v3.0")}


@pytest.fixture(params=["v2.1", "v3.0"])
def version(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def folder(written: dict[str, Folder], version: str, tmp_path: Path) -> Folder:
    """A copy that a test may damage."""
    return _copy(written[version], tmp_path)


def _copy(folder: Folder, to: Path) -> Folder:
    root = to / "set"
    shutil.copytree(folder.root, root)
    return Folder(root, folder.version)


def _read(folder: Folder, *keys: str, episodes: tuple[int, ...] = (0, 1, 2), **options: Any) -> list[Recording]:
    return list(LeRobotReader(folder.root, **options).read(episodes, keys))


def _error(folder: Folder, *keys: str, **options: Any) -> str:
    with pytest.raises(SpirlError) as caught:
        _read(folder, *keys, **options)
    return str(caught.value)


def _assert_says(message: str, *parts: str) -> None:
    assert [part for part in parts if part not in message] == [], message


def _expected(camera: int, episode: int) -> NDArray[np.uint8]:
    return np.stack([frame_of(camera, episode, row) for row in range(LENGTHS[episode])])


def _assert_frames(found: NDArray[Any], camera: int, episode: int) -> None:
    """Neighbouring frames differ by 12, so frames that are a row off are no codec's loss."""
    assert found.dtype == np.uint8
    assert found.shape == (LENGTHS[episode], SIZE, SIZE, 3)
    assert np.abs(found.astype(int) - _expected(camera, episode)).mean((1, 2, 3)).max() < 3


def _edit_info(folder: Folder, **changes: Any) -> None:
    file = folder.root / "meta/info.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def _edit_feature(folder: Folder, name: str, **changes: Any) -> None:
    features = json.loads((folder.root / "meta/info.json").read_text())["features"]
    _edit_info(folder, features={**features, name: features.get(name, {}) | changes})


def _edit_column(folder: Folder, episode: int, name: str, column: pa.Array | None) -> None:
    """Replaces a column of the file that holds an episode, or removes it."""
    file = folder.data_file(episode)
    table = pq.read_table(file)
    at = table.column_names.index(name)
    pq.write_table(table.remove_column(at) if column is None else table.set_column(at, name, column), file)


def test_values_come_back_as_they_were_written(written: dict[str, Folder], version: str) -> None:
    folder = written[version]
    for episode, recording in enumerate(_read(folder, STATE, "observation.grid", PICTURE, *CAMERAS)):
        steps = LENGTHS[episode] - 1
        np.testing.assert_array_equal(recording.observations[STATE], folder.state(episode))
        np.testing.assert_array_equal(recording.observations["observation.grid"][:, 0, 0], np.arange(steps + 1))
        np.testing.assert_array_equal(recording.observations[PICTURE], _expected(2, episode))
        for camera, key in enumerate(CAMERAS):
            _assert_frames(recording.observations[key], camera, episode)
        # A row's action leads to the next row, so the last row's action, reward and end are left out.
        np.testing.assert_array_equal(recording.actions, folder.actions(episode)[:-1])
        assert recording.actions.dtype == np.float32
        assert recording.rewards is not None
        np.testing.assert_array_equal(recording.rewards, np.arange(steps))
        assert (recording.terminated, recording.truncated) == (False, True)
        assert recording.id == f"episode_{episode:06d}"
        assert recording.metadata == {"lerobot_episode": episode, "tasks": ["push"], "success": episode != 1}


@pytest.mark.parametrize("codec", [AV1, HEVC], ids=["av1", "hevc"])
def test_videos_of_other_codecs_are_decoded(tmp_path: Path, codec: tuple[str, ...]) -> None:
    folder = Folder(tmp_path / "set", "v3.0", codec=codec).write()
    for episode, recording in enumerate(_read(folder, *CAMERAS)):
        for camera, key in enumerate(CAMERAS):
            _assert_frames(recording.observations[key], camera, episode)


def test_only_what_is_asked_for_is_read(folder: Folder) -> None:
    shutil.rmtree(folder.root / "videos")
    _edit_column(folder, 0, PICTURE, None)
    assert [set(recording.observations) for recording in _read(folder, STATE)] == [{STATE}] * 3
    assert not _read(folder)[0].observations


def test_the_layout_is_what_the_files_say(written: dict[str, Folder], version: str) -> None:
    layout = LeRobotReader(written[version].root).layout()
    image = KeyLayout((SIZE, SIZE, 3), np.dtype(np.uint8))
    assert layout.observations == {
        STATE: KeyLayout((3,), np.dtype(np.float32)),
        "observation.grid": KeyLayout((2, 2), np.dtype(np.float32)),
        PICTURE: image,
        CAMERAS[0]: image,
        CAMERAS[1]: image,
    }
    assert layout.actions == KeyLayout((2,), np.dtype(np.float32))
    assert (layout.action_low, layout.action_high) == ((-30.0, -30.0), (100.0, 35.0))
    assert layout.rewards


def test_version_2_0_has_its_statistics_in_one_file(folder: Folder) -> None:
    if folder.version == "v2.1":
        (folder.root / "meta/episodes_stats.jsonl").unlink()
        (folder.root / "meta/stats.json").write_text(json.dumps({"action": {"min": [-1, -2], "max": [1, 2]}}))
        _edit_info(folder, codebase_version="v2.0")
        assert LeRobotReader(folder.root).layout().action_low == (-1.0, -2.0)
        _assert_frames(_read(folder, CAMERAS[0])[2].observations[CAMERAS[0]], 0, 2)


def test_without_statistics_or_rewards_there_are_none(folder: Folder) -> None:
    for name in ("stats.json", "episodes_stats.jsonl"):
        (folder.root / "meta" / name).unlink(missing_ok=True)
    features = json.loads((folder.root / "meta/info.json").read_text())["features"]
    _edit_info(folder, features={name: value for name, value in features.items() if not name.startswith("next.")})
    layout, recording = LeRobotReader(folder.root).layout(), _read(folder)[0]
    assert (layout.action_low, layout.action_high, layout.rewards) == (None, None, False)
    assert recording.rewards is None
    assert "success" not in recording.metadata


def test_a_task_that_ends_before_the_last_row_terminates(folder: Folder) -> None:
    rows = sum(LENGTHS[:2]) if folder.version == "v3.0" else LENGTHS[0]
    done = np.isin(np.arange(rows), [LENGTHS[0] - 2, LENGTHS[0] - 1])
    _edit_column(folder, 0, "next.done", pa.array(done))
    recording = _read(folder, episodes=(0,))[0]
    assert (recording.terminated, recording.truncated) == (True, False)


def test_depth_maps_and_texts_are_no_observations(folder: Folder) -> None:
    _edit_feature(folder, CAMERAS[0], info={"video.is_depth_map": True})
    keys = LeRobotReader(folder.root).layout().observations
    assert CAMERAS[0] not in keys
    assert "note" not in keys


def test_every_episode_is_in_one_chunk_and_any_order_reads_the_same(written: dict[str, Folder], version: str) -> None:
    reader = LeRobotReader(written[version].root)
    assert reader.chunks() == ([(0, 1), (2,)] if version == "v3.0" else [(0,), (1,), (2,)])
    turned = list(reader.read((2, 0, 1), [CAMERAS[1]]))
    assert [recording.metadata["lerobot_episode"] for recording in turned] == [2, 0, 1]
    for recording, episode in zip(turned, (2, 0, 1), strict=True):
        _assert_frames(recording.observations[CAMERAS[1]], 1, episode)


def test_a_large_file_makes_several_chunks(tmp_path: Path) -> None:
    folder = Folder(tmp_path / "set", "v3.0").write()
    file = folder.root / "meta/episodes/chunk-000/file-000.parquet"
    row = pq.read_table(file).to_pylist()[0]
    pq.write_table(pa.Table.from_pylist([row | {"episode_index": index} for index in range(20)]), file)
    chunks = LeRobotReader(folder.root).chunks()
    assert [len(chunk) for chunk in chunks] == [8, 8, 4]
    assert [index for chunk in chunks for index in chunk] == list(range(20))


def test_episodes_can_be_chosen(written: dict[str, Folder], version: str) -> None:
    reader = LeRobotReader(written[version].root, episodes=(2, 1))
    assert [index for chunk in reader.chunks() for index in chunk] == [0, 1]
    first, second = reader.read((0, 1), [STATE])
    assert (first.metadata["lerobot_episode"], second.metadata["lerobot_episode"]) == (2, 1)
    with pytest.raises(SpirlError, match=r"no episode 3.*3 episodes"):
        LeRobotReader(written[version].root, episodes=(0, 3)).chunks()


def test_images_are_scaled_while_they_are_decoded(written: dict[str, Folder], version: str) -> None:
    size = {CAMERAS[0]: (16, 32), PICTURE: (16, 32)}
    reader = LeRobotReader(written[version].root, image_size=size)
    assert reader.layout().observations[CAMERAS[0]].shape == (16, 32, 3)
    for key, camera in ((CAMERAS[0], 0), (PICTURE, 2)):
        found = next(iter(reader.read((1,), [key]))).observations[key]
        small = _expected(camera, 1)[:, ::4, ::2]
        assert found.shape == small.shape == (LENGTHS[1], 16, 32, 3)
        assert np.abs(found.astype(int) - small).mean() < 3


def test_grey_images_have_one_channel(folder: Folder) -> None:
    for key in (CAMERAS[0], PICTURE):
        _edit_feature(folder, key, shape=[SIZE, SIZE, 1], names=["height", "width", "channels"])
    recording = _read(folder, CAMERAS[0], PICTURE)[0]
    assert recording.observations[CAMERAS[0]].shape == (LENGTHS[0], SIZE, SIZE, 1)
    np.testing.assert_allclose(
        recording.observations[CAMERAS[0]][:, 0, -1, 0], _expected(0, 0)[:, 0, -1, 0].astype(int), atol=4
    )
    np.testing.assert_array_equal(recording.observations[PICTURE][:, 0, -1, 0], _expected(2, 0)[:, 0, -1, 0])


def test_a_faster_video_gives_the_frames_at_the_times_of_the_rows(tmp_path: Path) -> None:
    folder = Folder(tmp_path / "set", "v3.0", rate=3 * FPS).write()
    for episode, recording in enumerate(_read(folder, CAMERAS[1])):
        _assert_frames(recording.observations[CAMERAS[1]], 1, episode)


@pytest.mark.parametrize("late", [-0.2, 0.2])
def test_a_rounded_start_gives_the_same_frames(written: dict[str, Folder], late: float) -> None:
    folder = written["v3.0"]
    start = (LENGTHS[0] + late) / FPS
    frames = decode_clip(Clip(folder.video_file(0, 1), start, LENGTHS[1], FPS), (SIZE, SIZE, 3))
    _assert_frames(frames, 0, 1)


def test_a_longer_video_is_cut(folder: Folder) -> None:
    encode(folder.video_file(0, 2), np.concatenate([folder.frames(0, 2)] * 4), *H264)
    if folder.version == "v2.1":
        _assert_frames(_read(folder, CAMERAS[0])[2].observations[CAMERAS[0]], 0, 2)


def test_the_reader_is_picklable(written: dict[str, Folder], version: str) -> None:
    reader = pickle.loads(pickle.dumps(LeRobotReader(written[version].root)))  # noqa: S301
    assert next(iter(reader.read((0,), [STATE]))).id == "episode_000000"


def test_the_identity_changes_with_files_and_options_not_with_the_place(folder: Folder, tmp_path: Path) -> None:
    reader = LeRobotReader(folder.root)
    before = reader.identity()
    assert json.loads(json.dumps(before)) == before
    folder.root.rename(tmp_path / "moved")
    assert LeRobotReader(tmp_path / "moved").identity() == before
    (tmp_path / "moved").rename(folder.root)
    assert LeRobotReader(folder.root, episodes=(0,)).identity() != before
    assert LeRobotReader(folder.root, image_size={CAMERAS[0]: (8, 8)}).identity() != before
    folder.video_file(1, 0).touch()
    assert reader.identity() != before


def test_the_card_of_the_hub_gives_licence_and_attribution(folder: Folder) -> None:
    reader = LeRobotReader(folder.root)
    assert (reader.licence(), reader.attribution(), reader.origin()) == (
        "unknown",
        "unknown",
        f"lerobot:{folder.root}",
    )
    (folder.root / "README.md").write_text(
        "---\nlicense: apache-2.0\ntags: [LeRobot]\n---\n\n- **Homepage:** [More Information Needed]\n"
        "- **Paper:** https://arxiv.org/abs/1\n"
    )
    assert (reader.licence(), reader.attribution()) == ("apache-2.0", "https://arxiv.org/abs/1")


def test_the_settings_name_a_folder_and_episodes() -> None:
    settings = LeRobotSettings.model_validate({"type": "lerobot", "path": "sets/pusht", "episodes": [0, 2]})
    assert (settings.path, settings.episodes) == (Path("sets/pusht"), (0, 2))


# --- errors ---


def test_an_unknown_version_is_named_with_those_that_are_read(folder: Folder) -> None:
    _edit_info(folder, codebase_version="v4.0")
    _assert_says(_error(folder), "info.json", "v4.0", "v2.1", "v3.0")


def test_an_unknown_key_lists_those_that_are_there(written: dict[str, Folder], version: str) -> None:
    message = _error(written[version], "observation.images.back")
    assert all(key in message for key in ("observation.images.back", STATE, *CAMERAS))


def test_data_without_actions_are_refused(folder: Folder) -> None:
    features = json.loads((folder.root / "meta/info.json").read_text())["features"]
    del features["action"]
    _edit_info(folder, features=features)
    assert LeRobotReader(folder.root).layout().actions is None
    assert "'action'" in _error(folder, STATE)


def test_a_missing_folder_or_meta_file_is_named(folder: Folder) -> None:
    with pytest.raises(SpirlError, match="nowhere"):
        LeRobotReader(folder.root / "nowhere").layout()
    episodes = folder.root / "meta" / ("episodes" if folder.version == "v3.0" else "episodes.jsonl")
    episodes.rename(folder.root / "aside")
    assert str(episodes) in _error(folder)
    info = folder.root / "meta/info.json"
    info.unlink()
    assert str(info) in _error(folder)


@pytest.mark.parametrize("text", ["{", "[]", '{"codebase_version": "v2.1"}'])
def test_a_damaged_info_is_named(folder: Folder, text: str) -> None:
    (folder.root / "meta/info.json").write_text(text)
    assert "info.json" in _error(folder)


def test_a_damaged_list_of_episodes_is_named_with_its_line(folder: Folder) -> None:
    if folder.version == "v2.1":
        file = folder.root / "meta/episodes.jsonl"
        lines = file.read_text().splitlines()
        for bad in ("{", "[]", "{}"):
            file.write_text("\n".join([lines[0], bad, lines[2]]))
            message = _error(folder)
            assert str(file) in message
            assert "line 2" in message
    else:
        file = folder.root / "meta/episodes/chunk-000/file-000.parquet"
        file.write_bytes(file.read_bytes()[:-100])
        assert str(file) in _error(folder)


def test_damaged_statistics_are_named(folder: Folder) -> None:
    file = folder.root / "meta" / ("stats.json" if folder.version == "v3.0" else "episodes_stats.jsonl")
    file.write_text(json.dumps({"action": {"min": [0]}, "stats": {"action": {"min": [0]}}}))
    with pytest.raises(SpirlError, match=file.name):
        LeRobotReader(folder.root).layout()


def test_a_missing_file_is_named(folder: Folder) -> None:
    video = folder.video_file(1, 2)
    video.unlink()
    _assert_says(_error(folder, CAMERAS[1]), str(video), CAMERAS[1])
    data = folder.data_file(2)
    data.unlink()
    assert str(data) in _error(folder)
    with pytest.raises(SpirlError, match=data.name):
        LeRobotReader(folder.root).identity()


def test_a_truncated_table_is_named(folder: Folder) -> None:
    file = folder.data_file(2)
    file.write_bytes(file.read_bytes()[:-500])
    assert str(file) in _error(folder)


def test_a_path_of_another_layout_is_named(folder: Folder) -> None:
    _edit_info(folder, data_path="data/{episode}.parquet")
    assert "data/{episode}.parquet" in _error(folder)


def test_a_missing_column_is_named_with_those_that_are_there(folder: Folder) -> None:
    _edit_column(folder, 2, STATE, None)
    message = _error(folder, STATE)
    _assert_says(message, str(folder.data_file(2)), STATE, "action")


def test_rows_that_are_missing_or_out_of_order_are_refused(folder: Folder) -> None:
    file, rows = folder.data_file(2), LENGTHS[2]
    _edit_column(folder, 2, "frame_index", pa.array([1, 0, *range(2, rows)], pa.int64()))
    _assert_says(_error(folder), str(file), "episode 2", "frame_index")
    pq.write_table(pq.read_table(file).slice(0, rows - 3), file)
    _assert_says(_error(folder), str(file), "episode 2", str(rows), str(rows - 3))


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
    _edit_column(folder, 2, STATE, column)
    _assert_says(_error(folder, STATE), str(folder.data_file(2)), "episode 2", STATE)


def test_an_image_that_cannot_be_read_is_named_with_its_row(folder: Folder) -> None:
    images = pq.read_table(folder.data_file(2))[PICTURE].to_pylist()
    images[4]["bytes"] = images[4]["bytes"][:60]
    _edit_column(folder, 2, PICTURE, pa.array(images))
    _assert_says(_error(folder, PICTURE), "episode 2", PICTURE, "row 4")


@pytest.mark.parametrize("key", [CAMERAS[0], PICTURE])
def test_images_of_another_size_are_refused(folder: Folder, key: str) -> None:
    _edit_feature(folder, key, shape=[32, 48, 3], names=["height", "width", "channels"])
    _assert_says(_error(folder, key), key, "64 x 64", "32 x 48", "episode 0")


def test_a_short_video_is_named_with_both_counts(folder: Folder) -> None:
    last = folder.video_file(0, 2)
    frames = np.concatenate([folder.frames(0, e) for e in range(3) if folder.video_file(0, e) == last])
    encode(last, frames[:-4], *H264)
    _assert_says(_error(folder, CAMERAS[0]), str(last), "episode 2", CAMERAS[0], str(LENGTHS[2]), str(LENGTHS[2] - 4))


def test_an_episode_does_not_borrow_frames_of_the_next(written: dict[str, Folder], tmp_path: Path) -> None:
    folder = _copy(written["v3.0"], tmp_path)
    file = folder.root / "meta/episodes/chunk-000/file-000.parquet"
    rows = pq.read_table(file).to_pylist()
    rows[1][f"videos/{CAMERAS[0]}/to_timestamp"] -= 2 / FPS
    pq.write_table(pa.Table.from_pylist(rows), file)
    message = _error(folder, CAMERAS[0])
    _assert_says(message, str(folder.video_file(0, 1)), "episode 1", "7 frames", "9 rows")


def test_a_video_with_a_gap_is_refused(tmp_path: Path) -> None:
    frames = np.stack([frame_of(0, 0, row) for row in range(12)])
    file = tmp_path / "gap.mp4"
    encode(file, frames, "-vf", "select=not(eq(n\\,5))", "-fps_mode", "passthrough", *H264)
    with pytest.raises(SpirlError, match=r"gap\.mp4.* 5 frames.* 12 rows"):
        decode_clip(Clip(file, 0.0, 12, FPS), (SIZE, SIZE, 3))
    # The frames before the gap are there, and those after it.
    assert len(decode_clip(Clip(file, 0.0, 5, FPS), (SIZE, SIZE, 3))) == 5
    after = decode_clip(Clip(file, 6 / FPS, 6, FPS), (SIZE, SIZE, 3))
    assert np.abs(after.astype(int) - frames[6:]).mean() < 3


@pytest.mark.parametrize("kept", [0, 0.2, 0.6])
def test_a_truncated_video_is_named(folder: Folder, kept: float) -> None:
    file = folder.video_file(0, 0)
    data = file.read_bytes()
    file.write_bytes(data[: int(len(data) * kept)])
    _assert_says(_error(folder, CAMERAS[0]), str(file), "episode 0", "ffmpeg says")


def test_a_damaged_frame_is_refused(folder: Folder) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (LENGTHS[0], SIZE, SIZE, 3), np.uint8)
    file = folder.video_file(0, 0)
    encode(file, noise, *H264, "-x264-params", "cabac=0")  # damage to the other entropy code is not always seen
    data = bytearray(file.read_bytes())
    for part in range(5, 10):
        first = len(data) * part // 18
        data[first : first + 100] = np.random.default_rng(part).bytes(100)
    file.write_bytes(data)
    # ffmpeg would make up for what it cannot decode, and give all frames.
    _assert_says(_error(folder, CAMERAS[0]), str(file), "episode 0", "ffmpeg says")


def test_a_codec_without_a_decoder_is_named(
    written: dict[str, Folder], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = tmp_path / "ffmpeg"
    program.write_text(
        '#!/bin/sh\necho "[vist#0:0/av1] [error] Decoding requested, but no decoder found for: av1" >&2\n'
    )
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("IMAGEIO_FFMPEG_EXE", str(program))
    _assert_says(_error(written["v2.1"], CAMERAS[0]), "av1", str(program), "IMAGEIO_FFMPEG_EXE", "episode_000000.mp4")
