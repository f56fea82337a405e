"""Episodes survive the way to Arrow and Parquet and back, and what cannot be read is named."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from spirl_ray.episodes.dataset import (
    DatasetCard,
    Episode,
    FileEntry,
    dataset_files,
    episode_index,
    episodes_to_table,
    read_card,
    read_episodes,
    table_to_episodes,
)
from spirl_ray.errors import SpirlError

STATE_DIM, ACTION_DIM = 3, 2


def make_episode(number: int = 0, length: int = 4) -> Episode:
    rng = np.random.default_rng(number)
    return Episode(
        id=f"episode {number}",
        states=rng.normal(size=(length + 1, STATE_DIM)).astype(np.float32),
        actions=rng.uniform(-1, 1, (length, ACTION_DIM)).astype(np.float32),
        rewards=rng.random(length).astype(np.float32),
        terminated=number % 2 == 0,
        truncated=number % 2 == 1,
        metadata={"number": number},
    )


def assert_same(found: Episode, expected: Episode) -> None:
    for name in ("id", "terminated", "truncated", "metadata"):
        assert getattr(found, name) == getattr(expected, name)
    for name in ("states", "actions", "rewards"):
        assert getattr(found, name).dtype == np.float32
        np.testing.assert_array_equal(getattr(found, name), getattr(expected, name))


def write_dataset(folder: Path, tables: list[pa.Table], **card: Any) -> Path:
    folder.mkdir()
    files = {}
    for number, table in enumerate(tables):
        name = f"episodes-{number:05d}-of-{len(tables):05d}.parquet"
        pq.write_table(table, folder / name)
        files[name] = FileEntry(sha256="", bytes=0, rows=table.num_rows)
    facts: dict[str, Any] = dict(
        environment="spirl/Test-v0",
        state_dim=STATE_DIM,
        action_dim=ACTION_DIM,
        episodes=sum(table.num_rows for table in tables),
        steps=0,
        source="test",
        licence="none",
        attribution="nobody",
        content_sha256="",
        files=files,
        created_by="test",
    )
    (folder / "card.json").write_text(DatasetCard(**(facts | card)).model_dump_json())
    return folder


def rewrite_card(folder: Path, **changes: Any) -> None:
    card = json.loads((folder / "card.json").read_text())
    (folder / "card.json").write_text(json.dumps(card | changes))


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    tables = [
        episodes_to_table([make_episode(n) for n in numbers], STATE_DIM, ACTION_DIM) for numbers in ((0, 1), (2,))
    ]
    return write_dataset(tmp_path / "dataset", tables)


@st.composite
def episodes(draw: st.DrawFn) -> Episode:
    length = draw(st.integers(1, 5))
    floats = st.floats(width=32, allow_nan=False)
    return Episode(
        id=draw(st.text(max_size=8)),
        states=draw(hnp.arrays(np.float32, (length + 1, STATE_DIM), elements=floats)),
        actions=draw(hnp.arrays(np.float32, (length, ACTION_DIM), elements=floats)),
        rewards=draw(hnp.arrays(np.float32, length, elements=floats)),
        terminated=draw(st.booleans()),
        truncated=draw(st.booleans()),
        metadata=draw(st.dictionaries(st.text(max_size=4), st.integers() | st.lists(st.text(max_size=3)))),
    )


@settings(max_examples=30, deadline=None)
@given(st.lists(episodes(), max_size=5))
def test_a_table_holds_every_episode_as_it_was(originals: list[Episode]) -> None:
    found = table_to_episodes(episodes_to_table(originals, STATE_DIM, ACTION_DIM))
    assert len(found) == len(originals)
    for one, other in zip(found, originals, strict=True):
        assert_same(one, other)


@pytest.mark.parametrize(("start", "count"), [(0, 2), (1, 2), (3, 1), (2, 0)])
def test_a_slice_of_a_table_gives_its_own_episodes(start: int, count: int) -> None:
    originals = [make_episode(n, length=n + 1) for n in range(4)]
    table = episodes_to_table(originals, STATE_DIM, ACTION_DIM).slice(start, count)
    found = table_to_episodes(table)
    assert len(found) == count
    for one, other in zip(found, originals[start : start + count], strict=True):
        assert_same(one, other)


def test_concatenated_slices_give_their_episodes_in_order() -> None:
    originals = [make_episode(n, length=n + 1) for n in range(4)]
    table = episodes_to_table(originals, STATE_DIM, ACTION_DIM)
    found = table_to_episodes(pa.concat_tables([table.slice(2), table.slice(0, 2)]))
    assert [episode.id for episode in found] == [originals[n].id for n in (2, 3, 0, 1)]
    assert_same(found[0], originals[2])


def test_arrays_from_a_table_can_be_written_to_without_changing_it() -> None:
    table = episodes_to_table([make_episode()], STATE_DIM, ACTION_DIM)
    table_to_episodes(table)[0].states[:] = 0
    assert_same(table_to_episodes(table)[0], make_episode())


def test_an_episode_of_another_width_does_not_enter_a_table() -> None:
    with pytest.raises(SpirlError, match=r"episode 0.*actions have shape \[4, 2\], expected \[·, 7\]"):
        episodes_to_table([make_episode()], STATE_DIM, 7)


def test_a_dataset_is_read_file_after_file(dataset: Path) -> None:
    found = list(read_episodes(dataset))
    assert len(found) == 3
    for number, episode in enumerate(found):
        assert_same(episode, make_episode(number))


def test_the_index_names_each_episode_with_length_and_file(dataset: Path) -> None:
    first, second = dataset_files(dataset)
    assert Path(first).is_absolute()
    assert episode_index(dataset) == [
        ("episode 0", 4, first),
        ("episode 1", 4, first),
        ("episode 2", 4, second),
    ]


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(SpirlError, match="nowhere: no such dataset"):
        read_card(tmp_path / "nowhere")


def test_a_folder_without_a_card_is_no_dataset(tmp_path: Path) -> None:
    with pytest.raises(SpirlError, match=r"has no card\.json"):
        read_card(tmp_path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format_version": 99}, "format_version is 99"),
        ({"colour": "red"}, "colour: Extra inputs"),
        ({"state_dim": "three"}, "state_dim: Input should be a valid integer"),
        ({"files": {"../x.parquet": {"sha256": "", "bytes": 0, "rows": 0}}}, "not a plain file name"),
    ],
)
def test_a_card_that_cannot_be_trusted_is_refused(dataset: Path, changes: dict[str, Any], message: str) -> None:
    rewrite_card(dataset, **changes)
    with pytest.raises(SpirlError, match=rf"card\.json: .*{message}"):
        read_card(dataset)


def test_a_card_that_is_not_json_is_refused(dataset: Path) -> None:
    (dataset / "card.json").write_text('{"format_version": 1,')
    with pytest.raises(SpirlError, match=r"card\.json is not valid JSON"):
        read_card(dataset)


def test_a_missing_file_is_named(dataset: Path) -> None:
    (dataset / "episodes-00001-of-00002.parquet").unlink()
    with pytest.raises(SpirlError, match=r"episodes-00001-of-00002\.parquet: missing"):
        list(read_episodes(dataset))


@pytest.mark.parametrize("share", [0.0, 0.5, 0.99])
def test_a_parquet_file_cut_short_is_named(dataset: Path, share: float) -> None:
    file = dataset / "episodes-00001-of-00002.parquet"
    data = file.read_bytes()
    file.write_bytes(data[: int(len(data) * share)])
    with pytest.raises(SpirlError, match=r"episodes-00001-of-00002\.parquet: not readable as Parquet"):
        list(read_episodes(dataset))


def test_a_width_that_differs_from_the_card_names_file_column_and_both_types(dataset: Path) -> None:
    rewrite_card(dataset, action_dim=9)
    with pytest.raises(
        SpirlError,
        match=r"episodes-00000-of-00002\.parquet: column 'actions' must be list<float\[9\]>, "
        r"found list<float\[2\]>",
    ):
        episode_index(dataset)


@pytest.mark.parametrize(
    ("column", "values", "message"),
    [
        ("length", pa.array([4.0]), "'length' must be int32, found double"),
        ("states", pa.array([[[1.0, 2.0, 3.0]]]), r"'states' must be .*, found list<list<double>>"),
        ("episode_id", None, "'episode_id' is missing"),
    ],
)
def test_a_column_of_the_wrong_type_is_named(
    tmp_path: Path, column: str, values: pa.Array | None, message: str
) -> None:
    table = episodes_to_table([make_episode()], STATE_DIM, ACTION_DIM)
    table = table.drop_columns([column])
    if values is not None:
        table = table.append_column(column, values)
    folder = write_dataset(tmp_path / "dataset", [table])
    with pytest.raises(SpirlError, match=message):
        list(read_episodes(folder))
    with pytest.raises(SpirlError, match=message.replace(r"\[3\]", r"\[·\]")):
        table_to_episodes(table)


def test_nulls_are_refused(tmp_path: Path) -> None:
    table = episodes_to_table([make_episode()], STATE_DIM, ACTION_DIM)
    nothing = pa.array([[1.0, None, 0.0, 0.0]], pa.list_(pa.float32()))
    index = table.schema.get_field_index("rewards")
    with pytest.raises(SpirlError, match="'rewards' holds nulls"):
        table_to_episodes(table.set_column(index, "rewards", nothing))
