"""The critics Q_i(s, z): N networks of the same form, stacked, so that each layer of all of them is one product on a
GPU, and that an optimiser has few parameters everywhere."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from spirl_ray.skills.networks import mlp

SLOPE = 0.2
"""The negative slope of the leaky ReLU, as in `spirl_ray.skills.networks.mlp`."""


class Critics(nn.Module):
    """N critics, which are `mlp` networks whose parameters are stacked: weights [N, in, out], biases [N, 1, out].

    Values and gradients are those of N separate networks. Each critic starts as `mlp` initialises it.

    Args:
        inputs: F + Z, the width of an encoded policy observation and a latent.
        count: N.
        width: width of the hidden layers.
        layers: number of hidden layers.
        layer_norm: True for a layer norm after each hidden layer.
    """

    def __init__(self, inputs: int, *, count: int, width: int, layers: int, layer_norm: bool) -> None:
        super().__init__()
        self.count = count
        networks = [mlp(inputs, 1, width=width, layers=layers, layer_norm=layer_norm) for _ in range(count)]
        self.linear, self.norm = nn.ParameterList(), nn.ParameterList()
        """Weight and bias of each linear layer in turn; scale and shift of each layer norm in turn."""
        for modules in zip(*networks, strict=True):
            if isinstance(modules[0], nn.Linear):
                self.linear.append(torch.stack([module.weight.detach().t() for module in modules]).contiguous())
                self.linear.append(torch.stack([module.bias.detach()[None] for module in modules]))
            elif isinstance(modules[0], nn.LayerNorm):
                self.norm.append(torch.stack([module.weight.detach()[None] for module in modules]))
                self.norm.append(torch.stack([module.bias.detach()[None] for module in modules]))

    def forward(self, encoded: Tensor, latents: Tensor, *, chosen: Tensor | None = None, learn: bool = True) -> Tensor:
        """Computes the values of encoded observations [B, F] and latents [B, Z]: [N, B].

        Args:
            encoded: encoded policy observations.
            latents: the latents.
            chosen: indices [M] of the critics that are asked, in place of all.
            learn: False to give the parameters no gradient.
        """
        linear: list[Tensor] = list(self.linear)
        norm: list[Tensor] = list(self.norm)
        if not learn:
            linear, norm = [value.detach() for value in linear], [value.detach() for value in norm]
        if chosen is not None:
            linear, norm = [value[chosen] for value in linear], [value[chosen] for value in norm]
        inputs = torch.cat([encoded, latents], dim=-1)
        if inputs.is_cuda:
            return _values(inputs.expand(len(linear[0]), -1, -1), linear, norm)
        # On a CPU, products in turn are a quarter faster than a batched one.
        each = zip(*(value.unbind() for value in [*linear, *norm]), strict=True)
        return torch.stack([_values(inputs, one[: len(linear)], one[len(linear) :]) for one in each])


def _values(hidden: Tensor, linear: Sequence[Tensor], norm: Sequence[Tensor]) -> Tensor:
    """The values [N, B] of inputs [N, B, F + Z] with stacked parameters, or [B] of [B, F + Z] with those of one."""
    product = torch.baddbmm if hidden.ndim == 3 else torch.addmm
    width = linear[1].shape[-1:]
    for index in range(0, len(linear) - 2, 2):
        hidden = product(linear[index + 1], hidden, linear[index])
        if norm and hidden.ndim == 3:
            hidden = torch.addcmul(norm[index + 1], F.layer_norm(hidden, width), norm[index])
        elif norm:
            hidden = F.layer_norm(hidden, width, norm[index].squeeze(0), norm[index + 1].squeeze(0))
        hidden = F.leaky_relu_(hidden, SLOPE)  # in place, because no gradient needs what it overwrites
    return product(linear[-1], hidden, linear[-2]).squeeze(-1)
