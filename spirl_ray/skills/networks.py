"""Building blocks of networks: plain MLPs and the recurrent open-loop decoder."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn


def mlp(inputs: int, outputs: int, *, width: int, layers: int, layer_norm: bool = False) -> nn.Sequential:
    """Makes an MLP of ``layers`` hidden layers of ``width`` with leaky ReLU (slope 0.2) and a linear head."""
    modules: list[nn.Module] = []
    size = inputs
    for _ in range(layers):
        modules.append(nn.Linear(size, width))
        if layer_norm:
            modules.append(nn.LayerNorm(width))
        modules.append(nn.LeakyReLU(0.2))
        size = width
    return nn.Sequential(*modules, nn.Linear(size, outputs))


class RecurrentActionDecoder(nn.Module):
    """The open-loop decoder: an autoregressive LSTM that turns a latent into H actions.

    The initial input and hidden state are learned constants; z is fed at every step (paper, Sec. 3.2).
    """

    def __init__(self, latent_dim: int, action_dim: int, width: int) -> None:
        super().__init__()
        self.first_input = nn.Parameter(torch.zeros(action_dim))
        self.first_hidden = nn.Parameter(torch.zeros(width))
        self.first_cell = nn.Parameter(torch.zeros(width))
        self.cell = nn.LSTMCell(action_dim + latent_dim, width)
        self.head = nn.Linear(width, action_dim)

    def forward(self, latent: Tensor, horizon: int) -> Tensor:
        """Decodes latents [B, Z] as actions [B, horizon, A]."""
        batch = latent.shape[0]
        action = self.first_input.expand(batch, -1)
        hidden = (self.first_hidden.expand(batch, -1), self.first_cell.expand(batch, -1))
        actions = []
        for _ in range(horizon):
            hidden = self.cell(torch.cat([action, latent], dim=-1), hidden)
            action = self.head(hidden[0])
            actions.append(action)
        return torch.stack(actions, dim=1)


def convolutions(inputs: int, maps: Sequence[int], size: tuple[int, int], *, outputs: int) -> nn.Sequential:
    """Makes 4 × 4 convolutions of stride 2 with leaky ReLU, and a linear layer: [B, inputs, h, w] -> [B, outputs].

    Args:
        inputs: channels of an image.
        maps: feature maps of each convolution.
        size: height and width of an image; each convolution halves them, rounded down.
        outputs: width of the linear layer, which also has a leaky ReLU.
    """
    modules: list[nn.Module] = []
    for before, after in itertools.pairwise((inputs, *maps)):
        modules += [nn.Conv2d(before, after, kernel_size=4, stride=2, padding=1), nn.LeakyReLU(0.2)]
    flattened = maps[-1] * math.prod(side // 2 ** len(maps) for side in size)
    return nn.Sequential(*modules, nn.Flatten(), nn.Linear(flattened, outputs), nn.LeakyReLU(0.2))
