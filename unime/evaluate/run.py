"""One task, all models: four embedders on all candidates, then the reranker on the best candidates of the last one.

Each model's two tables are kept in scratch as soon as they are made, and so are the shards of its vectors and of the reranker's
prompts: a killed run goes on from there, and the result is put together from those files in every case.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import polars as pl

from unime import artifacts
from unime.backbones import load
from unime.config import View
from unime.data.items import Items
from unime.embed import embed
from unime.evaluate import rank, rerank
from unime.evaluate.metrics import Pool
from unime.evaluate.rank import Ranking
from unime.evaluate.tasks import EMBEDDERS, MODELS, RERANKED, RERANKER
from unime.job import Job

Tables = tuple[pl.DataFrame, pl.DataFrame]


def evaluate(task: pl.DataFrame, items: Items, adapters: dict[str, Path | None], config: View, job: Job) -> Tables:
    """SCORES and PREDICTIONS of every model on one task (table TASKS, its `items`).

    `adapters` names the adapter folder of each key of `tasks.MODELS`, None for the base model as it is.  `config` needs the sections
    models, embed, evaluate.rerank, evaluate.rerank_mode, evaluate.tie_rule.  Raises ArtifactError for a task without queries or
    with a right answer outside its candidates, ConfigError for a task that no registry knows.
    """
    if not len(task):
        raise artifacts.ArtifactError(f"{job.item or 'the task'} has no queries; see its data report for the rows that were left out")
    if absent := [model for model in MODELS if model not in adapters]:
        raise ValueError(f"no adapter named for {', '.join(absent)}; give None for a model without one")
    rule, keep = config.evaluate.tie_rule, max(rank.TOP, config.evaluate.rerank)
    candidates = rank.pool(task, items, rule)

    def embedder(model: str) -> Ranking:
        backbone = load(config.models.base, adapter=adapters[model], models=config.models)
        ids, vectors = embed(
            rank.distinct(task),
            items,
            backbone,
            batch_tokens=config.embed.batch_tokens,
            shard=config.embed.shard,
            scratch=job.scratch / f"{model}-vectors",
            track=job.track,
        )
        return rank.by_similarity(task, candidates, ids, vectors, rule)

    made = {
        model: _kept(job.scratch / model, lambda model=model: rank.tables(task, model, embedder(model), rule, keep)) for model in EMBEDDERS
    }
    before = made[RERANKED][1]["top"].to_list()
    made[RERANKER] = _kept(
        job.scratch / RERANKER,
        lambda: rank.tables(task, RERANKER, _reranked(task, items, candidates, before, adapters[RERANKER], config, job), rule, keep),
    )
    for model, (scores, _) in made.items():
        job.log.info("%s %s: %s", job.item, model, ", ".join(f"{row['metric']} {row['value']:.4f}" for row in scores.iter_rows(named=True)))
    scores, predictions = zip(*(made[model] for model in MODELS), strict=True)
    return pl.concat(scores), pl.concat(predictions)


def _reranked(
    task: pl.DataFrame, items: Items, candidates: Pool, before: list[list[str]], adapter: Path | None, config: View, job: Job
) -> Ranking:
    """The best `evaluate.rerank` distinct candidates in the reranker's order, the others behind them as they were."""
    lists = [row[: config.evaluate.rerank] for row in before]
    reranker = load(config.models.reranker, adapter=adapter, models=config.models)
    scores, unread = rerank.score(
        rerank.Lists(reranker, items, task["query"].to_list(), lists),
        mode=config.evaluate.rerank_mode,
        batch_tokens=config.embed.batch_tokens,
        scratch=job.scratch / f"{RERANKER}-lists",
        track=job.track,
    )
    shown = candidates.only(lists)
    order = "first" if config.evaluate.rerank_mode == "generate" else config.evaluate.tie_rule  # only the named one moves, to the front
    top = rank.by_score(shown, scores, order).lists
    return rank.with_top(candidates, before, top, unread)


def _kept(place: Path, make: Callable[[], Tables]) -> Tables:
    """A model's tables from scratch, made first where they are not there."""
    if not place.exists():
        scores, predictions = make()
        with artifacts.whole(place) as temporary:
            artifacts.write_table(scores, temporary / "scores.parquet", artifacts.SCORES)
            artifacts.write_table(predictions, temporary / "predictions.parquet", artifacts.PREDICTIONS)
    return artifacts.read_table(place / "scores.parquet", artifacts.SCORES), artifacts.read_table(
        place / "predictions.parquet", artifacts.PREDICTIONS
    )
