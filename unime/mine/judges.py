"""Judgements of several judges side by side, and their mean as those of one more judge.

Judges of one run read the same pairs, so their tables have the same rows; where a judge lacks one, or has one more, the tables are of
different runs and nothing is computed.  No torch.
"""

from __future__ import annotations

from collections.abc import Mapping

import polars as pl

from unime import artifacts
from unime.mine import check_scores

KEY = ["pair", "candidate", "positive"]
FIGURES = ("yes", "no", "score")


def mean(tables: Mapping[str, pl.DataFrame]) -> pl.DataFrame:
    """JUDGEMENTS in the first table's order: `score`, `yes` and `no` are the arithmetic means of the judges' (name -> JUDGEMENTS).

    The score is the mean of the scores and not the score of the mean logits: logits of different models are on different scales.
    Raises ArtifactError naming pair and candidate where the tables are not of the same rows or a score is no share.
    """
    (first, table), *others = tables.items()
    check_scores(table)
    sums = table.select(pl.col(name).cast(pl.Float64) for name in FIGURES)
    for name, other in others:
        more = beside(table, other, (first, name))
        sums = sums.select(pl.col(figure) + more[figure] for figure in FIGURES)
    means = sums.select((pl.col(name) / len(tables)).cast(artifacts.JUDGEMENTS[name]) for name in FIGURES)
    return pl.concat([table.select(KEY), means], how="horizontal")


def beside(table: pl.DataFrame, other: pl.DataFrame, names: tuple[str, str]) -> pl.DataFrame:
    """`other` with its rows in the order of `table`; both JUDGEMENTS, of the judges `names`.  Raises as `mean`."""
    check_scores(other)
    if table.select(KEY).equals(other.select(KEY)):  # judges write in the order of pairs and hits
        return other
    for one, name in ((table, names[0]), (other, names[1])):
        if len(twice := one.filter(one.select(KEY).is_duplicated())):
            _refuse(twice, f"is there twice among the judgements of {name}")
    for one, two, (has, lacks) in ((table, other, names), (other, table, names[::-1])):
        if len(lost := one.join(two, on=KEY, how="anti", maintain_order="left")):
            _refuse(lost, f"is judged by {has} and not by {lacks} ({len(lost)} such)")
    return table.select(KEY).join(other, on=KEY, how="left", maintain_order="left")


def _refuse(rows: pl.DataFrame, what: str) -> None:
    row = rows.row(0, named=True)
    raise artifacts.ArtifactError(
        f"judgements: pair {row['pair']}, candidate {row['candidate']} {what}; the tables are of different runs: "
        "run the judges' stages again"
    )
