"""Gradients averaged over real processes, and what holds for one."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.distributed
import torch.multiprocessing
from torch import Tensor, nn

from spirl_ray.skills.collectives import AveragedGradients, sum_over_workers

CPU = torch.device("cpu")


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))


def loss(model: nn.Module, rows: slice) -> Tensor:
    inputs = torch.randn(8, 3, generator=torch.Generator().manual_seed(1))
    return model(inputs[rows]).square().mean()


def worker(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    model = network()
    gradients = AveragedGradients(list(model.parameters()))
    optimizer = torch.optim.Adam(model.parameters(), lr=0.1)
    for _ in range(3):
        gradients.clear()
        loss(model, slice(4 * rank, 4 * rank + 4)).backward()
        gradients.start()
        gradients.wait()
        optimizer.step()
    counted = sum_over_workers(torch.tensor([1.0, rank]), CPU)
    torch.save({"model": model.state_dict(), "counted": counted}, f"{folder}/{rank}.pt")
    torch.distributed.destroy_process_group()


@pytest.mark.slow
def test_two_workers_with_half_a_batch_each_learn_what_one_learns_from_all_of_it(tmp_path: Path) -> None:
    torch.multiprocessing.spawn(worker, args=(str(tmp_path),), nprocs=2)
    first, second = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2))
    alone = network()
    optimizer = torch.optim.Adam(alone.parameters(), lr=0.1)
    for _ in range(3):
        optimizer.zero_grad()
        loss(alone, slice(None)).backward()
        optimizer.step()
    for name, expected in alone.state_dict().items():
        torch.testing.assert_close(first["model"][name], expected)
        assert torch.equal(first["model"][name], second["model"][name])
    assert first["counted"].tolist() == second["counted"].tolist() == [2.0, 1.0]


def test_one_process_keeps_its_own_gradients_and_clears_them() -> None:
    model, reference = network(), network()
    gradients = AveragedGradients(list(model.parameters()))
    for rows in (slice(0, 4), slice(4, 8)):
        gradients.clear()
        loss(model, rows).backward()
        gradients.start()
        gradients.wait()
    loss(reference, slice(4, 8)).backward()
    for mine, plain in zip(model.parameters(), reference.parameters(), strict=True):
        assert mine.grad is not None
        assert plain.grad is not None
        assert torch.equal(mine.grad, plain.grad)
    assert sum_over_workers(torch.ones(2), CPU).tolist() == [1.0, 1.0]
