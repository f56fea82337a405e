"""Frames in Parquet: one element an episode, a list of binaries of N · N grey bytes.

Successive frames are much alike, so what the file format compresses anyway is enough.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
import pyarrow as pa

FrameArray = npt.NDArray[np.uint8]
"""uint8 [T, N, N]."""
FRAMES = "frames"
"""Name of the column."""


def frame_type(size: int) -> pa.DataType:
    """Arrow type of the column for frames of ``size`` pixels a side."""
    return pa.list_(pa.binary(size**2))


def frame_rows(frames: list[FrameArray], size: int) -> pa.ListArray:
    """The column from frames [·, size, size] of each episode."""
    offsets = np.concatenate([[0], np.cumsum([len(part) for part in frames])]).astype(np.int32)
    pixels = np.ascontiguousarray(np.concatenate(frames) if frames else np.empty((0, size, size)), np.uint8)
    values = pa.FixedSizeBinaryArray.from_buffers(pa.binary(size**2), len(pixels), [None, pa.py_buffer(pixels)])
    return pa.ListArray.from_arrays(pa.array(offsets), values)


def split_frames(column: pa.Array, size: int) -> list[FrameArray]:
    """Inverse of `frame_rows`, also of a slice; every array owns its memory."""
    rows, lengths = column.flatten(), column.value_lengths().to_pylist()
    data = np.frombuffer(rows.buffers()[1] or b"", np.uint8)
    pixels = data[rows.offset * size**2 : (rows.offset + len(rows)) * size**2].reshape(-1, size, size)
    ends = np.cumsum(lengths, dtype=np.int64).tolist()
    return [pixels[end - length : end].copy() for end, length in zip(ends, lengths, strict=True)]


def stored_size(found: pa.Schema) -> int | None:
    """Pixels of a side if there is a column of frames, whatever it holds; 0 where they are not square."""
    index = found.get_field_index(FRAMES)
    if index < 0:
        return None
    kind = getattr(found.field(index).type, "value_type", None)
    width = kind.byte_width if kind is not None and pa.types.is_fixed_size_binary(kind) else 0
    side = math.isqrt(width)
    return side if side * side == width else 0
