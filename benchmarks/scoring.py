"""Precision@1 of MMEB's 36 tasks from vectors: matrix products against a Python loop over queries: python benchmarks/scoring.py [rounds]

36 tasks of 1,000 queries with 1,000 candidates, D = 1536: all with one list for all queries (labels), and all with lists of their own out
of 4,000 candidates.  The loop is what evaluation scripts do: stack a query's candidates, multiply, take the argmax.
"""

from __future__ import annotations

import sys

import numpy as np
from harness import Section, main, ratio, turns

from unime.evaluate import metrics

TASKS, QUERIES, CANDIDATES, WIDTH, POOL = 36, 1000, 1000, 1536, 4000


def task(number: int, own: bool) -> tuple[np.ndarray, list[str], dict[str, np.ndarray], list[list[str]]]:
    """Query vectors, pool ids, their vectors by id, and each query's candidate ids, the right one first."""
    rng = np.random.default_rng(number)
    pool = rng.standard_normal((POOL if own else CANDIDATES, WIDTH), dtype=np.float32)
    pool /= np.linalg.norm(pool, axis=1, keepdims=True)
    ids = [f"c{k:06d}" for k in range(len(pool))]
    lists = [rng.permutation(len(pool))[:CANDIDATES] for _ in range(QUERIES)]
    queries = pool[[row[0] for row in lists]] + 0.12 * rng.standard_normal((QUERIES, WIDTH), dtype=np.float32)
    queries /= np.linalg.norm(queries, axis=1, keepdims=True)
    return queries, ids, dict(zip(ids, pool, strict=True)), [[ids[k] for k in row] for row in lists]


def loop(queries: np.ndarray, vectors: dict[str, np.ndarray], lists: list[list[str]]) -> list[str]:
    found = []
    for query, ids in zip(queries, lists, strict=True):
        found.append(ids[int(np.argmax(np.stack([vectors[name] for name in ids]) @ query))])
    return found


def products(queries: np.ndarray, matrix: np.ndarray, pool: metrics.Pool) -> np.ndarray:
    """(Q,) the place of each query's best candidate in its list."""
    return metrics.search(queries, matrix, pool, "content", 10)[1][:, 0]


def timed(rounds: int, own: bool) -> dict[str, list[float]]:
    """Seconds of each task, by way."""
    times: dict[str, list[float]] = {"loop": [], "products": []}
    for number in range(TASKS):
        queries, ids, vectors, lists = task(number, own)
        matrix, pool = np.stack([vectors[name] for name in ids]), metrics.Pool.of(lists, [0] * QUERIES)
        best = products(queries, matrix, pool)
        if loop(queries, vectors, lists) != [row[place] for row, place in zip(lists, best, strict=True)]:
            sys.exit(f"task {number}: the two ways predict differently; nothing to compare")

        def by_loop(given: tuple = (queries, vectors, lists)) -> None:
            loop(*given)

        def by_products(given: tuple = (queries, matrix, pool)) -> None:
            products(*given)

        for way, found in turns({"loop": by_loop, "products": by_products}, rounds, warmup=0).items():
            times[way].append(sorted(found)[len(found) // 2])
    return times


def run(rounds: int) -> Section:
    rows = []
    for said, own in (("one list for all queries", False), ("lists of their own", True)):
        times = timed(rounds, own)
        rows.append([f"{said}: Python loop over queries", "1.00", f"{sum(times['loop']):.1f}"])
        rows.append([f"{said}: one product, best ten and ranks", ratio(times["loop"], times["products"]), f"{sum(times['products']):.1f}"])
    text = "36 tasks of 1,000 x 1,000, D = 1536, the same predictions checked first."
    return Section("Scoring: 36 tasks", text, ["way", "speed, median of tasks (min to max)", "seconds, all tasks"], rows, ["numpy"])


if __name__ == "__main__":
    main(run, 1)
