"""A frozen policy of somebody else's, for the tests: its actions are its noise."""

from __future__ import annotations

from torch import Tensor

from spirl_ray.skills.decoders import NoiseCodec
from spirl_ray.skills.spec import SkillSpec


class Mirror(NoiseCodec):
    """Noise becomes actions as it is."""

    def __init__(self, spec: SkillSpec) -> None:
        super().__init__()
        self.shape = (spec.horizon, spec.action_dim)

    def decode(self, features: Tensor | None, latent: Tensor) -> Tensor:
        return latent.unflatten(-1, self.shape)
