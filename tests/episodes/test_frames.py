"""Stored frames survive the way to Parquet and back."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from spirl_ray.episodes.dataset import Episode, check_schema, episodes_to_table, schema, table_to_episodes
from spirl_ray.errors import SpirlError

SIZE = 4


def episode(number: int, steps: int) -> Episode:
    rng = np.random.default_rng(number)
    return Episode(
        id=f"e{number}",
        states=np.zeros((steps + 1, 2), np.float32),
        actions=np.zeros((steps, 1), np.float32),
        rewards=np.zeros(steps, np.float32),
        terminated=False,
        truncated=True,
        frames=rng.integers(0, 256, (steps + 1, SIZE, SIZE), dtype=np.uint8),
    )


EPISODES = [episode(number, steps) for number, steps in enumerate((3, 1, 6, 2))]


@pytest.mark.parametrize(("start", "count"), [(0, 4), (1, 2), (3, 1), (2, 0)])
def test_frames_come_back_as_they_were_also_from_a_slice(start: int, count: int) -> None:
    found = table_to_episodes(episodes_to_table(EPISODES, 2, 1, SIZE).slice(start, count))
    assert len(found) == count
    for one, other in zip(found, EPISODES[start : start + count], strict=True):
        assert one.frames is not None
        np.testing.assert_array_equal(one.frames, other.frames)
        one.frames[:] = 0  # its own memory


def test_frames_come_back_from_files_and_joined_tables(tmp_path: Path) -> None:
    pq.write_table(episodes_to_table(EPISODES, 2, 1, SIZE), tmp_path / "a.parquet", compression="zstd")
    table = pq.read_table(tmp_path / "a.parquet")
    check_schema(table.schema, 2, 1, SIZE, where="a.parquet")
    for joined in (table, pa.concat_tables([table.slice(0, 1), table.slice(1)])):
        for one, other in zip(table_to_episodes(joined), EPISODES, strict=True):
            np.testing.assert_array_equal(one.frames, other.frames)


def test_a_table_without_frames_has_no_such_column() -> None:
    plain = [dataclasses.replace(one, frames=None) for one in EPISODES]
    table = episodes_to_table(plain, 2, 1)
    assert "frames" not in table.column_names
    assert all(one.frames is None for one in table_to_episodes(table))


@pytest.mark.parametrize("frames", [None, np.zeros((4, 3, 3), np.uint8)])
def test_frames_of_another_size_are_refused(frames: np.ndarray | None) -> None:
    with pytest.raises(SpirlError, match=r"episode 'e0': .*expected \[·, 4, 4\]"):
        episodes_to_table([dataclasses.replace(EPISODES[0], frames=frames)], 2, 1, SIZE)


def test_a_column_of_another_type_is_named() -> None:
    with pytest.raises(SpirlError, match=r"a\.parquet: column 'frames' must be"):
        check_schema(schema(2, 1, 5), 2, 1, SIZE, where="a.parquet")
    wrong = schema(2, 1).append(pa.field("frames", pa.list_(pa.binary(15))))
    with pytest.raises(SpirlError, match="column 'frames' must be"):
        table_to_episodes(pa.Table.from_pylist([], wrong), where="a.parquet")
    with pytest.raises(SpirlError, match="'frames' is missing"):
        check_schema(schema(2, 1), 2, 1, SIZE, where="a.parquet")
