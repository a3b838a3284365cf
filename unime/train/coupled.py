"""What a batch's queries and candidates add to the gradient where a query sees the candidates of the whole batch.

1. A process embeds the items of its own micro-batches, and gathers the others' embeddings.  They are constants here.
2. Each process computes the loss of the whole batch.  Its gradient with respect to the process's own embeddings is the process's part;
   the loop sums the parts, which is the whole gradient.
3. Where a process has several micro-batches, GradCache embeds them twice, so that the graph of one is in memory at a time.

A batch's rows are a function of (seed, step), so each process knows the ids of all candidates and nothing but embeddings is gathered.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import polars as pl
import torch
from accelerate import Accelerator
from torch import Tensor

from unime.backbones import Encoded
from unime.lanes import ONE, GradientLanes, seeds
from unime.train import gradcache, losses, negatives
from unime.train.data import Batch, Micro, Shown, dealt
from unime.train.queries import Embedder, mined_rows


class Coupled(Embedder):
    """The part of these losses that does not depend on which of them it is; `micro` are the queries of a micro-batch.

    `mask` is the config key of that name (see `unime.train.negatives`), `labels` the tables where labelled positives are
    looked up, None where there is none.
    """

    def __init__(
        self,
        shown: Shown,
        items: list[list[str]],
        labels: Sequence[pl.DataFrame | None],
        mask: str,
        micro: int,
        accelerator: Accelerator,
        budget: int | None,
        level: Callable[[int], int],
    ) -> None:
        super().__init__(shown, items, budget, level)
        self.mask, self.micro, self.accelerator = mask, micro, accelerator
        self.labelled = negatives.labelled_positives(*labels) if mask == "labelled" else {}

    def losses_of(self, queries: Tensor, candidates: Tensor, rows: list[int], left_out: Tensor | None) -> Tensor:
        """(B,) one loss a query, from unit rows: `queries` (B, D) of the table's `rows`, their `candidates` (B * C, D) one query's after
        the other's, and the candidates (B, B * C) bool that are no negatives."""
        raise NotImplementedError

    def ahead(self, batch: Batch) -> None:
        for micro in self.own_micro_batches(batch):
            self.shown.ahead(sorted({id for row in micro.rows for id in self.items[row]}))

    def own_micro_batches(self, batch: Batch) -> list[Micro]:
        """This process's micro-batches.  Raises ValueError where they cannot be dealt out evenly."""
        return self.of_process(batch, self.accelerator.process_index)

    def of_process(self, batch: Batch, process: int) -> list[Micro]:
        return dealt(batch, self.micro, process, self.accelerator.num_processes)

    def gathered_rows(self, batch: Batch) -> list[int]:
        """The batch's rows in the order in which the processes' embeddings are gathered."""
        found = []
        for process in range(self.accelerator.num_processes):
            for micro in self.of_process(batch, process):
                found += micro.rows
        return found

    def __call__(self, batch: Batch, lanes: GradientLanes = ONE) -> tuple[float, int]:
        micro_batches = self.own_micro_batches(batch)
        passes: list[tuple[int, list[Encoded]]] = []  # this process's forward passes, of all its micro-batches: seed and items of each
        index: list[list[int]] = []  # (B / processes, 1 + C): which row of the passes' embeddings a query and each candidate have
        embedded = 0  # rows that the passes so far have
        for micro in micro_batches:
            ids: list[str] = []
            for row in micro.rows:
                ids += self.items[row]
            found, row_of = self.passes(ids)  # row_of: an item's id -> its row among the embeddings of `found` alone
            for row in micro.rows:
                index.append([embedded + row_of[id] for id in self.items[row]])
            embedded += sum(len(encoded) for encoded in found)
            torch.manual_seed(micro.seed)
            passes += zip(seeds(len(found)), found, strict=True)
        loss = self._loss(torch.tensor(index), self.gathered_rows(batch))
        if len(micro_batches) == 1:  # it holds all that this process has: no second forward pass
            torch.manual_seed(micro_batches[0].seed)  # the lanes call `seeds` too: from the same state they find the same seeds
            value = lanes.backward(self._drawing, passes, loss, self.parameters)
        else:
            value = gradcache.backward(self._drawing, passes, loss)
        return value.item() / self.accelerator.num_processes, len(batch.rows) * len(index[0])

    def _drawing(self, one: tuple[int, list[Encoded]]) -> Tensor:
        """A pass's embeddings; what it draws depends on its seed alone, in every process and both times that GradCache runs it."""
        torch.manual_seed(one[0])
        return self.embed(one[1])

    def _loss(self, index: Tensor, rows: list[int]) -> Callable[[Tensor], Tensor]:
        """The mean loss of the whole batch, of the table's `rows`, as a function of this process's embeddings.

        `index` (B / processes, 1 + C) says which embedding is each of its queries' and candidates'.
        """
        mask = negatives.left_out(self.mask, [self.items[row] for row in rows], self.labelled)

        def loss(embeddings: Tensor) -> Tensor:
            chosen = self._gathered(embeddings[index.to(embeddings.device)])  # (B, 1 + C, D)
            left_out = None if mask is None else torch.from_numpy(mask).to(chosen.device)
            return self.losses_of(chosen[:, 0], chosen[:, 1:].flatten(0, 1), rows, left_out).sum() / len(rows)

        return loss

    def _gathered(self, chosen: Tensor) -> Tensor:
        """All processes' rows, (B / processes, ...) -> (B, ...); the other processes' are constants."""
        if self.accelerator.num_processes == 1:
            return chosen
        everyone = list(self.accelerator.gather(chosen.detach().contiguous()).split(len(chosen)))
        everyone[self.accelerator.process_index] = chosen
        return torch.cat(everyone)


class InBatch(Coupled):
    """InfoNCE of each query against all positives of the batch; `settings` is the config section train.in_batch."""

    def __init__(
        self,
        shown: Shown,
        table: pl.DataFrame,
        settings: Any,
        accelerator: Accelerator,
        budget: int | None = None,
        level: Callable[[int], int] = int,
        labels: pl.DataFrame | None = None,
    ) -> None:
        items = [list(pair) for pair in table.select("query", "positive").iter_rows()]
        micro = max(1, settings.micro // 2)  # `micro` are items; fewer of them may be distinct
        super().__init__(shown, items, [table, labels], settings.mask, micro, accelerator, budget, level)
        self.tau = settings.tau

    def losses_of(self, queries: Tensor, candidates: Tensor, rows: list[int], left_out: Tensor | None) -> Tensor:
        return losses.in_batch_loss(queries, candidates, self.tau, left_out)


class MinedInBatch(Coupled):
    """Soft or one-hot loss over a query's positive, its first k mined negatives, and the candidates of all other queries of the batch.

    One-hot: the others' candidates are further negatives.  Soft: the judge has not seen them with this query, so their score is 0.
    `settings` is the config section train.hard_negatives or, where the target is soft, train.unime_v2.  `table` (MINED) lacks pairs for
    which nothing was mined or published; `labels`, if given, contain their positives.
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
        labels: pl.DataFrame | None = None,
    ) -> None:
        items, self.scores = mined_rows(table, settings.negatives, soft)
        super().__init__(shown, items, [table, labels], settings.mask, settings.micro, accelerator, budget, level)
        self.settings, self.soft = settings, soft

    def losses_of(self, queries: Tensor, candidates: Tensor, rows: list[int], left_out: Tensor | None) -> Tensor:
        cosines = queries.float() @ candidates.float().T  # (B, B * C)
        number = torch.arange(len(queries), device=cosines.device)
        if not self.soft:
            positive = number * (len(candidates) // len(queries))  # its column
            return losses.one_hot_loss(cosines, self.settings.tau, positive, left_out)
        judged = torch.from_numpy(self.scores[np.array(rows)]).to(cosines.device)  # (B, C)
        scores = judged.new_zeros(len(judged), *judged.shape)  # (B, B, C): query, whose candidates, candidate
        scores[number, number] = judged
        return losses.soft_label_loss(cosines, scores.flatten(1), self.settings.tau, self.settings.smoothing, left_out)
