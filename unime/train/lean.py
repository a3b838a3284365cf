"""LoRA and DoRA layers for large models and half precision: few passes over the outputs, little kept for the way back.

With W (out, in) the frozen weight, s B A the low-rank one of rank r, m the magnitude, n the norm of each row of W + s B A (a constant
to the gradient, as DoRA's section 4.3 has it), c = m / n (1 for plain LoRA) and x' = dropout(x), peft computes
    y = W x + (c - 1) W x' + c s B A x'
in a dozen operations, each of which keeps a matrix of the outputs' size, some in float32.  Here:

1. n needs no matrix of W's size: n^2 = |W|^2 + 2 s B . (W A^T) + s^2 |B A|^2, row by row.  |W|^2 is computed once, W A^T and
   |B A|^2 = b (A A^T) b^T are thin.  What depends on the weights alone (n, c, A and c s B in the type of x) is computed once an
   optimizer step, not in every pass: on a GPU the number of operations counts more than their size.
2. Forward: y = W x and z = W x' (without dropout the same), then (c - 1) z and (c s B) (A x') are added in place.
3. Kept: x (shared by the layers that read it), one byte an element of dropout's mask, A x', and z for the gradient of m.
4. Backward, with g the gradient of y: gB = c s g^T A x', gA = (c s B^T g)^T x', gm = (sum g z + s B . (g^T A x')) / n,
   gx = W^T g + mask (W^T ((c - 1) g) + A^T (c s B^T g)).

A, B and m are float32 and products are computed in the type of x, where peft turns x into float32 for them.  Equal to peft up to
rounding (tested; in bfloat16 with an update as large as W, gradients are 6 % off, peft's 4 %).  What was refused: a matrix
c s B A + (c - 1) W as in `unime.train.dense` (as large as the model, and its gradient is one more product of full size).
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from peft.tuners.lora.layer import Linear
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.functional import linear


class Fixed(NamedTuple):
    """What a layer's passes share until its weights change: `a` (r, in) and `outer` (out, r), A and c s B in the products' type; for DoRA
    `less` (out,), c - 1 in that type, and `factor` c s and `norm` n, both (out,) and exact; `factor` of plain LoRA is (1,), s."""

    a: Tensor
    outer: Tensor
    factor: Tensor
    less: Tensor | None = None
    norm: Tensor | None = None


class Adapted(torch.autograd.Function):
    """y (T, out) of x (T, in); A, B and m, of which m may be None, are given for their gradients alone; `p` is dropout's share."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, a: Tensor, b: Tensor, m: Tensor | None, fixed: Fixed, s: float, p: float
    ) -> Tensor:
        dropped, mask = torch.native_dropout(x, p, True) if p else (x, None)
        y, low, z = linear(x, weight, bias), dropped @ fixed.a.T, None
        if fixed.less is not None:
            z = linear(dropped, weight) if p else (y - bias if bias is not None else y.clone())
            y.addcmul_(z, fixed.less)
        y.addmm_(low, fixed.outer.T)
        ctx.save_for_backward(x, weight, b, mask, low, z)
        ctx.fixed, ctx.s, ctx.p = fixed, s, p
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, b, mask, low, z = ctx.saved_tensors
        fixed, p = ctx.fixed, ctx.p
        inner = g @ fixed.outer  # (T, r)
        found_a = (inner.T @ (x if mask is None else _kept(x, mask, p))).to(b.dtype)
        product = (g.T @ low).to(b.dtype)  # (out, r)
        found_b, found_m, found_x = product * fixed.factor[:, None], None, None
        if z is not None:
            found_m = (g * z).sum(0, dtype=b.dtype).add_((b * product).sum(1), alpha=ctx.s).div_(fixed.norm)
        if ctx.needs_input_grad[0]:
            part = inner @ fixed.a
            if z is not None:
                part.addmm_(g * fixed.less, weight)
            found_x = g @ weight
            found_x += part if mask is None else _kept(part, mask, p)
        return found_x, None, None, found_a, found_b, found_m, None, None, None


def _kept(x: Tensor, mask: Tensor, p: float) -> Tensor:
    """mask x / (1 - p) in one pass."""
    return torch.ops.aten.native_dropout_backward(x, mask, 1 / (1 - p))


@torch.no_grad()
def fixed_of(weight: Tensor, a: Tensor, b: Tensor, m: Tensor | None, squares: Tensor | None, s: float) -> Fixed:
    """What passes share; `squares` (out,) are |W|^2, row by row."""
    kind = weight.dtype
    if m is None:
        return Fixed(a.to(kind), (s * b).to(kind), torch.full((1,), s, dtype=b.dtype, device=b.device))
    across = (b * (weight @ a.to(kind).T).to(b.dtype)).sum(1)
    norm = (squares + 2 * s * across + s * s * ((b @ (a @ a.T)) * b).sum(1)).clamp_min(torch.finfo(b.dtype).tiny).sqrt()
    c = m / norm
    return Fixed(a.to(kind), (c[:, None] * (s * b)).to(kind), c * s, (c - 1).to(kind), norm)


def use(model: nn.Module) -> int:
    """Give the LoRA and DoRA linear layers of a peft model with one adapter the passes above; returns how many there are."""
    layers = [module for module in model.modules() if isinstance(module, Linear)]
    for layer in layers:
        (name,) = layer.lora_A.keys()
        layer.forward = _Forward(layer, name)
    return len(layers)


class _Forward:
    """The layer's forward pass, with what it remembers until the weights change."""

    def __init__(self, layer: Linear, name: str) -> None:
        self.layer, self.dropout, self.scaling = layer, layer.lora_dropout[name], layer.scaling[name]
        self.base, self.squares = layer.get_base_layer(), None  # not its weight, which may lie in slices between two passes
        self.a, self.b, self.m = layer.lora_A[name].weight, layer.lora_B[name].weight, None
        if name in layer.lora_magnitude_vector:
            self.m = layer.lora_magnitude_vector[name].weight
            self.squares = torch.linalg.vector_norm(self.base.weight, dim=1, dtype=self.b.dtype).square()
        self._fixed: tuple[tuple[int, ...], Fixed] | None = None

    def __call__(self, x: Tensor) -> Tensor:
        p = self.dropout.p if self.layer.training and isinstance(self.dropout, nn.Dropout) else 0.0
        flat, weight, bias = x.reshape(-1, x.shape[-1]), self.base.weight, self.base.bias
        y = Adapted.apply(flat, weight, bias, self.a, self.b, self.m, self.fixed(), self.scaling, p)
        return y.view(*x.shape[:-1], y.shape[-1])

    def fixed(self) -> Fixed:
        """Computed again after any change of A, B or m in place, as an optimizer makes it (torch counts them)."""
        versions = tuple(-1 if one is None else one._version for one in (self.a, self.b, self.m))
        if self._fixed is None or self._fixed[0] != versions:
            self._fixed = versions, fixed_of(self.base.weight, self.a, self.b, self.m, self.squares, self.scaling)
        return self._fixed[1]
