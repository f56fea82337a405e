import imageio_ffmpeg
import numpy as np
import pytest

from spirl_ray.errors import SpirlError
from spirl_ray.pipeline.video import VideoWriter, captioned

RED = (220, 20, 20)


def picture(height=96, width=128, colour=RED):
    return np.full((height, width, 3), colour, dtype=np.uint8)


def write(path, frames):
    with VideoWriter(path, fps=10) as video:
        for frame in frames:
            video.add(frame, "")


def frames_then_failure():
    yield picture()
    raise ZeroDivisionError


def decoded(path):
    reader = imageio_ffmpeg.read_frames(str(path))
    meta = next(reader)
    width, height = meta["size"]
    return meta, [np.frombuffer(data, np.uint8).reshape(height, width, 3) for data in reader]


def test_video_is_h264_yuv420p_with_every_frame_at_the_given_rate(tmp_path):
    with VideoWriter(tmp_path / "videos" / "episode.mp4", fps=20) as video:
        for step in range(10):
            video.add(picture(), f"step {step} · microwave ✓")
    meta, frames = decoded(tmp_path / "videos" / "episode.mp4")
    assert meta["codec"] == "h264"
    assert meta["pix_fmt"].startswith("yuv420p")
    assert meta["fps"] == 20
    assert len(frames) == 10
    np.testing.assert_allclose(frames[5][-20, 64], RED, atol=12)


def test_odd_sizes_are_padded_to_even_ones(tmp_path):
    with VideoWriter(tmp_path / "odd.mp4", fps=10) as video:
        video.add(picture(97, 131), "odd")
    meta, _ = decoded(tmp_path / "odd.mp4")
    assert meta["size"][0] == 132
    assert meta["size"][1] % 2 == 0


def test_caption_strip_is_above_the_unchanged_frame():
    plain, said = captioned(picture(), ""), captioned(picture(), "step 1")
    strip = said.shape[0] - 96
    assert said.shape == plain.shape
    np.testing.assert_array_equal(said[strip:], picture())
    assert (said[:strip] != plain[:strip]).any()


def test_font_tells_done_from_not_done():
    assert (captioned(picture(), "kettle ✓") != captioned(picture(), "kettle ✗")).any()


def test_long_caption_is_cut_within_the_strip():
    long = captioned(picture(), "microwave ✓ " * 30)
    assert long.shape == captioned(picture(), "").shape
    assert (long == captioned(picture(), "microwave ✓ " * 40)).all()


def test_an_exception_in_the_block_leaves_no_file_and_keeps_the_old_one(tmp_path):
    path = tmp_path / "episode.mp4"
    path.write_bytes(b"old")
    with pytest.raises(ZeroDivisionError):
        write(path, frames_then_failure())
    assert [file.name for file in tmp_path.iterdir()] == ["episode.mp4"]
    assert path.read_bytes() == b"old"


def test_file_appears_only_when_it_is_whole(tmp_path):
    path = tmp_path / "episode.mp4"
    with VideoWriter(path, fps=10) as video:
        video.add(picture(), "")
        assert not path.exists()
    assert [file.name for file in tmp_path.iterdir()] == ["episode.mp4"]


def test_folder_that_cannot_be_made_is_said(tmp_path):
    (tmp_path / "videos").write_text("a file where the folder should be")
    with pytest.raises(SpirlError, match=r"Cannot write .*episode\.mp4: File exists"):
        write(tmp_path / "videos" / "episode.mp4", [picture()])


def test_encoder_that_fails_is_said(tmp_path, monkeypatch):
    monkeypatch.setenv("IMAGEIO_FFMPEG_EXE", "/bin/false")
    with pytest.raises(SpirlError, match=r"episode\.mp4: cannot write"):
        write(tmp_path / "episode.mp4", [picture()] * 100)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "frame", [np.zeros((8, 8), np.uint8), np.zeros((8, 8, 4), np.uint8), np.zeros((8, 8, 3), np.float32)]
)
def test_frame_of_another_kind_is_refused(tmp_path, frame):
    with pytest.raises(SpirlError, match="uint8"):
        write(tmp_path / "v.mp4", [frame])


def test_frame_of_another_size_is_refused(tmp_path):
    with pytest.raises(SpirlError, match="64x48"):
        write(tmp_path / "v.mp4", [picture(), picture(48, 64)])


def test_video_without_frames_is_refused(tmp_path):
    with pytest.raises(SpirlError, match="no frames"):
        write(tmp_path / "v.mp4", [])


def test_rate_must_be_positive(tmp_path):
    with pytest.raises(SpirlError, match="fps"):
        VideoWriter(tmp_path / "v.mp4", fps=0)


def test_caption_too_long_for_one_line_goes_on_in_the_second():
    strip = captioned(picture(), "").shape[0] - 96
    one, two = (captioned(picture(), "microwave ✓ " * count)[:strip] for count in (1, 2))
    np.testing.assert_array_equal(one[: strip // 2], two[: strip // 2])
    assert (one[strip // 2 :] != two[strip // 2 :]).any()


def test_padding_leaves_the_pixels_of_an_odd_frame_as_they_are():
    said = captioned(picture(97, 131), "")
    assert said.shape[1] == 132
    assert said.shape[0] % 2 == 0
    np.testing.assert_array_equal(said[said.shape[0] - 98 : -1, :131][-90:], picture(90, 131))
