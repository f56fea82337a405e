"""A summary's figures are those of the episodes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from stored import write_dataset

from spirl_ray.episodes.episode import Episode
from spirl_ray.episodes.features import Feature
from spirl_ray.episodes.summary import summarize
from spirl_ray.errors import SpirlError

FEATURES = {
    "place": Feature(shape=(2,)),
    "things": Feature(shape=(3, 2)),
    "camera": Feature(shape=(2, 2, 1), role="image"),
    "rendered": Feature(shape=(2, 2, 1), role="image", stored=False),
}


def episode(number: int, rewards: list[float], completed: list[str] | None = None) -> Episode:
    rng = np.random.default_rng(number)
    steps = len(rewards)
    return Episode(
        id=str(number),
        observations={
            "place": (100 + rng.normal(size=(steps + 1, 2))).astype(np.float32),
            "things": rng.normal(size=(steps + 1, 3, 2)).astype(np.float32),
            "camera": np.zeros((steps + 1, 2, 2, 1), np.uint8),
        },
        actions=rng.uniform(-1, 1, (steps, 1)).astype(np.float32),
        rewards=np.array(rewards, np.float32),
        terminated=number == 0,
        truncated=number != 0,
        metadata={} if completed is None else {"completed": completed},
    )


def write(folder: Path, files: list[list[Episode]]) -> Path:
    return write_dataset(folder, files, FEATURES, 1)


def test_the_experts_success_is_that_of_all_its_tries(tmp_path: Path) -> None:
    first, second = (episode(number, [0]) for number in range(2))
    first.metadata["tries"] = [["c", True], ["a", False], ["c", True], ["a", True]]
    second.metadata["tries"] = [["c", False]]
    folder = write(tmp_path / "d", [[first, second]])
    assert summarize(folder, lambda metadata: metadata["tries"]).expert == {"a": (1, 2), "c": (2, 3)}
    assert summarize(folder).expert == {}


def test_counts_and_lengths(tmp_path: Path) -> None:
    summary = summarize(write(tmp_path / "d", [[episode(0, [0] * 2), episode(1, [0] * 4)], [episode(2, [0])]]))
    assert (summary.episodes, summary.steps) == (3, 7)
    assert (summary.length_min, summary.length_max) == (1, 4)
    assert summary.length_mean == pytest.approx(7 / 3)
    assert (summary.terminated, summary.truncated) == (1, 2)


def test_spreads_are_those_of_all_rows_together_and_images_have_none(tmp_path: Path) -> None:
    episodes = [episode(n, [0] * (3 + 5 * n)) for n in range(4)]
    summary = summarize(write(tmp_path / "d", [episodes[:1], episodes[1:]]))
    assert list(summary.observations) == ["place", "things"]
    for spread, rows in (
        (summary.observations["place"], np.concatenate([e.observations["place"] for e in episodes])),
        (summary.observations["things"], np.concatenate([e.observations["things"] for e in episodes])),
        (summary.actions, np.concatenate([e.actions for e in episodes])),
    ):
        assert spread.mean.shape == rows.shape[1:]
        np.testing.assert_allclose(spread.minimum, rows.min(axis=0))
        np.testing.assert_allclose(spread.maximum, rows.max(axis=0))
        np.testing.assert_allclose(spread.mean, rows.mean(axis=0, dtype=np.float64), rtol=1e-9)
        np.testing.assert_allclose(spread.std, rows.std(axis=0, dtype=np.float64), rtol=1e-9)


def test_subtasks_and_orders_are_counted_most_frequent_first(tmp_path: Path) -> None:
    orders = [["b", "a"], ["a", "b"], ["a", "b"], ["a"], []]
    summary = summarize(write(tmp_path / "d", [[episode(n, [0, 0], order) for n, order in enumerate(orders)]]))
    assert list(summary.orders.items()) == [(("a", "b"), 2), ((), 1), (("a",), 1), (("b", "a"), 1)]
    assert list(summary.subtasks.items()) == [("a", 4), ("b", 3)]


@pytest.mark.parametrize(
    ("rewards", "rises"),
    [
        ([0, 1, 0, 0, 1], 2),
        ([0, 1, 1, 2, 2], 2),
        ([1, 1, 1, 1], 1),
        ([0, 0, 0], 0),
        ([-2, -1, -1], 0),
    ],
)
def test_a_reward_counts_once_whether_paid_once_or_kept(tmp_path: Path, rewards: list[float], rises: int) -> None:
    summary = summarize(write(tmp_path / "d", [[episode(0, rewards)]]))
    assert summary.reward_rises == {rises: 1}
    assert summary.orders == {}


def test_the_share_of_saturated_actions(tmp_path: Path) -> None:
    one = episode(0, [0] * 4)
    one.actions[:, 0] = [-1, 0.995, 0.98, 0]
    assert summarize(write(tmp_path / "d", [[one]])).saturated == pytest.approx([0.5])


def test_a_dataset_without_a_step_cannot_be_summarized(tmp_path: Path) -> None:
    with pytest.raises(SpirlError, match="holds no step"):
        summarize(write(tmp_path / "d", [[]]))
