"""A contact sheet and a video show recorded episodes as the environment renders them."""

from __future__ import annotations

from pathlib import Path

import imageio_ffmpeg
import numpy as np
import pytest
from PIL import Image
from stored import FEATURES, make_episode, rewrite_card, write_dataset

from spirl_ray.envs import environment
from spirl_ray.envs.maze import expert as maze
from spirl_ray.envs.point_pads import env as point_pads
from spirl_ray.episodes.episode import Episode
from spirl_ray.errors import SpirlError
from spirl_ray.pipeline import demonstrations
from spirl_ray.pipeline.demonstrations import render_demonstrations, spread_episodes
from spirl_ray.reports.contact_sheet import COLUMNS, EPISODES, IMAGE_WIDTH, write_contact_sheet


def write(folder: Path, environment_id: str, episodes: list[Episode]) -> Path:
    spec = environment(environment_id)
    return write_dataset(folder, [episodes], spec.features, spec.action_dim, environment=environment_id)


@pytest.fixture
def pads(tmp_path: Path) -> Path:
    return write(tmp_path / "pads", "spirl/PointPads-v0", list(point_pads.generate(range(7), 0)))


def test_datasets_stand_below_each_other_with_spread_episodes_and_steps(pads: Path, tmp_path: Path) -> None:
    mazes = [episode for episode in maze.generate(range(2), 0, size=8) if episode is not None]
    other = write(tmp_path / "mazes", "spirl/Maze-v0", mazes)
    write_contact_sheet([pads, other], tmp_path / "sheet.png")
    sheet = np.asarray(Image.open(tmp_path / "sheet.png"))
    height, width = sheet.shape[:2]
    rows = EPISODES + len(mazes)
    assert width == COLUMNS * IMAGE_WIDTH
    assert height % rows == 0
    tiles = sheet.reshape(rows, height // rows, COLUMNS, IMAGE_WIDTH, 3).swapaxes(1, 2)
    assert len({tile.tobytes() for tile in tiles.reshape(rows * COLUMNS, -1)}) == rows * COLUMNS


def test_a_picture_is_the_one_that_the_environment_drew(pads: Path) -> None:
    first = next(iter(point_pads.generate([0], 0)))
    assert point_pads.SPEC.render_recorded is not None
    start, end = point_pads.SPEC.render_recorded(first.metadata, first.observations, [0, first.length])
    bright = (start == (250, 185, 45)).all(-1).sum(), (end == (250, 185, 45)).all(-1).sum()
    assert bright[0] == 0  # no pad is visited yet
    assert bright[1] > 500
    assert (end == (70, 130, 200)).all(-1).sum() > 100  # the path


@pytest.fixture
def blind(pads: Path) -> Path:
    """Episodes of an environment that nobody here knows, without an image."""
    rewrite_card(pads, environment="somebodys/Pads-v0")
    return pads


def test_an_environment_that_cannot_render_is_refused(blind: Path, tmp_path: Path) -> None:
    with pytest.raises(SpirlError, match="nothing renders its episodes"):
        write_contact_sheet([blind], tmp_path / "sheet.png")
    assert not (tmp_path / "sheet.png").exists()


def test_images_that_episodes_hold_are_shown_where_nobody_draws_others(tmp_path: Path) -> None:
    data = write_dataset(tmp_path / "seen", [[make_episode(length=3)]], FEATURES, 2, environment=None)
    write_contact_sheet([data], tmp_path / "sheet.png")
    sheet = np.asarray(Image.open(tmp_path / "sheet.png"))
    assert sheet.shape[1] == COLUMNS * IMAGE_WIDTH
    render_demonstrations(data, tmp_path / "video.mp4", 1, 20)
    assert imageio_ffmpeg.count_frames_and_secs(str(tmp_path / "video.mp4"))[0] == 4


def test_a_video_shows_every_step_of_spread_episodes(pads: Path, tmp_path: Path) -> None:
    episodes = spread_episodes(pads, 2)
    assert [episode.id[-1] for episode in episodes] == ["0", "6"]
    render_demonstrations(pads, tmp_path / "video.mp4", 2, 20)
    frames, seconds = imageio_ffmpeg.count_frames_and_secs(str(tmp_path / "video.mp4"))
    assert frames == sum(episode.length + 1 for episode in episodes)
    assert seconds == pytest.approx(frames / 20, rel=0.05)


def test_a_video_of_long_episodes_takes_as_long_with_fewer_frames(
    pads: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (episode,) = spread_episodes(pads, 1)
    monkeypatch.setattr(demonstrations, "MOST_FRAMES", episode.length // 4)
    render_demonstrations(pads, tmp_path / "video.mp4", 1, 20)
    frames, seconds = imageio_ffmpeg.count_frames_and_secs(str(tmp_path / "video.mp4"))
    assert frames <= episode.length // 4 + 1
    assert seconds == pytest.approx(episode.length / 20, rel=0.2)


def test_a_video_of_what_cannot_be_rendered_fails(blind: Path, tmp_path: Path) -> None:
    with pytest.raises(SpirlError, match="nothing renders its episodes"):
        render_demonstrations(blind, tmp_path / "video.mp4", 1, 20)
    assert not (tmp_path / "video.mp4").exists()
