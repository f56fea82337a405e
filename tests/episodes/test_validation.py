"""Validation finds each kind of bad episode and each way in which files and card can disagree."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from stored import rewrite_card, write_dataset

from spirl_ray.episodes.actions import ActionRange
from spirl_ray.episodes.episode import Episode
from spirl_ray.episodes.features import Feature
from spirl_ray.episodes.validation import (
    check_episode,
    content_digest,
    episode_digest,
    validate_dataset,
)
from spirl_ray.errors import SpirlError

ACTION_DIM = 2
FEATURES = {
    "arm": Feature(shape=(3,)),
    "things": Feature(shape=(2, 3)),
    "camera": Feature(shape=(4, 4, 1), role="image"),
    "rendered": Feature(shape=(2, 2, 1), role="image", stored=False),
}


def good(number: int = 0, length: int = 5) -> Episode:
    rng = np.random.default_rng(number)
    return Episode(
        id=f"e{number}",
        observations={
            "arm": rng.normal(size=(length + 1, 3)).astype(np.float32),
            "things": rng.normal(size=(length + 1, 2, 3)).astype(np.float32),
            "camera": rng.integers(0, 256, (length + 1, 4, 4, 1), dtype=np.uint8),
        },
        actions=rng.uniform(-1, 1, (length, ACTION_DIM)).astype(np.float32),
        rewards=np.zeros(length, np.float32),
        terminated=False,
        truncated=True,
    )


def observing(**changes: np.ndarray | None) -> dict[str, np.ndarray]:
    """The observations of `good`, with some replaced, added or, for None, left out."""
    found = {**good().observations, **changes}
    return {name: values for name, values in found.items() if values is not None}


def changed(array: np.ndarray, place: tuple[int, ...], value: float) -> np.ndarray:
    array = array.copy()
    array[place] = value
    return array


def dataset(folder: Path, episodes: list[Episode]) -> Path:
    return write_dataset(folder, [episodes], FEATURES, ACTION_DIM)


def test_a_good_episode_has_no_problem() -> None:
    assert check_episode(good(), FEATURES, ACTION_DIM) == []


def test_rounding_beyond_one_is_no_problem() -> None:
    episode = dataclasses.replace(good(), actions=np.full((5, 2), np.nextafter(np.float32(1), 2), np.float32))
    assert check_episode(episode, FEATURES, ACTION_DIM) == []


@pytest.mark.parametrize(
    ("changes", "field", "message"),
    [
        ({"rewards": np.zeros(4, np.float32)}, "rewards", "4 rows, expected 5"),
        ({"rewards": np.zeros((5, 1), np.float32)}, "rewards", r"shape \[5, 1\], expected \[5\]"),
        ({"actions": np.zeros((5, 3), np.float32)}, "actions", r"shape \[5, 3\], expected \[5, 2\]"),
        ({"rewards": changed(good().rewards, (4,), np.nan)}, "rewards", "row 4 is nan"),
        ({"actions": changed(good().actions, (1, 1), -1.5)}, "actions", r"row 1, column 1 is -1.5, outside"),
        ({"actions": changed(good().actions, (0, 1), 1.00001)}, "actions", "row 0, column 1 is 1.00001"),
    ],
)
def test_a_bad_episode_is_described_by_field_and_place(changes: dict[str, Any], field: str, message: str) -> None:
    (problem,) = check_episode(dataclasses.replace(good(), **changes), FEATURES, ACTION_DIM)
    assert problem[0] == field
    assert re.search(message, problem[1])


def test_a_range_tells_bad_actions_in_units_of_the_source() -> None:
    actions = ActionRange(low=(0.0, -10.0), high=(4.0, 10.0))
    bad = dataclasses.replace(good(), actions=changed(good().actions, (1, 1), -1.5))
    (problem,) = check_episode(bad, FEATURES, ACTION_DIM, actions)
    assert problem == ("actions", "row 1, column 1 is -15, outside [-10, 10] (1 such values)")


ARM, THINGS, CAMERA = (good().observations[name] for name in ("arm", "things", "camera"))


@pytest.mark.parametrize(
    ("feature", "values", "message"),
    [
        ("arm", ARM[:-1], "5 rows, expected 6 for 5 actions"),
        ("arm", ARM.astype(np.float64), "dtype float64, expected float32"),
        ("arm", changed(ARM, (3, 1), np.nan), r"row 3, column 1 is nan \(1 such"),
        ("arm", changed(ARM, (2, 0), np.inf), "row 2, column 0 is inf"),
        ("things", changed(THINGS, (2, 1, 2), np.inf), r"row 2, column \[1, 2\] is inf"),
        ("things", THINGS.reshape(6, 6), r"shape \[6, 6\], expected \[6, 2, 3\]"),
        ("camera", None, "missing"),
        ("camera", CAMERA[1:], "5 rows, expected 6"),
        ("camera", CAMERA[:, 1:], r"shape \[6, 3, 4, 1\], expected \[6, 4, 4, 1\]"),
        ("camera", CAMERA.astype(np.float32), "dtype float32, expected uint8"),
        ("leg", ARM, "not a feature"),
        ("rendered", CAMERA, "not a feature"),
    ],
)
def test_a_bad_feature_is_described_by_name_and_place(feature: str, values: np.ndarray | None, message: str) -> None:
    episode = dataclasses.replace(good(), observations=observing(**{feature: values}))
    (problem,) = check_episode(episode, FEATURES, ACTION_DIM)
    assert problem[0] == feature
    assert re.search(message, problem[1])


def test_an_episode_without_a_step_is_bad() -> None:
    problems = check_episode(good(length=0), FEATURES, ACTION_DIM)
    assert "actions" in [field for field, _ in problems]


def test_an_episode_of_nothing_but_nan_actions_is_reported_once() -> None:
    episode = dataclasses.replace(good(), actions=np.full((5, 2), np.nan, np.float32))
    assert check_episode(episode, FEATURES, ACTION_DIM) == [("actions", "row 0, column 0 is nan (10 such values)")]


def test_the_digest_depends_on_every_part_of_an_episode() -> None:
    episode = good()
    changes: list[dict[str, Any]] = [
        {"id": "other"},
        {"observations": observing(arm=changed(ARM, (0, 0), 9))},
        {"observations": observing(camera=255 - CAMERA)},
        {"observations": observing(camera=None)},
        {"observations": observing(camera=None, image=CAMERA)},
        {"observations": observing(camera=CAMERA.reshape(6, 2, 8, 1))},
        {"observations": observing(arm=ARM.reshape(-1, 1))},
        {"actions": changed(episode.actions, (0, 0), 0)},
        {"rewards": changed(episode.rewards, (0,), 9)},
        {"terminated": True},
        {"truncated": False},
        {"metadata": {"a": 1}},
    ]
    digests = {episode_digest(dataclasses.replace(episode, **change)) for change in changes}
    assert len(digests | {episode_digest(episode)}) == len(changes) + 1


def test_the_content_digest_does_not_depend_on_the_order_of_episodes() -> None:
    pairs = [("a", "1"), ("b", "2")]
    assert content_digest(pairs) == content_digest(reversed(pairs))
    assert content_digest(pairs) != content_digest([("a", "2"), ("b", "1")])


def test_a_good_dataset_has_no_problem(tmp_path: Path) -> None:
    assert validate_dataset(dataset(tmp_path / "d", [good(n) for n in range(3)])) == []


def test_a_bad_episode_on_disk_is_found_with_file_and_id(tmp_path: Path) -> None:
    bad = dataclasses.replace(good(1), observations=observing(arm=changed(ARM, (3, 1), np.nan)))
    folder = dataset(tmp_path / "d", [good(0), bad])
    (problem,) = validate_dataset(folder)
    assert problem.file == str(folder / "episodes-00000-of-00001.parquet")
    assert (problem.episode, problem.field) == ("e1", "arm")
    assert "row 3, column 1 is nan" in str(problem)


@pytest.mark.parametrize("place", [0.1, 0.3, 0.5, 0.9])
def test_a_flipped_byte_is_found(tmp_path: Path, place: float) -> None:
    folder = dataset(tmp_path / "d", [good(n) for n in range(3)])
    file = folder / "episodes-00000-of-00001.parquet"
    data = bytearray(file.read_bytes())
    data[int(len(data) * place)] ^= 0xFF
    file.write_bytes(data)
    assert "sha256" in {problem.field for problem in validate_dataset(folder) if problem.file == str(file)}


def test_a_file_cut_short_is_a_problem_and_not_the_end_of_the_check(tmp_path: Path) -> None:
    folder = dataset(tmp_path / "d", [good(0)])
    file = folder / "episodes-00000-of-00001.parquet"
    file.write_bytes(file.read_bytes()[:-20])
    assert [problem.field for problem in validate_dataset(folder)] == ["sha256", "file"]


def test_a_missing_and_an_unknown_file_are_found(tmp_path: Path) -> None:
    folder = dataset(tmp_path / "d", [good(0)])
    (folder / "episodes-00000-of-00001.parquet").rename(folder / "other.parquet")
    assert [(Path(problem.file).name, problem.field) for problem in validate_dataset(folder)] == [
        ("episodes-00000-of-00001.parquet", "file"),
        ("other.parquet", "file"),
    ]


@pytest.mark.parametrize("field", ["episodes", "steps", "content_sha256"])
def test_a_card_that_miscounts_is_found(tmp_path: Path, field: str) -> None:
    folder = dataset(tmp_path / "d", [good(0)])
    rewrite_card(folder, **{field: "0" if field == "content_sha256" else 99})
    assert [problem.field for problem in validate_dataset(folder)] == [field]


def test_two_episodes_of_one_id_are_found(tmp_path: Path) -> None:
    folder = dataset(tmp_path / "d", [good(0), good(0)])
    assert "episode_id" in {problem.field for problem in validate_dataset(folder)}


def test_a_length_column_that_lies_is_found(tmp_path: Path) -> None:
    folder = dataset(tmp_path / "d", [good(0)])
    file = folder / "episodes-00000-of-00001.parquet"
    table = pq.read_table(file)
    index = table.schema.get_field_index("length")
    pq.write_table(table.set_column(index, "length", pa.array([7], pa.int32())), file)
    assert "length" in {problem.field for problem in validate_dataset(folder)}


def test_a_folder_that_is_no_dataset_cannot_be_validated(tmp_path: Path) -> None:
    with pytest.raises(SpirlError, match="has no card"):
        validate_dataset(tmp_path)
