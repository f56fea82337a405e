"""Communication between training workers: sums, and the average of their gradients."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.distributed
from torch import Tensor, nn


def _together() -> bool:
    return torch.distributed.is_available() and torch.distributed.is_initialized()


def sum_over_workers(values: Tensor, device: torch.device) -> Tensor:
    """All-reduces values on the CPU by way of the training device, because NCCL knows no other."""
    if not _together():
        return values
    total = values.to(device, copy=True)
    torch.distributed.all_reduce(total)
    return total.cpu()


class AveragedGradients:
    """The gradients of a model as views of one flat tensor, averaged over the workers in one message.

    DistributedDataParallel waits inside ``backward``, which is long for small networks;
    here, the next batch is drawn between `start` and `wait`. The workers' parameters must be equal at the start.

    Args:
        parameters: what the model learns, on its device.
    """

    def __init__(self, parameters: Sequence[nn.Parameter]) -> None:
        self._flat = torch.zeros(sum(parameter.numel() for parameter in parameters), device=parameters[0].device)
        first = 0
        for parameter in parameters:
            parameter.grad = self._flat[first : first + parameter.numel()].view_as(parameter)
            first += parameter.numel()
        self._sending: torch.distributed.Work | None = None

    def clear(self) -> None:
        """Zeroes all gradients; ``optimizer.zero_grad`` would take them out of the flat tensor."""
        self._flat.zero_()

    def start(self) -> None:
        """Sends the gradients; they must not be used before `wait`."""
        if _together() and torch.distributed.get_world_size() > 1:
            self._sending = torch.distributed.all_reduce(self._flat, async_op=True)

    def wait(self) -> None:
        """Waits until every worker has the same gradients."""
        if self._sending is not None:
            self._sending.wait()
            self._flat.div_(torch.distributed.get_world_size())
            self._sending = None
