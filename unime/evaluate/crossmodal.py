"""One cross-modal column, all models: caption sets in both directions, and SugarCrepe's true against changed captions (paper, section 4).

Retrieval      Every query looks in the same pool; Recall@1, 5, 10, a hit where any right one is among the best k.  An image has five
               captions in Flickr30K and COCO, and exactly those count, before and after reranking (the public code accepts the next four
               images' captions too).
Compositional  An image, its true caption and a false one: a hit where the true one is strictly more similar; a tie is a miss under
               every tie rule (`TIE` in the scores).  The figure is the mean over the column's files, whose sizes differ up to threefold.

The reranker orders UniME-V2's best candidates as `evaluate.run` has it do for MMEB's tasks.  For compositional pairs it does the same with
both captions of a pair (`evaluate.compositional_rerank` listwise; by likelihood if MMEB's tasks show no list), or says of each caption by
itself whether it meets the image (pairwise, as in the public code).  What the two kinds have of their own is how vectors become a ranking,
which candidates a list may name, and the figures.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl

from unime import artifacts
from unime.config import View
from unime.data.items import Items
from unime.evaluate import rank, recall
from unime.evaluate.metrics import Pool
from unime.evaluate.rank import Ranking
from unime.evaluate.recall import Shared
from unime.evaluate.run import Models, Tables
from unime.evaluate.tasks import RERANKER, column, rerank_mode
from unime.job import Job

TIE = "strict"
"""Tie rule of compositional pairs in SCORES: the true caption must be strictly better."""


def evaluate_captions(
    queries: pl.DataFrame, pool: pl.DataFrame, items: Items, adapters: Mapping[str, Path | None], config: View, job: Job
) -> Tables:
    """SCORES and PREDICTIONS of every model on one cross-modal column (tables CAPTION_QUERIES and POOL, their `items`).

    `adapters` and `config` as for `run.evaluate`, with evaluate.compositional_rerank.  Metrics: recall@1, recall@5, recall@10; or accuracy
    and accuracy/<part>; and the share of `unread` answers where the reranker gave some.  Of several right answers PREDICTIONS names the
    best one among `top`.
    Raises ArtifactError for a column without queries, with a right answer that is not in the pool or a pair that is none, ConfigError
    for a column that no registry knows.
    """
    models = Models.of(queries, items, adapters, config, job)
    name, kind = queries["task"][0], kind_of(queries, pool, config.evaluate.tie_rule)
    mode = rerank_mode(config.evaluate, isinstance(kind, Pairs))

    def tables(model: str, found: Ranking) -> Tables:
        ranking = kind.judged(found)
        scores = rank.scores(name, model, kind.figures(ranking), kind.tie)
        return scores, rank.predictions(queries, model, ranking, kind.right(ranking), models.keep)

    def ranked(model: str) -> Tables:
        return tables(model, kind.ranking(*models.embed(model, kind.ids()), models.keep))

    def reordered(before: list[list[str]]) -> Tables:
        return tables(RERANKER, models.rerank(queries["query"].to_list(), kind.listed(before), before, kind.rule, mode))

    return models.tables(ranked, reordered)


def kind_of(queries: pl.DataFrame, pool: pl.DataFrame, rule: str) -> Retrieval | Pairs:
    """What a column's queries are, by its name.  Raises ArtifactError, ConfigError as `evaluate_captions`."""
    name = queries["task"][0]
    compositional = column(name).group == "compositional"
    try:
        return Pairs.of(queries) if compositional else Retrieval.of(queries, pool, rule)
    except ValueError as error:
        raise artifacts.ArtifactError(f"{name}: {error}") from error


@dataclass(frozen=True)
class Retrieval:
    """All queries in one pool.  `rule`: the tie rule, in the scores too (`tie`)."""

    queries: pl.DataFrame
    shared: Shared
    rule: str

    @staticmethod
    def of(queries: pl.DataFrame, pool: pl.DataFrame, rule: str) -> Retrieval:
        """Raises ValueError for a query without a right answer in the pool."""
        return Retrieval(queries, Shared.of(pool["id"].to_list(), queries["right"].to_list(), rule), rule)

    @property
    def tie(self) -> str:
        return self.rule

    def ids(self) -> set[str]:
        return set(self.queries["query"]) | set(self.shared.ids)

    def ranking(self, ids: Sequence[str], vectors: np.ndarray, keep: int) -> Ranking:
        """Cosine between unit `vectors` (N, D) of `ids` (N); each list holds the best `keep`."""
        row = {name: k for k, name in enumerate(ids)}
        queries, candidates = (np.array([row[i] for i in some]) for some in (self.queries["query"], self.shared.ids))
        ranks, best = recall.search(vectors, queries, candidates, self.shared, keep)
        return Ranking([[self.shared.ids[c] for c in places] for places in best], ranks, np.zeros(len(ranks), dtype=bool))

    def listed(self, before: Sequence[Sequence[str]]) -> Pool:
        """What a reranker's lists may name: of each query its best candidates, all of which the pool has (Q, n)."""
        ids = sorted(set().union(*before))
        number = {name: k for k, name in enumerate(ids)}
        wanted = [[name in right for name in row] for row, right in zip(before, self._right(), strict=True)]
        return Pool(ids, np.array([[number[name] for name in row] for row in before], dtype=np.int64), np.array(wanted, dtype=bool))

    def judged(self, ranking: Ranking) -> Ranking:
        return ranking

    def figures(self, ranking: Ranking) -> list[tuple[str, float, int]]:
        return [(metric, value, len(self.queries)) for metric, value in rank.recalls(ranking).items()]

    def right(self, ranking: Ranking) -> pl.Series:
        """(Q,) the right answer that stands first in a query's list, or its first one where the list has none."""
        rows = zip(ranking.lists, self._right(), self.queries["right"], strict=True)
        return pl.Series([next((name for name in top if name in right), given[0]) for top, right, given in rows], dtype=pl.String)

    def _right(self) -> list[set[str]]:
        return [{self.shared.ids[place] for place in places} for places in self.shared.wanted]


@dataclass(frozen=True)
class Pairs:
    """An image, a true and a false caption each: `pool` (Q, 2), the true one first; `same`: (Q,) bool, pairs whose captions are one."""

    queries: pl.DataFrame
    pool: Pool
    same: np.ndarray
    rule: str = "content"  # the true one stands last among equals
    tie: str = TIE

    @staticmethod
    def of(queries: pl.DataFrame) -> Pairs:
        """Raises ValueError for a query with another number of captions than two."""
        pairs = queries["candidates"].to_list()
        if wrong := [row for row, pair in enumerate(pairs) if len(pair) != 2]:
            count = len(pairs[wrong[0]])
            raise ValueError(f"query {wrong[0]} has {count} captions; the true and the false one are needed, make the table again")
        ids = sorted(set().union(*pairs))
        number = {name: k for k, name in enumerate(ids)}
        columns = np.array([[number[name] for name in pair] for pair in pairs], dtype=np.int64)
        return Pairs(queries, Pool(ids, columns, np.tile([True, False], (len(pairs), 1))), columns[:, 0] == columns[:, 1])

    def ids(self) -> set[str]:
        return set(self.queries["query"]) | set(self.pool.ids)

    def ranking(self, ids: Sequence[str], vectors: np.ndarray, keep: int) -> Ranking:
        return rank.by_similarity(self.queries, self.pool, ids, vectors, self.rule)

    def listed(self, before: Sequence[Sequence[str]]) -> Pool:
        return self.pool

    def judged(self, ranking: Ranking) -> Ranking:
        """No model can tell a caption from itself: such a pair is a miss, whoever put it in order."""
        return dataclasses.replace(ranking, ranks=np.where(self.same, 1, ranking.ranks))

    def figures(self, ranking: Ranking) -> list[tuple[str, float, int]]:
        hits = self.queries.select("part", hit=pl.Series(rank.places(ranking) == 0))
        parts = hits.group_by("part", maintain_order=True).agg(pl.col("hit").mean().alias("share"), pl.len())
        found = [("accuracy", float(parts["share"].mean()), len(hits))]
        found += [(f"accuracy/{part}", share, n) for part, share, n in parts.iter_rows()]
        return found + ([("unread", float(ranking.unread.mean()), len(hits))] if ranking.unread.any() else [])

    def right(self, ranking: Ranking) -> pl.Series:
        return self.queries["candidates"].list.first()
