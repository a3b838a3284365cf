"""The nearest candidates of a block of queries, with memory that does not grow with the number of candidates.

1. Candidates are read in blocks of `_BYTES`; faiss finds the best of each block by float32 products.
2. Those products depend in their last bits on blocking and threads, which would let equal candidates change places.  So the products
   of what was found are computed once more, each pair by itself in a fixed order (faiss's `fvec_inner_products_by_idx`); blocks are
   merged by these, and equal ones are ordered by position.  Equal vectors then have equal products, wherever they stand.
3. What no block has shown has a rough product of at most the last one shown.  Where that is too near to the last one needed, the query
   is asked again for four times as many.

What was refused: an index that holds a copy of all candidates (twice the memory), and exact products in float64 (three times the
whole search's time: every candidate's vector is converted for every query).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import faiss
import numpy as np

from unime import devices

SLACK = 1e-5
"""Products that differ by less may come in another order from faiss; float32 products of unit vectors are off by less."""

_BYTES = 1 << 28  # of a block of candidates, as float32
_CELLS = 1 << 22  # products kept of a block of queries: 100 MiB with what ordering them takes
_EXTRA = 8  # candidates asked for beyond those needed, so that few queries are asked again
_GPU_K = 2048  # the most neighbours that faiss gives on a GPU
faiss.cvar.distance_compute_min_k_reservoir = 1  # faiss's heap, its choice below 100 neighbours, takes a fifth longer at 59


class Nearest(NamedTuple):
    """Of some queries of a block: `rows` (n,) their numbers in it; `positions` (n, w) int64, best first, and `values` (n, w) float32,
    their products."""

    rows: np.ndarray
    positions: np.ndarray
    values: np.ndarray


class Exact:
    """Inner-product search in the rows `chosen` (P,) int64 of `vectors` (N, D) float32 or float16, which may lie on disk."""

    def __init__(self, vectors: np.ndarray, chosen: np.ndarray):
        self.vectors, self.chosen = vectors, chosen
        self.step = max(1, _BYTES // (4 * vectors.shape[1]))
        self._only: np.ndarray | None = None
        self._gpu = None
        if hasattr(faiss, "StandardGpuResources"):  # faiss for GPUs
            devices.claim(1)  # before faiss looks: from then on it sees no others
            self._gpu = faiss.StandardGpuResources() if faiss.get_num_gpus() else None

    def nearest(self, queries: np.ndarray, count: int, delta: float | None) -> Iterator[Nearest]:
        """Each query of (n, D) float32 once: all positions with a product >= delta and at least `count` below it, or all there are."""
        size = len(self.chosen)
        left, asked = np.arange(len(queries)), min(size, count + _EXTRA)
        while len(left):
            again = []
            for start in range(0, len(left), max(1, _CELLS // asked)):
                some = left[start : start + max(1, _CELLS // asked)]
                positions, values, unseen = self._best(queries[some], asked)
                above = np.zeros(len(some), dtype=np.int64) if delta is None else (values >= delta).sum(axis=1)
                last = np.minimum(above + count, asked) - 1
                done = (above + count <= asked) & (values[np.arange(len(some)), last] - SLACK > unseen) | (asked == size)
                yield Nearest(some[done], positions[done], values[done])
                again.append(some[~done])
            left, asked = np.concatenate(again), min(size, asked * 4)

    def _best(self, queries: np.ndarray, asked: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Positions and products (n, asked), best first, and (n,) what an unseen candidate's rough product is at most."""
        positions, values = np.empty((len(queries), 0), dtype=np.int64), np.empty((len(queries), 0), dtype=np.float32)
        unseen = np.full(len(queries), -np.inf, dtype=np.float32)
        for start in range(0, len(self.chosen), self.step):
            block = self._block(start)
            rough, found = self._rough(queries, block, min(asked, len(block)))
            if asked < len(block):
                unseen = np.maximum(unseen, rough[:, -1])
            values = np.concatenate([values, products(queries, block, found)], axis=1)
            positions = np.concatenate([positions, found + start], axis=1)
            positions, values = ordered(positions, values, asked)
        return positions, values, unseen

    def _block(self, start: int) -> np.ndarray:
        if self._only is not None:
            return self._only
        block = gathered(self.vectors, self.chosen[start : start + self.step])
        if len(self.chosen) <= self.step:
            self._only = block
        return block

    def _rough(self, queries: np.ndarray, block: np.ndarray, asked: int) -> tuple[np.ndarray, np.ndarray]:
        if self._gpu is not None and asked <= _GPU_K:
            return faiss.knn_gpu(self._gpu, queries, block, asked, metric=faiss.METRIC_INNER_PRODUCT)
        return faiss.knn(queries, block, asked, metric=faiss.METRIC_INNER_PRODUCT)


def ordered(positions: np.ndarray, values: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """The `count` largest values of each row (n, w) with their positions, best first, equal ones by position."""
    rows = np.arange(len(values))
    if values.shape[1] <= count:  # one block alone: faiss has put them in order, but for a few
        rows = (values[:, 1:] >= values[:, :-1]).any(axis=1).nonzero()[0]
        if not len(rows):
            return positions, values
    order = np.lexsort((positions[rows], -values[rows]), axis=1)[:, :count]
    sorted_ = [np.take_along_axis(table[rows], order, axis=1) for table in (positions, values)]
    if len(rows) == len(values):
        return sorted_[0], sorted_[1]
    positions[rows], values[rows] = sorted_
    return positions, values


def gathered(vectors: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """(n, D) float32, contiguous: these rows of vectors that may lie on disk."""
    return np.ascontiguousarray(vectors[rows], dtype=np.float32)


def products(queries: np.ndarray, candidates: np.ndarray, positions: np.ndarray) -> np.ndarray:
    """(n, w) float32: the product of each query (n, D) with the candidates (P, D) at its positions (n, w), -inf at -1; each depends on
    its two vectors alone."""
    found, positions = np.empty(positions.shape, dtype=np.float32), np.ascontiguousarray(positions, dtype=np.int64)
    pointers = (faiss.swig_ptr(table) for table in (found, queries, candidates, positions))
    faiss.fvec_inner_products_by_idx(*pointers, queries.shape[1], *positions.shape)
    return found
