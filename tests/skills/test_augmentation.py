"""Target-preserving augmentation keeps the demonstration's targets."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from spirl_ray.config import AugmentationSettings
from spirl_ray.envs.spec import PositionTarget
from spirl_ray.skills.augmentation import TargetPreserving

TARGET = PositionTarget(positions=(3, 1), gain=(0.2, 0.5), objects=(4,))
POSITIONS, OBJECTS, UNTOUCHED = [3, 1], [4], [0, 2, 5]


def augment(
    target: PositionTarget = TARGET, reach: float = 0.3, seed: int = 0, **settings: float
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(5)
    states = torch.randn(64, 10, 6, generator=generator)
    actions = reach * (2.0 * torch.rand(64, 10, 2, generator=generator) - 1.0)
    chosen = AugmentationSettings(kind="target_preserving", **settings)
    moved, relabelled = TargetPreserving(target, chosen)(states, actions, torch.Generator().manual_seed(seed))
    return states, actions, moved, relabelled


def test_targets_stay_where_they_were() -> None:
    states, actions, moved, relabelled = augment()
    gain = torch.tensor(TARGET.gain)
    before, after = states[..., POSITIONS] + gain * actions, moved[..., POSITIONS] + gain * relabelled
    free = relabelled.abs() < 1.0
    assert free.float().mean() > 0.99
    torch.testing.assert_close(after[free], before[free])
    assert (states[..., POSITIONS] != moved[..., POSITIONS]).all()


def test_actions_stay_in_their_range() -> None:
    _, _, _, relabelled = augment(reach=1.0, position_normal=0.3)
    assert relabelled.abs().max() == 1.0


def test_only_declared_entries_change_and_the_input_stays() -> None:
    states, actions, moved, _ = augment()
    again, same_actions, _, _ = augment()
    assert torch.equal(states, again)
    assert torch.equal(actions, same_actions)
    assert torch.equal(moved[..., UNTOUCHED], states[..., UNTOUCHED])
    assert (moved[..., OBJECTS] != states[..., OBJECTS]).all()


def test_an_environment_without_objects_moves_the_robot_only() -> None:
    states, _, moved, _ = augment(PositionTarget(positions=(3, 1), gain=(0.2, 0.5)))
    assert torch.equal(moved[..., [*UNTOUCHED, *OBJECTS]], states[..., [*UNTOUCHED, *OBJECTS]])


def test_displacements_have_the_declared_spread_independently_at_every_step() -> None:
    states, _, moved, _ = augment(position_normal=0.03, position_uniform=0.0, object_normal=0.01)
    shift = (moved - states)[..., POSITIONS]
    assert float(shift.std()) == pytest.approx(0.03, rel=0.1)
    assert float((moved - states)[..., OBJECTS].std()) == pytest.approx(0.01, rel=0.15)
    assert abs(float(torch.corrcoef(torch.stack([shift[:, 0, 0], shift[:, 1, 0]]))[0, 1])) < 0.4
    states, _, moved, _ = augment(position_normal=0.0, position_uniform=0.02)
    shift = (moved - states)[..., POSITIONS]
    assert 0.018 < float(shift.abs().max()) <= 0.0201
    assert float(shift.mean()) == pytest.approx(0.0, abs=0.002)


def test_same_generator_same_augmentation() -> None:
    _, _, first, first_actions = augment(seed=3)
    _, _, second, second_actions = augment(seed=3)
    _, _, other, _ = augment(seed=4)
    assert torch.equal(first, second)
    assert torch.equal(first_actions, second_actions)
    assert not torch.equal(first, other)
