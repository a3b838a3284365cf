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
from unime.data.excluded import Excluded, parts, with_labels
from unime.retrieve.approximate import Approximate
from unime.retrieve.search import Exact, gathered, products

_BLOCK = 1 << 14  # queries searched at a time: each block reads all candidates once


def retrieve(
    pairs: pl.DataFrame,
    ids: list[str],
    vectors: np.ndarray,
    *,
    k: int,
    delta: float | None,
    items: pl.DataFrame | None = None,
    labels: pl.DataFrame | None = None,
    pool: str = "all",
    index: str = "exact",
    effort: int = 0,
    threads: int = 1,
    track: Callable[..., Iterable[Any]] = lambda iterable, total, label: iterable,
) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Tables HITS (pairs in the order of `pairs`, then rank) and POOLS (one row a pair).

    The pool is the data set's distinct positives, or with `pool` same_modality those that show what the pair's own shows (text, image, or
    both).  Left out are all labelled positives of the pair's query (its own, those of the query's other pairs, and those in the table
    LABELS; equal content is an equal id), the query itself, and with `delta` every candidate with similarity >= delta.
    `unime.data.excluded` says which candidates are the query itself; `items` is the table ITEMS, which knows the pictures.  All pairs of
    a query have the same hits (with same_modality those whose positives are of one modality).

    Vectors (N, D) are unit rows, float32 or float16, and may lie on disk.  With another `index` than `exact` see
    `approximate.Approximate`.  Raises ArtifactError for an item without a vector, an id that is there twice, or a vector that is not a
    unit vector.
    """
    row = _index(ids, vectors)
    faiss.omp_set_num_threads(max(1, threads))
    hits, pools = [pl.DataFrame(schema=artifacts.HITS)], [pl.DataFrame(schema=artifacts.POOLS)]
    names = pairs["dataset"].unique(maintain_order=True).to_list()
    for name in track(names, len(names), "retrieve"):
        of_set = parts(pairs.filter(pl.col("dataset") == name), items, pool)
        found = [_searched(_Set.of(part, row, items, labels, name), vectors, k, delta, index, effort, threads) for part in of_set]
        hits += [one for one, _ in found]
        pools += [one for _, one in found]
    if pool == "all":
        return pl.concat(hits), pl.concat(pools)
    order = pairs.select("pair").with_row_index("place")
    in_order = [pl.concat(tables).join(order, on="pair", how="left", maintain_order="left") for tables in (hits, pools)]
    return in_order[0].sort("place", "rank").drop("place"), in_order[1].sort("place").drop("place")


def _searched(
    one: _Set, vectors: np.ndarray, k: int, delta: float | None, index: str, effort: int, threads: int
) -> tuple[pl.DataFrame, pl.DataFrame]:
    """(HITS, POOLS) of the pairs of one pool."""
    taken = _Taken.of(len(one.queries), k, delta)
    exactly = np.ones(len(one.queries), dtype=bool)
    if index != "exact":
        # For a query with more than k labelled positives an index could end among these and find nothing else.  There are few such
        # queries (each has more than k pairs), so all candidates are looked at for them.
        exactly = one.excluded.counts > k
        one.search(Approximate(index, effort, vectors, one.candidates, threads), taken, vectors, (~exactly).nonzero()[0])
    if exactly.any():
        one.search(Exact(vectors, one.candidates), taken, vectors, exactly.nonzero()[0])
    return one.hits(taken, np.arange(len(one.pairs))), one.pools(taken, vectors)


def recall(
    pairs: pl.DataFrame,
    hits: pl.DataFrame,
    ids: list[str],
    vectors: np.ndarray,
    *,
    k: int,
    delta: float | None,
    sample: int,
    items: pl.DataFrame | None = None,
    labels: pl.DataFrame | None = None,
    pool: str = "all",
) -> dict[str, float]:
    """Of each data set the share of the exact best k candidates that `hits` has, over `sample` of its pairs; see `retrieve`."""
    row, shares = _index(ids, vectors), {}
    for name in pairs["dataset"].unique(maintain_order=True).to_list():
        of_set = pairs.filter(pl.col("dataset") == name)
        sampled = of_set["pair"].gather(np.sort(np.random.default_rng(0).permutation(len(of_set))[:sample]))
        wanted = found = 0
        for part in parts(of_set, items, pool):
            one = _Set.of(part, row, items, labels, name)
            drawn = part["pair"].is_in(sampled.implode()).arg_true().to_numpy()
            taken = _Taken.of(len(one.queries), k, delta)
            one.search(Exact(vectors, one.candidates), taken, vectors, np.unique(one.query[drawn]))
            exact = one.hits(taken, drawn)
            wanted += len(exact)
            found += len(exact.join(hits, on=["pair", "candidate"], how="semi"))
        shares[name] = found / wanted if wanted else 1.0
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
    """One training set of n pairs as numbers.

    pool: (P,) the candidates' ids, sorted, so that positions order ties.  candidates: (P,) their rows in the vectors.  positive: (n,)
    position of each pair's own.  queries: (Q,) rows of the distinct queries; query: (n,) each pair's place in it.
    """

    pairs: pl.DataFrame
    pool: pl.Series
    candidates: np.ndarray
    positive: np.ndarray
    queries: np.ndarray
    query: np.ndarray
    excluded: Excluded

    @staticmethod
    def of(pairs: pl.DataFrame, row: dict[str, int], items: pl.DataFrame | None, labels: pl.DataFrame | None, name: str) -> _Set:
        pool = pairs["positive"].unique().sort()
        at = {id: position for position, id in enumerate(pool)}
        positive = np.array([at[id] for id in pairs["positive"]], dtype=np.int64)
        queries, first, query = np.unique(_rows(pairs["query"], row, name), return_index=True, return_inverse=True)
        ids = pairs["query"].gather(first)
        excluded = Excluded.of(ids, pool, *with_labels(ids, pool, query, positive, labels), items)
        return _Set(pairs, pool, _rows(pool, row, name), positive, queries, query, excluded)

    def search(self, search: Exact | Approximate, taken: _Taken, vectors: np.ndarray, chosen: np.ndarray) -> None:
        """Put the best candidates of the `chosen` of the distinct queries into `taken`.

        What is barred takes places among the nearest, in the worst case the best ones, so a query is asked for k more than it has barred
        candidates.  Queries with about as many of them are asked together.
        """
        more = _rounded_up(self.excluded.counts[chosen])
        for extra in np.unique(more).tolist():
            alike = chosen[more == extra]
            for start in range(0, len(alike), _BLOCK):
                asked = alike[start : start + _BLOCK]
                for found in search.nearest(gathered(vectors, self.queries[asked]), taken.k + extra, taken.delta):
                    numbers = asked[found.rows]
                    taken.take(numbers, self.excluded.barred(numbers, found.positions), found.positions, found.values)

    def hits(self, taken: _Taken, chosen: np.ndarray) -> pl.DataFrame:
        """HITS of the `chosen` pairs."""
        positions = taken.positions[self.query[chosen]]  # (m, k)
        values = taken.values[self.query[chosen]]
        there = positions >= 0
        ranks = np.broadcast_to(np.arange(there.shape[1], dtype=np.int32), there.shape)
        return pl.DataFrame(
            {
                "pair": self.pairs["pair"].gather(np.repeat(chosen, there.sum(axis=1))),
                "candidate": self.pool.gather(positions[there]),
                "rank": ranks[there],
                "similarity": values[there],
            },
            schema=artifacts.HITS,
        )

    def pools(self, taken: _Taken, vectors: np.ndarray) -> pl.DataFrame:
        """POOLS of all pairs."""
        return pl.DataFrame(
            {
                "pair": self.pairs["pair"],
                "pool": len(self.pool) - self.excluded.counts[self.query],
                "labelled": self.excluded.labelled[self.query] - 1,
                "itself": self.excluded.itself[self.query],
                "delta": taken.removed[self.query],
                "positive_similarity": self.positive_similarity(vectors),
            },
            schema=artifacts.POOLS,
        )

    def positive_similarity(self, vectors: np.ndarray) -> np.ndarray:
        """Each pair's similarity of query and positive, (n,) float32, computed as those of the hits are, so that they compare exactly."""
        found = np.empty(len(self.pairs), dtype=np.float32)
        for start in range(0, len(found), _BLOCK):
            some = slice(start, start + _BLOCK)
            queries = gathered(vectors, self.queries[self.query[some]])
            positives = gathered(vectors, self.candidates[self.positive[some]])
            found[some] = products(queries, positives, np.arange(len(queries))[:, None])[:, 0]
        return found


def _rounded_up(counts: np.ndarray) -> np.ndarray:
    """Each count or a little more, 1, 4, 16, 64, ...: the fewer there are, the fewer times all candidates are read."""
    powers = 4 ** np.arange(16)
    return powers[np.searchsorted(powers, counts)]


class _Taken(NamedTuple):
    """Of every distinct query its best k candidates: `positions` (Q, k) int64, -1 behind the last one; `values` (Q, k) float32; how many
    were `removed` (Q,) for a similarity of `delta` or more."""

    positions: np.ndarray
    values: np.ndarray
    removed: np.ndarray
    delta: float | None

    @property
    def k(self) -> int:
        return self.positions.shape[1]

    @staticmethod
    def of(queries: int, k: int, delta: float | None) -> _Taken:
        positions = np.full((queries, k), -1, dtype=np.int64)
        values = np.zeros((queries, k), dtype=np.float32)
        removed = np.zeros(queries, dtype=np.int64)
        return _Taken(positions, values, removed, delta)

    def take(self, queries: np.ndarray, barred: np.ndarray, positions: np.ndarray, values: np.ndarray) -> None:
        """For `queries` (n,) what was found for them, best first (n, w), -1 where there is nothing; `barred` (n, w) is never taken."""
        others = ~barred & (positions >= 0)
        close = others & (values >= (np.inf if self.delta is None else self.delta))
        self.removed[queries] = close.sum(axis=1)
        left = others & ~close
        rank = left.cumsum(axis=1, dtype=np.int32) - 1
        best = left & (rank < self.k)
        cells = np.repeat(queries, best.sum(axis=1)), rank[best]
        self.positions[cells], self.values[cells] = positions[best], values[best]
