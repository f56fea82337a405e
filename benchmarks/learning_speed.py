"""Speed of stage 2: `SkillPriorSAC` against the same updates in a bare loop, and how sampling overlaps learning."""

from __future__ import annotations

import copy
import statistics
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ray.rllib.core import DEFAULT_MODULE_ID
from ray.rllib.core.columns import Columns
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.pretraining_speed import ENVIRONMENT, kitchen_skills
from spirl_ray import __version__
from spirl_ray.config import EnvSettings, Experiment, TrainSettings
from spirl_ray.pipeline.training_run import TrainingRun, algorithm_config
from spirl_ray.rl import losses
from spirl_ray.rl.algorithm import SkillPriorSAC
from spirl_ray.rl.critics import Critics
from spirl_ray.rl.methods import method_config
from spirl_ray.rl.module import SkillPriorModule
from spirl_ray.rl.policy_network import PolicyNetwork
from spirl_ray.rl.replay import DISCOUNTS, PHASE
from spirl_ray.skills.artifact import save_skills
from spirl_ray.skills.model import SkillModel
from spirl_ray.skills.networks import mlp
from spirl_ray.skills.priors import SkillPrior

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


class BareLoop:
    """The learner of version 0.1 without RLlib: copies of the algorithm's networks with separate critics, its losses,
    plain PyTorch, one fixed batch."""

    def __init__(self, module: SkillPriorModule, batch: dict[str, Tensor], train: TrainSettings, target: float) -> None:
        assert module.prior is not None
        self.policy: PolicyNetwork
        self.prior: SkillPrior
        self.policy, self.prior = copy.deepcopy(module.policy), copy.deepcopy(module.prior)
        self.critics, self.targets = separate(module.critics, train), separate(module.critics, train)
        self.log_alpha = copy.deepcopy(module.log_alpha)
        self.batch, self.train, self.target_divergence = batch, train, target
        self.optimizers = [
            torch.optim.Adam(self.critics.parameters(), lr=train.critic_lr, fused=True),
            torch.optim.Adam(self.policy.head.parameters(), lr=train.actor_lr, fused=True),
            torch.optim.Adam([self.log_alpha], lr=train.alpha_lr, fused=True),
        ]
        self._mains: list[Tensor] = list(self.critics.parameters())
        self._targets: list[Tensor] = list(self.targets.parameters())

    def step(self) -> None:
        """Makes one update: losses, one backward pass, Adam, Polyak."""
        loss = self.loss()
        for optimizer in self.optimizers:
            optimizer.zero_grad(set_to_none=True)
        loss.backward()
        for optimizer in self.optimizers:
            optimizer.step()
        with torch.no_grad():
            torch._foreach_lerp_(self._targets, self._mains, self.train.polyak)

    def loss(self) -> Tensor:
        batch, alpha = self.batch, self.log_alpha.detach().exp()
        states, prior_parameters = self.policy.encode(batch[Columns.OBS])
        next_states, next_prior_parameters = self.policy.encode(batch[Columns.NEXT_OBS])
        assert prior_parameters is not None
        assert next_prior_parameters is not None
        head, prior = self.policy.head, self.prior.distribution(prior_parameters)
        with torch.no_grad():
            next_policy = head.distribution(head(next_states, next_prior_parameters))
            next_latent = next_policy.sample()
            target = losses.critic_target(
                batch[Columns.REWARDS],
                batch[DISCOUNTS],
                batch[Columns.TERMINATEDS],
                _values(self.targets, next_states, next_latent).min(0).values,
                losses.divergence_to_prior(next_policy, self.prior.distribution(next_prior_parameters), next_latent),
                alpha,
            )
        policy = head.distribution(head(states, prior_parameters))
        latent = policy.sample()
        divergence = losses.divergence_to_prior(policy, prior, latent)
        critic = losses.critic_loss(_values(self.critics, states, batch[Columns.ACTIONS]), target)
        self.critics.requires_grad_(False)
        value = _values(self.critics, states, latent).min(0).values
        self.critics.requires_grad_(True)
        return (
            critic
            + losses.policy_loss(divergence, value, alpha)
            + losses.alpha_loss(self.log_alpha, divergence, self.target_divergence)
        )


def separate(critics: Critics, train: TrainSettings) -> torch.nn.ModuleList:
    """Copies of stacked critics as networks of their own."""
    inputs, width, norm = critics.linear[0].shape[1], train.critic_width, train.critic_layer_norm
    networks = torch.nn.ModuleList()
    for index in range(critics.count):
        networks.append(mlp(inputs, 1, width=width, layers=train.critic_layers, layer_norm=norm))
        networks[-1].load_state_dict(critics.state_of(index))
    return networks.to(critics.linear[0].device)


def _values(critics: torch.nn.ModuleList, states: Tensor, latents: Tensor) -> Tensor:
    inputs = torch.cat([states, latents], dim=-1)
    return torch.stack([critic(inputs).squeeze(-1) for critic in critics])


def kitchen_training() -> TrainSettings:
    """Stage 2 as the kitchen's demonstrations have it; learning starts at once."""
    return TrainSettings(
        target_divergence=2.0,
        initial_alpha=0.1,
        alpha_min=0.002,
        alpha_lr=1e-3,
        warmup_decisions=1,
        critic_layers=3,
        critic_layer_norm=True,
    )


def measure_learning(folder: Path, plan: LearningPlan) -> dict[str, float | None]:
    """Updates per second, their ratio, and the ratio of a round's time to the longer of sampling and learning."""
    train = kitchen_training()
    experiment = Experiment(name="benchmark", env=EnvSettings(id=ENVIRONMENT), train=train)
    method = method_config("spirl_cl", train, kitchen_skills())
    run = TrainingRun(experiment, method, 0, random_skills(folder / "skills"), folder / "policy", "benchmark")
    algorithm: SkillPriorSAC = algorithm_config(run).build_algo()
    try:
        algorithm.replay.add(random_decisions(plan.replay_rows))
        group: Any = algorithm.learner_group
        module = group._learner.module[DEFAULT_MODULE_ID].unwrapped()
        batch = algorithm.replay.sample(train.batch_size)
        loop = BareLoop(module, batch, train, method.target_divergence)
        with FlopCounterMode(display=False) as counter:
            loop.loss().backward()
        return {
            **_against_loop(algorithm, loop, plan, train.decisions_per_round),
            **_rounds(algorithm, plan),
            "stage2_update_gflop": counter.get_total_flops() / 1e9,
        }
    finally:
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


def _seconds(work: Any) -> float:
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


def random_skills(folder: Path) -> Path:
    torch.manual_seed(0)
    save_skills(
        folder,
        SkillModel(kitchen_skills()),
        environment=ENVIRONMENT,
        dataset_sha256="",
        pretrain={},
        seed=0,
        metrics={},
        package_version=__version__,
    )
    return folder


def random_decisions(count: int) -> dict[str, np.ndarray]:
    spec, rng = kitchen_skills(), np.random.default_rng(0)
    seen = sum(feature.size for feature in spec.observed.values()) + 2 * spec.latent_dim
    shapes = {
        Columns.OBS: (count, seen),
        Columns.NEXT_OBS: (count, seen),
        Columns.ACTIONS: (count, spec.latent_dim),
        Columns.REWARDS: (count,),
    }
    constants = {Columns.TERMINATEDS: 0.0, DISCOUNTS: 0.99}
    return {
        **{name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()},
        **{name: np.full(count, value, np.float32) for name, value in constants.items()},
        PHASE: rng.uniform(size=count).astype(np.float32),
    }
