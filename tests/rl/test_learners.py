"""Several learners: the same updates as one learner on the union of their batches, checkpoints, and a learner that
dies."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from made_decisions import made_decisions
from ray import cloudpickle
from torch import Tensor

from spirl_ray.errors import SpirlError
from spirl_ray.rl.learners import LearnerLost

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("local_ray")]
cloudpickle.register_pickle_by_value(sys.modules[__name__])  # learners do not find this file
ROWS = 32
MakeConfig = Callable[..., Any]


@pytest.fixture
def build(make_config: MakeConfig) -> Iterator[Callable[..., Any]]:
    """Builds algorithms with learners and env runners of half a CPU each, and stops them after the test."""
    built = []

    def make(**kwargs: Any) -> Any:
        config = make_config(**kwargs)
        config.learners(num_cpus_per_learner=0.5)
        config.env_runners(num_cpus_per_env_runner=0.5)
        built.append(config.build_algo())
        return built[-1]

    yield make
    for algorithm in built:
        algorithm.stop()


class InOrder:
    """A source that gives the rows of the replay in their order, again and again."""

    def __init__(self, replay: Any) -> None:
        self.replay, self.first = replay, 0

    def sample(self, count: int) -> dict[str, Tensor]:
        indices = (self.first + torch.arange(count)) % len(self.replay)
        self.first += count
        return self.replay.rows(indices)


def without_chance(learner: Any) -> None:
    """Makes a learner take its rows in order, and the mean of its policy for a sample."""
    from spirl_ray.skills.gaussian import DiagonalGaussian

    learner.rows = InOrder(learner.replay)
    DiagonalGaussian.sample = lambda self, generator=None: self.mean  # type: ignore[method-assign]


def networks(algorithm: Any) -> list[dict[str, Tensor]]:
    return algorithm.learners._ask(lambda learner: {k: v.clone() for k, v in learner.networks.state_dict().items()})


def test_two_learners_make_the_updates_of_one_on_the_union_of_their_batches(build: Callable[..., Any]) -> None:
    from spirl_ray.skills.gaussian import DiagonalGaussian

    sample = DiagonalGaussian.sample
    one, two = build(batch_size=2 * ROWS), build(batch_size=ROWS, learners=2)
    first, second = networks(two)
    assert all(torch.equal(first[name], second[name]) for name in first)
    one.learners._ask(lambda learner: learner.networks.load_state_dict(first))
    [(width, latent)] = one.learners._ask(
        lambda learner: (learner.networks.policy.observation_dim, learner.networks.latent_dim)
    )
    parts = [made_decisions(width, latent, ROWS, seed) for seed in (1, 2)]
    one.learners.add(1, {name: np.concatenate([part[name] for part in parts]) for name in parts[0]})
    for runner, part in enumerate(parts, 1):
        two.learners.add(runner, part)
    try:
        for algorithm in (one, two):
            algorithm.learners._ask(without_chance)
            algorithm.learners.learn(5, 0.5)
    finally:
        DiagonalGaussian.sample = sample  # type: ignore[method-assign]
    [expected], (left, right) = networks(one), networks(two)
    for name, value in expected.items():
        assert torch.equal(left[name], right[name]), name
        torch.testing.assert_close(left[name], value, rtol=1e-4, atol=1e-5)
    assert any(not torch.equal(left[name], first[name]) for name in first)


def train_on(algorithm: Any, rounds: int) -> None:
    for _ in range(rounds):
        algorithm.train()


def test_two_learners_train_resume_and_lose_one(build: Callable[..., Any], tmp_path: Path) -> None:
    algorithm = build(learners=2, env_runners=2, warmup_decisions=32)
    while algorithm.counters["updates"] < 20:
        algorithm.train()
    assert algorithm.learners._ask(lambda learner: len(learner.replay)) == algorithm.learners.decisions
    assert min(algorithm.learners.decisions) > 0
    first, second = networks(algorithm)
    assert all(torch.equal(first[name], second[name]) for name in first)
    algorithm.save_checkpoint(str(tmp_path / "saved"))
    kept = list(algorithm.learners.decisions)

    pids = algorithm.learners._ask(lambda _: os.getpid())
    os.kill(pids[1], signal.SIGKILL)
    with pytest.raises(LearnerLost):
        train_on(algorithm, rounds=50)
    algorithm.stop()

    resumed = build(learners=2, env_runners=2, warmup_decisions=32)
    resumed.load_checkpoint(str(tmp_path / "saved"))
    assert resumed.learners.decisions == kept
    for found in networks(resumed):
        assert all(torch.equal(value, first[name]) for name, value in found.items())
    updates = resumed.counters["updates"]
    while resumed.counters["updates"] == updates:
        resumed.train()
    resumed.stop()

    alone = build(env_runners=1)
    with pytest.raises(SpirlError, match="2 learners"):
        alone.load_checkpoint(str(tmp_path / "saved"))
