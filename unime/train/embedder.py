"""The three embedders: in-batch negatives (the base embedder), mined negatives with a one-hot target, and UniME-V2's soft labels.

The mined losses are sums over queries, each of which depends on its own 1 + k candidates: micro-batches of whole queries with one
forward pass an item give the gradient of the full batch exactly, so nothing is cached and nothing is computed twice.  Only the
in-batch loss couples queries; it goes through GradCache where the batch does not fit one forward pass.

Within a micro-batch equal items are embedded once, and items of like length together.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch
from accelerate import Accelerator
from torch import Tensor

from unime.backbones import Backbone, Encoded
from unime.lanes import ONE, GradientLanes
from unime.train import card, gradcache, losses
from unime.train.data import OVERHEAD, Batch, Micro, Shown, groups, refuse_unjudged, trained, unjudged
from unime.train.loop import accelerator_for, fit, prepared, share

PASSES = {"cpu": 4, "cuda": 1}
"""Forward passes that items are cut into at least, so that lanes have something to share."""

KINDS = ("in_batch", "hard_negatives", "unime_v2")


def train_embedder(
    kind: str, table: pl.DataFrame, items: Any, backbone: Backbone, view: Any, job: Any, out: str | Path, settings: Any = None
) -> str:
    """Train an adapter and write it to the folder `out`, with log.csv and a model card; returns a line about the run.

    `table` is PAIRS for `in_batch` and MINED for the other two; `view` holds `seed`, `models`, `train.lora` and `train.<kind>`, in
    whose place `settings` are used where they are given.
    Raises ValueError for a teacher's score that is NaN or outside [0, 1], too few negatives, or a batch larger than the table.
    """
    if kind not in KINDS:
        raise ValueError(f"{kind!r} is no way to train an embedder; known: {', '.join(KINDS)}")
    settings = getattr(view.train, kind) if settings is None else settings
    backbone.add_lora(view.train.lora, view.seed)
    accelerator, shown, notes = accelerator_for(backbone), Shown(backbone, items), {}
    budget, level = prepared(backbone, view.train.passes, job.parallel, accelerator)
    if kind == "in_batch":
        accumulate = InBatch(shown, table, settings, accelerator, budget, level)
    else:
        accumulate = Mined(shown, table, settings, accelerator, kind == "unime_v2", budget, level)
        if accumulate.judged:
            notes["flat targets"] = f"{losses.flat_share(accumulate.scores, settings.tau):.2%} of rows"
            job.log.info("flat targets: %s", notes["flat targets"])
    log = fit(backbone, settings, len(table), view.seed, job, accelerator, accumulate)
    if accelerator.is_main_process:
        card.write(out, backbone, kind, log, view, table["dataset"].to_list(), notes)
    accelerator.wait_for_everyone()
    return card.line(log)


class Embedder:
    """Distinct items to embeddings, a few forward passes of at most `budget` tokens at a time."""

    def __init__(self, shown: Shown, budget: int | None, level: Callable[[int], int] = int) -> None:
        self.shown, self.backbone, self.budget, self.level = shown, shown.backbone, budget, level
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


class Mined(Embedder):
    """Soft or one-hot loss over the positive and the first k mined negatives."""

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
        super().__init__(shown, budget, level)
        self.settings, self.accelerator, self.soft = settings, accelerator, soft
        k, pairs = settings.negatives, table["pair"].to_list()
        short = table.filter((pl.col("negatives").list.len() < k) | (pl.col("scores").list.len() < k))
        if len(short):
            raise ValueError(f"pair {short['pair'][0]}: fewer than {k} mined negatives; lower train.*.negatives or raise mine.negatives")
        negatives = (row[:k] for row in table["negatives"].to_list())
        self.items = [[q, p, *n] for q, p, n in zip(table["query"].to_list(), table["positive"].to_list(), negatives, strict=True)]
        scores = (row[:k] for row in table["scores"].to_list())
        rows = [[_number(value) for value in (sigma, *row)] for sigma, row in zip(table["sigma"].to_list(), scores, strict=True)]
        self.scores = np.array(rows, dtype=np.float64).reshape(-1, 1 + k)
        if soft:
            refuse_unjudged(table, "the soft-label loss")
        self.judged = not len(unjudged(table))
        if self.judged:
            losses.check_teacher(pairs, self.scores)

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
                return losses.soft_label_loss(cosines, scores, self.settings.tau).sum() / count
            return losses.one_hot_loss(cosines, self.settings.tau).sum() / count

        return loss


class InBatch(Embedder):
    """InfoNCE of each query against all positives of the batch, over all processes."""

    def __init__(
        self,
        shown: Shown,
        table: pl.DataFrame,
        settings: Any,
        accelerator: Accelerator,
        budget: int | None = None,
        level: Callable[[int], int] = int,
    ) -> None:
        super().__init__(shown, budget, level)
        self.settings, self.accelerator = settings, accelerator
        self.pairs = list(zip(table["query"].to_list(), table["positive"].to_list(), strict=True))

    def ahead(self, batch: Batch) -> None:
        for micro in self.mine(batch):
            self.shown.ahead(sorted({id for row in micro.rows for id in self.pairs[row]}))

    def mine(self, batch: Batch) -> list[Micro]:
        """This process's micro-batches, of `micro` items or fewer distinct ones: half as many pairs."""
        return share(batch, max(1, self.settings.micro // 2), self.accelerator)

    def __call__(self, batch: Batch, lanes: GradientLanes = ONE) -> tuple[float, int]:
        mine, passes, rows = self.mine(batch), [], []
        for micro in mine:
            found, row_of = self.passes([id for row in micro.rows for id in self.pairs[row]])
            start = sum(len(encoded) for _, encoded in passes)
            rows += [[start + row_of[id] for id in self.pairs[row]] for row in micro.rows]
            torch.manual_seed(micro.seed)
            passes += zip(torch.randint(2**62, (len(found),)).tolist(), found, strict=True)
        loss = self._loss(torch.tensor(rows), len(batch.rows))
        if len(mine) == 1:  # it holds all that this process has: no second forward pass
            torch.manual_seed(mine[0].seed)  # so that the lanes draw the same seeds
            value = lanes.backward(self._drawing, passes, loss, self.parameters)
        else:
            value = gradcache.backward(self._drawing, passes, loss)
        return value.item() / self.accelerator.num_processes, 2 * len(batch.rows)

    def _drawing(self, one: tuple[int, list[Encoded]]) -> Tensor:
        """A pass's embeddings; what it draws depends on its seed alone, in every process and both times that GradCache runs it."""
        torch.manual_seed(one[0])
        return self.embed(one[1])

    def _loss(self, index: Tensor, rows: int) -> Callable[[Tensor], Tensor]:
        """The whole batch's mean loss as a function of this process's embeddings; other processes' are constants here.

        Each process backs up its own embeddings' part of the gradient and the loop sums them, which is the whole gradient.
        """

        def loss(embeddings: Tensor) -> Tensor:
            chosen = embeddings[index.to(embeddings.device)]  # (B, 2, D)
            if self.accelerator.num_processes > 1:
                everyone = list(self.accelerator.gather(chosen.detach().contiguous()).split(len(chosen)))
                everyone[self.accelerator.process_index] = chosen
                chosen = torch.cat(everyone)
            return losses.in_batch_loss(chosen[:, 0], chosen[:, 1], self.settings.tau).sum() / rows

        return loss


def _number(value: float | None) -> float:
    return float("nan") if value is None else value
