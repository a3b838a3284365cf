"""Search that looks at a part of the candidates only, for pools of many millions: faiss's IVF or HNSW, by setting.

Both hold a copy of the candidates.  Products are computed as the exact search does, so what both find has the same similarity; what
is missed is measured (`unime.retrieve.recall`).  IVF cuts the pool into four lists for each unit of its square root and looks into
`probes` of them; HNSW walks a graph with 32 links a node, `ef` nodes wide.  The graph is built by one thread: with more, the order in
which nodes come, and so the result, would be another one in each run.
"""

from __future__ import annotations

from collections.abc import Iterator

import faiss
import numpy as np

from unime.retrieve.search import Nearest, gathered, products

KINDS = ("ivf", "hnsw")
_LINKS = 32
_POINTS = 256  # candidates a list that its centre is found from
_STEP = 1 << 16  # candidates put in at a time
_SEED = 1234  # of k-means


class Approximate:
    """As `search.Exact`, by an index of `kind`; `effort` is its `probes` or `ef`.  Raises ValueError for an unknown kind."""

    def __init__(self, kind: str, effort: int, vectors: np.ndarray, chosen: np.ndarray, threads: int):
        if kind not in KINDS:
            raise ValueError(f"retrieve.index {kind!r} is not known; known: exact, {', '.join(KINDS)}")
        self.vectors, self.chosen = vectors, chosen
        size, width = len(chosen), vectors.shape[1]
        if kind == "ivf":
            lists = max(1, min(size, round(4 * size**0.5)))
            self.index = faiss.IndexIVFFlat(faiss.IndexFlatIP(width), width, lists, faiss.METRIC_INNER_PRODUCT)
            self.index.cp.seed, self.index.nprobe = _SEED, min(effort, lists)
            shown = np.random.default_rng(_SEED).permutation(size)[: lists * _POINTS]
            self.index.train(gathered(vectors, chosen[np.sort(shown)]))
        else:
            self.index = faiss.IndexHNSWFlat(width, _LINKS, faiss.METRIC_INNER_PRODUCT)
            self.index.hnsw.efSearch = effort
            faiss.omp_set_num_threads(1)
        for start in range(0, size, _STEP):
            self.index.add(gathered(vectors, chosen[start : start + _STEP]))
        faiss.omp_set_num_threads(max(1, threads))

    def nearest(self, queries: np.ndarray, count: int, delta: float | None) -> Iterator[Nearest]:
        """Each query of (n, D) float32 once: `count` positions or a few less, -1 behind the last; with `delta` four times as many are
        looked at, and what lies above it may leave fewer than `count`."""
        asked = min(len(self.chosen), count if delta is None else 4 * count)
        step = max(1, _STEP // asked)  # queries at a time
        for start in range(0, len(queries), step):
            some = queries[start : start + step]
            _, found = self.index.search(some, asked)
            shown, place = np.unique(found, return_inverse=True)
            block = gathered(self.vectors, self.chosen[shown])  # where -1 is among them it is one row too many, and read by none
            exact = products(some, block, place.reshape(found.shape))
            values = np.where(found >= 0, exact, -np.inf).astype(np.float32)
            order = np.lexsort((found, -values), axis=1)
            rows = np.arange(start, start + len(some))
            yield Nearest(rows, np.take_along_axis(found, order, axis=1), np.take_along_axis(values, order, axis=1))
