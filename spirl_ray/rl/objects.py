"""What policies and critics see of alike objects, which a state lists in an order that tells nothing."""

from __future__ import annotations

import torch
from torch import Tensor

from spirl_ray.envs.spec import ObjectSpec

HIGHEST = 3
"""So many of the highest objects are shown a second time: what stands or is carried must not hide among the others."""
_SPREAD = 2.0
"""Brings asinh(offset / size), of offsets that are mostly some sizes, to about unit deviation."""


def seen_dim(state_dim: int, objects: ObjectSpec | None) -> int:
    """Entries of what `see` makes of a state."""
    if objects is None:
        return state_dim
    each = len(objects.agent)
    return state_dim + min(HIGHEST, (state_dim - objects.first) // each) * (each + 1)


def see(states: Tensor, objects: ObjectSpec) -> Tensor:
    """The objects of states [..., S] from the agent, float32 [..., n d + HIGHEST (d + 1)].

    First their offsets, the nearest object first; then offsets and heights, the highest first. An offset o is given as
    asinh(o / size) / 2: in detail where it is small, and roughly where it is large.
    """
    agent = states[..., list(objects.agent)].unsqueeze(-2)
    places = states[..., objects.first :].unflatten(-1, (-1, len(objects.agent)))
    offsets = places - agent
    nearest = offsets.square().sum(-1, keepdim=True).argsort(dim=-2)
    heights = places[..., objects.up, None]
    highest = heights.argsort(dim=-2, descending=True)[..., :HIGHEST, :]
    scaled = (offsets / objects.size).asinh() / _SPREAD
    parts = (
        scaled.take_along_dim(nearest, -2),
        scaled.take_along_dim(highest, -2),
        heights.take_along_dim(highest, -2) / objects.size,
    )
    return torch.cat([part.flatten(-2) for part in parts], dim=-1)
