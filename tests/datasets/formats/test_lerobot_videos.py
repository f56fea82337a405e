"""Recordings of LeRobot datasets: videos of other codecs and rates, and damaged ones."""

from __future__ import annotations

import stat
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets.formats.lerobot_folders import (
    CAMERAS,
    FPS,
    H264,
    LENGTHS,
    SIZE,
    Folder,
    assert_frames,
    assert_says,
    copy,
    encode,
    error,
    frame_of,
    read,
)

from spirl_ray.datasets.formats.videos import Clip, decode_clip
from spirl_ray.errors import SpirlError

AV1 = ("-c:v", "libsvtav1", "-pix_fmt", "yuv420p", "-g", "4", "-preset", "12", "-crf", "30")
HEVC = ("-c:v", "libx265", "-pix_fmt", "yuv420p", "-x265-params", "log-level=error")


@pytest.mark.parametrize("codec", [AV1, HEVC], ids=["av1", "hevc"])
def test_videos_of_other_codecs_are_decoded(tmp_path: Path, codec: tuple[str, ...]) -> None:
    folder = Folder(tmp_path / "set", "v3.0", codec=codec).write()
    for episode, recording in enumerate(read(folder, *CAMERAS)):
        for camera, key in enumerate(CAMERAS):
            assert_frames(recording.observations[key], camera, episode)


def test_a_faster_video_gives_the_frames_at_the_times_of_the_rows(tmp_path: Path) -> None:
    folder = Folder(tmp_path / "set", "v3.0", rate=3 * FPS).write()
    for episode, recording in enumerate(read(folder, CAMERAS[1])):
        assert_frames(recording.observations[CAMERAS[1]], 1, episode)


@pytest.mark.parametrize("late", [-0.2, 0.2])
def test_a_rounded_start_gives_the_same_frames(written: dict[str, Folder], late: float) -> None:
    folder = written["v3.0"]
    start = (LENGTHS[0] + late) / FPS
    frames = decode_clip(Clip(folder.video_file(0, 1), start, LENGTHS[1], FPS), (SIZE, SIZE, 3))
    assert_frames(frames, 0, 1)


def test_a_longer_video_is_cut(folder: Folder) -> None:
    encode(folder.video_file(0, 2), np.concatenate([folder.frames(0, 2)] * 4), *H264)
    if folder.version == "v2.1":
        assert_frames(read(folder, CAMERAS[0])[2].observations[CAMERAS[0]], 0, 2)


def test_a_short_video_is_named_with_both_counts(folder: Folder) -> None:
    last = folder.video_file(0, 2)
    frames = np.concatenate([folder.frames(0, e) for e in range(3) if folder.video_file(0, e) == last])
    encode(last, frames[:-4], *H264)
    assert_says(error(folder, CAMERAS[0]), str(last), "episode 2", CAMERAS[0], str(LENGTHS[2]), str(LENGTHS[2] - 4))


def test_an_episode_does_not_borrow_frames_of_the_next(written: dict[str, Folder], tmp_path: Path) -> None:
    folder = copy(written["v3.0"], tmp_path)
    file = folder.root / "meta/episodes/chunk-000/file-000.parquet"
    rows = pq.read_table(file).to_pylist()
    rows[1][f"videos/{CAMERAS[0]}/to_timestamp"] -= 2 / FPS
    pq.write_table(pa.Table.from_pylist(rows), file)
    message = error(folder, CAMERAS[0])
    assert_says(message, str(folder.video_file(0, 1)), "episode 1", "7 frames", "9 rows")


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
    assert_says(error(folder, CAMERAS[0]), str(file), "episode 0", "ffmpeg says")


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
    assert_says(error(folder, CAMERAS[0]), str(file), "episode 0", "ffmpeg says")


def test_a_codec_without_a_decoder_is_named(
    written: dict[str, Folder], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = tmp_path / "ffmpeg"
    program.write_text(
        '#!/bin/sh\necho "[vist#0:0/av1] [error] Decoding requested, but no decoder found for: av1" >&2\n'
    )
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("IMAGEIO_FFMPEG_EXE", str(program))
    assert_says(error(written["v2.1"], CAMERAS[0]), "av1", str(program), "IMAGEIO_FFMPEG_EXE", "episode_000000.mp4")
