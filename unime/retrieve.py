"""The nearest candidates of every query in its own data set: potential hard negatives (paper, section 3.1, Omega_p).

Exact search by faiss.  Its float32 products depend in their last bits on blocking and threads, which would let equal candidates
change places; so a little more than needed is searched, the similarities are computed again in float64, and equal ones are ordered
by candidate id.  The result then depends on the vectors alone.  No torch here: it and faiss bring an OpenMP runtime each.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import faiss
import numpy as np
import polars as pl

from unime import artifacts

SLACK = 1e-5
"""Similarities that differ by less may come in another order from faiss; float32 products of unit vectors are off by less."""

_BLOCK = 1024  # queries searched at a time
_GPU_K = 2048  # the most neighbours that faiss gives on a GPU


def retrieve(
    pairs: pl.DataFrame,
    ids: list[str],
    vectors: np.ndarray,
    *,
    k: int,
    delta: float | None,
    threads: int = 1,
    track: Callable[..., Iterable[Any]] = lambda iterable, total, label: iterable,
) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Tables HITS (pairs in the order of `pairs`, then rank) and POOLS (one row a pair).

    The pool is the data set's distinct positives.  The pair's own positive is left out (equal content is an equal id), and with
    `delta` every candidate with similarity >= delta.  Vectors (N, D) are unit rows.  Raises ArtifactError for an item without a
    vector, an id that is there twice, or a vector that is not a unit vector.
    """
    row = _index(ids, vectors)
    faiss.omp_set_num_threads(max(1, threads))
    hits, pools = [], []
    names = pairs["dataset"].unique(maintain_order=True).to_list()
    for name in track(names, len(names), "retrieve"):
        found, counts = _one_set(pairs.filter(pl.col("dataset") == name), row, vectors, k, delta, name)
        hits.append(found)
        pools.append(counts)
    empty_hits, empty_pools = pl.DataFrame(schema=artifacts.HITS), pl.DataFrame(schema=artifacts.POOLS)
    return pl.concat([empty_hits, *hits]), pl.concat([empty_pools, *pools])


def _index(ids: list[str], vectors: np.ndarray) -> dict[str, int]:
    row = {id: number for number, id in enumerate(ids)}
    if len(row) != len(ids):
        raise artifacts.ArtifactError(f"vectors: {len(ids) - len(row)} ids are there twice; run the embed stage again")
    for start in range(0, len(ids), 65536):
        norms = np.linalg.norm(vectors[start : start + 65536].astype(np.float32), axis=1)
        if (bad := ~(np.abs(norms - 1) < 1e-2)).any():
            at = start + int(bad.argmax())
            raise artifacts.ArtifactError(f"vectors: item {ids[at]} has length {norms[at - start]}, needed 1; run the embed stage again")
    return row


def _rows(ids: pl.Series, row: dict[str, int], name: str) -> np.ndarray:
    found = [row.get(id, -1) for id in ids]
    if -1 in found:
        raise artifacts.ArtifactError(f"{name}: item {ids[found.index(-1)]} has no vector; run the embed stage again")
    return np.array(found, dtype=np.int64)


def _one_set(
    pairs: pl.DataFrame, row: dict[str, int], vectors: np.ndarray, k: int, delta: float | None, name: str
) -> tuple[pl.DataFrame, pl.DataFrame]:
    pool = pairs["positive"].unique().sort()  # in id order, so that positions order ties
    at = {id: position for position, id in enumerate(pool)}
    candidates = np.ascontiguousarray(vectors[_rows(pool, row, name)], dtype=np.float32)  # (P, D)
    queries, inverse = np.unique(_rows(pairs["query"], row, name), return_inverse=True)
    positive = np.array([at[id] for id in pairs["positive"]], dtype=np.int64)
    search = _Search(candidates)
    order = np.argsort(inverse, kind="stable")  # pairs by query, so that a block's queries are searched once
    bounds = np.searchsorted(inverse[order], np.arange(0, len(queries) + _BLOCK, _BLOCK))
    chosen = np.full((len(pairs), k), -1, dtype=np.int64)
    similarity = np.zeros((len(pairs), k), dtype=np.float32)
    removed = np.zeros(len(pairs), dtype=np.int64)
    for block, start in enumerate(range(0, len(queries), _BLOCK)):
        of_block = queries[start : start + _BLOCK]
        found, values = search.nearest(vectors[of_block].astype(np.float32), k + 1, delta)
        members = order[bounds[block] : bounds[block + 1]]
        for pair in members:
            mine, near = found[inverse[pair] - start], values[inverse[pair] - start]
            others = mine != positive[pair]
            mine, near = mine[others], near[others]
            below = near < delta if delta is not None else slice(None)
            removed[pair] = len(mine) - len(mine[below])
            mine, near = mine[below][:k], near[below][:k]
            chosen[pair, : len(mine)], similarity[pair, : len(near)] = mine, near
    there = chosen >= 0
    counts = there.sum(axis=1)
    hits = pl.DataFrame(
        {
            "pair": pairs["pair"].gather(np.repeat(np.arange(len(pairs)), counts)),
            "candidate": pool.gather(chosen[there]),
            "rank": np.broadcast_to(np.arange(k, dtype=np.int32), chosen.shape)[there],
            "similarity": similarity[there],
        },
        schema=artifacts.HITS,
    )
    sizes = np.full(len(pairs), len(pool) - 1, dtype=np.int64)
    return hits, pl.DataFrame({"pair": pairs["pair"], "pool": sizes, "delta": removed}, schema=artifacts.POOLS)


class _Search:
    """Exact inner-product search over (P, D) float32 candidates."""

    def __init__(self, candidates: np.ndarray):
        self.candidates = candidates
        self.cpu = faiss.IndexFlatIP(candidates.shape[1])
        self.cpu.add(candidates)
        gpus = faiss.get_num_gpus() if hasattr(faiss, "index_cpu_to_all_gpus") else 0
        self.fast = faiss.index_cpu_to_all_gpus(self.cpu) if gpus else None

    def nearest(self, queries: np.ndarray, count: int, delta: float | None) -> tuple[list[np.ndarray], list[np.ndarray]]:
        """Per query: all positions with similarity >= delta and at least `count` below it (or the whole pool), best first, and their
        similarities, float32 of float64 products; equal ones by position."""
        size = len(self.candidates)
        found: list[np.ndarray] = [np.zeros(0, dtype=np.int64)] * len(queries)
        values: list[np.ndarray] = [np.zeros(0, dtype=np.float32)] * len(queries)
        open_rows, asked = np.arange(len(queries)), min(size, count + 8)
        while len(open_rows):
            index = self.fast if self.fast is not None and asked <= _GPU_K else self.cpu
            rough, positions = index.search(queries[open_rows], asked)
            # The last similarity seen must lie clearly below delta and below the last one needed; else equal ones may be unseen.
            edge = np.zeros(len(open_rows), dtype=np.int64) if delta is None else (rough >= delta - SLACK).sum(axis=1)
            last = np.minimum(edge + count - 1, asked - 1)
            done = (edge + count < asked) & (rough[:, -1] < rough[np.arange(len(open_rows)), last] - 2 * SLACK) | (asked == size)
            for row in done.nonzero()[0]:
                at = open_rows[row]
                near = np.sort(positions[row])
                exact = (self.candidates[near].astype(np.float64) @ queries[at].astype(np.float64)).astype(np.float32)
                by_value = np.argsort(-exact, kind="stable")
                found[at], values[at] = near[by_value], exact[by_value]
            open_rows, asked = open_rows[~done], min(size, asked * 4)
        return found, values
