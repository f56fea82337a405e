"""The windows of a training worker of stage 1: from memory and streamed, to train on and held out."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from skills.pads_job import EPISODES, HORIZON, make_job
from torch import Tensor

from spirl_ray.datasets.windows import Batch, WindowTable
from spirl_ray.episodes.dataset import dataset_files, episode_index, read_episodes
from spirl_ray.skills import batches as batches_module
from spirl_ray.skills.batches import Batches, PretrainJob, update_generator
from spirl_ray.skills.pretrain import held_out

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("local_ray")]


def windows_of(observations: dict[str, Tensor]) -> set[bytes]:
    return {window.numpy().tobytes() for window in torch.cat(list(observations.values()), dim=-1)}


def held_windows(batches: Batches) -> Batch:
    assert batches.held is not None
    return batches.held


def expected_windows(job: PretrainJob, files: list[str]) -> set[bytes]:
    ids = {entry.id for entry in episode_index(job.dataset) if entry.file in files} - job.validation
    table = WindowTable([e for e in read_episodes(job.dataset) if e.id in ids], HORIZON, features=job.spec.observed)
    return windows_of(table.rows(torch.arange(len(table)))[0])


def test_drained_shards_do_not_depend_on_the_order_in_which_files_arrive(dataset: Path) -> None:
    job, files = make_job(dataset, held=2), dataset_files(dataset)
    drained = [Batches(job, order, 32, in_memory=True) for order in (files, files[::-1])]
    first, second = (batches.draw(7, update_generator(0, 7, 0)) for batches in drained)
    assert torch.equal(first[1], second[1])
    (mean, std), (other_mean, other_std) = (batches.statistics(torch.device("cpu")) for batches in drained)
    for name in job.spec.features:
        assert torch.equal(first[0][name], second[0][name])
        assert torch.equal(mean[name], other_mean[name])
        assert torch.equal(std[name], other_std[name])
        assert torch.equal(held_windows(drained[0])[0][name], held_windows(drained[1])[0][name])


def test_held_out_windows_are_apart_from_those_to_train_on(dataset: Path) -> None:
    job, files = make_job(dataset, held=2), dataset_files(dataset)
    batches = Batches(job, files, 64, in_memory=True)
    drawn = [windows_of(batches.draw(update, update_generator(0, update, 0))[0]) for update in range(5)]
    assert set.union(*drawn) <= expected_windows(job, files)
    held = [episode for episode in read_episodes(job.dataset) if episode.id in job.validation]
    table = WindowTable(held, HORIZON, features=job.spec.observed)
    assert windows_of(held_windows(batches)[0]) == windows_of(table.rows(torch.arange(len(table)))[0])


def test_held_out_windows_are_few_and_spread_however_many_there_are(
    dataset: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batches_module, "_VALIDATION_WINDOWS", 6)
    job = make_job(dataset, held=2)
    observations, actions = held_windows(Batches(job, dataset_files(dataset), 64, in_memory=False))
    positions = observations["position"]
    assert len(positions) == len(actions) == 6
    held = sorted((e for e in read_episodes(dataset) if e.id in job.validation), key=lambda e: e.id)
    for episode, windows in zip(held, positions.split(3), strict=True):
        count = episode.length - HORIZON + 1
        for window, start in zip(windows, (count // 6, count // 2, 5 * count // 6), strict=True):
            np.testing.assert_array_equal(window, episode.observations["position"][start : start + HORIZON])


def test_no_held_out_episode_means_no_validation(dataset: Path) -> None:
    assert Batches(make_job(dataset, held=0), dataset_files(dataset), 8, in_memory=False).held is None


def test_a_streamed_pass_has_the_windows_that_memory_holds(dataset: Path) -> None:
    job, files = make_job(dataset, limit_mb=0.01), dataset_files(dataset)[:2]
    batches, expected = Batches(job, files, 16, in_memory=False), expected_windows(job, files)
    seen: set[bytes] = set()
    draws = 0
    while seen != expected and draws < len(expected):
        found = windows_of(batches.draw(draws, update_generator(0, draws, 0))[0])
        assert found <= expected
        seen |= found
        draws += 1
    assert seen == expected
    assert draws <= len(expected) // 16 + EPISODES  # one pass: at most one batch topped up for each buffer


def test_held_out_episodes_are_a_random_share_that_repeats(dataset: Path) -> None:
    known = {entry.id for entry in episode_index(dataset)}
    chosen = held_out(dataset, 0.34, 0)
    assert chosen < known
    assert len(chosen) == 3
    assert chosen == held_out(dataset, 0.34, 0)
    assert len({held_out(dataset, 0.34, seed) for seed in range(5)}) > 1
    assert held_out(dataset, 0.0, 0) == frozenset()
    assert len(held_out(dataset, 0.001, 0)) == 1
    assert len(held_out(dataset, 0.999, 0)) == EPISODES - 1


@pytest.mark.parametrize("seed", [0, 1, 10**6, 2**40, -5])
def test_random_numbers_differ_between_updates_and_workers_for_any_seed(seed: int) -> None:
    drawn = {
        int(torch.randint(2**62, (), generator=update_generator(seed, update, rank)))
        for update in range(20)
        for rank in range(3)
    }
    assert len(drawn) == 60
    assert int(torch.randint(2**62, (), generator=update_generator(seed, 4, 1))) in drawn
