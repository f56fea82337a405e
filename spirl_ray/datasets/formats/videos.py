"""Frames of video files, decoded by the ffmpeg program that imageio-ffmpeg brings along."""

from __future__ import annotations

import re
import subprocess
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from io import BufferedReader
from pathlib import Path
from queue import SimpleQueue
from typing import cast

import imageio_ffmpeg
import numpy as np
from numpy.typing import NDArray

from spirl_ray.errors import SpirlError

_FRAME_TIME = re.compile(r"\bpts_time:\s*(-?[\d.]+)")
_NO_DECODER = re.compile(r"no decoder found for: (.+)|Decoder \(codec (\w+)\) not found")
_TOLERANCE = 0.25
"""The greatest distance of a frame from the time of its row, in time steps. The times of a video are rounded."""
_SHOWN_ERRORS = 3


@dataclass(frozen=True)
class Clip:
    """A part of a video with one frame for each row of an episode."""

    file: Path
    start: float
    """The time of the first frame in seconds from the video's beginning."""
    rows: int
    """The number of frames."""
    rate: float
    """Rows a second. The video may have more frames a second, of which those at the times of the rows are taken."""


def decode_clip(clip: Clip, shape: tuple[int, int, int], *, scaled: bool = False) -> NDArray[np.uint8]:
    """Decodes a part of a video.

    Decoding starts at the key frame before the part, and every frame is taken by its time in the file, so that the
    result does not depend on where key frames are.

    Args:
        clip: the part of a video.
        shape: height, width and channels of a frame; 1 channel is grey, 3 are RGB.
        scaled: scale the video's frames to this size. Otherwise another size is an error.

    Returns:
        Frames uint8 [rows, height, width, channels].

    Raises:
        SpirlError: the file is missing or damaged, has frames of another size, has no frame for a row, or needs a
            decoder that ffmpeg does not have.
    """
    if not clip.file.is_file():
        raise SpirlError(f"{clip.file}: the video is missing; download the dataset with its videos.")
    # From half a step before the first frame, because the file's times are rounded.
    seek = max(0.0, clip.start - 0.5 / clip.rate)
    frames = np.empty((clip.rows, *shape), np.uint8)
    found = 0
    with _Decoder(clip, seek, shape, scaled) as decoder:
        for time, size in decoder.headers():
            if size != shape[1::-1]:
                raise SpirlError(
                    f"{clip.file}: frames of {size[1]} x {size[0]} pixels (height x width), but meta/info.json says "
                    f"{shape[0]} x {shape[1]}."
                )
            if not decoder.read_into(frames[found]):
                break
            # A frame that is not a row's is overwritten by the next one.
            if abs((time + seek - clip.start) * clip.rate - found) <= _TOLERANCE:
                found += 1
            if found == clip.rows:
                return frames
        raise SpirlError(decoder.problem(found))


class _Decoder:
    """A running ffmpeg. It writes frames to its output and, before each of them, its time to its log."""

    def __init__(self, clip: Clip, seek: float, shape: tuple[int, int, int], scaled: bool) -> None:
        self._clip = clip
        filters = [f"scale={shape[1]}:{shape[0]}:flags=area"] if scaled else []
        command = [
            *(imageio_ffmpeg.get_ffmpeg_exe(), "-hide_banner", "-nostdin", "-nostats", "-loglevel", "level+info"),
            *("-xerror", "-threads", "1", "-protocol_whitelist", "file"),
            *(("-ss", f"{seek:.6f}") if seek else ()),
            *("-t", f"{(clip.rows + 1) / clip.rate:.6f}", "-i", f"file:{clip.file}"),
            *("-map", "0:v:0", "-vf", ",".join(["showinfo=checksum=0", *filters]), "-fps_mode", "passthrough"),
            # Each frame with a header that says its size: P6, width and height, 255.
            *("-f", "image2pipe", "-c:v", "pgm" if shape[2] == 1 else "ppm"),
            *("-pix_fmt", "gray" if shape[2] == 1 else "rgb24", "-"),
        ]
        self._process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
        self._frames, self._log = (cast(BufferedReader, pipe) for pipe in (self._process.stdout, self._process.stderr))
        self._times: SimpleQueue[float | None] = SimpleQueue()
        self._errors: list[str] = []
        self._listener = threading.Thread(target=self._listen, daemon=True)

    def __enter__(self) -> _Decoder:
        self._listener.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()  # it may wait for a reader of further frames
        self._process.wait()
        self._listener.join()
        self._frames.close()
        self._log.close()

    def headers(self) -> Iterator[tuple[float, tuple[int, int]]]:
        """The time in seconds and the width and height of each frame, which must be read before the next one."""
        while self._frames.readline():
            width, height = map(int, self._frames.readline().split())
            self._frames.readline()
            time = self._times.get()
            if time is None:
                return
            yield time, (width, height)

    def read_into(self, frame: NDArray[np.uint8]) -> bool:
        """Reads the frame of the last header; False where ffmpeg ended within it."""
        return self._frames.readinto(frame.data.cast("B")) == frame.nbytes

    def problem(self, found: int) -> str:
        """The message about frames of which only the first ``found`` are there; ffmpeg has written its last one."""
        self._listener.join()
        clip, errors = self._clip, "; ".join(self._errors)
        if missing := _NO_DECODER.search(errors):
            codec = next(name for name in missing.groups() if name)
            return (
                f"{clip.file}: this ffmpeg ({imageio_ffmpeg.get_ffmpeg_exe()}) has no decoder for {codec}. Update "
                "imageio-ffmpeg, or set IMAGEIO_FFMPEG_EXE to an ffmpeg that has one."
            )
        return (
            f"{clip.file}: {found} frames from {clip.start:.3f} s on at {clip.rate:g} a second, but the episode has "
            f"{clip.rows} rows: the video is too short, has a gap, or is damaged."
            + (f" ffmpeg says: {errors}" if errors else "")
        )

    def _listen(self) -> None:
        for raw in self._log:
            line = raw.decode(errors="replace").strip()
            if (time := _FRAME_TIME.search(line)) and "showinfo" in line:
                self._times.put(float(time[1]))
            elif ("[error]" in line or "[fatal]" in line) and len(self._errors) < _SHOWN_ERRORS:
                self._errors.append(line)
        self._times.put(None)
