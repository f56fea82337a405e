"""A training worker reads images only where its model observes them, and little at once."""

from __future__ import annotations

import gc
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch

from spirl_ray.config import PretrainSettings, SkillSettings
from spirl_ray.datasets.read_ahead import THREAD
from spirl_ray.episodes.dataset import dataset_files
from spirl_ray.episodes.episode import Episode
from spirl_ray.episodes.features import Feature
from spirl_ray.episodes.writer import DatasetWriter
from spirl_ray.rl.methods import skill_spec
from spirl_ray.skills import batches as batches_module
from spirl_ray.skills.batches import MEGABYTE, Batches, PretrainJob, update_generator

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("local_ray")]

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
    convert = batches_module.table_to_episodes

    def noted(table: pa.Table, *arguments: Any, **options: Any) -> list[Episode]:
        tables.append(table)
        return convert(table, *arguments, **options)

    monkeypatch.setattr(batches_module, "table_to_episodes", noted)
    batches = make_batches(dataset, 100.0, in_memory=in_memory)
    observations, _ = batches.draw(update_generator(0, 0, 0))
    names = {name for table in tables for name in table.column_names}
    assert {"observation.arm", "observation.things", "observation.front"} <= names
    assert "observation.wrist" not in names
    assert set(observations) == {"arm", "front"}
    assert torch.equal(observations["front"][:, 0, 0, 0, 0, 0], observations["arm"][:, 0, 0].to(torch.uint8))
    mean, _ = batches.statistics(torch.device("cpu"))
    assert set(mean) == {"arm", "things"}  # a policy may observe what the skills do not
    assert mean["things"].tolist() == pytest.approx([np.mean(range(1, EPISODES))] * 3)


def test_little_is_copied_at_once_however_large_episodes_are(dataset: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []
    convert = batches_module.table_to_episodes

    def noted(table: pa.Table, *arguments: Any, **options: Any) -> list[Episode]:
        sizes.append(len(table))
        return convert(table, *arguments, **options)

    episode = STEPS * (SIDE * SIDE * 3 + 4 * (2 + 3 + 2))
    monkeypatch.setattr(batches_module, "_BYTES_AT_A_TIME", 2.5 * episode)
    monkeypatch.setattr(batches_module, "table_to_episodes", noted)
    make_batches(dataset, 100.0, in_memory=False)
    assert sum(sizes) == EPISODES
    assert max(sizes) == 2


def test_a_stream_holds_half_of_its_limit_and_reads_the_other_half_ahead(
    dataset: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    limits: list[float] = []
    ahead, stream = batches_module.read_ahead, batches_module.stream_windows

    def noted_ahead(episodes: Any, limit: float) -> Any:
        limits.append(limit)
        return ahead(episodes, limit)

    def noted_stream(*arguments: Any, **options: Any) -> Any:
        limits.append(arguments[4])
        return stream(*arguments, **options)

    monkeypatch.setattr(batches_module, "read_ahead", noted_ahead)
    monkeypatch.setattr(batches_module, "stream_windows", noted_stream)
    make_batches(dataset, 3.0, in_memory=False).draw(update_generator(0, 0, 0))
    assert limits == [1.5 * MEGABYTE, 1.5 * MEGABYTE]


def test_reading_ends_with_the_batches(dataset: Path) -> None:
    batches = make_batches(dataset, 0.01, in_memory=False)  # so that most episodes are not yet read
    batches.draw(update_generator(0, 0, 0))
    assert THREAD in [thread.name for thread in threading.enumerate()]
    del batches
    gc.collect()
    deadline = time.monotonic() + 60.0
    while THREAD in [thread.name for thread in threading.enumerate()]:
        assert time.monotonic() < deadline, "a thread still reads for nobody"
        time.sleep(0.05)
