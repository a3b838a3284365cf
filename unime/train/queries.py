"""What a batch's queries and candidates add to the gradient where each query's loss depends on its own candidates only.

Such a loss is a sum over queries: micro-batches of whole queries with one forward pass an item give the gradient of the full batch
exactly, so nothing is cached and nothing is computed twice.  Losses in which a query sees the whole batch are in `unime.train.coupled`.

Within a micro-batch equal items are embedded once, and items of like length together.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import polars as pl
import torch
from accelerate import Accelerator
from torch import Tensor

from unime.backbones import Encoded
from unime.lanes import ONE, GradientLanes
from unime.train import losses
from unime.train.data import OVERHEAD, Batch, Shown, groups, refuse_unjudged, trained, unjudged
from unime.train.loop import share

PASSES = {"cpu": 4, "cuda": 1}
"""Forward passes that items are cut into at least, so that lanes have something to share."""


class Embedder:
    """Distinct items to embeddings, a few forward passes of at most `budget` tokens at a time.

    `items` holds for each row of the training table the ids of its query, its positive, and its negatives if there are any.
    """

    def __init__(self, shown: Shown, items: list[list[str]], budget: int | None, level: Callable[[int], int] = int) -> None:
        self.shown, self.backbone, self.budget, self.level = shown, shown.backbone, budget, level
        self.items = items
        self.parameters = list(trained(self.backbone.model).values())

    def passes(self, ids: list[str]) -> tuple[list[list[Encoded]], dict[str, int]]:
        """Forward passes over the distinct items, and the row that each item will have; more of them, of no item's row, where `level`
        says so."""
        distinct, device = sorted(set(ids)), self.backbone.device.type
        encoded, largest = self.shown.encoded(distinct), -(-len(distinct) // PASSES[device])
        split = groups([len(e.ids) for e in encoded], OVERHEAD[device], largest, self.budget)
        order = [i for group in split for i in group]
        idle = [[encoded[order[0]]]] * (self.level(len(split)) - len(split))
        return [[encoded[i] for i in group] for group in split] + idle, {distinct[i]: row for row, i in enumerate(order)}

    def embed(self, encoded: list[Encoded]) -> Tensor:
        """(n, D) float32 unit rows, with a graph unless the caller has switched it off."""
        return self.backbone.embed(self.backbone.collate(encoded))


def mined_rows(table: pl.DataFrame, k: int, soft: bool) -> tuple[list[list[str]], np.ndarray]:
    """The ids of query, positive and first k negatives of each row of a table MINED, and the scores (N, 1 + k) float64, sigma first.

    Scores are NaN in a table that no judge has seen, which is refused where the target is `soft`.  Raises ValueError for a row with
    fewer negatives, or a judge's score that is NaN or outside [0, 1], naming the pair.
    """
    if soft:
        refuse_unjudged(table, "the soft-label loss", "train with the one-hot target (hard_negatives)")
    short = table.filter((pl.col("negatives").list.len() < k) | (pl.col("scores").list.len() < k))
    if len(short):
        raise ValueError(f"pair {short['pair'][0]}: fewer than {k} mined negatives; lower train.*.negatives or raise mine.negatives")
    items, rows = [], []
    for query, positive, negatives, sigma, scores in table.select("query", "positive", "negatives", "sigma", "scores").iter_rows():
        items.append([query, positive, *negatives[:k]])
        rows.append([_number(value) for value in (sigma, *scores[:k])])
    found = np.array(rows, dtype=np.float64).reshape(-1, 1 + k)
    if not len(unjudged(table)):
        losses.check_teacher(table["pair"].to_list(), found)
    return items, found


def _number(value: float | None) -> float:
    return float("nan") if value is None else value


class Mined(Embedder):
    """Soft or one-hot loss over the positive and the first k mined negatives.

    `settings` is the config section train.hard_negatives or, where the target is soft, train.unime_v2.
    """

    def __init__(
        self,
        shown: Shown,
        table: pl.DataFrame,
        settings: Any,
        accelerator: Accelerator,
        soft: bool,
        budget: int | None = None,
        level: Callable[[int], int] = int,
    ) -> None:
        items, self.scores = mined_rows(table, settings.negatives, soft)
        super().__init__(shown, items, budget, level)
        self.settings, self.accelerator, self.soft = settings, accelerator, soft

    def ahead(self, batch: Batch) -> None:
        for micro in share(batch, self.settings.micro, self.accelerator):  # in the order in which `passes` asks for them
            self.shown.ahead(sorted({id for row in micro.rows for id in self.items[row]}))

    def __call__(self, batch: Batch, lanes: GradientLanes = ONE) -> tuple[float, int]:
        total = 0.0
        for rows, seed in share(batch, self.settings.micro, self.accelerator):
            torch.manual_seed(seed)
            passes, row_of = self.passes([id for row in rows for id in self.items[row]])
            index = torch.tensor([[row_of[id] for id in self.items[row]] for row in rows])
            total += lanes.backward(self.embed, passes, self._loss(index, rows, len(batch.rows)), self.parameters).item()
        return total, len(batch.rows) * (2 + self.settings.negatives)

    def _loss(self, index: Tensor, rows: list[int], count: int) -> Callable[[Tensor], Tensor]:
        """The micro-batch's share of the mean over `count` queries, as a function of its distinct items' embeddings."""

        def loss(embeddings: Tensor) -> Tensor:
            chosen = embeddings[index.to(embeddings.device)]  # (B, 2 + k, D)
            cosines = torch.einsum("bd,bkd->bk", chosen[:, 0], chosen[:, 1:])
            if self.soft:
                scores = torch.from_numpy(self.scores[rows]).to(cosines.device)
                return losses.soft_label_loss(cosines, scores, self.settings.tau, self.settings.smoothing).sum() / count
            return losses.one_hot_loss(cosines, self.settings.tau).sum() / count

        return loss
