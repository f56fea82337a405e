"""Captioned rollout videos that any browser plays: mp4, H.264, yuv420p."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import ExitStack
from functools import lru_cache
from pathlib import Path
from types import TracebackType
from typing import Any

import imageio_ffmpeg
import matplotlib
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from spirl_ray.errors import SpirlError
from spirl_ray.files.atomic import partial_file

CAPTION_LINES = 2
"""The strip always has room for this many lines, since a video cannot change its height."""
_BACKGROUND = (17, 24, 39)
_INK = (243, 244, 246)


class VideoWriter:
    """Writes frames with a caption strip above them; the file appears under its name only when it is whole.

    Use it as a context manager: ``with VideoWriter(path, fps=20) as video: video.add(frame, "step 0")``.
    When the block raises, or the encoder fails, nothing is left behind and a previous file stays as it was.

    Args:
        path: The mp4 to write; its folder is made if need be.
        fps: Frames per second of playback, above 0.

    Raises:
        SpirlError: on entering the block, an unusable folder; from `add` or on leaving it, a frame of the wrong type
            or size, no frame at all, a missing or failing ffmpeg.
    """

    def __init__(self, path: Path, fps: float) -> None:
        if not fps > 0:
            raise SpirlError(f"{path}: fps must be above 0, got {fps}")
        self.path = Path(path)
        self.fps = float(fps)
        self.frames = 0
        self._stack = ExitStack()
        self._partial = self.path
        self._shape: tuple[int, ...] | None = None
        self._encoder: Generator[None, Any, None] | None = None

    def __enter__(self) -> VideoWriter:
        self._partial = self._stack.enter_context(partial_file(self.path))
        self._stack.push(self._finish)
        return self

    def add(self, frame: NDArray[np.uint8], caption: str = "") -> None:
        """Appends one frame, uint8 [H, W, 3], every one the size of the first, with its caption."""
        frame = np.asarray(frame)
        if frame.dtype != np.uint8 or frame.ndim != 3 or frame.shape[2] != 3:
            raise SpirlError(
                f"{self.path}: a video frame must be uint8 [H, W, 3], got {frame.dtype} {list(frame.shape)}"
            )
        if self._shape is not None and frame.shape != self._shape:
            raise SpirlError(
                f"{self.path}: frame {self.frames} is {frame.shape[1]}x{frame.shape[0]}, "
                f"the ones before it are {self._shape[1]}x{self._shape[0]}"
            )
        image = captioned(frame, caption)
        try:
            if self._encoder is None:
                self._shape = frame.shape
                self._encoder = self._open(image.shape[1], image.shape[0])
            self._encoder.send(image.tobytes())
        except (OSError, RuntimeError, StopIteration) as error:
            raise SpirlError(f"{self.path}: cannot write the video: {_first_line(error)}") from error
        self.frames += 1

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.__exit__(kind, error, trace)

    def _finish(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Ends the encoder and, unless the block has raised, makes sure that the file holds every frame."""
        try:
            if self._encoder is not None:
                self._encoder.close()
            if kind is not None:
                return
            if self.frames == 0:
                raise SpirlError(f"{self.path}: the video has no frames; add at least one")
            # ffmpeg's exit status is not handed on, so the file itself has to prove that it is whole.
            written, _ = imageio_ffmpeg.count_frames_and_secs(str(self._partial))
            if written != self.frames:
                raise SpirlError(f"{self.path}: {written} of {self.frames} frames reached the file; is the disk full?")
        except (OSError, RuntimeError) as failure:
            raise SpirlError(f"{self.path}: cannot write the video: {_first_line(failure)}") from failure

    def _open(self, width: int, height: int) -> Generator[None, Any, None]:
        encoder: Generator[None, Any, None] = imageio_ffmpeg.write_frames(
            str(self._partial),
            (width, height),
            fps=self.fps,
            codec="libx264",
            pix_fmt_out="yuv420p",
            macro_block_size=2,
            ffmpeg_log_level="error",
            # The partial file's name does not end in mp4. faststart lets a browser play before the whole file is there;
            # x264 would take every core without a limit.
            output_params=["-f", "mp4", "-movflags", "+faststart", "-threads", "2"],
        )
        encoder.send(None)
        return encoder


def captioned(frame: NDArray[np.uint8], caption: str) -> NDArray[np.uint8]:
    """The frame below a strip with the caption, uint8 [strip + H, W, 3], padded to even height and width.

    The strip is on top since players lay their controls over the bottom.
    The caption is broken at spaces into at most `CAPTION_LINES` lines; what does not fit ends in "…".
    """
    height, width = frame.shape[:2]
    size = min(max(round(width / 32), 11), 28)
    margin, line_height = size // 2, round(size * 1.3)
    strip = 2 * margin + CAPTION_LINES * line_height
    image = Image.new("RGB", (width + width % 2, height + strip + (height + strip) % 2), _BACKGROUND)
    image.paste(Image.fromarray(np.ascontiguousarray(frame)), (0, strip))
    draw = ImageDraw.Draw(image)
    font = _font(size)
    for row, line in enumerate(_lines(caption, font, width - 2 * margin)):
        draw.text((margin, margin + row * line_height), line, font=font, fill=_INK)
    return np.asarray(image)


@lru_cache
def _font(size: int) -> ImageFont.FreeTypeFont:
    # Matplotlib's own copy, since it has ✓ and · and a cluster node may have no fonts at all.
    return ImageFont.truetype(str(Path(matplotlib.get_data_path(), "fonts", "ttf", "DejaVuSans.ttf")), size)


def _lines(text: str, font: ImageFont.FreeTypeFont, width: int) -> list[str]:
    lines: list[str] = []
    for word in text.split():
        joined = f"{lines[-1]} {word}" if lines else word
        if lines and font.getlength(joined) <= width:
            lines[-1] = joined
        else:
            lines.append(word)
    if len(lines) > CAPTION_LINES:
        # The words that are left over all go to the last line, whose end is then cut.
        lines = [*lines[: CAPTION_LINES - 1], " ".join(lines[CAPTION_LINES - 1 :])]
    return [_shortened(line, font, width) for line in lines]


def _shortened(line: str, font: ImageFont.FreeTypeFont, width: int) -> str:
    if font.getlength(line) <= width:
        return line
    while line and font.getlength(line + "…") > width:
        line = line[:-1]
    return line.rstrip() + "…"


def _first_line(error: BaseException) -> str:
    return str(error).strip().split("\n")[0] or type(error).__name__
