"""What guessing gets right in a task, and how far training rows hold its answers."""

from __future__ import annotations

import polars as pl

from unime.caution import Score
from unime.evaluate.tasks import MODELS

BASE = "zero_shot"


def chance(queries: pl.DataFrame, pool: pl.DataFrame) -> float:
    """The share of TASKS or CAPTION_QUERIES that a random choice among the distinct candidates gets right; `pool` is POOL, or empty."""
    if len(pool):
        return float((queries["right"].list.len() / len(pool)).mean())  # type: ignore[arg-type]
    return float((1 / queries["candidates"].list.n_unique()).mean())  # type: ignore[arg-type]


def trained(scores: pl.DataFrame, metric: str, guessed: float) -> dict[str, Score]:
    """Name of each trained model -> its score in one task, out of SCORES."""
    found = {}
    for row in scores.filter(pl.col("metric") == metric).iter_rows(named=True):
        if row["model"] != BASE:
            found[MODELS[row["model"]]] = Score(row["value"], row["n"], guessed)
    return found


def leaks(queries: pl.DataFrame, items: pl.DataFrame, pairs: pl.DataFrame, trained: pl.DataFrame) -> tuple[int, int]:
    """Of a task's queries: how many are a training pair (`pairs`: PAIRS) together with a right answer, and of how many an answer shows an
    image that a training pair shows too, beside whatever text.  `items` are the task's ITEMS, `trained` those of training.

    Texts alone are not counted as answers: tasks share their labels with the training sets by design.
    """
    rights = answers(queries).with_row_index("number").explode("right")
    paired = rights.join(pairs.select("query", right="positive").unique(), on=["query", "right"], how="semi")
    shown = pl.concat([pairs["query"], pairs["positive"].alias("query")]).unique()
    seen = trained.filter(pl.col("id").is_in(shown.implode()) & (pl.col("image") != ""))["image"]
    with_image = items.filter(pl.col("image").is_in(seen.unique().implode()))["id"]
    pictured = rights.filter(pl.col("right").is_in(with_image.implode()))
    return paired["number"].n_unique(), pictured["number"].n_unique()


def answers(queries: pl.DataFrame) -> pl.DataFrame:
    """(query, right: list of ids) of TASKS or CAPTION_QUERIES."""
    if isinstance(queries.schema["right"], pl.List):
        return queries.select("query", "right")
    return queries.select("query", right=pl.concat_list(pl.col("candidates").list.get(pl.col("right"))))
