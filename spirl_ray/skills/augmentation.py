"""Target-preserving augmentation: move the robot, relabel the action, keep the demonstration's target."""

from __future__ import annotations

from collections.abc import Collection

import torch
from torch import Tensor

from spirl_ray.config import AugmentationSettings
from spirl_ray.envs.spec import PositionTarget
from spirl_ray.errors import SpirlError
from spirl_ray.skills.encoders import Observations


class TargetPreserving:
    """Perturbs windows of an environment that turns an action into a target, ``target = q + gain * a``.

    Positions move by d ~ N(0, sigma) + U(+-width), independently at every step, and actions by -d / gain, clipped
    to [-1, 1]: the target stays where the demonstration had it, and the model learns to return to it. Features of
    objects only get noise. This augmentation is not in the paper.
    """

    def __init__(self, target: PositionTarget, settings: AugmentationSettings) -> None:
        self.settings = settings
        self.feature, self.objects = target.feature, target.objects
        moved = [action for action, position in enumerate(target.positions) if position is not None]
        self.actions = torch.tensor(moved, dtype=torch.int64)
        self.positions = torch.tensor([target.positions[action] for action in moved], dtype=torch.int64)
        self.gain = torch.tensor([target.gain[action] for action in moved])

    def __call__(
        self, observations: Observations, actions: Tensor, generator: torch.Generator
    ) -> tuple[dict[str, Tensor], Tensor]:
        """Perturbs observations by name, [B, T, ...] with T <= H, and actions [B, H, A]; the results have their shapes.

        Where a window holds observations of its first T steps, the first T actions are relabelled. Features of objects
        that the window does not hold are skipped.
        """
        s = self.settings
        steps = next(iter(observations.values())).shape[1]
        shape = (actions.shape[0], steps, len(self.actions))
        displacement = s.position_normal * torch.randn(shape, generator=generator)
        displacement += s.position_uniform * (2.0 * torch.rand(shape, generator=generator) - 1.0)
        perturbed, relabelled = dict(observations), actions.clone()
        moved = perturbed[self.feature].clone()
        moved[..., self.positions] += displacement
        perturbed[self.feature] = moved
        demonstrated = actions[:, :steps, self.actions]
        relabelled[:, :steps, self.actions] = (demonstrated - displacement / self.gain).clamp(-1.0, 1.0)
        for name in self.objects:
            if name in perturbed:
                noise = torch.randn(perturbed[name].shape, generator=generator)
                perturbed[name] = perturbed[name] + s.object_normal * noise
        return perturbed, relabelled


def augmentation(
    settings: AugmentationSettings, target: PositionTarget | None, observed: Collection[str]
) -> TargetPreserving | None:
    """The augmentation that the settings choose; None where they choose none.

    Args:
        settings: choice of the augmentation.
        target: what the environment, or the config, declares about its position targets.
        observed: names of the features that the skills observe.

    Raises:
        SpirlError: nothing declares position targets, or the skills do not observe the positions, and the augmentation
            needs them.
    """
    if settings.kind == "none":
        return None
    if target is None:
        raise SpirlError(
            "pretrain.augmentation.kind: target_preserving needs actions that are position targets, which nothing "
            "declares here. Declare them in interface.position_target, or use none."
        )
    if target.feature not in observed:
        raise SpirlError(
            f"pretrain.augmentation.kind: target_preserving moves the positions in the feature {target.feature!r}, "
            f"which the skills do not observe ({', '.join(observed)}). Add it to skills.features, or use none."
        )
    return TargetPreserving(target, settings)
