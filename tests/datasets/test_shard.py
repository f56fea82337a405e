"""A worker's share of a dataset: every window once a pass, mixed from everywhere, and from any batch on."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import stored

from spirl_ray.datasets import shard as shard_module
from spirl_ray.datasets.shard import Buffer, Passes, Shard, shuffled
from spirl_ray.datasets.windows import WindowTable
from spirl_ray.episodes.dataset import dataset_files, read_card
from spirl_ray.episodes.episode import Episode
from spirl_ray.episodes.features import Feature
from spirl_ray.episodes.table import table_to_episodes
from spirl_ray.episodes.writer import DatasetWriter

FEATURES = {"place": Feature(shape=(2,)), "front": Feature(shape=(2, 2, 1), role="image")}
PLACE = {"place": FEATURES["place"]}
LENGTHS, HORIZON, BATCH, STEP = (12, 5, 30, 4, 7, 9, 21, 6, 8, 11, 5, 14), 5, 4, 20
HELD = {"e2": 30, "e7": 6}
Windows = set[tuple[int, int]]


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Place t of episode e is (e, t); two episodes a row group, three files."""
    path = tmp_path_factory.mktemp("data") / "places"
    with pytest.MonkeyPatch.context() as patch, DatasetWriter(path, features=FEATURES, action_dim=1, shards=3) as out:
        patch.setattr("spirl_ray.episodes.dataset.GROUP_EPISODES", 2)
        for number, length in enumerate(LENGTHS):
            places = np.stack([np.full(length + 1, number), np.arange(length + 1)], axis=1)
            frames = np.full((length + 1, 2, 2, 1), number)
            out.add(observations={"place": places, "front": frames}, actions=np.zeros((length, 1)), id=f"e{number}")
    return path


@pytest.fixture
def shard(dataset: Path) -> Shard:
    return Shard.of(read_card(dataset), dataset_files(dataset), HELD.keys())


def make_passes(shard: Shard, steps: float, seed: int = 0) -> Passes:
    return Passes(shard, HORIZON, BATCH, STEP, steps * STEP, seed)


def stream(passes: Passes, first: int = 0) -> Iterator[list[tuple[int, int]]]:
    """The (episode, step) of the windows of each batch."""
    tables = (
        (WindowTable(passes.shard.read(buffer.episodes, PLACE), HORIZON, PLACE, steps=buffer.steps), buffer)
        for buffer in passes.after(first)
    )
    for observations, _ in shuffled(tables, BATCH):
        yield [(int(episode), int(step)) for episode, step in observations["place"][:, 0]]


def expected() -> Windows:
    return {
        (number, step)
        for number, length in enumerate(LENGTHS)
        if f"e{number}" not in HELD
        for step in range(length - HORIZON + 1)
    }


def test_a_shard_knows_its_episodes_without_reading_them(shard: Shard) -> None:
    order = [*range(0, 12, 3), *range(1, 12, 3), *range(2, 12, 3)]  # the writer deals them out to the files
    assert shard.lengths.tolist() == [LENGTHS[number] for number in order]
    assert {name: int(shard.lengths[number]) for number, name in shard.held.items()} == HELD
    assert np.bincount(shard.group).tolist() == [2] * 6
    assert sorted(shard.training.tolist() + list(shard.held)) == list(range(12))


def test_only_row_groups_with_episodes_that_are_wanted_are_read(shard: Shard, monkeypatch: pytest.MonkeyPatch) -> None:
    groups: list[tuple[str, Sequence[int]]] = []
    read = shard_module.read_tables

    def noted(file: str, *arguments: Any, **options: Any) -> Any:
        groups.append((file, options["groups"]))
        return read(file, *arguments, **options)

    monkeypatch.setattr(shard_module, "read_tables", noted)
    found = list(shard.read(np.array([1, 7, 6]), PLACE))
    assert [episode.id for episode in found] == ["e3", "e7", "e10"]
    assert [set(episode.observations) for episode in found] == [{"place"}] * 3
    assert groups == [(shard.files[0], [0]), (shard.files[1], [1])]


def test_chosen_episodes_are_read_and_of_others_only_those_in_the_same_row_groups(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    numbers = (range(5), range(5, 7), range(7, 12))
    folder = stored.write_dataset(
        tmp_path / "d", [[stored.make_episode(n) for n in file] for file in numbers], stored.FEATURES, stored.ACTION_DIM
    )
    for file in dataset_files(folder):
        pq.write_table(pq.read_table(file), file, row_group_size=2)
    read: list[int] = []

    def noted(table: pa.Table, *args: Any, **options: Any) -> list[Episode]:
        read.append(len(table))
        return table_to_episodes(table, *args, **options)

    monkeypatch.setattr(shard_module, "table_to_episodes", noted)
    shard = Shard.of(read_card(folder), dataset_files(folder), held=())
    for chosen, groups in (([0, 11], [2, 1]), ([4, 1, 5], [2, 1, 2]), ([2, 3], [2]), ([], [])):
        read.clear()
        found = list(shard.read(np.array(chosen, np.int64), stored.FEATURES, copy=True))
        for episode, number in zip(found, sorted(chosen), strict=True):
            stored.assert_same(episode, stored.make_episode(number))
            assert episode.actions.flags.writeable
        assert sum(read) == sum(groups)


@pytest.mark.parametrize("steps", [0, 20, 45, 10**6])
def test_a_pass_has_every_window_once(shard: Shard, steps: int) -> None:
    passes = make_passes(shard, steps)
    count = sum(buffer.batches for buffer in passes.buffers(0))
    found = [window for batch in islice(stream(passes), count) for window in batch]
    assert set(found) == expected()
    assert len(found) < len(expected()) + BATCH * len(passes.buffers(0))  # but for topping up


@pytest.mark.parametrize("first", [1, 7, 40, 200])
def test_a_stream_that_begins_anywhere_is_the_unbroken_one(shard: Shard, first: int) -> None:
    whole = list(islice(stream(make_passes(shard, 45)), first + 30))
    assert list(islice(stream(make_passes(shard, 45), first), 30)) == whole[first:]


def test_buffers_stay_within_the_limit_but_for_an_episode_that_is_larger(shard: Shard) -> None:
    for steps in (0, 10, 25, 45, 60):
        for buffer in make_passes(shard, steps).buffers(0):
            assert buffer.steps == shard.lengths[buffer.episodes].sum()
            assert buffer.steps <= steps or len(buffer.episodes) == 1


def test_the_buffers_of_a_pass_are_alike(shard: Shard) -> None:
    """A small one would be used up before the next one is read."""
    sizes = [buffer.steps for number in range(5) for buffer in make_passes(shard, 70).buffers(number)]
    assert max(sizes) - min(sizes) <= 2 * max(LENGTHS)
    assert len(sizes) == 10


def test_passes_and_seeds_differ_and_a_buffer_mixes_files(shard: Shard) -> None:
    def order(buffers: list[Buffer]) -> list[int]:
        return [number for buffer in buffers for number in buffer.episodes.tolist()]

    passes = make_passes(shard, 60)
    orders = [order(passes.buffers(number)) for number in range(4)] + [order(make_passes(shard, 60, -1).buffers(0))]
    assert len({tuple(one) for one in orders}) == len(orders)
    assert len({tuple(sorted(one)) for one in orders}) == 1
    assert order(make_passes(shard, 60).buffers(2)) == orders[2]
    files = [
        {shard.groups[shard.group[n]][0] for n in buffer.episodes} for k in range(4) for buffer in passes.buffers(k)
    ]
    assert max(map(len, files)) > 1


def test_without_a_long_episode_a_stream_ends_at_once(shard: Shard) -> None:
    assert not list(Passes(shard, 31, BATCH, STEP, 100, 0).after(0))


def test_windows_are_in_another_order_each_time(shard: Shard) -> None:
    passes = make_passes(shard, 10**6)
    (buffer,) = passes.buffers(0)
    batches = list(islice(stream(passes), 2 * buffer.batches))
    assert batches[: buffer.batches] != batches[buffer.batches :]
    assert [window for batch in batches[:3] for window in batch] != sorted(expected())[: 3 * BATCH]
    assert buffer.seed != passes.buffers(1)[0].seed
