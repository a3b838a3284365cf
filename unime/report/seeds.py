"""Several runs of the table (seeds): mean and standard deviation of each row, and of the steps from one row to the next.

A step is taken within each run before it is averaged: runs share their data and seed across rows, so the spread of a step says more
than the spreads of its two ends.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import polars as pl

from unime.artifacts import UNREADABLE, ArtifactError
from unime.evaluate.tasks import MEANS, MODELS
from unime.report.table import DIFFERENCE, HEADINGS


class Spread(NamedTuple):
    """Mean and sample standard deviation (n - 1) over `n` runs, in percent or points; deviation 0 for one run."""

    mean: float
    std: float
    n: int

    def __str__(self) -> str:
        return f"{self.mean:.2f} ± {self.std:.2f}" if self.n > 1 else f"{self.mean:.2f}"


def spread(values: Sequence[float]) -> Spread:
    return Spread(statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else 0.0, len(values))


def read(paths: Sequence[str | Path]) -> list[pl.DataFrame]:
    """This run's rows of several mmeb_table.csv files.  Raises ArtifactError where a file is none, or its rows or tasks differ."""
    tables = []
    for path in paths:
        try:
            table = pl.read_csv(path)
        except UNREADABLE as error:
            raise ArtifactError(f"{path}: cannot be read ({error}); name the results/mmeb_table.csv of a run") from error
        if absent := [name for name in ("model", "source", *MEANS) if name not in table.columns]:
            raise ArtifactError(f"{path}: column {absent[0]!r} is missing; name the results/mmeb_table.csv of a run")
        table = table.filter(pl.col("source") == "this run")
        if table["model"].to_list() != list(MODELS.values()):
            raise ArtifactError(f"{path}: rows {', '.join(table['model'])}; needed: {', '.join(MODELS.values())}")
        if tables and table.columns != tables[0].columns:
            raise ArtifactError(f"{path}: other tasks than {paths[0]}; compare runs with the same evaluate.tasks")
        tables.append(table)
    return tables


def over_seeds(tables: Sequence[pl.DataFrame]) -> dict[str, dict[str, Spread]]:
    """Row -> column -> spread over the tables, for every mean and task that has figures."""
    return _spreads(tables, {model: (model, None) for model in MODELS.values()})


def steps(tables: Sequence[pl.DataFrame]) -> dict[str, dict[str, Spread]]:
    """`B - A` -> column -> spread of the difference within each table, for each row B and the row A above it."""
    rows = list(MODELS.values())
    return _spreads(tables, {f"{after} - {before}": (after, before) for before, after in zip(rows[:-1], rows[1:], strict=True)})


def to_markdown(tables: Sequence[pl.DataFrame]) -> str:
    """Both as markdown tables of the means, with the number of runs."""
    header = ["", *HEADINGS.values()]
    lines = [f"Precision@1 (%), mean ± standard deviation over {len(tables)} runs", ""]
    for title, rows in (("model", over_seeds(tables)), ("difference (points)", steps(tables))):
        lines += ["| " + " | ".join([title, *header[1:]]) + " |", "| --- |" + " ---: |" * len(MEANS)]
        lines += [
            "| " + " | ".join([name, *(str(found[mean]) if mean in found else "" for mean in MEANS)]) + " |" for name, found in rows.items()
        ]
        lines += [""]
    return "\n".join(lines)


def _spreads(tables: Sequence[pl.DataFrame], wanted: dict[str, tuple[str, str | None]]) -> dict[str, dict[str, Spread]]:
    runs = [{row["model"]: row for row in table.iter_rows(named=True)} for table in tables]
    columns = [name for name in tables[0].columns if name not in ("model", "source", DIFFERENCE)]  # that one is overall less a constant
    found: dict[str, dict[str, Spread]] = {}
    for name, (row, minus) in wanted.items():
        found[name] = {}
        for column in columns:
            values = [run[row][column] for run in runs]
            if any(value is None for value in values):
                continue
            found[name][column] = spread([v - (run[minus][column] if minus else 0.0) for v, run in zip(values, runs, strict=True)])
    return found
