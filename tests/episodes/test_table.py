"""Episodes survive the way to Arrow and Parquet and back, and columns that cannot be read are named."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from stored import ACTION_DIM, FEATURES, STORED, assert_same, make_episode

from spirl_ray.episodes.episode import Episode
from spirl_ray.episodes.table import check_schema, episodes_to_table, schema, table_to_episodes
from spirl_ray.errors import SpirlError


def read(table: pa.Table) -> list[Episode]:
    return table_to_episodes(table, FEATURES, ACTION_DIM)


@st.composite
def episodes(draw: st.DrawFn) -> Episode:
    length = draw(st.integers(1, 5))
    floats = st.floats(width=32, allow_nan=False)
    return Episode(
        id=draw(st.text(max_size=8)),
        observations={
            name: draw(hnp.arrays(np.uint8, (length + 1, *FEATURES[name].shape)))
            if FEATURES[name].is_image
            else draw(hnp.arrays(np.float32, (length + 1, *FEATURES[name].shape), elements=floats))
            for name in STORED
        },
        actions=draw(hnp.arrays(np.float32, (length, ACTION_DIM), elements=floats)),
        rewards=draw(hnp.arrays(np.float32, length, elements=floats)),
        terminated=draw(st.booleans()),
        truncated=draw(st.booleans()),
        metadata=draw(st.dictionaries(st.text(max_size=4), st.integers() | st.lists(st.text(max_size=3)))),
    )


@settings(max_examples=30, deadline=None)
@given(st.lists(episodes(), max_size=4))
def test_a_table_holds_every_episode_as_it_was(originals: list[Episode]) -> None:
    found = read(episodes_to_table(originals, FEATURES, ACTION_DIM))
    assert len(found) == len(originals)
    for one, other in zip(found, originals, strict=True):
        assert_same(one, other)


def test_a_stored_feature_has_a_column_of_its_own() -> None:
    table = episodes_to_table([make_episode()], FEATURES, ACTION_DIM)
    assert [name for name in table.column_names if name.startswith("observation.")] == [
        f"observation.{name}" for name in STORED
    ]


@pytest.mark.parametrize(("start", "count"), [(0, 2), (1, 2), (3, 1), (2, 0)])
def test_a_slice_of_a_table_gives_its_own_episodes(start: int, count: int) -> None:
    originals = [make_episode(n, length=n + 1) for n in range(4)]
    found = read(episodes_to_table(originals, FEATURES, ACTION_DIM).slice(start, count))
    assert len(found) == count
    for one, other in zip(found, originals[start : start + count], strict=True):
        assert_same(one, other)


def test_concatenated_slices_of_a_file_give_their_episodes_in_order(tmp_path: Path) -> None:
    originals = [make_episode(n, length=n + 1) for n in range(4)]
    pq.write_table(episodes_to_table(originals, FEATURES, ACTION_DIM), tmp_path / "a.parquet", compression="zstd")
    table = pq.read_table(tmp_path / "a.parquet")
    check_schema(table.schema, FEATURES, ACTION_DIM, where="a.parquet")
    found = read(pa.concat_tables([table.slice(2), table.slice(0, 2)]))
    assert [episode.id for episode in found] == [originals[n].id for n in (2, 3, 0, 1)]
    for one, number in zip(found, (2, 3, 0, 1), strict=True):
        assert_same(one, originals[number])


def test_arrays_from_a_table_can_be_written_to_without_changing_it() -> None:
    table = episodes_to_table([make_episode()], FEATURES, ACTION_DIM)
    for values in read(table)[0].observations.values():
        values[:] = 0
    assert_same(read(table)[0], make_episode())


def test_some_features_can_be_read_alone() -> None:
    table = episodes_to_table([make_episode()], FEATURES, ACTION_DIM)
    chosen = {"left": FEATURES["left"]}
    (found,) = table_to_episodes(table.select(schema(chosen, ACTION_DIM).names), chosen, ACTION_DIM)
    assert list(found.observations) == ["left"]
    np.testing.assert_array_equal(found.observations["left"], make_episode().observations["left"])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"arm": np.zeros((5, 4), np.float32)}, r"arm is float32 \[5, 4\], expected float32 \[·, 3\]"),
        ({"things": np.zeros((5, 6), np.float32)}, r"things is float32 \[5, 6\], expected float32 \[·, 2, 3\]"),
        ({"left": np.zeros((5, 2, 3, 3), np.uint8)}, r"left is uint8 \[5, 2, 3, 3\], expected uint8 \[·, 3, 2, 3\]"),
        ({"left": np.zeros((5, 3, 2, 3), np.float32)}, r"left is float32 .*, expected uint8"),
        ({"leg": np.zeros((5, 3), np.float32)}, r"features arm, grey, left, leg, things, expected arm, grey, left, th"),
    ],
)
def test_an_episode_of_other_features_does_not_enter_a_table(changes: dict[str, Any], message: str) -> None:
    one = make_episode()
    other = dataclasses.replace(one, observations={**one.observations, **changes})
    with pytest.raises(SpirlError, match=f"episode 0.*{message}"):
        episodes_to_table([other], FEATURES, ACTION_DIM)


def test_an_episode_of_other_actions_does_not_enter_a_table() -> None:
    with pytest.raises(SpirlError, match=r"episode 0.*actions have shape \[4, 2\], expected \[·, 7\]"):
        episodes_to_table([make_episode()], FEATURES, 7)


@pytest.mark.parametrize(
    ("column", "values", "message"),
    [
        ("length", pa.array([4.0]), "'length' must be int32, found double"),
        ("observation.arm", pa.array([[[1.0, 2.0, 3.0]]]), r"arm' must be list<float\[3\]>, found list<list<double>>"),
        ("observation.left", pa.array([[b"x" * 17]], pa.list_(pa.binary(17))), r"left' must be .*\[18\].*\[17\]"),
        ("observation.left", None, r"'observation\.left' is missing"),
        ("episode_id", None, "'episode_id' is missing"),
        ("metadata", pa.array(["no json"]), "metadata of episode 'episode 0' is not JSON"),
        ("metadata", pa.array(["[" * 100_000]), "metadata of episode 'episode 0' is not JSON"),
        ("metadata", pa.array(["[1]"]), "metadata of episode 'episode 0' is not a JSON object"),
        ("rewards", pa.array([[1.0, None, 0.0, 0.0]], pa.list_(pa.float32())), "'rewards' holds nulls"),
        ("observation.left", pa.array([[b"x" * 18, None]], pa.list_(pa.binary(18))), "left' holds nulls"),
        ("episode_id", pa.array([b"\x9a"], pa.binary()).view(pa.string()), "'episode_id' is damaged"),
        ("pickles", pa.array([b"x"]), "'pickles' does not belong"),
    ],
)
def test_a_column_that_cannot_be_read_is_named(column: str, values: pa.Array | None, message: str) -> None:
    table = episodes_to_table([make_episode()], FEATURES, ACTION_DIM)
    if column in table.column_names:
        table = table.drop_columns([column])
    if values is not None:
        table = table.append_column(column, values)
    with pytest.raises(SpirlError, match=f"a.parquet: .*{message}"):
        table_to_episodes(table, FEATURES, ACTION_DIM, where="a.parquet")
