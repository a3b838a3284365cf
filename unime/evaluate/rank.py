"""One model's ranking of a task's candidates as tables: its figures (SCORES) and its answers (PREDICTIONS)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import polars as pl

from unime import artifacts
from unime.evaluate import metrics
from unime.evaluate.metrics import Pool

TOP = 10
"""Best candidates that a prediction keeps, or more where the reranker sees more."""

CUTS = (1, 5, 10)
"""k of the recall@k beside Precision@1 (recall@1 under another name)."""


@dataclass(frozen=True)
class Ranking:
    """Candidate ids of each query, best first (`lists`), how many stand before the right one (`ranks`, (Q,)), and queries without
    an answer (`unread`: a generated text with no number in it), which are wrong wherever the right one stands."""

    lists: list[list[str]]
    ranks: np.ndarray
    unread: np.ndarray


def distinct(task: pl.DataFrame) -> list[str]:
    """Ids of a task's queries and candidates, each once, sorted."""
    return sorted(set(task["query"]).union(*task["candidates"]))


def pool(task: pl.DataFrame, tie_rule: str) -> Pool:
    """The candidates of a task, for a tie rule.  Raises ArtifactError for a right answer outside its query's candidates."""
    try:
        return Pool.of(task["candidates"].to_list(), task["right"].to_list(), tie_rule)
    except ValueError as error:
        raise artifacts.ArtifactError(f"{_name(task)}: {error}") from error


def by_similarity(task: pl.DataFrame, found: Pool, ids: Sequence[str], vectors: np.ndarray, tie_rule: str, keep: int = TOP) -> Ranking:
    """Cosine between unit `vectors` (N, D) of `ids` (N); each list holds the best `keep`."""
    at = {name: row for row, name in enumerate(ids)}
    queries = vectors[[at[i] for i in task["query"]]]
    candidates = vectors[[at[i] for i in found.ids]]
    ranks, first = metrics.search(queries, candidates, found, tie_rule, keep)
    return Ranking(found.listed(first), ranks, np.zeros(len(ranks), dtype=bool))


def by_score(found: Pool, scores: np.ndarray, tie_rule: str) -> Ranking:
    """(Q, C) scores, the higher the better."""
    lists = found.listed(metrics.order(scores, found, tie_rule))
    return Ranking(lists, metrics.ranks(scores, found, tie_rule), np.zeros(len(lists), dtype=bool))


def with_top(found: Pool, before: Sequence[Sequence[str]], top: Sequence[Sequence[str]], unread: Sequence[bool]) -> Ranking:
    """A ranking with its first candidates put in another order (`top`, the same ones); the others stay as they were in `before`."""
    lists = [[*new, *old[len(new) :]] for new, old in zip(top, before, strict=True)]
    listed = found.only(lists)
    present = listed.wanted.any(axis=1)
    before_right = np.where(present, listed.wanted.argmax(axis=1), (found.columns >= 0).sum(axis=1))
    return Ranking(lists, before_right, np.asarray(unread, dtype=bool))


def tables(task: pl.DataFrame, model: str, ranking: Ranking, tie_rule: str, keep: int = TOP) -> tuple[pl.DataFrame, pl.DataFrame]:
    """SCORES (Precision@1, recall@5, recall@10, and the share of unread answers where there are any) and PREDICTIONS of one model."""
    right = task.select(pl.col("candidates").list.get(pl.col("right"))).to_series()
    figures = [(metric, value, len(task)) for metric, value in recalls(ranking, "precision@1").items()]
    return scores(_name(task), model, figures, tie_rule), predictions(task, model, ranking, right, keep)


def recalls(ranking: Ranking, first: str = "recall@1") -> dict[str, float]:
    """recall@1 (under the name `first`), recall@5, recall@10, and the share of unread answers where there are any."""
    found = places(ranking)
    figures = {first if k == 1 else f"recall@{k}": metrics.recall_at(found, k) for k in CUTS}
    return figures | ({"unread": float(ranking.unread.mean())} if ranking.unread.any() else {})


def places(ranking: Ranking) -> np.ndarray:
    """(Q,) int64: `ranks` with an unread answer behind everything; 0 is a right answer."""
    return np.where(ranking.unread, np.iinfo(np.int64).max, ranking.ranks)


def scores(name: str, model: str, figures: Iterable[tuple[str, float, int]], tie_rule: str) -> pl.DataFrame:
    """SCORES from (metric, value, n)."""
    rows = [(name, model, metric, value, n, tie_rule) for metric, value, n in figures]
    return pl.DataFrame(rows, schema=artifacts.SCORES, orient="row")


def predictions(task: pl.DataFrame, model: str, ranking: Ranking, right: pl.Series, keep: int) -> pl.DataFrame:
    """PREDICTIONS of one model from the columns task, row, query; `right` (Q) is the right answer's id, or one of several.

    Under the tie rule `unime_v2` a predicted id may equal the right one and be wrong: it is a repeat of it in another place of the list.
    """
    table = task.select("task", pl.lit(model).alias("model"), "row", "query").with_columns(
        predicted=pl.Series(["" if bad else row[0] for row, bad in zip(ranking.lists, ranking.unread, strict=True)], dtype=pl.String),
        right=right,
        correct=pl.Series(places(ranking) == 0),
        top=pl.Series([row[:keep] for row in ranking.lists], dtype=pl.List(pl.String)),
    )
    return table.select(list(artifacts.PREDICTIONS))


def _name(task: pl.DataFrame) -> str:
    return task["task"][0] if len(task) else "a task without queries"
