"""LoRA and DoRA layers in fewer operations, for models that are small beside their batch (on the CPU; billions of weights are better
left alone).

peft computes, with W the frozen weight, s B A the low-rank one, m the magnitude over the norm of W + s B A, and x' = dropout(x):
    y = W x + (m - 1) W x' + m s B A x'
which is five products and as many passes over the outputs.  With U = (m - 1) W + m s B A, a matrix of W's size made once a pass,
    y = W x + U x'        and without dropout        y = (W + U) x.
Plain LoRA is the case m = 1; it gains without dropout only, so with dropout it is left as it is.  The same numbers up to rounding
(tested), at the price of one more matrix of W's size per layer.

torch draws a dropout mask on the CPU one number at a time, which costs more than the product it belongs to; `Dropout` draws four.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from peft.tuners.lora.layer import Linear
from torch import Tensor, nn
from torch.nn.functional import linear

from unime import lanes


class Dropout(nn.Module):
    """As nn.Dropout, with 16 random bits an element: the share dropped is `p` to within 1/65536."""

    def __init__(self, p: float) -> None:
        super().__init__()
        self.p = p

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return x
        words = torch.empty(-(-x.numel() // 4), dtype=torch.int64, device=x.device)
        words.random_(-(2**63), None, generator=lanes.generator())
        keep = words.view(torch.int16)[: x.numel()] >= round(self.p * 2**16) - 2**15
        return x * keep.view_as(x).to(x.dtype).div_(1 - self.p)


def use(model: nn.Module) -> int:
    """Give the LoRA and DoRA linear layers of a peft model with one adapter the passes above; returns how many gained them."""
    count = 0
    for layer in [module for module in model.modules() if isinstance(module, Linear)]:
        (name,) = layer.lora_A.keys()
        dropout = layer.lora_dropout[name]
        if isinstance(dropout, nn.Dropout) and name not in layer.lora_magnitude_vector:
            continue
        if isinstance(dropout, nn.Dropout):
            layer.lora_dropout[name] = Dropout(dropout.p).train(dropout.training)
        layer.forward = _forward(layer, name)
        count += 1
    return count


def _forward(layer: Linear, name: str) -> Callable[[Tensor], Tensor]:
    base, dropout, scaling = layer.get_base_layer(), layer.lora_dropout[name], layer.scaling[name]

    def forward(x: Tensor) -> Tensor:
        low = scaling * layer.lora_B[name].weight @ layer.lora_A[name].weight  # (out, in)
        if name not in layer.lora_magnitude_vector:
            return linear(x, base.weight + low, base.bias)
        norm = torch.linalg.norm(base.weight + low.detach(), dim=1)  # a constant to the gradient, as DoRA's section 4.3 has it
        magnitude = (layer.lora_magnitude_vector[name].weight / norm).unsqueeze(1)
        if isinstance(dropout, nn.Identity) or not layer.training:
            return linear(x, magnitude * (base.weight + low), base.bias)
        update = magnitude * low + (magnitude - 1) * base.weight
        return linear(x, base.weight, base.bias) + linear(dropout(x), update)

    return forward
