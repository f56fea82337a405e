"""A dataset folder is read file after file, and what cannot be read or trusted is named."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from stored import ACTION_DIM, FEATURES, assert_same, make_episode, rewrite_card, write_dataset

from spirl_ray.episodes.dataset import dataset_files, episode_index, read_card, read_episodes
from spirl_ray.episodes.table import episodes_to_table
from spirl_ray.errors import SpirlError


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    files = [[make_episode(number) for number in numbers] for numbers in ((0, 1), (2,))]
    return write_dataset(tmp_path / "dataset", files, FEATURES, ACTION_DIM)


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
        (
            {"format_version": 1, "created_by": "spirl-ray 0.1"},
            r"version is 1, .*reads 2; import .*again.*ray 0\.1",
        ),
        ({"colour": "red"}, "colour: Extra inputs"),
        ({"action_dim": "three"}, "action_dim: Input should be a valid integer"),
        ({"action_dim": 2**62}, "action_dim: "),
        ({"features": {}}, "features: "),
        ({"features": {"../x": {"shape": [1]}}}, r"features\..*: String should match"),
        ({"features": {"arm": {"shape": [-1]}}}, r"features\.arm\.shape.*greater than 0"),
        ({"features": {"arm": {"shape": [2**40]}}}, "features: .*'arm' has 1099511627776 numbers"),
        ({"features": {"arm": {"shape": [4, 4, 2], "role": "image"}}}, r"features\.arm: .*1 or 3 channels"),
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


def test_a_file_with_another_column_is_refused(tmp_path: Path) -> None:
    table = episodes_to_table([make_episode()], FEATURES, ACTION_DIM).append_column("pickles", pa.array([b"x"]))
    folder = write_dataset(tmp_path / "dataset", [table], FEATURES, ACTION_DIM)
    for read in (lambda: list(read_episodes(folder)), lambda: episode_index(folder)):
        with pytest.raises(SpirlError, match=r"episodes-00000-of-00001\.parquet: column 'pickles'"):
            read()
