"""Gradients of a loss that couples all items of a batch, with the memory of one chunk (GradCache, Gao et al. 2021).

1. Every chunk is embedded without a graph; before each, the random state is noted.
2. The loss of all embeddings together gives its gradient with respect to each embedding; the encoder plays no part in this.
3. Every chunk is embedded again, with a graph, from its noted random state, so dropout falls as it did in step 1.
4. The chunk's embeddings are sent backward with their gradients from step 2: by the chain rule the parameters receive exactly what
   one backward pass through the whole batch would have given them.
5. The random state is put back to where step 1 left it.

The price is a second forward pass an item.  A loss that is a sum over queries does not need this (see `unime.train.embedder`), nor
does a batch that fits in one go.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

import torch
from torch import Tensor

Chunk = TypeVar("Chunk")


def backward(embed: Callable[[Chunk], Tensor], chunks: Sequence[Chunk], loss: Callable[[Tensor], Tensor]) -> Tensor:
    """Add the gradient of `loss(all embeddings)` to the parameters that `embed` uses; returns the loss, detached.

    `embed` maps a chunk to (n, D), drawing randomness from torch's global generators only; `loss` maps the embeddings of all chunks
    in order, (N, D), to a scalar.
    """
    states, parts = [], []
    with torch.no_grad():
        for chunk in chunks:
            states.append(_state())
            parts.append(embed(chunk))
    after = _state()
    embeddings = torch.cat(parts).requires_grad_()
    value = loss(embeddings)
    (gradient,) = torch.autograd.grad(value, embeddings)
    for chunk, state, part in zip(chunks, states, gradient.split([len(p) for p in parts]), strict=True):
        _restore(state)
        embed(chunk).backward(part)
    _restore(after)
    return value.detach()


def _state() -> tuple[Tensor, list[Tensor]]:
    return torch.get_rng_state(), torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []


def _restore(state: tuple[Tensor, list[Tensor]]) -> None:
    torch.set_rng_state(state[0])
    if state[1]:
        torch.cuda.set_rng_state_all(state[1])
