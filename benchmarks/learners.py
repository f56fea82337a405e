"""Learners to measure: one with made-up decisions outside any cluster, and that of version 0.1 as a bare loop."""

from __future__ import annotations

import copy
from pathlib import Path
from unittest import mock

import numpy as np
import torch
from gymnasium.spaces import Box
from ray.rllib.core import DEFAULT_MODULE_ID
from ray.rllib.core.columns import Columns
from ray.rllib.core.learner.torch import torch_learner
from torch import Tensor

from benchmarks.pretraining_speed import ENVIRONMENT, kitchen_skills
from spirl_ray import __version__
from spirl_ray.config import TrainSettings
from spirl_ray.rl import losses
from spirl_ray.rl.algorithm import SkillPriorSACConfig
from spirl_ray.rl.critics import Critics
from spirl_ray.rl.learner import SkillPriorSACLearner
from spirl_ray.rl.methods import method_config
from spirl_ray.rl.module import SkillPriorModule
from spirl_ray.rl.policy_network import PolicyNetwork, policy_spec
from spirl_ray.rl.replay import DISCOUNTS, PHASE
from spirl_ray.skills.artifact import load_skills, save_skills
from spirl_ray.skills.model import SkillModel
from spirl_ray.skills.networks import mlp
from spirl_ray.skills.priors import SkillPrior

METHOD = "spirl_cl"


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


def make_learner(skills: Path, train: TrainSettings, device: torch.device, *, seed: int = 0) -> SkillPriorSACLearner:
    """A learner of its own, outside any Ray cluster, whose replay is full of random decisions."""
    model = load_skills(skills)
    method = method_config(METHOD, train, model.spec)
    policy = policy_spec(model, method, model.spec.data_features).model_dump(mode="json")
    config = SkillPriorSACConfig().with_settings(train).skills(skills, method=method)
    config.learners(num_learners=0, num_gpus_per_learner=int(device.type == "cuda"))
    shared = {"skills": str(skills), "policy": policy, "method": config.method}
    config.rl_module(model_config={**shared, "settings": train.model_dump(mode="json")})
    config.debugging(seed=seed, log_level="ERROR")
    rows = random_decisions(20_000)
    widths = (rows["obs"].shape[1], model.spec.latent_dim)
    spaces = {DEFAULT_MODULE_ID: tuple(Box(-np.inf, np.inf, (width,)) for width in widths)}
    with mock.patch.object(torch_learner, "get_device", return_value=device):  # RLlib would start a cluster to ask
        learner = config.build_learner(spaces=spaces)
    learner.replay.add(rows)
    return learner


class BareLoop:
    """The learner of version 0.1 without RLlib: copies of the algorithm's networks with separate critics, its losses,
    plain PyTorch, one fixed batch.

    ``as_0_1`` also fills every new tensor first, which the deterministic mode that RLlib turns on did in version 0.1.
    """

    def __init__(
        self,
        module: SkillPriorModule,
        batch: dict[str, Tensor],
        train: TrainSettings,
        target: float,
        *,
        as_0_1: bool = False,
    ) -> None:
        self.as_0_1 = as_0_1
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
        torch.utils.deterministic.fill_uninitialized_memory = self.as_0_1  # type: ignore[attr-defined]
        self._step()
        torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]

    def _step(self) -> None:
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
        networks[-1].load_state_dict(state_of(critics, index))
    return networks.to(critics.linear[0].device)


@torch.no_grad()
def state_of(critics: Critics, index: int) -> dict[str, Tensor]:
    """The state dict of one critic as an `mlp` network."""
    linear = [(weight[index].t(), bias[index, 0]) for weight, bias in _pairs(critics.linear)]
    norm = [(scale[index, 0], shift[index, 0]) for scale, shift in _pairs(critics.norm)]
    stride = 3 if norm else 2  # linear layer, perhaps a norm, activation
    modules = {layer * stride: pair for layer, pair in enumerate(linear)}
    modules |= {layer * stride + 1: pair for layer, pair in enumerate(norm)}
    return {
        f"{module}.{name}": value.clone()
        for module, pair in modules.items()
        for name, value in zip(("weight", "bias"), pair, strict=True)
    }


def _pairs(values: torch.nn.ParameterList) -> list[tuple[Tensor, Tensor]]:
    return list(zip(values[::2], values[1::2], strict=True))


def _values(critics: torch.nn.ModuleList, states: Tensor, latents: Tensor) -> Tensor:
    inputs = torch.cat([states, latents], dim=-1)
    return torch.stack([critic(inputs).squeeze(-1) for critic in critics])


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
