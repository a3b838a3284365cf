"""The three embedders: in-batch negatives (the base embedder), mined negatives with a one-hot target, and UniME-V2's soft labels.

The mined losses are sums over queries, each of which depends on its own 1 + k candidates (`unime.train.queries`), unless
`in_batch_negatives` adds those of the other queries.  With it, as in the in-batch loss, a query sees the whole batch
(`unime.train.coupled`).
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl
from accelerate import Accelerator

from unime.backbones import Backbone
from unime.train import card, losses
from unime.train.coupled import InBatch, MinedInBatch
from unime.train.data import Shown, unjudged
from unime.train.loop import accelerator_for, fit, prepared
from unime.train.queries import Embedder, Mined

KINDS = ("in_batch", "hard_negatives", "unime_v2")


def train_embedder(
    kind: str,
    table: pl.DataFrame,
    items: Any,
    backbone: Backbone,
    view: Any,
    job: Any,
    out: str | Path,
    settings: Any = None,
    labels: pl.DataFrame | None = None,
) -> str:
    """Train an adapter and write it to the folder `out`, with log.csv and a model card; returns a line about the run.

    `table` is PAIRS for `in_batch` and MINED for the other two; `view` holds `seed`, `models`, `train.lora` and `train.<kind>`, in
    whose place `settings` are used where they are given.  Steps and batch that depend on the number of rows are those of `table`.
    `labels` (columns query and positive, of all training sets) has labelled positives that `table` lacks, for `mask` labelled: of pairs
    that were not mined, and of rows that data.cap left out.
    Raises ValueError for a teacher's score that is NaN or outside [0, 1], too few negatives, or a batch larger than the table.
    """
    if kind not in KINDS:
        raise ValueError(f"{kind!r} is no way to train an embedder; known: {', '.join(KINDS)}")
    settings = getattr(view.train, kind) if settings is None else settings
    notes = card.notes(settings, len(table))
    settings = settings.resolved(len(table))
    backbone.add_lora(view.train.lora, view.seed)
    accelerator, shown = accelerator_for(backbone), Shown(backbone, items)
    budget, level = prepared(backbone, view.train.passes, job.parallel, accelerator)
    accumulate = accumulator(kind, shown, table, settings, accelerator, budget, level, labels)
    if kind != "in_batch" and not len(unjudged(table)):
        notes["flat targets"] = f"{losses.flat_share(accumulate.scores, settings.tau):.2%} of rows"
        job.log.info("flat targets: %s", notes["flat targets"])
    log = fit(backbone, settings, len(table), view.seed, job, accelerator, accumulate)
    if accelerator.is_main_process:
        card.write(out, backbone, kind, log, view, table, notes)
    accelerator.wait_for_everyone()
    return card.line(log, table)


def accumulator(
    kind: str,
    shown: Shown,
    table: pl.DataFrame,
    settings: Any,
    accelerator: Accelerator,
    budget: int | None = None,
    level: Callable[[int], int] = int,
    labels: pl.DataFrame | None = None,
) -> Embedder:
    """What adds up a batch's gradient (`loop.Accumulate`) in one of the KINDS, as its config section `settings` says.

    `table` and `labels` are those of `train_embedder`.
    """
    if kind == "in_batch":
        return InBatch(shown, table, settings, accelerator, budget, level, labels)
    soft = kind == "unime_v2"
    if settings.in_batch_negatives:
        return MinedInBatch(shown, table, settings, accelerator, soft, budget, level, labels)
    return Mined(shown, table, settings, accelerator, soft, budget, level)
