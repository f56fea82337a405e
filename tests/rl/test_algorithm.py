"""The algorithm on a local Ray: rounds, counters, restore, and env runners that die."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ray.rllib.core import DEFAULT_MODULE_ID
from ray.rllib.core.columns import Columns
from stored import ACTION_DIM, FEATURES, make_episode, write_dataset

from spirl_ray import envs
from spirl_ray.config import EnvironmentSettings
from spirl_ray.envs import declared_scores
from spirl_ray.errors import SpirlError
from spirl_ray.rl import checkpoint

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("local_ray")]

MakeConfig = Callable[..., Any]
DECISIONS = 16
"""Of one runner in one round: two environments, eight decisions each."""


@pytest.fixture
def build(make_config: MakeConfig) -> Iterator[Callable[..., Any]]:
    """Builds algorithms from `make_config` arguments and stops them after the test."""
    built = []

    def make(**kwargs: Any) -> Any:
        built.append(make_config(**kwargs).build_algo())
        return built[-1]

    yield make
    for algorithm in built:
        algorithm.stop()


def learner(algorithm: Any) -> Any:
    return algorithm.learner_group._learner


def learner_module(algorithm: Any) -> Any:
    return learner(algorithm).networks


def streams(algorithm: Any) -> list[tuple[int, ...]]:
    """The numbers that environments mix into their seeds."""
    [found] = algorithm.env_runner_group.foreach_env_runner(
        lambda runner: [env.unwrapped.stream for env in runner.env.unwrapped.envs]
    )
    return found


def runner_weights(algorithm: Any) -> dict[str, torch.Tensor]:
    [state] = algorithm.env_runner_group.foreach_env_runner(
        lambda runner: {name: value.clone() for name, value in runner.module.unwrapped().state_dict().items()}
    )
    return state


def train_until(algorithm: Any, reached: Callable[[], bool], seconds: float = 240.0) -> None:
    deadline = time.monotonic() + seconds
    while not reached():
        assert time.monotonic() < deadline, f"still at {algorithm.counters}"
        algorithm.train()


def assert_same(first: Any, second: Any, path: str = "") -> None:
    assert type(first) is type(second), path
    if isinstance(first, dict):
        assert first.keys() == second.keys(), path
        for key in first:
            assert_same(first[key], second[key], f"{path}/{key}")
    elif isinstance(first, list | tuple):
        assert len(first) == len(second), path
        for index, (one, other) in enumerate(zip(first, second, strict=True)):
            assert_same(one, other, f"{path}/{index}")
    elif isinstance(first, np.ndarray | torch.Tensor):
        assert first.dtype == second.dtype, path
        assert first.shape == second.shape, path
        np.testing.assert_array_equal(np.asarray(first), np.asarray(second), err_msg=path)
    else:
        assert first == second, path


def as_saved(entry: Any, value: torch.Tensor) -> np.ndarray:
    """A checkpoint's entry as an array; scalars are saved as numbers."""
    return entry if isinstance(entry, np.ndarray) else np.asarray(entry, value.numpy().dtype)


def test_learning_waits_for_the_warm_up_and_then_keeps_its_ratio(build: Callable[..., Any]) -> None:
    algorithm = build(warmup_decisions=2 * DECISIONS, updates_per_decision=0.3)
    algorithm.episodes.scores = declared_scores("spirl/PointPads-v0")
    algorithm.train()
    assert algorithm.counters["updates"] == 0
    assert len(learner(algorithm).replay) == DECISIONS
    for _ in range(4):
        algorithm.train()
    counters = algorithm.counters
    assert counters["decisions"] == len(learner(algorithm).replay) == 5 * DECISIONS
    assert counters["updates"] == int(0.3 * 4 * DECISIONS)  # 4 rounds, the last of the warm-up included
    assert counters["updates"] == learner(algorithm).updates
    steps = [4, 4, 4, 4, 4, 4, 4, 2]  # episodes of 30 primitive steps
    finished, running = divmod(counters["decisions"] // 2, len(steps))
    assert counters["env_steps"] == 2 * (finished * sum(steps) + sum(steps[:running]))
    assert counters["episodes"] == 2 * finished == len(algorithm.episodes.recent)
    metrics = algorithm.episodes.mean()
    assert metrics["return"] == pytest.approx(metrics["subtasks"])
    assert metrics["length"] == sum(steps)
    assert {"critic_loss", "alpha", "divergence_p99"} <= algorithm.learner_metrics.keys()


def test_warm_up_longer_than_the_replay_ends_when_the_replay_is_full(build: Callable[..., Any]) -> None:
    algorithm = build(warmup_decisions=5000, replay_capacity=DECISIONS)
    algorithm.train()
    assert algorithm.counters["updates"] == DECISIONS


def test_env_runner_acts_with_the_learned_policy(build: Callable[..., Any]) -> None:
    algorithm = build(warmup_decisions=0, actor_lr=0.01)
    for _ in range(2):
        algorithm.train()
    algorithm._send_weights(None)
    policy = algorithm.policy_state()
    assert policy.keys() == learner_module(algorithm).policy.state_dict().keys()
    for name, value in runner_weights(algorithm).items():
        assert torch.equal(value, policy[name.removeprefix("policy.")]), name


def test_the_average_is_what_is_published(build: Callable[..., Any]) -> None:
    algorithm = build(warmup_decisions=0, actor_lr=0.01, policy_polyak=0.1)
    for _ in range(2):
        algorithm.train()
    module = learner_module(algorithm)
    published = algorithm.policy_state()
    assert published.keys() == module.policy.state_dict().keys()
    for name, value in module.average.state_dict().items():
        assert torch.equal(value, published[name])
    assert any(not torch.equal(value, published[name]) for name, value in module.policy.state_dict().items())


@pytest.mark.parametrize("env_runners", [0, 1])
def test_policy_from_scratch_explores_with_the_prior_until_learning_starts(
    build: Callable[..., Any], env_runners: int
) -> None:
    algorithm = build(policy_init="scratch", warmup_decisions=3 * DECISIONS, env_runners=env_runners)

    def acts_from_prior() -> bool:
        return bool(runner_weights(algorithm)["acts_from_prior"])

    algorithm.train()
    assert acts_from_prior()
    train_until(algorithm, lambda: algorithm.counters["updates"] > 0)
    algorithm.train()
    assert not acts_from_prior()


@pytest.mark.parametrize("reward_scale", ["auto", 0.1])
def test_restored_run_is_bit_equal_and_learns_on(
    build: Callable[..., Any], tmp_path: Path, reward_scale: str | float
) -> None:
    algorithm = build(updates_per_decision=0.3, reward_scale=reward_scale)
    for _ in range(4):
        algorithm.train()
    assert algorithm.rewards.warmed_up
    if reward_scale == "auto":
        algorithm.rewards.seen.largest_return, algorithm.rewards._settled = -182.0, 0.02
    learner(algorithm).replay.columns[Columns.REWARDS].fill_(-10.0)
    algorithm.save_checkpoint(str(tmp_path / "first"))
    files = {file.suffix for file in (tmp_path / "first").rglob("*") if file.is_file()}
    assert files == {".json", ".safetensors"}
    saved = checkpoint.read_state(tmp_path / "first")
    module = learner_module(algorithm)
    for name, value in module.state_dict().items():
        assert_same(as_saved(saved["learner"]["rl_module"][DEFAULT_MODULE_ID][name], value), value.numpy(), name)
    steps = [float(s["step"]) for o in learner(algorithm)._named_optimizers.values() for s in o.state.values()]
    assert set(steps) == {float(algorithm.counters["updates"])}

    restored = build(updates_per_decision=0.3, reward_scale=reward_scale)
    restored.load_checkpoint(str(tmp_path / "first"))
    assert restored.rewards.factor == (0.02 if reward_scale == "auto" else 0.1)
    restored.save_checkpoint(str(tmp_path / "second"))
    again = checkpoint.read_state(tmp_path / "second")
    for state in (saved, again):
        state["learner"] = {name: state["learner"][name] for name in ("rl_module", "optimizer")}
    assert_same(saved, again)

    # The same updates from the same rows with the same noise give the same networks.
    for each in (algorithm, restored):
        each.learners.restore(saved["learners"])
        each._owed_updates = 3.0
        each._learn()
    for name, value in learner_module(restored).state_dict().items():
        assert torch.equal(value, module.state_dict()[name]), name

    before = restored.counters["updates"]
    restored.train()
    assert restored.counters["updates"] > before


@pytest.mark.parametrize("env_runners", [0, 1])
def test_updates_on_offline_decisions_alone_come_between_warm_up_and_practice(
    build: Callable[..., Any],
    offline_folder: Callable[..., Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    env_runners: int,
) -> None:
    monkeypatch.setattr("spirl_ray.rl.algorithm._OFFLINE_UPDATES_A_ROUND", 10)
    settings = {
        **{"offline": offline_folder(), "offline_fraction": 0.5, "offline_updates": 25},
        **{"warmup_decisions": DECISIONS, "updates_per_decision": 0.5, "env_runners": env_runners},
    }
    algorithm = build(**settings)
    train_until(algorithm, lambda: algorithm.counters["updates"] > 0)
    steps = algorithm.counters["env_steps"]
    assert (algorithm.counters["updates"], algorithm.offline_updates_left) == (10, 15)
    algorithm.save_checkpoint(str(tmp_path / "first"))
    resumed = build(**settings)
    resumed.load_checkpoint(str(tmp_path / "first"))
    for each in (algorithm, resumed):
        for left in (5, 0):
            each.train()
            assert (each.offline_updates_left, each.counters["env_steps"]) == (left, steps)
        assert each.counters["updates"] == each.counters["offline_updates"] == 25
        while each.counters["updates"] == 25:
            each.train()
        assert each.counters["env_steps"] > steps
        assert each.counters["offline_updates"] == 25


def test_the_learner_gets_scaled_rewards_and_the_replay_keeps_them_as_they_are(
    build: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    algorithm = build(reward_scale="auto", warmup_decisions=DECISIONS)
    learned: list[torch.Tensor] = []
    step = learner(algorithm).step

    def noted(batch: Any) -> Any:
        learned.append(batch[Columns.REWARDS])
        return step(batch)

    monkeypatch.setattr(learner(algorithm), "step", noted)
    algorithm.train()
    assert algorithm.rewards.starting_divergence == pytest.approx(0.0, abs=1e-5)
    assert algorithm.rewards.seen.decisions == DECISIONS
    rewards = learner(algorithm).replay.columns[Columns.REWARDS].fill_(-10.0)
    algorithm.rewards._settled = 0.02
    algorithm._owed_updates = 1.0
    algorithm._learn()
    assert learned[-1].tolist() == pytest.approx([-0.2] * 32)
    assert set(rewards.tolist()) == {-10.0}


@pytest.mark.parametrize(("judges", "counted"), [(False, 4.0), (True, 0.0)])
def test_the_scale_knows_the_rewards_of_demonstrations_unless_the_environment_judges_what_this_task_rewards(
    build: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, judges: bool, counted: float
) -> None:
    spec = envs.environment(EnvironmentSettings(id="spirl/PointPads-v0"))
    assert spec.judge is not None
    monkeypatch.setattr(envs, "environment", lambda _: spec if judges else replace(spec, judge=None))
    demonstration = make_episode(0, length=8)
    demonstration.rewards[:] = 0.5
    card = {"environment": "spirl/PointPads-v0"}
    dataset = write_dataset(tmp_path / "d", [[demonstration]], FEATURES, ACTION_DIM, **card)
    algorithm = build(reward_scale="auto", warmup_decisions=DECISIONS, dataset=dataset)
    algorithm.train()
    assert algorithm.rewards.warmed_up
    assert algorithm.rewards.recorded.total == counted
    assert algorithm.rewards.settled == bool(counted or algorithm.rewards.seen.rewarded)


def test_running_algorithm_goes_back_to_a_checkpoint(build: Callable[..., Any], tmp_path: Path) -> None:
    algorithm = build(warmup_decisions=0)
    algorithm.train()
    algorithm.save_checkpoint(str(tmp_path / "first"))
    saved = checkpoint.read_state(tmp_path / "first")["learner"]["rl_module"][DEFAULT_MODULE_ID]
    for _ in range(2):
        algorithm.train()
    algorithm.load_checkpoint(str(tmp_path / "first"))
    for name, value in learner_module(algorithm).state_dict().items():
        assert_same(as_saved(saved[name], value), value.numpy(), name)
    for name, value in runner_weights(algorithm).items():
        assert_same(as_saved(saved[name], value), value.numpy(), name)


def test_training_goes_on_after_its_env_runner_was_killed(build: Callable[..., Any]) -> None:
    algorithm = build(env_runners=1, warmup_decisions=0, actor_lr=0.01)
    train_until(algorithm, lambda: algorithm.counters["updates"] > 0)
    [first] = algorithm.env_runner_group.foreach_env_runner(lambda _: os.getpid())
    assert streams(algorithm) == [(1, 0), (1, 1)]
    os.kill(first, signal.SIGKILL)
    at_least = algorithm.counters["decisions"] + 4 * DECISIONS
    train_until(algorithm, lambda: algorithm.counters["decisions"] >= at_least)
    [second] = algorithm.env_runner_group.foreach_env_runner(lambda _: os.getpid())
    assert second != first
    assert [len(stream) for stream in streams(algorithm)] == [3, 3]  # with a random number, so no episode is repeated
    start = algorithm.policy_state()
    algorithm._send_weights([1])
    for name, value in runner_weights(algorithm).items():
        assert torch.equal(value, start[name.removeprefix("policy.")]), name


def test_sampling_overlaps_learning(build: Callable[..., Any]) -> None:
    algorithm = build(env_runners=1)
    algorithm.train()
    assert algorithm.env_runner_group.num_in_flight_async_reqs("sample") == 1


def test_silent_env_runners_end_the_training_with_advice(build: Callable[..., Any]) -> None:
    algorithm = build(env_runners=1, silence_limit_s=0.5)
    algorithm.train()
    [process] = algorithm.env_runner_group.foreach_env_runner(lambda _: os.getpid())
    os.kill(process, signal.SIGSTOP)
    algorithm.config._is_frozen = False
    algorithm.config.sample_timeout_s = 0.5
    try:
        with pytest.raises(SpirlError, match="No env runner has answered"):
            train_until(algorithm, lambda: False)
    finally:
        os.kill(process, signal.SIGCONT)


def test_error_in_the_environment_reaches_the_driver(build: Callable[..., Any]) -> None:
    algorithm = build(env_runners=1)
    algorithm.train()

    def break_environment(runner: Any) -> None:
        runner.env.step = lambda _: 1 / 0

    algorithm.env_runner_group.foreach_env_runner(break_environment)
    with pytest.raises(RuntimeError, match="ZeroDivisionError"):
        train_until(algorithm, lambda: False)


@pytest.mark.parametrize("env_runners", [0, 1])
def test_remote_learner_learns_and_is_restored(build: Callable[..., Any], tmp_path: Path, env_runners: int) -> None:
    algorithm = build(learners=1, env_runners=env_runners, warmup_decisions=0)
    train_until(algorithm, lambda: algorithm.counters["updates"] >= 2 * DECISIONS)
    assert algorithm.learner_metrics["critic_loss"] > 0
    algorithm.save_checkpoint(str(tmp_path / "first"))
    before = algorithm.policy_state()
    train_until(algorithm, lambda: algorithm.counters["updates"] >= 4 * DECISIONS)
    assert any(not torch.equal(value, before[name]) for name, value in algorithm.policy_state().items())
    algorithm.load_checkpoint(str(tmp_path / "first"))
    for name, value in algorithm.policy_state().items():
        assert torch.equal(value, before[name]), name
