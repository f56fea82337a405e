"""No update of stage 1 is larger than the settings allow, because one odd window can otherwise ruin the prior."""

from __future__ import annotations

import pytest
import torch

from spirl_ray.config import PretrainSettings
from spirl_ray.skills.pretrain import _Worker


@pytest.mark.parametrize(("update", "given", "made"), [(0, 50.0, 0.5), (1, 50.0, 2.0), (1, 1.0, 1.0)])
def test_gradients_are_clipped_in_the_warm_up_and_later(update: int, given: float, made: float) -> None:
    worker = object.__new__(_Worker)
    worker.settings = PretrainSettings(warmup_updates=1, warmup_clip=0.5, gradient_clip=2.0, learning_rate=1.0)
    moved = torch.nn.Parameter(torch.zeros(2))
    worker.learned, worker.optimizer = [moved], torch.optim.SGD([moved], lr=1.0)
    moved.grad = given * torch.tensor([0.6, -0.8])
    worker._step(update)
    assert moved.detach().norm().item() == pytest.approx(made, rel=1e-4)
