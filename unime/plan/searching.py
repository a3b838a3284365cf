"""Time the exact search on random unit vectors: `python -m unime.plan.searching WIDTH POOL NEIGHBOURS SECONDS` prints a line of JSON.

A process of its own: faiss and torch bring an OpenMP runtime each (`unime.retrieve`).
"""

from __future__ import annotations

import json
import sys
import time

import numpy as np

from unime.retrieve.search import Exact

BATCH = 256
"""Queries searched between two looks at the clock."""


def measure(width: int, pool: int, neighbours: int, seconds: float) -> dict[str, float]:
    """{"rate": products of a query and a candidate a second, "queries": how many were asked}."""
    rng = np.random.default_rng(0)
    vectors = rng.standard_normal((pool + BATCH, width), dtype=np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    search, asked = Exact(vectors, np.arange(pool)), 0
    start = time.monotonic()
    while not asked or time.monotonic() - start < seconds:
        for _ in search.nearest(vectors[pool:], neighbours, None):
            pass
        asked += BATCH
    return {"rate": asked * pool / (time.monotonic() - start), "queries": asked}


if __name__ == "__main__":
    print(json.dumps(measure(*map(int, sys.argv[1:4]), float(sys.argv[4]))))
