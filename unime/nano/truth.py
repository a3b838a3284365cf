"""Who is a false negative, exactly: the suite's side table, read by tests and reports and by nothing that trains or scores."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from unime import artifacts
from unime.nano import makers


class Truth:
    """The facts of every training item by content id; `matches` says whether a candidate really answers a query."""

    def __init__(self, table: pl.DataFrame):
        self._facts: dict[tuple[str, str, str], list[dict[str, Any]]] = {}
        for row in table.iter_rows(named=True):
            self._facts.setdefault((row["dataset"], row["side"], row["id"]), []).append(json.loads(row["facts"]))

    @classmethod
    def load(cls, path: str | Path) -> Truth:
        return cls(artifacts.read_table(path, artifacts.TRUTH))

    def matches(self, dataset: str, query: str, candidate: str) -> bool:
        """True where any right answer to this query has the candidate's facts.

        Raises KeyError where the table does not have the item.
        """
        asked, offered = self._facts[dataset, "query", query], self._facts[dataset, "candidate", candidate]
        return any(makers.meets(q, c) for q in asked for c in offered)

    def matches_many(self, dataset: str, query: str, candidates: Sequence[str]) -> np.ndarray:
        """`matches` for several candidates of one query, (n,) bool."""
        return np.fromiter((self.matches(dataset, query, candidate) for candidate in candidates), bool, len(candidates))
