"""The Learner, with one backward pass through critic, policy and temperature losses, then Polyak averaging."""

from __future__ import annotations

import math
from typing import Any

import torch
from ray.rllib.core.columns import Columns
from ray.rllib.core.learner.torch.torch_learner import TorchLearner
from ray.rllib.core.rl_module.apis import TargetNetworkAPI
from torch import Tensor

from spirl_ray.config import TrainSettings
from spirl_ray.errors import SpirlError
from spirl_ray.metrics import learner_metrics
from spirl_ray.rl import losses
from spirl_ray.rl.methods import MethodConfig
from spirl_ray.rl.replay import DISCOUNTS, PHASE


class SkillPriorSACLearner(TorchLearner):
    """The learner of prior-regularised SAC. The equations are in `spirl_ray.rl.losses`."""

    def build(self) -> None:
        self._settings: TrainSettings = self.config.settings
        self._target_divergence = MethodConfig.model_validate(self.config.method).target_divergence
        super().build()
        self._updates = 0
        self.module.foreach_module(lambda _, module: module.unwrapped().make_target_networks())
        self._apply_own_settings()

    def set_state(self, state: dict[str, Any]) -> None:
        """Restores networks and optimisers; learning rates and a fixed alpha stay those of this run's config."""
        super().set_state(state)
        self._apply_own_settings()

    def _apply_own_settings(self) -> None:
        for optimizer, schedule in self._optimizer_lr_schedules.items():
            self._set_optimizer_lr(optimizer, schedule.get_current_value())
        if self._settings.fixed_alpha is not None:
            for _, wrapped in self.module.items():
                with torch.no_grad():
                    wrapped.unwrapped().log_alpha.fill_(math.log(self._settings.fixed_alpha))

    @classmethod
    def rl_module_required_apis(cls) -> list[type]:
        return [TargetNetworkAPI]

    def configure_optimizers_for_module(self, module_id: str, config: Any = None) -> None:
        module, settings = self._module[module_id].unwrapped(), self._settings
        groups = {
            "critic": (list(module.critics.parameters()), settings.critic_lr),
            "policy": (list(module.policy.parameters()), settings.actor_lr),
            "alpha": ([module.log_alpha], settings.alpha_lr if settings.fixed_alpha is None else 0.0),
        }
        for name, (parameters, rate) in groups.items():
            self.register_optimizer(
                module_id=module_id,
                optimizer_name=name,
                optimizer=torch.optim.Adam(parameters, lr=rate, fused=True),
                params=parameters,
                lr_or_lr_schedule=rate,
            )

    def compute_loss_for_module(
        self, *, module_id: str, config: Any, batch: dict[str, Tensor], fwd_out: dict[str, Tensor]
    ) -> Tensor:
        module, settings = self._module[module_id].unwrapped(), self._settings
        alpha = module.log_alpha.detach().exp()
        target = losses.critic_target(
            batch[Columns.REWARDS],
            batch[DISCOUNTS],
            batch[Columns.TERMINATEDS],
            fwd_out["next_value"],
            fwd_out["next_divergence"],
            alpha if settings.divergence_in_target else 0.0,
        )
        critic = losses.critic_loss(list(fwd_out["values"]), target)
        policy = losses.policy_loss(fwd_out["divergence"], fwd_out["policy_value"], alpha)
        temperature = losses.alpha_loss(module.log_alpha, fwd_out["divergence"], self._target_divergence)
        self._updates += 1
        if self._updates % config.metrics_every == 0:
            self._log(module_id, batch, fwd_out, critic, policy, alpha)
        return critic + policy + temperature

    def apply_gradients(self, gradients_dict: dict[Any, Tensor]) -> None:
        """Makes one optimiser step for each group, alpha's floor, then the target critics (Polyak)."""
        super().apply_gradients(gradients_dict)
        with torch.no_grad():
            for _, wrapped in self.module.items():
                module = wrapped.unwrapped()
                if self._settings.alpha_min > 0.0:
                    module.log_alpha.clamp_(min=math.log(self._settings.alpha_min))
                if module.acts_from_prior is not None:
                    module.acts_from_prior.fill_(False)
                for main, target in module.get_target_network_pairs():
                    # One fused call; RLlib's helper copies two state dicts for every update.
                    torch._foreach_lerp_(list(target.parameters()), list(main.parameters()), self._settings.polyak)

    def postprocess_gradients(self, gradients_dict: dict[Any, Tensor]) -> dict[Any, Tensor]:
        """Clips gradients as configured. Without clipping, RLlib's sorting of gradients by optimiser changes
        nothing."""
        if self.config.grad_clip is None and not self.config.log_gradients:
            return gradients_dict
        return super().postprocess_gradients(gradients_dict)

    def after_gradient_based_update(self, *, timesteps: dict[str, Any]) -> None:
        """Stops training before broken networks can reach a checkpoint.

        Raises:
            SpirlError: a parameter is no longer finite.
        """
        super().after_gradient_based_update(timesteps=timesteps)
        if not all(bool(parameter.isfinite().all()) for parameter in self._params.values()):
            raise SpirlError(
                f"Training diverged: the networks stopped being finite within {self._updates} updates. Lower the "
                "learning rates or raise the target divergence; the last checkpoint is intact."
            )

    def _log(
        self,
        module_id: str,
        batch: dict[str, Tensor],
        forward: dict[str, Tensor],
        critic: Tensor,
        policy: Tensor,
        alpha: Tensor,
    ) -> None:
        """Logs the metrics of `spirl_ray.metrics` that are computed in the learner."""
        update = {
            "critic_loss": critic,
            "policy_loss": policy,
            "alpha": alpha,
            "values": forward["values"],
            "latent_std": forward["latent_std"],
            "divergence": forward["divergence"],
            "phase": batch[PHASE],
        }
        with torch.no_grad():
            for name, value in learner_metrics({key: tensor.detach() for key, tensor in update.items()}).items():
                self.metrics.log_value((module_id, name), value, window=1)
