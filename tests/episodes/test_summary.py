"""A summary's figures are those of the episodes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from spirl_ray.episodes.dataset import DatasetCard, Episode, FileEntry, episodes_to_table
from spirl_ray.episodes.summary import summarize
from spirl_ray.errors import SpirlError


def episode(number: int, rewards: list[float], completed: list[str] | None = None) -> Episode:
    rng = np.random.default_rng(number)
    steps = len(rewards)
    return Episode(
        id=str(number),
        states=(100 + rng.normal(size=(steps + 1, 2))).astype(np.float32),
        actions=rng.uniform(-1, 1, (steps, 1)).astype(np.float32),
        rewards=np.array(rewards, np.float32),
        terminated=number == 0,
        truncated=number != 0,
        metadata={} if completed is None else {"completed": completed},
    )


def write(folder: Path, files: list[list[Episode]]) -> Path:
    folder.mkdir()
    entries = {}
    for number, episodes in enumerate(files):
        name = f"episodes-{number:05d}-of-{len(files):05d}.parquet"
        pq.write_table(episodes_to_table(episodes, 2, 1), folder / name)
        entries[name] = FileEntry(sha256="", bytes=0, rows=len(episodes))
    card = DatasetCard(
        environment="spirl/Test-v0",
        state_dim=2,
        action_dim=1,
        episodes=0,
        steps=0,
        source="test",
        licence="none",
        attribution="nobody",
        content_sha256="",
        files=entries,
        created_by="test",
    )
    (folder / "card.json").write_text(card.model_dump_json())
    return folder


def test_the_experts_success_counts_failed_attempts_and_no_subtask_after_the_failed_one(tmp_path: Path) -> None:
    first, second, recorded = (episode(number, [0], ["a", "c"]) for number in range(3))
    first.metadata.update(tasks=["c", "a"], failed_attempts=[["c"], []])
    second.metadata.update(tasks=["a", "b", "c"])  # kept although it failed
    del recorded.metadata["completed"]
    summary = summarize(write(tmp_path / "d", [[first, second, recorded]]))
    assert summary.expert == {"a": (2, 3), "b": (0, 1), "c": (2, 3)}
    assert summarize(write(tmp_path / "e", [[recorded]])).expert == {}


def test_counts_and_lengths(tmp_path: Path) -> None:
    summary = summarize(write(tmp_path / "d", [[episode(0, [0] * 2), episode(1, [0] * 4)], [episode(2, [0])]]))
    assert (summary.episodes, summary.steps) == (3, 7)
    assert (summary.length_min, summary.length_max) == (1, 4)
    assert summary.length_mean == pytest.approx(7 / 3)
    assert (summary.terminated, summary.truncated) == (1, 2)


def test_spreads_are_those_of_all_rows_together(tmp_path: Path) -> None:
    episodes = [episode(n, [0] * (3 + 5 * n)) for n in range(4)]
    summary = summarize(write(tmp_path / "d", [episodes[:1], episodes[1:]]))
    for spread, rows in (
        (summary.states, np.concatenate([e.states for e in episodes])),
        (summary.actions, np.concatenate([e.actions for e in episodes])),
    ):
        np.testing.assert_allclose(spread.minimum, rows.min(axis=0))
        np.testing.assert_allclose(spread.maximum, rows.max(axis=0))
        np.testing.assert_allclose(spread.mean, rows.mean(axis=0, dtype=np.float64), rtol=1e-12)
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
