"""Where a table's rows come from, by what the data stage says in its report."""

from __future__ import annotations

import bisect
from collections.abc import Mapping, Sequence
from typing import Any

import polars as pl


class Places:
    """The runs that `data.rows.places` wrote: file and row of a source, by the key of a row (`row` of PAIRS, TASKS, CAPTION_QUERIES)."""

    def __init__(self, runs: Sequence[Mapping[str, Any]]) -> None:
        self._runs = runs
        self._firsts = [run["first"] for run in runs]

    def at(self, key: int) -> tuple[str, int]:
        """(file, row in it)."""
        run = self._runs[bisect.bisect_right(self._firsts, key) - 1]
        return run["file"], run["row"] + run["step"] * (key - run["first"])

    def named(self, bad: pl.DataFrame) -> pl.DataFrame:
        """Rows (row, reason) as (file, row, reason)."""
        found = [(*self.at(row), reason) for row, reason in bad.iter_rows()]
        return pl.DataFrame(found, schema={"file": pl.String, "row": pl.Int64, "reason": pl.String}, orient="row")
