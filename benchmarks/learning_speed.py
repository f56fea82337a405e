"""Speed of stage 2: `SkillPriorSAC` against the same updates in a bare loop, and how sampling overlaps learning."""

from __future__ import annotations

import copy
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.learners import METHOD, BareLoop, kitchen_training, make_learner, random_decisions, random_skills
from benchmarks.pretraining_speed import ENVIRONMENT, kitchen_skills
from spirl_ray.config import EnvSettings, Experiment
from spirl_ray.pipeline.training_run import TrainingRun, algorithm_config
from spirl_ray.rl.algorithm import SkillPriorSAC
from spirl_ray.rl.methods import method_config

_WARM_ROUNDS = 3


@dataclass(frozen=True)
class LearningPlan:
    """The amount of measurement."""

    pairs: int = 12
    """The number of alternations of the algorithm and the bare loop."""
    updates: int = 96
    """The number of updates in each of them; the algorithm makes them in calls of one round's size."""
    rounds: int = 20
    """The number of rounds of sampling and learning."""
    replay_rows: int = 20_000


def measure_learning(folder: Path, plan: LearningPlan) -> dict[str, float | None]:
    """Updates per second, their ratio, and the ratio of a round's time to the longer of sampling and learning."""
    train = kitchen_training()
    experiment = Experiment(name="benchmark", env=EnvSettings(id=ENVIRONMENT), train=train)
    method = method_config(METHOD, train, kitchen_skills())
    run = TrainingRun(experiment, method, 0, random_skills(folder / "skills"), folder / "policy", "benchmark")
    algorithm: SkillPriorSAC = algorithm_config(run).build_algo()
    try:
        _fill(algorithm, plan)
        group: Any = algorithm.learner_group
        batch = group._learner.replay.sample(train.batch_size)
        loop = BareLoop(group._learner.networks, batch, train, method.target_divergence)
        with FlopCounterMode(display=False) as counter:
            loop.loss().backward()
        return {
            **_against_loop(algorithm, loop, plan, train.decisions_per_round),
            **_critics(run.skills, loop, plan),
            **_rounds(algorithm, plan),
            **_learners(run, plan),
            "stage2_update_gflop": counter.get_total_flops() / 1e9,
        }
    finally:
        algorithm.stop()


def _fill(algorithm: SkillPriorSAC, plan: LearningPlan) -> None:
    """Fills the replays, as if the decisions had been sampled."""
    for runner in range(1, algorithm.learners.count + 1):
        algorithm.learners.add(runner, random_decisions(plan.replay_rows))
    algorithm.counters["decisions"] = plan.replay_rows


def _critics(skills: Path, loop: BareLoop, plan: LearningPlan) -> dict[str, float | None]:
    """The time of an update over that of version 0.1 with two critics, which runs in turn with each.

    ``ten`` critics have two in the minimum, and ``ten_all`` all ten.
    """
    before = copy.copy(loop)
    before.as_0_1 = True
    changes: dict[str, dict[str, Any]] = {
        "update": {},
        "ten_critics": {"critics": 10, "critics_in_minimum": 2},
        "ten_critics_all": {"critics": 10},
    }
    found: dict[str, float | None] = {}
    for name, changed in changes.items():
        learner = make_learner(skills, kitchen_training().model_copy(update=changed), torch.device("cpu"))
        calls = {1: list[float](), 16: list[float]()}
        earlier = []
        for number in range(plan.pairs + 1):
            for count, times in calls.items():
                times.append(_seconds(partial(_repeat, 16 // count, partial(learner.learn, count, 1.0))) / 16)
            earlier.append(_seconds(partial(_repeat, 16, before.step)) / 16)
            if number == 0:  # the warm-up
                for measured in (earlier, *calls.values()):
                    measured.clear()
        found[f"stage2_{name}_over_0_1"] = statistics.median(a / b for a, b in zip(calls[16], earlier, strict=True))
        if name == "update":
            ratios = (a / b for a, b in zip(calls[1], calls[16], strict=True))
            found["stage2_one_update_a_call_over_16"] = statistics.median(ratios)
    return found


def _learners(run: TrainingRun, plan: LearningPlan) -> dict[str, float | None]:
    """Decisions that two learners learn from in a second over those of one, both in processes of their own."""
    built: list[SkillPriorSAC] = []
    try:
        for count in (1, 2):
            config = algorithm_config(run)
            config.learners(num_learners=count, num_cpus_per_learner=0.25)
            config.env_runners(num_env_runners=2, num_cpus_per_env_runner=0.25)
            built.append(config.build_algo())
            _fill(built[-1], plan)
        calls = [partial(algorithm.learners.learn, 32, 1.0) for algorithm in built]
        times = [[_seconds(call) for call in calls] for _ in range(plan.pairs + 1)]
        return {"stage2_two_learners": statistics.median(2.0 * one / two for one, two in times[1:])}
    finally:
        for algorithm in built:
            algorithm.stop()


def _against_loop(
    algorithm: SkillPriorSAC, loop: BareLoop, plan: LearningPlan, per_call: int
) -> dict[str, float | None]:
    """Times algorithm and bare loop in turn, before the runner has a request, so that nothing else runs meanwhile."""

    def learn() -> None:
        for _ in range(max(1, plan.updates // per_call)):
            algorithm._owed_updates = float(per_call)
            algorithm._learn()

    def step() -> None:
        for _ in range(plan.updates):
            loop.step()

    _seconds(learn), _seconds(step)
    with_rllib, bare = [], []
    for _ in range(plan.pairs):
        updates = algorithm.counters["updates"]
        seconds = _seconds(learn)
        with_rllib.append((algorithm.counters["updates"] - updates) / seconds)
        bare.append(plan.updates / _seconds(step))
    return {
        "stage2_algorithm_over_loop": statistics.median(a / b for a, b in zip(with_rllib, bare, strict=True)),
        "stage2_updates_per_s": statistics.median(with_rllib),
        "stage2_loop_updates_per_s": statistics.median(bare),
    }


def _repeat(times: int, work: Callable[[], Any]) -> None:
    for _ in range(times):
        work()


def _seconds(work: Callable[[], Any]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def _rounds(algorithm: SkillPriorSAC, plan: LearningPlan) -> dict[str, float | None]:
    """Rounds of `train()`, each from one hand-over of samples to the next.

    A call fetches samples and then learns, and the next samples are drawn while it learns. So what is compared is the
    learning of one call, the wait of the next, and the sampling that the next one reports.
    """
    for _ in range(_WARM_ROUNDS):
        algorithm.train()
    walls, samples, learns, waits = [], [], [], []
    left: float | None = None
    for _ in range(plan.rounds + 1):
        seconds = _seconds(algorithm.train)
        timings = algorithm.timings
        if left is not None:
            walls.append(left + timings["wait_s"])
            samples.append(timings["sample_s"])
            waits.append(timings["wait_s"])
        left = seconds - timings["wait_s"]  # learning, and what RLlib does with the round's results
        learns.append(timings["learn_s"])
    ratios = [wall / max(pair) for wall, *pair in zip(walls, samples, learns[:-1], strict=True)]
    return {
        "stage2_round_over_max": statistics.median(ratios),
        "stage2_round_s": statistics.median(walls),
        "stage2_sample_s": statistics.median(samples),
        "stage2_learn_s": statistics.median(learns),
        "stage2_wait_s": statistics.median(waits),
    }
