"""An update that is captured as a CUDA graph, so that it is launched as a whole instead of kernel by kernel."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

_PLAIN_CALLS = 3
"""The first updates, which are made plainly, because libraries and optimisers allocate in them."""
Step = Callable[[dict[str, Tensor]], dict[str, Tensor]]


class CapturedUpdate:
    """A step that is made plainly a few times, then captured once and replayed from then on.

    A graph reads and writes the same memory each time: a batch is copied to where it was captured, and the results of a
    call are overwritten by the next one. Random numbers continue as in the plain step.

    Args:
        step: makes one update of a batch on a CUDA device; it must not wait for the device.
    """

    def __init__(self, step: Step) -> None:
        self.step = step
        self._calls = 0
        self._stream = torch.cuda.Stream()
        self._graph: torch.cuda.CUDAGraph | None = None
        self._batch: dict[str, Tensor] = {}
        self._found: dict[str, Tensor] = {}

    def __call__(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Makes one update; returns what ``step`` returns."""
        if not self._batch:
            self._batch = {name: value.clone() for name, value in batch.items()}
        torch._foreach_copy_(list(self._batch.values()), [batch[name] for name in self._batch])
        if self._graph is None:
            self._calls += 1
            if self._calls <= _PLAIN_CALLS:
                self._stream.wait_stream(torch.cuda.current_stream())
                with torch.cuda.stream(self._stream):
                    found = self.step(self._batch)
                torch.cuda.current_stream().wait_stream(self._stream)
                return found
            self._graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(self._graph, stream=self._stream):
                self._found = self.step(self._batch)
        self._graph.replay()
        return self._found
