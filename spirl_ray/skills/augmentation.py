"""Target-preserving augmentation: move the robot, relabel the action, keep the demonstration's target."""

from __future__ import annotations

import torch
from torch import Tensor

from spirl_ray.config import AugmentationSettings
from spirl_ray.envs.spec import PositionTarget


class TargetPreserving:
    """Perturbs windows where the environment turns an action into a target, ``target = q + gain * a``.

    Positions move by d ~ N(0, sigma) + U(+-width), independently at every step, and actions by -d / gain, clipped
    to [-1, 1]: the target stays where the demonstration had it, and the model learns to return to it. Entries of
    objects only get noise. Not in the paper.
    """

    def __init__(self, target: PositionTarget, settings: AugmentationSettings) -> None:
        self.settings = settings
        self.positions = torch.tensor(target.positions)
        self.objects = torch.tensor(target.objects, dtype=torch.long)
        self.gain = torch.tensor(target.gain)

    def __call__(self, states: Tensor, actions: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """states [B, H, S], actions [B, H, A] -> perturbed copies of the same shapes."""
        s = self.settings
        shape = actions.shape
        displacement = s.position_normal * torch.randn(shape, generator=generator)
        displacement += s.position_uniform * (2.0 * torch.rand(shape, generator=generator) - 1.0)
        states = states.clone()
        states[..., self.positions] += displacement
        if len(self.objects):
            noise = torch.randn((*shape[:-1], len(self.objects)), generator=generator)
            states[..., self.objects] += s.object_normal * noise
        return states, (actions - displacement / self.gain).clamp(-1.0, 1.0)
