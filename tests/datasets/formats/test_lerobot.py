"""Recordings of LeRobot datasets: what is read."""

from __future__ import annotations

import json
import pickle
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets.formats.lerobot_folders import (
    CAMERAS,
    LENGTHS,
    PICTURE,
    SIZE,
    STATE,
    Folder,
    assert_frames,
    edit_column,
    edit_feature,
    edit_info,
    expected,
    read,
)

from spirl_ray.datasets.formats.lerobot import LeRobotReader, LeRobotSettings
from spirl_ray.episodes.recording import KeyLayout
from spirl_ray.errors import SpirlError


def test_values_come_back_as_they_were_written(written: dict[str, Folder], version: str) -> None:
    folder = written[version]
    for episode, recording in enumerate(read(folder, STATE, "observation.grid", PICTURE, *CAMERAS)):
        steps = LENGTHS[episode] - 1
        np.testing.assert_array_equal(recording.observations[STATE], folder.state(episode))
        np.testing.assert_array_equal(recording.observations["observation.grid"][:, 0, 0], np.arange(steps + 1))
        np.testing.assert_array_equal(recording.observations[PICTURE], expected(2, episode))
        for camera, key in enumerate(CAMERAS):
            assert_frames(recording.observations[key], camera, episode)
        # A row's action leads to the next row, so the last row's action is left out, and its reward is kept.
        np.testing.assert_array_equal(recording.actions, folder.actions(episode)[:-1])
        assert recording.actions.dtype == np.float32
        assert recording.rewards is not None
        np.testing.assert_array_equal(recording.rewards, [*range(steps - 1), steps - 1 + steps])
        assert (recording.terminated, recording.truncated) == (episode != 1, episode == 1)  # success, or done alone
        assert recording.id == f"episode_{episode:06d}"
        assert recording.metadata == {"lerobot_episode": episode, "tasks": ["push"], "success": episode != 1}


def test_only_what_is_asked_for_is_read(folder: Folder) -> None:
    shutil.rmtree(folder.root / "videos")
    edit_column(folder, 0, PICTURE, None)
    assert [set(recording.observations) for recording in read(folder, STATE)] == [{STATE}] * 3
    assert not read(folder)[0].observations


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
        edit_info(folder, codebase_version="v2.0")
        assert LeRobotReader(folder.root).layout().action_low == (-1.0, -2.0)
        assert_frames(read(folder, CAMERAS[0])[2].observations[CAMERAS[0]], 0, 2)


def test_without_statistics_or_rewards_there_are_none(folder: Folder) -> None:
    for name in ("stats.json", "episodes_stats.jsonl"):
        (folder.root / "meta" / name).unlink(missing_ok=True)
    features = json.loads((folder.root / "meta/info.json").read_text())["features"]
    edit_info(folder, features={name: value for name, value in features.items() if not name.startswith("next.")})
    layout, recording = LeRobotReader(folder.root).layout(), read(folder)[0]
    assert (layout.action_low, layout.action_high, layout.rewards) == (None, None, False)
    assert recording.rewards is None
    assert "success" not in recording.metadata


def test_a_task_that_ends_before_the_last_row_terminates(folder: Folder) -> None:
    rows = sum(LENGTHS[:2]) if folder.version == "v3.0" else LENGTHS[0]
    done = np.isin(np.arange(rows), [LENGTHS[0] - 2, LENGTHS[0] - 1])
    edit_column(folder, 0, "next.done", pa.array(done))
    recording = read(folder, episodes=(0,))[0]
    assert (recording.terminated, recording.truncated) == (True, False)


def test_depth_maps_and_texts_are_no_observations(folder: Folder) -> None:
    edit_feature(folder, CAMERAS[0], info={"video.is_depth_map": True})
    keys = LeRobotReader(folder.root).layout().observations
    assert CAMERAS[0] not in keys
    assert "note" not in keys


def test_every_episode_is_in_one_chunk_and_any_order_reads_the_same(written: dict[str, Folder], version: str) -> None:
    reader = LeRobotReader(written[version].root)
    assert reader.chunks() == ([(0, 1), (2,)] if version == "v3.0" else [(0,), (1,), (2,)])
    turned = list(reader.read((2, 0, 1), [CAMERAS[1]]))
    assert [recording.metadata["lerobot_episode"] for recording in turned] == [2, 0, 1]
    for recording, episode in zip(turned, (2, 0, 1), strict=True):
        assert_frames(recording.observations[CAMERAS[1]], 1, episode)


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
        small = expected(camera, 1)[:, ::4, ::2]
        assert found.shape == small.shape == (LENGTHS[1], 16, 32, 3)
        assert np.abs(found.astype(int) - small).mean() < 3


def test_grey_images_have_one_channel(folder: Folder) -> None:
    for key in (CAMERAS[0], PICTURE):
        edit_feature(folder, key, shape=[SIZE, SIZE, 1], names=["height", "width", "channels"])
    recording = read(folder, CAMERAS[0], PICTURE)[0]
    assert recording.observations[CAMERAS[0]].shape == (LENGTHS[0], SIZE, SIZE, 1)
    np.testing.assert_allclose(
        recording.observations[CAMERAS[0]][:, 0, -1, 0], expected(0, 0)[:, 0, -1, 0].astype(int), atol=4
    )
    np.testing.assert_array_equal(recording.observations[PICTURE][:, 0, -1, 0], expected(2, 0)[:, 0, -1, 0])


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
