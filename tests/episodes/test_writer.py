"""A dataset written from arrays: whole or not at all, and as valid as an imported one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import spirl_ray as spirl
from spirl_ray.episodes.dataset import read_card, read_episodes
from spirl_ray.episodes.episode import Episode
from spirl_ray.episodes.validation import validate_dataset

FEATURES: dict[str, Any] = {
    "hand": spirl.Feature(shape=(2,), role="proprioception"),
    "front": {"shape": (4, 6, 3), "role": "image"},
    "rendered": {"shape": (4, 6, 1), "role": "image", "stored": False},
}


def writer(folder: Path, **changes: Any) -> spirl.DatasetWriter:
    return spirl.DatasetWriter(
        folder / "mine", **{"features": FEATURES, "action_dim": 2, "environment": "mine/Reach-v0", **changes}
    )


def arrays(steps: int = 3, seed: int = 0) -> dict[str, Any]:
    numbers = np.random.default_rng(seed)
    return {
        "observations": {
            "hand": numbers.normal(size=(steps + 1, 2)),
            "front": numbers.integers(0, 256, (steps + 1, 4, 6, 3)),
        },
        "actions": numbers.uniform(-1, 1, (steps, 2)),
        "rewards": numbers.normal(size=steps),
    }


def nothing_is_left(folder: Path) -> bool:
    return list(folder.iterdir()) == []


def test_what_is_added_is_read_back(tmp_path: Path) -> None:
    given = [arrays(steps, seed=steps) for steps in (3, 1, 5)]
    with writer(tmp_path, shards=2, licence="CC0") as out:
        for number, episode in enumerate(given):
            out.add(**episode, terminated=number == 1, metadata={"completed": ["north"]})
        assert not (tmp_path / "mine").exists()
    assert validate_dataset(tmp_path / "mine") == []
    card = read_card(tmp_path / "mine")
    assert (card.episodes, card.steps, card.licence, len(card.files)) == (3, 9, "CC0", 2)
    found: dict[str, Episode] = {episode.id: episode for episode in read_episodes(tmp_path / "mine")}
    for number, episode in enumerate(given):
        read = found[f"episode-{number:06d}"]
        assert read.observations["hand"] == pytest.approx(episode["observations"]["hand"], abs=1e-6)
        assert np.array_equal(read.observations["front"], episode["observations"]["front"])
        assert read.actions == pytest.approx(episode["actions"], abs=1e-6)
        assert read.rewards == pytest.approx(episode["rewards"], abs=1e-6)
        assert (read.terminated, read.truncated) == (number == 1, number != 1)
        assert read.metadata == {"completed": ["north"]}
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


def test_the_callers_arrays_may_be_filled_again(tmp_path: Path) -> None:
    hand, actions = np.zeros((2, 2), np.float32), np.zeros((1, 2), np.float32)
    with writer(tmp_path, features={"hand": {"shape": (2,)}}) as out:
        for number in range(3):
            hand[:], actions[:] = number, number / 10
            out.add(observations={"hand": hand}, actions=actions)
    found = sorted(read_episodes(tmp_path / "mine"), key=lambda episode: episode.id)
    assert [float(episode.observations["hand"][0, 0]) for episode in found] == [0, 1, 2]
    assert [float(episode.rewards[0]) for episode in found] == [0, 0, 0]


def test_groups_are_written_while_episodes_come(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("spirl_ray.episodes.dataset.GROUP_EPISODES", 2)
    with writer(tmp_path, shards=1) as out:
        for number in range(5):
            out.add(**arrays(seed=number))
            assert [len(file._group) for file in out._files] == [(number + 1) % 2]
    assert validate_dataset(tmp_path / "mine") == []
    assert read_card(tmp_path / "mine").episodes == 5


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda a: a["observations"].pop("hand"), "hand"),
        (lambda a: a["observations"].update(foot=np.zeros((4, 2))), "foot"),
        (lambda a: a["observations"].update(hand=np.zeros((3, 2))), "hand"),
        (lambda a: a["observations"].update(hand=np.zeros((4, 3))), "hand"),
        (lambda a: a["observations"].update(hand="left"), "hand"),
        (lambda a: a["observations"].update(front=np.zeros((4, 4, 6, 3))), "front"),
        (lambda a: a["observations"].update(front=np.full((4, 4, 6, 3), 256)), "front"),
        (lambda a: a["observations"]["hand"].__setitem__((2, 1), np.nan), "hand"),
        (lambda a: a["actions"].__setitem__((1, 0), 1.5), "actions"),
        (lambda a: a.update(actions=np.zeros((0, 2))), "actions"),
        (lambda a: a.update(actions=1.0), "actions"),
        (lambda a: a.update(rewards=np.zeros(2)), "rewards"),
        (lambda a: a.update(metadata={"a": object()}), "metadata"),
        (lambda a: a.update(id="known"), "known"),
    ],
)
def test_a_bad_episode_is_refused_by_name_and_leaves_the_others(tmp_path: Path, change: Any, named: str) -> None:
    with writer(tmp_path) as out:
        out.add(**arrays(), id="known")
        bad = arrays(seed=1)
        change(bad)
        with pytest.raises(spirl.SpirlError) as caught:
            out.add(**bad)
        assert named in str(caught.value)
        assert str(tmp_path / "mine") in str(caught.value)
        out.add(**arrays(seed=2))
    assert validate_dataset(tmp_path / "mine") == []
    assert read_card(tmp_path / "mine").episodes == 2


def test_the_end_of_the_task_counts_where_a_time_limit_ends_the_episode_as_well(tmp_path: Path) -> None:
    with writer(tmp_path) as out:
        out.add(**arrays(), terminated=True, truncated=True)
    (episode,) = read_episodes(tmp_path / "mine")
    assert (episode.terminated, episode.truncated) == (True, False)
    assert validate_dataset(tmp_path / "mine") == []


def test_actions_are_given_in_units_of_their_own_and_kept_in_minus_1_to_1(tmp_path: Path) -> None:
    with writer(tmp_path, actions=[(0, 4), (-10, 10)]) as out:
        episode = arrays(steps=2)
        out.add(**{**episode, "actions": [[0, 10], [3, -5]]})
        with pytest.raises(spirl.SpirlError, match=r"row 1, column 0 is 5, outside \[0, 4\]"):
            out.add(**{**episode, "actions": [[0, 10], [5, -5]]})
    card = read_card(tmp_path / "mine")
    assert card.actions is not None
    assert (card.actions.low, card.actions.high) == ((0, -10), (4, 10))
    (read,) = read_episodes(tmp_path / "mine")
    assert read.actions.tolist() == [[-1, 1], [0.5, -0.5]]
    assert validate_dataset(tmp_path / "mine") == []


def test_the_card_says_whether_there_are_rewards(tmp_path: Path) -> None:
    for folder, rewards in ((tmp_path / "with", arrays()["rewards"]), (tmp_path / "without", None)):
        with writer(folder) as out:
            out.add(**{**arrays(seed=1)})
            out.add(**{**arrays(), "rewards": rewards})
        assert read_card(folder / "mine").rewards == (rewards is not None)


def test_an_exception_leaves_nothing(tmp_path: Path) -> None:
    def fail() -> None:
        with writer(tmp_path) as out:
            out.add(**arrays())
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert nothing_is_left(tmp_path)


def test_a_dataset_without_an_episode_is_none(tmp_path: Path) -> None:
    with pytest.raises(spirl.SpirlError, match="no episode"), writer(tmp_path):
        pass
    assert nothing_is_left(tmp_path)


def test_what_is_there_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("mine")
    with pytest.raises(spirl.SpirlError, match="there is something already"), writer(tmp_path):
        pass
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]
    assert (tmp_path / "mine" / "thesis.tex").read_text() == "mine"


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"features": {"a b": {"shape": (2,)}}}, "a b"),
        ({"features": {"hand": {"shape": (0,)}}}, "hand"),
        ({"features": {"rendered": FEATURES["rendered"]}}, "stored"),
        ({"action_dim": 0}, "action_dim"),
        ({"shards": 0}, "shards"),
        ({"actions": (-1, 1)}, "(-1.0, 1.0)"),
        ({"actions": [(-1, 1)]}, "1 ranges for 2"),
        ({"actions": [(-1, 1), (2, 2)]}, "entry 1: low is 2"),
    ],
)
def test_impossible_arguments_are_refused(tmp_path: Path, changes: dict[str, Any], named: str) -> None:
    with pytest.raises(spirl.SpirlError) as caught:
        writer(tmp_path, **changes)
    assert named in str(caught.value)


def test_episodes_are_taken_within_the_block_only(tmp_path: Path) -> None:
    with writer(tmp_path) as out:
        out.add(**arrays())
    with pytest.raises(spirl.SpirlError, match="with"):
        out.add(**arrays(seed=1))


def test_storage_that_fails_is_one_message(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(spirl.SpirlError, match="file"), writer(tmp_path / "file"):
        pass


def test_what_the_block_raises_is_not_taken_for_an_error_of_writing(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"recordings\.npz"), writer(tmp_path):
        (tmp_path / "recordings.npz").read_bytes()
    assert nothing_is_left(tmp_path)
