"""LoRA and DoRA layers for large models and half precision: few passes over the outputs, little kept for the way back.

With W (out, in) the frozen weight, s B A the low-rank one of rank r, m the magnitude, n the norm of each row of W + s B A (a constant
to the gradient, as DoRA's section 4.3 has it), c = m / n (1 for plain LoRA) and x' = dropout(x), peft computes
    y = W x + (c - 1) W x' + c s B A x'
in a dozen operations, each of which keeps a matrix of the outputs' size, some in float32.  Here:

1. n needs no matrix of W's size: n^2 = |W|^2 + 2 s B . (W A^T) + s^2 |B A|^2, row by row.  |W|^2 is computed once, W A^T and
   |B A|^2 = b (A A^T) b^T are thin.
2. Forward: y = W x and z = W x' (without dropout the same), then (c - 1) z and (c s B) (A x') are added in place.
3. Kept: x (shared by the layers that read it), one byte an element of dropout's mask, A x', and z for the gradient of m.
4. Backward, with g the gradient of y: gB = c s g^T A x', gA = (c s B^T g)^T x', gm = (sum g z + s B . (g^T A x')) / n,
   gx = W^T g + mask (W^T ((c - 1) g) + A^T (c s B^T g)).

A, B and m are float32 and products are computed in the type of x, where peft turns x into float32 for them.  Equal to peft up to
rounding (tested; in bfloat16 with an update as large as W, gradients are 6 % off, peft's 4 %).  What was refused: a matrix
c s B A + (c - 1) W as in `unime.train.dense` (as large as the model, and its gradient is one more product of full size).
"""

from __future__ import annotations

from typing import Any

import torch
from peft.tuners.lora.layer import Linear
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.functional import linear


class Adapted(torch.autograd.Function):
    """y (T, out) of x (T, in); `m` and `squares` (out,) are None for plain LoRA, `p` is dropout's share."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        a: Tensor,
        b: Tensor,
        m: Tensor | None,
        squares: Tensor | None,
        s: float,
        p: float,
    ) -> Tensor:
        kind = x.dtype
        dropped, mask = torch.native_dropout(x, p, True) if p else (x, None)
        y = linear(x, weight, bias)
        low, z, c, norm = dropped @ a.to(kind).T, None, None, None
        outer = s * b
        if m is not None:
            norm = norms(weight, a, b, squares, s)
            c = m / norm
            outer = c[:, None] * outer
            z = linear(dropped, weight) if p else (y - bias if bias is not None else y.clone())
            y.addcmul_(z, (c - 1).to(kind))
        y.addmm_(low, outer.T.to(kind))
        ctx.save_for_backward(x, weight, a, b, mask, low, z, c, norm)
        ctx.s, ctx.p = s, p
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, a, b, mask, low, z, c, norm = ctx.saved_tensors
        s, kind = ctx.s, x.dtype
        outer = s * b if c is None else c[:, None] * s * b
        inner = g @ outer.to(kind)  # (T, r)
        dropped = x if mask is None else _kept(x, mask, ctx.p)
        product = (g.T @ low).float()  # (out, r)
        found_a = (inner.T @ dropped).to(a.dtype)
        found_b = (product * (s if c is None else s * c[:, None])).to(b.dtype)
        found_m = None
        if c is not None:
            found_m = ((g * z).sum(0, dtype=torch.float32 if kind != torch.float64 else kind) + s * (b * product).sum(1)) / norm
        found_x = None
        if ctx.needs_input_grad[0]:
            part = inner @ a.to(kind)
            if c is not None:
                part.addmm_(g * (c - 1).to(kind), weight)
            found_x = g @ weight
            found_x += part if mask is None else _kept(part, mask, ctx.p)
        return found_x, None, None, found_a, found_b, found_m, None, None, None


def _kept(x: Tensor, mask: Tensor, p: float) -> Tensor:
    """mask x / (1 - p) in one pass."""
    return torch.ops.aten.native_dropout_backward(x, mask, 1 / (1 - p))


def norms(weight: Tensor, a: Tensor, b: Tensor, squares: Tensor, s: float) -> Tensor:
    """(out,) the norms of the rows of W + s B A."""
    across = (b * (weight @ a.to(weight.dtype).T).to(b.dtype)).sum(1)
    return (squares + 2 * s * across + s * s * ((b @ (a @ a.T)) * b).sum(1)).clamp_min(torch.finfo(b.dtype).tiny).sqrt()


def use(model: nn.Module) -> int:
    """Give the LoRA and DoRA linear layers of a peft model with one adapter the passes above; returns how many there are."""
    layers = [module for module in model.modules() if isinstance(module, Linear)]
    for layer in layers:
        (name,) = layer.lora_A.keys()
        layer.forward = _Forward(layer, name)
    return len(layers)


class _Forward:
    """The layer's forward pass; a class, so that the squares are computed once."""

    def __init__(self, layer: Linear, name: str) -> None:
        self.layer, self.name, self.base, self.scaling = layer, name, layer.get_base_layer(), layer.scaling[name]
        self.dora = name in layer.lora_magnitude_vector
        self.squares = None
        if self.dora:
            exact = torch.float64 if self.base.weight.dtype == torch.float64 else torch.float32
            self.squares = torch.linalg.vector_norm(self.base.weight, dim=1, dtype=exact).square()

    def __call__(self, x: Tensor) -> Tensor:
        layer, name = self.layer, self.name
        dropout = layer.lora_dropout[name]
        p = dropout.p if layer.training and isinstance(dropout, nn.Dropout) else 0.0
        a, b = layer.lora_A[name].weight, layer.lora_B[name].weight
        m = layer.lora_magnitude_vector[name].weight if self.dora else None
        y = Adapted.apply(x.reshape(-1, x.shape[-1]), self.base.weight, self.base.bias, a, b, m, self.squares, self.scaling, p)
        return y.view(*x.shape[:-1], y.shape[-1])
