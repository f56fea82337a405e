"""Target-preserving augmentation keeps the demonstration's targets."""

from __future__ import annotations

import pytest
import torch

from spirl_ray.config import AugmentationSettings
from spirl_ray.datasets.windows import Batch
from spirl_ray.envs.spec import PositionTarget
from spirl_ray.errors import SpirlError
from spirl_ray.skills.augmentation import TargetPreserving, augmentation

TARGET = PositionTarget(feature="robot", positions=(3, 1), gain=(0.2, 0.5), objects=("things", "unseen"))
POSITIONS, UNTOUCHED = [3, 1], [0, 2]


def augment(
    target: PositionTarget = TARGET, reach: float = 0.3, seed: int = 0, observed: int = 10, **settings: float
) -> tuple[Batch, Batch]:
    """A window and what becomes of it."""
    generator = torch.Generator().manual_seed(5)
    observations = {
        "robot": torch.randn(64, observed, 4, generator=generator),
        "things": torch.randn(64, observed, 2, generator=generator),
        "camera": torch.zeros(64, observed, 1, 8, 8, 1, dtype=torch.uint8),
    }
    actions = reach * (2.0 * torch.rand(64, 10, 2, generator=generator) - 1.0)
    chosen = AugmentationSettings(kind="target_preserving", **settings)
    after = TargetPreserving(target, chosen)(observations, actions, torch.Generator().manual_seed(seed))
    return (observations, actions), after


def test_positions_that_skills_do_not_observe_cannot_be_moved() -> None:
    settings = AugmentationSettings(kind="target_preserving")
    assert augmentation(settings, TARGET, ("robot", "things")) is not None
    with pytest.raises(SpirlError, match=r"'robot', which the skills do not observe \(things, camera\)"):
        augmentation(settings, TARGET, ("things", "camera"))


def test_targets_stay_where_they_were() -> None:
    (seen, actions), (moved, relabelled) = augment()
    gain = torch.tensor(TARGET.gain)
    before, after = seen["robot"][..., POSITIONS] + gain * actions, moved["robot"][..., POSITIONS] + gain * relabelled
    free = relabelled.abs() < 1.0
    assert free.float().mean() > 0.99
    torch.testing.assert_close(after[free], before[free])
    assert (seen["robot"][..., POSITIONS] != moved["robot"][..., POSITIONS]).all()


def test_where_the_first_step_alone_is_observed_the_first_action_alone_is_relabelled() -> None:
    (_, actions), (moved, relabelled) = augment(observed=1)
    assert moved["robot"].shape == (64, 1, 4)
    assert torch.equal(relabelled[:, 1:], actions[:, 1:])
    assert (relabelled[:, 0] != actions[:, 0]).all()


def test_actions_stay_in_their_range() -> None:
    _, (_, relabelled) = augment(reach=1.0, position_normal=0.3)
    assert relabelled.abs().max() == 1.0


def test_only_declared_entries_change_and_the_input_stays() -> None:
    (seen, actions), (moved, _) = augment()
    (again, same_actions), _ = augment()
    assert all(torch.equal(seen[name], again[name]) for name in seen)
    assert torch.equal(actions, same_actions)
    assert torch.equal(moved["robot"][..., UNTOUCHED], seen["robot"][..., UNTOUCHED])
    assert (moved["things"] != seen["things"]).all()
    assert torch.equal(moved["camera"], seen["camera"])


def test_an_environment_without_objects_moves_the_robot_only() -> None:
    (seen, _), (moved, _) = augment(PositionTarget(feature="robot", positions=(3, 1), gain=(0.2, 0.5)))
    assert torch.equal(moved["things"], seen["things"])
    assert not torch.equal(moved["robot"], seen["robot"])


def test_displacements_have_the_declared_spread_independently_at_every_step() -> None:
    (seen, _), (moved, _) = augment(position_normal=0.03, position_uniform=0.0, object_normal=0.01)
    shift = (moved["robot"] - seen["robot"])[..., POSITIONS]
    assert float(shift.std()) == pytest.approx(0.03, rel=0.1)
    assert float((moved["things"] - seen["things"]).std()) == pytest.approx(0.01, rel=0.15)
    assert abs(float(torch.corrcoef(torch.stack([shift[:, 0, 0], shift[:, 1, 0]]))[0, 1])) < 0.4
    (seen, _), (moved, _) = augment(position_normal=0.0, position_uniform=0.02)
    shift = (moved["robot"] - seen["robot"])[..., POSITIONS]
    assert 0.018 < float(shift.abs().max()) <= 0.0201
    assert float(shift.mean()) == pytest.approx(0.0, abs=0.002)


def test_same_generator_same_augmentation() -> None:
    _, (first, first_actions) = augment(seed=3)
    _, (second, second_actions) = augment(seed=3)
    _, (other, _) = augment(seed=4)
    assert torch.equal(first["robot"], second["robot"])
    assert torch.equal(first_actions, second_actions)
    assert not torch.equal(first["robot"], other["robot"])
