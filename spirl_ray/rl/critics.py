"""The critics Q_i(s, z): N networks of the same form, stacked, so that each layer of all of them is one product."""

from __future__ import annotations

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
        self.count, self.width = count, width
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
        linear, norm = list(self.linear), list(self.norm)
        if not learn:
            linear, norm = [value.detach() for value in linear], [value.detach() for value in norm]
        if chosen is not None:
            linear, norm = [value[chosen] for value in linear], [value[chosen] for value in norm]
        hidden = torch.cat([encoded, latents], dim=-1).expand(len(linear[0]), -1, -1)
        for index in range(0, len(linear) - 2, 2):
            hidden = torch.baddbmm(linear[index + 1], hidden, linear[index])
            if norm:
                hidden = _layer_norm(hidden, norm[index], norm[index + 1])
            hidden = F.leaky_relu_(hidden, SLOPE)  # in place, because no gradient needs what it overwrites
        return torch.baddbmm(linear[-1], hidden, linear[-2]).squeeze(-1)

    @torch.no_grad()
    def state_of(self, index: int) -> dict[str, Tensor]:
        """The state dict of one critic as an `mlp` network."""
        linear = [(weight[index].t(), bias[index, 0]) for weight, bias in _pairs(self.linear)]
        norm = [(scale[index, 0], shift[index, 0]) for scale, shift in _pairs(self.norm)]
        modules: dict[int, tuple[Tensor, Tensor]] = {}
        stride = 3 if norm else 2  # linear layer, perhaps a norm, activation
        for layer, pair in enumerate(linear):
            modules[layer * stride] = pair
        for layer, pair in enumerate(norm):
            modules[layer * stride + 1] = pair
        return {
            f"{module}.{name}": value.clone()
            for module, pair in modules.items()
            for name, value in zip(("weight", "bias"), pair, strict=True)
        }


def _layer_norm(hidden: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    """The layer norm of [N, B, W] with scales and shifts [N, 1, W].

    A GPU is fast with few operations, and a CPU with few passes over memory.
    """
    width = hidden.shape[-1:]
    if hidden.is_cuda:
        return torch.addcmul(shift, F.layer_norm(hidden, width), scale)
    each = zip(hidden.unbind(), scale.squeeze(1).unbind(), shift.squeeze(1).unbind(), strict=True)
    return torch.stack([F.layer_norm(one, width, its_scale, its_shift) for one, its_scale, its_shift in each])


def _pairs(values: nn.ParameterList) -> list[tuple[Tensor, Tensor]]:
    return list(zip(values[::2], values[1::2], strict=True))
