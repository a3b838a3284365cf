"""Several forward and backward passes at once, each on a thread of its own with one thread an operation.

A small model's products are too short to be cut over cores: a second thread an operation hardly helps, a second pass beside the first
does (`benchmarks/lanes.py`).  What a pass computes may not depend on where it ran:

1. Each pass draws its dropout from a generator of its own; their seeds follow from one number of torch's global one (`seeds`).
2. A loss that couples passes takes the embeddings of all, cut off from their graphs, and says the gradient of each.
3. Each pass is sent backward on its own, and the parameters' gradients are added in the order of the passes.

So one lane and several leave the same bytes, provided that dropout draws from `generator()`, as `train.dense.Dropout` does: torch's
own draws from the global generator, which threads would reach in any order, and a model that has it gets one lane.  Passes without
gradients draw nothing and add nothing up: `embed.Lanes` serves them.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from unime import shards

Result = TypeVar("Result")
Pass = TypeVar("Pass")
Gradient = tuple[Tensor | None, ...]
"""One tensor a parameter; None for one that the pass did not use."""


SWITCH = 0.0002
"""Seconds that a lane keeps Python while another waits for it; Python's own 5 ms are longer than most operations of a small model."""

_own = threading.local()


def generator() -> torch.Generator | None:
    """What the pass that runs in this thread draws from, a generator on the CPU; None, torch's global one, outside a pass."""
    return getattr(_own, "generator", None)


class GradientLanes:
    """Runs passes, `count` of them side by side."""

    def __init__(self, count: int) -> None:
        self.count = count

    def map(self, work: Callable[..., Result], *arguments: Sequence[Any]) -> list[Result]:
        """As the built-in `map`, in order; the last, which are the longest passes, are begun first."""
        calls = list(zip(*arguments, strict=True))
        if self.count == 1:
            return [work(*call) for call in calls]
        return list(shards.spread(calls[::-1], lambda call: work(*call), self.count))[::-1]

    def accumulate(self, loss: Callable[[Pass], Tensor], passes: Sequence[Pass], parameters: Sequence[Tensor]) -> float:
        """Add the gradient of the sum of `loss(pass)`, a scalar each, to `parameters`; returns the sum.  No graph outlives its pass."""

        def run(seed: int, one: Pass) -> tuple[float, Gradient]:
            value = _seeded(loss, seed, one)
            return value.item(), torch.autograd.grad(value, parameters, allow_unused=True)

        done = self.map(run, seeds(len(passes)), passes)
        for _, gradient in done:
            _add(gradient, parameters)
        return sum(value for value, _ in done)

    def backward(
        self, embed: Callable[[Pass], Tensor], passes: Sequence[Pass], loss: Callable[[Tensor], Tensor], parameters: Sequence[Tensor]
    ) -> Tensor:
        """Add the gradient of `loss(all embeddings)` to `parameters`; returns the loss, detached.

        `embed` maps a pass to (n, D); `loss` maps the embeddings of all passes in order, (N, D), to a scalar.
        """

        def back(part: Tensor, gradient: Tensor) -> Gradient:
            return torch.autograd.grad(part, parameters, gradient, allow_unused=True)

        parts = self.map(lambda seed, one: _seeded(embed, seed, one), seeds(len(passes)), passes)
        embeddings = torch.cat([part.detach() for part in parts]).requires_grad_()
        value = loss(embeddings)
        (gradient,) = torch.autograd.grad(value, embeddings)
        for found in self.map(back, parts, gradient.split([len(part) for part in parts])):
            _add(found, parameters)
        return value.detach()


def seeds(count: int) -> list[int]:
    """The seeds of `count` passes, a function of the state of torch's global generator; fewer passes have the first of them.

    However many they are, one number is drawn from that generator, which dropout may draw from in the passes: a process that has idle
    passes added to it (`train.processes.level`) must go on with the same draws.  Whatever runs passes in another way than the lanes
    (`train.coupled`) takes its seeds from here too, so that dropout does not depend on the way.
    """
    first = int(torch.randint(2**62, ()))
    own = torch.Generator().manual_seed(first)
    return torch.randint(2**62, (count,), generator=own).tolist()


def _seeded(work: Callable[[Pass], Tensor], seed: int, one: Pass) -> Tensor:
    _own.generator = torch.Generator().manual_seed(seed)
    try:
        return work(one)
    finally:
        del _own.generator


def _add(gradient: Gradient, parameters: Sequence[Tensor]) -> None:
    for parameter, one in zip(parameters, gradient, strict=True):
        if one is not None:
            parameter.grad = one if parameter.grad is None else parameter.grad + one


ONE = GradientLanes(1)
"""One pass after the other, here."""


@contextmanager
def open_lanes(model: nn.Module, threads: int) -> Iterator[GradientLanes]:
    """`threads` lanes for a model on the CPU, of one thread an operation; ONE, with `threads` an operation, for any other.

    Afterwards torch has as many threads as before.
    """
    before, interval = torch.get_num_threads(), sys.getswitchinterval()
    drawn = any(isinstance(module, nn.Dropout) and module.p > 0 for module in model.modules())
    devices = {parameter.device.type for parameter in model.parameters()}
    try:
        if threads == 1 or drawn or devices != {"cpu"}:
            torch.set_num_threads(threads)
            yield ONE
        else:
            torch.set_num_threads(1)
            sys.setswitchinterval(SWITCH)
            yield GradientLanes(threads)
    finally:
        torch.set_num_threads(before)
        sys.setswitchinterval(interval)
