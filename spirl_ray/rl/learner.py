"""The Learner: its replay, and K updates in one call; each update is one backward pass through critic, policy and
temperature losses, then Polyak averaging."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.distributed
from ray.rllib.core import DEFAULT_MODULE_ID
from ray.rllib.core.columns import Columns
from ray.rllib.core.learner.torch.torch_learner import TorchLearner
from ray.rllib.core.rl_module.apis import TargetNetworkAPI
from torch import Tensor, nn

from spirl_ray.config import TrainSettings
from spirl_ray.errors import SpirlError
from spirl_ray.metrics import learner_metrics
from spirl_ray.rl import losses
from spirl_ray.rl.captured_update import CapturedUpdate
from spirl_ray.rl.methods import METHODS, MethodConfig
from spirl_ray.rl.module import SkillPriorModule
from spirl_ray.rl.offline_rows import OfflineRows
from spirl_ray.rl.replay import DISCOUNTS, PHASE, DecisionReplay, RowSource
from spirl_ray.skills.collectives import AveragedGradients

_ROWS_AT_A_TIME = 2**15
"""The most rows that are drawn from the replay at once, which bounds the memory of a call with many updates."""


class SkillPriorSACLearner(TorchLearner):
    """The learner of prior-regularised SAC. The equations are in `spirl_ray.rl.losses`.

    It owns a replay on its device. With several learners, each has its own replay, and gradients are averaged.
    """

    replay: DecisionReplay
    rows: RowSource
    """The source of the batches for updates: the replay, or what the method builds (`Method.rows`)."""

    def build(self) -> None:
        self._settings: TrainSettings = self.config.settings
        method = MethodConfig.model_validate(self.config.method)
        self._target_divergence = method.target_divergence
        self._divergence_counts = self._settings.divergence_in_target and method.divergence_counts
        super().build()
        # RLlib turns deterministic algorithms on, which would fill every new tensor first: a tenth of an update's time.
        torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
        self.updates = 0
        self._captured: CapturedUpdate | None = None
        module, settings, rank = self.networks, self._settings, self._learner_index
        module.make_target_networks()
        if settings.compile:
            self._losses = torch.compile(self._losses)  # type: ignore[method-assign]
        seed = self.config.seed or 0
        if rank:
            torch.manual_seed(seed + rank)  # other noise than the first learner's
        self.replay = DecisionReplay(
            max(1, settings.replay_capacity // max(1, self.config.num_learners)),
            module.policy.observation_dim,
            module.latent_dim,
            seed + rank,
            self._device,
        )
        self.rows = self.replay
        if (make_rows := METHODS[method.name].rows) is not None:
            self.rows = make_rows(self)
        elif method.offline_fraction:
            self.rows = self._offline_rows = OfflineRows(self.config, self.replay, module.policy, rank)
        self._gradients = None
        if self.config.num_learners > 1:
            self._gradients = AveragedGradients([each for each in module.parameters() if each.requires_grad])
        self._apply_own_settings()

    @property
    def networks(self) -> SkillPriorModule:
        """The module with all networks."""
        return self.module[DEFAULT_MODULE_ID].unwrapped()

    def _make_modules_ddp_if_necessary(self) -> None:
        """Makes all learners start with equal parameters; their gradients are averaged by `AveragedGradients`."""
        if self.config.num_learners > 1:
            for parameter in self.networks.parameters():
                torch.distributed.broadcast(parameter.data, src=0)

    def set_state(self, state: dict[str, Any]) -> None:
        """Restores networks and optimisers; learning rates and a fixed alpha stay those of this run's config."""
        super().set_state(state)
        self._captured = None  # it reads the optimisers' tensors, which are others now
        self._apply_own_settings()

    def _apply_own_settings(self) -> None:
        for optimizer, schedule in self._optimizer_lr_schedules.items():
            self._set_optimizer_lr(optimizer, schedule.get_current_value())
        if self._settings.fixed_alpha is not None:
            with torch.no_grad():
                self.networks.log_alpha.fill_(math.log(self._settings.fixed_alpha))

    @classmethod
    def rl_module_required_apis(cls) -> list[type]:
        return [TargetNetworkAPI]

    def configure_optimizers_for_module(self, module_id: str, config: Any = None) -> None:
        module, settings = self.networks, self._settings
        groups = {
            "critic": (list(module.critics.parameters()), settings.critic_lr),
            "policy": (list(module.policy.parameters()), settings.actor_lr),
            "alpha": ([module.log_alpha], settings.alpha_lr if settings.fixed_alpha is None else 0.0),
        }
        for name, (parameters, rate) in groups.items():
            self.register_optimizer(
                module_id=module_id,
                optimizer_name=name,
                optimizer=torch.optim.Adam(parameters, lr=rate, fused=True, capturable=self._device.type == "cuda"),
                params=parameters,
                lr_or_lr_schedule=rate,
            )

    # --- updates ---

    def learn(self, updates: int, reward_scale: float, *, offline: bool = False) -> dict[str, float]:
        """Makes updates from rows of the replay.

        Args:
            updates: the number of updates.
            reward_scale: the factor on rewards.
            offline: True for batches of offline decisions alone.

        Returns:
            The metrics of the last update, by name.

        Raises:
            SpirlError: a parameter is no longer finite.
        """
        self._weights_seq_no += 1  # env runners take only weights with a higher number than their own
        size, last = self._settings.batch_size, {}
        at_a_time = max(1, _ROWS_AT_A_TIME // size)
        sample = self._offline_rows.sample_offline if offline else self.rows.sample
        for first in range(0, updates, at_a_time):
            count = min(at_a_time, updates - first)
            drawn = sample(count * size)
            drawn[Columns.REWARDS] = reward_scale * drawn[Columns.REWARDS]
            for index in range(count):
                some = slice(index * size, (index + 1) * size)
                last = self._update_from({name: value[some] for name, value in drawn.items()})
        self._check_finite()
        return learner_metrics({name: value.detach().cpu() for name, value in last.items()})

    def _update_from(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """Makes one update: by a captured graph where that is possible, else plainly; see `step`."""
        if not self._settings.cuda_graph or self._device.type != "cuda" or self.config.num_learners > 1:
            return self.step(batch)
        if self._captured is None:
            self._captured = CapturedUpdate(self._change_networks)
        self.updates += 1
        return self._captured(batch)

    def step(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """Makes one update plainly.

        Args:
            batch: B rows, with the columns of `DecisionReplay`.

        Returns:
            Tensors of the update by name, see `spirl_ray.metrics.learner_metrics`.
        """
        self.updates += 1
        return self._change_networks(batch)

    def _change_networks(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """Computes the losses, and makes one backward pass and one optimiser step for each group; then come alpha's
        floor and the target critics (Polyak). Nothing in it waits for the device, so it can be captured."""
        module, settings = self.networks, self._settings
        loss, found = self._losses(batch)
        if self._gradients is None:
            for parameter in self._params.values():
                parameter.grad = None
        else:
            self._gradients.clear()
        loss.backward()
        if self._gradients is not None:
            self._gradients.start()
            self._gradients.wait()
        if self.config.grad_clip is not None:
            self._clip_gradients()
        for optimizer in self._optimizer_parameters:
            optimizer.step()
        with torch.no_grad():
            if settings.alpha_min > 0.0:
                module.log_alpha.clamp_(min=math.log(settings.alpha_min))
            if module.acts_from_prior is not None:
                module.acts_from_prior.fill_(False)
            followed: list[tuple[nn.Module, nn.Module, float]] = [
                (*pair, settings.polyak) for pair in module.get_target_network_pairs()
            ]
            if module.average is not None:
                followed.append((module.policy, module.average, settings.policy_polyak))
            for main, follower, rate in followed:
                # One fused call; RLlib's helper copies two state dicts for every update.
                torch._foreach_lerp_(list(follower.parameters()), list(main.parameters()), rate)
        return found

    def _losses(self, batch: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        """The sum of the losses, and the tensors from which metrics are computed."""
        module = self.networks
        forward = module.forward_train(batch)
        alpha = module.log_alpha.detach().exp()
        target = losses.critic_target(
            batch[Columns.REWARDS],
            batch[DISCOUNTS],
            batch[Columns.TERMINATEDS],
            forward["next_value"],
            forward["next_divergence"],
            alpha if self._divergence_counts else 0.0,
        )
        critic = losses.critic_loss(forward["values"], target)
        policy = losses.policy_loss(forward["divergence"], forward["policy_value"], alpha)
        # The target divergence is for the states that the agent gets to, not for those of the demonstrations.
        own_divergence = losses.mean_of_own(forward["divergence"], batch[PHASE])
        temperature = losses.alpha_loss(module.log_alpha, own_divergence, self._target_divergence)
        found = {
            "critic_loss": critic,
            "policy_loss": policy,
            "alpha": alpha,
            "values": forward["values"],
            "latent_std": forward["latent_std"],
            "divergence": forward["divergence"],
            "phase": batch[PHASE],
        }
        return critic + policy + temperature, found

    def compute_loss_for_module(
        self, *, module_id: str, config: Any, batch: dict[str, Tensor], fwd_out: dict[str, Tensor]
    ) -> Tensor:
        """RLlib's hook, which `learn` does not need; the losses are those of `step`."""
        return self._losses(batch)[0]

    def _update(self, batch: dict[str, Any]) -> tuple[Any, Any, Any]:
        """Makes the update of `step` where RLlib's own ``update`` is called with a batch."""
        found = self.step(batch[DEFAULT_MODULE_ID])
        return found, {DEFAULT_MODULE_ID: found["critic_loss"] + found["policy_loss"]}, {}

    def _clip_gradients(self) -> None:
        """Clips gradients as RLlib's ``grad_clip`` and ``grad_clip_by`` say."""
        clipped = self.postprocess_gradients({name: value.grad for name, value in self._params.items()})
        for name, value in clipped.items():
            self._params[name].grad.copy_(value)  # in place, because they may be views of one tensor

    def _check_finite(self) -> None:
        if not torch.stack([parameter.isfinite().all() for parameter in self._params.values()]).all():
            raise SpirlError(
                f"Training diverged: the networks stopped being finite within {self.updates} updates. Lower the "
                "learning rates or raise the target divergence; the last checkpoint is intact."
            )
