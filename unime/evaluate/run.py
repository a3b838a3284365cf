"""One task, all models: four embedders on all candidates, then the reranker on the best candidates of the last one.

Each model's two tables are kept in scratch as soon as they are made, and so are the shards of its vectors and of the reranker's
prompts: a killed run goes on from there, and the result is put together from those files in every case.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl

from unime import artifacts
from unime.backbones import Backbone, load
from unime.config import View
from unime.data.items import Items
from unime.embed import embed
from unime.evaluate import rank, rerank
from unime.evaluate.metrics import Pool
from unime.evaluate.rank import Ranking
from unime.evaluate.tasks import EMBEDDERS, MODELS, RERANKED, RERANKER, rerank_image_size, rerank_mode
from unime.job import Job

Tables = tuple[pl.DataFrame, pl.DataFrame]


def evaluate(task: pl.DataFrame, items: Items, adapters: Mapping[str, Path | None], config: View, job: Job) -> Tables:
    """SCORES and PREDICTIONS of every model on one task (table TASKS, its `items`).

    `adapters` names the adapter folder of each key of `tasks.MODELS`, None for the base model as it is.  `config` needs the sections
    models, embed, train.reranker.image_size, .max_tokens and .prompt (a list is shown as it was trained), evaluate.image_size,
    evaluate.rerank, evaluate.rerank_mode, evaluate.rerank_image_size, evaluate.tie_rule.  Raises ArtifactError for a task without queries
    or with a right answer outside its candidates.
    """
    models = Models.of(task, items, adapters, config, job)
    rule, keep = config.evaluate.tie_rule, models.keep
    mode = rerank_mode(config.evaluate, compositional=False)
    candidates = rank.pool(task, rule)

    def ranked(model: str) -> Tables:
        ids, vectors = models.embed(model, rank.distinct(task))
        return rank.tables(task, model, rank.by_similarity(task, candidates, ids, vectors, rule, keep), rule, keep)

    def reordered(before: list[list[str]]) -> Tables:
        ranking = models.rerank(task["query"].to_list(), candidates, before, rule, mode)
        return rank.tables(task, RERANKER, ranking, rule, keep)

    return models.tables(ranked, reordered)


@dataclass(frozen=True)
class Models:
    """The table's models and the items of one task that they see; each model's weights are in memory while it works."""

    items: Items
    adapters: Mapping[str, Path | None]
    config: View
    job: Job

    @staticmethod
    def of(queries: pl.DataFrame, items: Items, adapters: Mapping[str, Path | None], config: View, job: Job) -> Models:
        """Raises ArtifactError where there are no queries, ValueError where a model's adapter is not named."""
        if not len(queries):
            raise artifacts.ArtifactError(f"{job.item or 'the task'} has no queries; see its data report for the rows that were left out")
        if absent := [model for model in MODELS if model not in adapters]:
            raise ValueError(f"no adapter named for {', '.join(absent)}; give None for a model without one")
        return Models(items, adapters, config, job)

    @property
    def keep(self) -> int:
        """Best candidates that a prediction keeps: at least as many as the reranker sees."""
        return max(rank.TOP, self.config.evaluate.rerank)

    def embed(self, model: str, ids: Iterable[str]) -> tuple[list[str], np.ndarray]:
        """The distinct ids, sorted, and their unit vectors (N, D) float32 by one of the embedders."""
        return embed(
            ids,
            self.items,
            self._load(self.config.models.base, model, self.config.evaluate.image_size),
            batch_tokens=self.config.embed.batch_tokens,
            shard=self.config.embed.shard,
            scratch=self.job.scratch / f"{model}-vectors",
            track=self.job.track,
        )

    def _load(self, folder: str, model: str, size: int, max_tokens: int | None = None) -> Backbone:
        return load(folder, adapter=self.adapters[model], models=self.config.models, image_size=size, max_tokens=max_tokens)

    def rerank(self, queries: Sequence[str], candidates: Pool, before: list[list[str]], rule: str, mode: str) -> Ranking:
        """The best `evaluate.rerank` candidates of `before` in the reranker's order, the others behind them as they were.

        `mode` is how it reads them, a value of `evaluate.rerank_mode`.
        """
        lists = [row[: self.config.evaluate.rerank] for row in before]
        settings = self.config.train.reranker
        reranker = self._load(self.config.models.reranker, RERANKER, rerank_image_size(self.config), settings.max_tokens)
        scores, unread = rerank.score(
            rerank.Lists(reranker, self.items.on_white(), queries, lists, settings.prompt),
            mode=mode,
            batch_tokens=self.config.embed.batch_tokens,
            scratch=self.job.scratch / f"{RERANKER}-lists",
            track=self.job.track,
        )
        order = "vlm2vec_v1" if mode == "generate" else rule  # only the named one moves, to the front
        top = rank.by_score(candidates.only(lists), scores, order).lists
        return rank.with_top(candidates, before, top, unread)

    def tables(self, ranked: Callable[[str], Tables], reordered: Callable[[list[list[str]]], Tables]) -> Tables:
        """SCORES and PREDICTIONS of all models, one below the other.

        `ranked(model)` makes an embedder's, `reordered(before)` the reranker's from the best candidates of the one that it reorders.
        """
        scratch = self.job.scratch
        made = {model: _kept(scratch / model, lambda model=model: ranked(model)) for model in EMBEDDERS}
        made[RERANKER] = _kept(scratch / RERANKER, lambda: reordered(made[RERANKED][1]["top"].to_list()))
        for model, (scores, _) in made.items():
            figures = ", ".join(f"{row['metric']} {row['value']:.4f}" for row in scores.iter_rows(named=True))
            self.job.log.info("%s %s: %s", self.job.item, model, figures)
        scores, predictions = zip(*(made[model] for model in MODELS), strict=True)
        return pl.concat(scores), pl.concat(predictions)


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
