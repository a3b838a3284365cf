"""The nearest candidates of every query in its own data set: potential hard negatives (paper, section 3.1, Omega_p).

Exact search by faiss, block by block; equal similarities are ordered by candidate id, so the result depends on the vectors alone
(`unime.retrieve.search`).  No torch here: it and faiss bring an OpenMP runtime each.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import faiss
import numpy as np
import polars as pl

from unime import artifacts
from unime.retrieve.approximate import Approximate
from unime.retrieve.search import Exact, gathered

_BLOCK = 1 << 14  # queries searched at a time: each block reads all candidates once


def retrieve(
    pairs: pl.DataFrame,
    ids: list[str],
    vectors: np.ndarray,
    *,
    k: int,
    delta: float | None,
    index: str = "exact",
    effort: int = 0,
    threads: int = 1,
    track: Callable[..., Iterable[Any]] = lambda iterable, total, label: iterable,
) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Tables HITS (pairs in the order of `pairs`, then rank) and POOLS (one row a pair).

    The pool is the data set's distinct positives.  The pair's own positive is left out (equal content is an equal id), and with
    `delta` every candidate with similarity >= delta.  Vectors (N, D) are unit rows, float32 or float16, and may lie on disk.  With
    another `index` than `exact` see `approximate.Approximate`.  Raises ArtifactError for an item without a vector, an id that is there
    twice, or a vector that is not a unit vector.
    """
    row = _index(ids, vectors)
    faiss.omp_set_num_threads(max(1, threads))
    hits, pools = [pl.DataFrame(schema=artifacts.HITS)], [pl.DataFrame(schema=artifacts.POOLS)]
    names = pairs["dataset"].unique(maintain_order=True).to_list()
    for name in track(names, len(names), "retrieve"):
        one = _Set.of(pairs.filter(pl.col("dataset") == name), row, name)
        search = Exact(vectors, one.candidates) if index == "exact" else Approximate(index, effort, vectors, one.candidates, threads)
        taken = one.search(search, vectors, k, delta, np.arange(len(one.pairs)))
        hits.append(one.hits(taken))
        pools.append(one.pools(taken))
    return pl.concat(hits), pl.concat(pools)


def recall(
    pairs: pl.DataFrame, hits: pl.DataFrame, ids: list[str], vectors: np.ndarray, *, k: int, delta: float | None, sample: int
) -> dict[str, float]:
    """Of each data set the share of the exact best k candidates that `hits` has, over `sample` of its pairs."""
    row, shares = _index(ids, vectors), {}
    for name in pairs["dataset"].unique(maintain_order=True).to_list():
        one = _Set.of(pairs.filter(pl.col("dataset") == name), row, name)
        drawn = np.sort(np.random.default_rng(0).permutation(len(one.pairs))[:sample])
        exact = one.hits(one.search(Exact(vectors, one.candidates), vectors, k, delta, drawn))
        shared = exact.join(hits, on=["pair", "candidate"], how="semi")
        shares[name] = len(shared) / len(exact) if len(exact) else 1.0
    return shares


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


class _Set(NamedTuple):
    """One training set as numbers.

    pool: (P,) the candidates' ids, sorted, so that positions order ties.  candidates: (P,) their rows in the vectors.  positive: (n,)
    position of each pair's own.  queries: (Q,) rows of the distinct queries; query: (n,) each pair's place in it.
    """

    pairs: pl.DataFrame
    pool: pl.Series
    candidates: np.ndarray
    positive: np.ndarray
    queries: np.ndarray
    query: np.ndarray

    @staticmethod
    def of(pairs: pl.DataFrame, row: dict[str, int], name: str) -> _Set:
        pool = pairs["positive"].unique().sort()
        at = {id: position for position, id in enumerate(pool)}
        positive = np.array([at[id] for id in pairs["positive"]], dtype=np.int64)
        return _Set(pairs, pool, _rows(pool, row, name), positive, *np.unique(_rows(pairs["query"], row, name), return_inverse=True))

    def search(self, search: Exact | Approximate, vectors: np.ndarray, k: int, delta: float | None, chosen: np.ndarray) -> _Taken:
        """The best candidates of the `chosen` pairs; those of others stay empty.  A query of several pairs is searched once."""
        wanted, place = np.unique(self.query[chosen], return_inverse=True)
        order = np.argsort(place, kind="stable")
        bounds = np.searchsorted(place[order], np.arange(0, len(wanted) + _BLOCK, _BLOCK))
        taken = _Taken.of(len(self.pairs), k, delta)
        for block, start in enumerate(range(0, len(wanted), _BLOCK)):
            members = order[bounds[block] : bounds[block + 1]]
            asked = self.queries[wanted[start : start + _BLOCK]]
            for found in search.nearest(gathered(vectors, asked), k + 1, delta):
                at = np.full(len(asked), -1, dtype=np.int64)
                at[found.rows] = np.arange(len(found.rows))
                own = at[place[members] - start]
                some, own = chosen[members[own >= 0]], own[own >= 0]
                taken.take(some, self.positive[some], found.positions[own], found.values[own])
        return taken

    def hits(self, taken: _Taken) -> pl.DataFrame:
        there = taken.positions >= 0
        ranks = np.broadcast_to(np.arange(there.shape[1], dtype=np.int32), there.shape)
        return pl.DataFrame(
            {
                "pair": self.pairs["pair"].gather(np.repeat(np.arange(len(there)), there.sum(axis=1))),
                "candidate": self.pool.gather(taken.positions[there]),
                "rank": ranks[there],
                "similarity": taken.values[there],
            },
            schema=artifacts.HITS,
        )

    def pools(self, taken: _Taken) -> pl.DataFrame:
        sizes = np.full(len(self.pairs), len(self.pool) - 1, dtype=np.int64)
        return pl.DataFrame({"pair": self.pairs["pair"], "pool": sizes, "delta": taken.removed}, schema=artifacts.POOLS)


class _Taken(NamedTuple):
    """Of every pair its best k candidates: `positions` (n, k) int64, -1 behind the last one; `values` (n, k) float32; how many were
    `removed` (n,) for a similarity of `delta` or more."""

    positions: np.ndarray
    values: np.ndarray
    removed: np.ndarray
    delta: float

    @staticmethod
    def of(pairs: int, k: int, delta: float | None) -> _Taken:
        empty = np.full((pairs, k), -1, dtype=np.int64), np.zeros((pairs, k), dtype=np.float32), np.zeros(pairs, dtype=np.int64)
        return _Taken(*empty, np.inf if delta is None else delta)

    def take(self, pairs: np.ndarray, positive: np.ndarray, positions: np.ndarray, values: np.ndarray) -> None:
        """For `pairs` (n,) what was found for them, best first (n, w), -1 where there is nothing; `positive` (n,) is each one's own."""
        others = (positions != positive[:, None]) & (positions >= 0)
        close = others & (values >= self.delta)
        self.removed[pairs] = close.sum(axis=1)
        left = others & ~close
        rank = left.cumsum(axis=1, dtype=np.int32) - 1
        best = left & (rank < self.positions.shape[1])
        cells = np.repeat(pairs, best.sum(axis=1)), rank[best]
        self.positions[cells], self.values[cells] = positions[best], values[best]
