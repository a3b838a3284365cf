"""One embedder alone on one task, for ablations: the figures that `run` and `crossmodal` give it, without the other models."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import polars as pl

from unime.config import View
from unime.data.items import Items
from unime.evaluate import crossmodal, rank
from unime.evaluate.run import Models
from unime.evaluate.tasks import RERANKED
from unime.job import Job


def score_task(task: pl.DataFrame, items: Items, adapter: Path, config: View, job: Job) -> pl.DataFrame:
    """SCORES of the embedder with this adapter on one task (table TASKS, its `items`); `config` as for `run.evaluate`, reranker apart."""
    rule, name = config.evaluate.tie_rule, task["task"][0]
    ids, vectors = _models(items, adapter, config, job, name).embed(RERANKED, rank.distinct(task))
    ranking = rank.by_similarity(task, rank.pool(task, rule), ids, vectors, rule)
    return rank.tables(task, RERANKED, ranking, rule)[0]


def score_captions(queries: pl.DataFrame, pool: pl.DataFrame, items: Items, adapter: Path, config: View, job: Job) -> pl.DataFrame:
    """As `score_task`, of one cross-modal column (tables CAPTION_QUERIES and POOL)."""
    name = queries["task"][0]
    kind = crossmodal.kind_of(queries, pool, config.evaluate.tie_rule)
    ids, vectors = _models(items, adapter, config, job, name).embed(RERANKED, kind.ids())
    ranking = kind.judged(kind.ranking(ids, vectors, rank.TOP))
    return rank.scores(name, RERANKED, kind.figures(ranking), kind.tie)


def _models(items: Items, adapter: Path, config: View, job: Job, name: str) -> Models:
    """The one model, with a scratch folder of its own for each task."""
    return Models(items, {RERANKED: adapter}, config, dataclasses.replace(job, scratch=job.scratch / name))
