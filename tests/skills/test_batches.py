"""A training worker reads images only where its model observes them, and little at once."""

from __future__ import annotations

import gc
import threading
import time
import weakref
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch

from spirl_ray.config import PretrainSettings, SkillSettings
from spirl_ray.datasets import shard as shard_module
from spirl_ray.datasets.read_ahead import THREAD
from spirl_ray.datasets.windows import WindowTable
from spirl_ray.episodes.dataset import dataset_files
from spirl_ray.episodes.episode import Episode
from spirl_ray.episodes.features import Feature
from spirl_ray.episodes.writer import DatasetWriter
from spirl_ray.rl.methods import skill_spec
from spirl_ray.skills import batches as batches_module
from spirl_ray.skills.batches import MEGABYTE, Batches, PretrainJob, update_generator

SIDE, STEPS, EPISODES, HORIZON = 8, 20, 12, 5
FEATURES = {
    "arm": Feature(shape=(2,), role="proprioception"),
    "things": Feature(shape=(3,)),
    "front": Feature(shape=(SIDE, SIDE, 3), role="image"),
    "wrist": Feature(shape=(SIDE, SIDE, 3), role="image"),
}


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pixels and numbers of episode e are e, those of the wrist camera 100 + e."""
    path = tmp_path_factory.mktemp("data") / "cameras"
    with DatasetWriter(path, features=FEATURES, action_dim=2, environment="spirl/PointPads-v0", shards=2) as writer:
        for number in range(EPISODES):
            observations = {
                name: np.full((STEPS + 1, *feature.shape), number + 100 * (name == "wrist"), feature.dtype)
                for name, feature in FEATURES.items()
            }
            writer.add(observations=observations, actions=np.zeros((STEPS, 2)))
    return path


def make_batches(dataset: Path, limit_mb: float, *, in_memory: bool) -> Batches:
    spec = skill_spec(SkillSettings(horizon=HORIZON, features=("arm", "front")), "spirl", FEATURES, 2)
    job = PretrainJob(str(dataset), spec, PretrainSettings(), 0, frozenset({"episode-000000"}), limit_mb)
    return Batches(job, dataset_files(dataset), 16, in_memory=in_memory)


@pytest.mark.parametrize("in_memory", [True, False])
def test_images_that_the_model_does_not_observe_are_not_read(
    dataset: Path, monkeypatch: pytest.MonkeyPatch, in_memory: bool
) -> None:
    tables: list[pa.Table] = []
    convert = shard_module.table_to_episodes

    def noted(table: pa.Table, *arguments: Any, **options: Any) -> list[Episode]:
        tables.append(table)
        return convert(table, *arguments, **options)

    monkeypatch.setattr(shard_module, "table_to_episodes", noted)
    batches = make_batches(dataset, 100.0, in_memory=in_memory)
    observations, _ = batches.draw(0, update_generator(0, 0, 0))
    names = {name for table in tables for name in table.column_names}
    assert {"observation.arm", "observation.things", "observation.front"} <= names
    assert "observation.wrist" not in names
    assert set(observations) == {"arm", "front"}
    assert torch.equal(observations["front"][:, 0, 0, 0, 0, 0], observations["arm"][:, 0, 0].to(torch.uint8))
    mean, _ = batches.statistics(torch.device("cpu"))
    assert set(mean) == {"arm", "things"}  # a policy may observe what the skills do not
    assert mean["things"].tolist() == pytest.approx([np.mean(range(1, EPISODES))] * 3)


def test_numbers_that_never_change_have_no_deviation(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    goals = rng.uniform(-2.0, 2.0, 60).astype(np.float32)  # rounding leaves some of them a variance of 1e-16
    features = {"goal": Feature(shape=(60,)), "clock": Feature(shape=(1,))}
    with DatasetWriter(tmp_path / "d", features=features, action_dim=1, environment="spirl/PointPads-v0") as writer:
        for steps in (31, 17, 43):
            clock = 1000.0 + rng.uniform(-0.1, 0.1, (steps + 1, 1))
            goal = np.tile(goals, (steps + 1, 1))
            writer.add(observations={"goal": goal, "clock": clock}, actions=np.zeros((steps, 1)))
    spec = skill_spec(SkillSettings(horizon=HORIZON), "spirl", features, 1)
    job = PretrainJob(str(tmp_path / "d"), spec, PretrainSettings(), 0, frozenset(), 100.0)
    _, std = Batches(job, dataset_files(tmp_path / "d"), 16, in_memory=True).statistics(torch.device("cpu"))
    assert not std["goal"].any()
    assert std["clock"].item() == pytest.approx(0.058, abs=0.02)


def test_little_is_read_at_once_however_large_episodes_are(dataset: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: dict[bool, list[int]] = {True: [], False: []}
    convert = shard_module.table_to_episodes

    def noted(table: pa.Table, features: Any, *arguments: Any, **options: Any) -> list[Episode]:
        if threading.current_thread() is threading.main_thread():  # a stream of an earlier test may still read ahead
            sizes["front" in features].append(len(table))
        return convert(table, features, *arguments, **options)

    episode = STEPS * (SIDE * SIDE * 3 + 4 * (2 + 3 + 2))
    monkeypatch.setattr("spirl_ray.episodes.dataset.GROUP_BYTES", 2.5 * episode)
    monkeypatch.setattr(shard_module, "table_to_episodes", noted)
    make_batches(dataset, 100.0, in_memory=True)
    assert sum(sizes[True]) == EPISODES + 6  # the row group of the held-out episode comes twice
    assert max(sizes[True]) == 2
    assert sizes[False] == [6, 6]  # numbers alone, for their statistics


def test_a_stream_has_two_buffers_within_its_limit(dataset: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tables: list[tuple[int, weakref.ref[WindowTable]]] = []
    most: list[int] = []

    class Noted(WindowTable):
        def __init__(self, *arguments: Any, **options: Any) -> None:
            super().__init__(*arguments, **options)
            if "steps" in options:
                most.append(sum(size for size, table in tables if table() is not None))
                size = sum(column.nbytes for column in self._columns.values()) + 8 * len(self)
                tables.append((size, weakref.ref(self)))

    monkeypatch.setattr(batches_module, "WindowTable", Noted)
    limit_mb = 4.5 * STEPS * (SIDE * SIDE * 3 + 4 * (2 + 2) + 8) / MEGABYTE
    batches = make_batches(dataset, limit_mb, in_memory=False)
    for update in range(60):
        batches.draw(update, update_generator(0, update, 0))
    sizes = [size for size, _ in tables]
    assert len(sizes) > 2 * EPISODES / 3
    assert max(sizes) <= limit_mb * MEGABYTE / 2
    assert max(most) + max(sizes) <= limit_mb * MEGABYTE


@pytest.mark.parametrize("limit_mb", [0.02, 100.0])
def test_a_resumed_stream_draws_what_an_unbroken_one_does(dataset: Path, limit_mb: float) -> None:
    unbroken, resumed = (make_batches(dataset, limit_mb, in_memory=False) for _ in range(2))
    drawn = [unbroken.draw(update, update_generator(0, update, 0)) for update in range(40)]
    for update in (17, 18, 39):
        observations, actions = resumed.draw(update, update_generator(0, update, 0))
        assert torch.equal(actions, drawn[update][1])
        for name, values in observations.items():
            assert torch.equal(values, drawn[update][0][name])


def test_held_out_windows_have_an_eighth_of_the_limit_at_most(dataset: Path) -> None:
    window = SIDE * SIDE * 3 + 4 * (2 + HORIZON * 2)
    held = make_batches(dataset, 8 * 3 * window / MEGABYTE, in_memory=False).held
    assert held is not None
    assert len(held[1]) == 3


def reading() -> bool:
    return any(thread.name.startswith(THREAD) for thread in threading.enumerate())


def test_reading_ends_with_the_batches(dataset: Path) -> None:
    batches = make_batches(dataset, 0.01, in_memory=False)  # so that most episodes are not yet read
    batches.draw(0, update_generator(0, 0, 0))
    assert reading()
    del batches
    gc.collect()
    deadline = time.monotonic() + 60.0
    while reading():
        assert time.monotonic() < deadline, "a thread still reads for nobody"
        time.sleep(0.05)
