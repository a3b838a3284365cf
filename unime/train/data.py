"""What a training step reads: rows in a seeded order, items with their images seen once, prompts of like length together."""

from __future__ import annotations

import functools
import itertools
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import polars as pl

from unime.backbones import Backbone, Encoded, Picture
from unime.shards import cut

KEPT = 1 << 30
"""Bytes of image features (or of pixels, where the tower is trained) kept in memory."""

WORKERS, WAITING = 8, 256
"""Threads that decode images ahead, and the most images that wait for their step."""

LOOKED = 32
"""Images that are held as pixels for one pass of the vision tower."""

OVERHEAD = {"cpu": 64, "cuda": 4096}
"""What one more forward pass costs, in tokens: below it, padding is cheaper than another pass."""


class Batch(NamedTuple):
    """One optimizer step: its number, its epoch, its rows (indices into the training table), and the run's seed."""

    step: int
    epoch: int
    rows: list[int]
    seed: int = 0


class Micro(NamedTuple):
    """A micro-batch: its rows, and the seed of what it draws (dropout)."""

    rows: list[int]
    seed: int


def micro_batches(batch: Batch, size: int) -> list[Micro]:
    """The batch in runs of `size` rows, the last one shorter; what each draws is a function of (seed, step, its number)."""
    draws = (np.random.SeedSequence([batch.seed, batch.step, number]).generate_state(1, np.uint64)[0] for number in itertools.count())
    return [Micro(rows, int(draw >> np.uint64(1))) for rows, draw in zip(cut(batch.rows, size), draws, strict=False)]


def dealt(batch: Batch, size: int, process: int, processes: int) -> list[Micro]:
    """One process's micro-batches of `size` rows: every `processes`-th.

    They are what one process would run, draws included, so any number of processes adds up the same gradients.  Raises ValueError where
    they are not as many and as large for each.
    """
    if processes > 1 and len(batch.rows) % (size * processes):
        raise ValueError(
            f"a batch of {len(batch.rows)} queries in micro-batches of {size} cannot be dealt to {processes} processes; set "
            f"train.*.micro so that a batch is a multiple of {processes} micro-batches, e.g. {max(1, len(batch.rows) // processes)} queries"
        )
    return micro_batches(batch, size)[process::processes]


def batch_at(step: int, rows: int, batch: int, seed: int) -> Batch:
    """The rows of one step: consecutive slices of a permutation drawn from (seed, epoch); the tail of an epoch is left out.

    A function of its arguments only, so a resumed run needs no state and the order does not depend on micro-batches or processes.
    """
    if batch > rows:
        raise ValueError(f"a batch of {batch} is more than the {rows} training rows; lower train.*.batch or raise data.cap")
    epoch, part = divmod(step, rows // batch)
    order = np.random.default_rng([seed, epoch]).permutation(rows)
    return Batch(step, epoch, order[part * batch : (part + 1) * batch].tolist(), seed)


def unjudged(table: pl.DataFrame) -> pl.DataFrame:
    """The rows of a table MINED whose negatives come from a rule without a judge: no sigma and no score."""
    return table.filter(pl.col("sigma").is_null() & (pl.col("scores").list.drop_nulls().list.len() == 0))


def refuse_unjudged(table: pl.DataFrame, reader: str, instead: str) -> None:
    """Raise ValueError naming the first pair without scores where `reader` (`the soft-label loss`) needs them.

    `instead` ends the message: what else to do than to take scored negatives.
    """
    without = unjudged(table)
    if len(without):
        raise ValueError(
            f"pair {without['pair'][0]}: its negatives have no scores ({len(without)} of {len(table)} pairs), as no judge mined them, and "
            f"{reader} needs scores; take a judge's negatives (source: judge, or a name of judge.models, judge.means or fetch.scores), or "
            f"{instead}, which reads none"
        )


def trained(model: Any) -> dict[str, Any]:
    """The parameters that training changes, by name."""
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


class Shown:
    """Items as contents whose image has passed the vision tower where that is frozen; the last used `limit` bytes of them are kept.

    A frozen tower sees each image alone on a CPU, so keeping its output changes no result (on a GPU: but for rounding, see
    `Backbone.see_all`).  Where the tower is trained (`Backbone.trains_images`), each step changes its output and the output needs a graph:
    then images stay pixels, and pass the tower inside the model's forward pass.  Images of a coming step are decoded and resized by
    threads (`ahead`) while the present one computes.
    """

    def __init__(self, backbone: Backbone, items: Any, limit: int = KEPT) -> None:
        self.backbone, self.items, self.limit, self.used = backbone, items, limit, 0
        self._kept: OrderedDict[str, Any] = OrderedDict()
        self._inputs: dict[str, Encoded] = {}  # of items that are kept
        self._coming: dict[str, None] = {}
        self._begun: dict[str, Future[Any]] = {}
        self._threads = ThreadPoolExecutor(WORKERS)

    def ahead(self, ids: Iterable[str]) -> None:
        """Decode these items' images in their order, where they are not kept, WAITING of them at most before they are asked for."""
        self._coming |= dict.fromkeys(ids)
        self._begin()

    def _begin(self) -> None:
        while self._coming and len(self._begun) < WAITING:
            del self._coming[id := next(iter(self._coming))]
            if id not in self._kept and id not in self._begun and self.items.has_image(id):
                self._begun[id] = self._threads.submit(self._looked, id)

    def content(self, id: str) -> Any:
        """The item with a `Picture` in place of its image."""
        return self.contents([id])[id]

    def contents(self, ids: Iterable[str]) -> dict[str, Any]:
        """Several items, LOOKED of the new images at a time through the tower; whatever has to go to make room, all of them are given."""
        found = {id: self._kept.get(id) for id in dict.fromkeys(ids)}
        for some in cut([id for id, content in found.items() if content is None], LOOKED):
            fresh = {id: self._read(id) for id in some}
            pictures = iter(self._pictures([content.image for content in fresh.values() if content.image is not None]))
            for id, content in fresh.items():
                found[id] = content if content.image is None else replace(content, image=next(pictures))
        for id, content in found.items():
            if id not in self._kept:
                self._kept[id] = content
                self.used += _size(content)
            self._kept.move_to_end(id)
        self._make_room()
        return found

    def _pictures(self, images: list[Any]) -> list[Picture]:
        """Images (or what `look` made of them) as forward passes take them: features of a frozen tower, else pixels."""
        if not self._tower_is_trained:
            return self.backbone.see_all(images)
        return [image if isinstance(image, Picture) else self.backbone.look(image) for image in images]

    @functools.cached_property
    def _tower_is_trained(self) -> bool:
        return self.backbone.trains_images

    def _make_room(self) -> None:
        while self.used > self.limit and len(self._kept) > 1:
            id, content = self._kept.popitem(last=False)
            self.used -= _size(content)
            if id in self._inputs:
                self.used -= self._inputs.pop(id).ids.nbytes

    def _read(self, id: str) -> Any:
        self._coming.pop(id, None)
        begun = self._begun.pop(id, None)
        self._begin()
        return begun.result() if begun else self.items[id]

    def _looked(self, id: str) -> Any:
        content = self.items[id]
        return replace(content, image=self.backbone.look(content.image))

    def encoded(self, ids: Iterable[str]) -> list[Encoded]:
        """The embedder's input for each distinct item, in order.  Raises ValueError naming an item that is too long."""
        found = []
        for id, content in self.contents(ids).items():
            try:
                found.append(self._inputs.get(id) or self.backbone.encode(self.backbone.item_prompt(content)))
            except ValueError as error:
                raise ValueError(f"item {id}: {error}") from error
            if id in self._kept and id not in self._inputs:
                self._inputs[id] = found[-1]
                self.used += found[-1].ids.nbytes
        self._make_room()
        return found


def _size(content: Any) -> int:
    """Bytes that a kept content takes, its image's pixels or features included."""
    held = () if content.image is None else (content.image.pixels, content.image.features)
    return 200 + len(content.text) + sum(tensor.nbytes for tensor in held if tensor is not None)


def groups(lengths: Sequence[int], overhead: int, most: int | None = None, budget: int | None = None) -> list[list[int]]:
    """Split sequences into forward passes so that tokens, padding and `overhead` tokens a pass together are fewest.

    Returns lists of indices, shortest sequences first, at most `most` in a list and at most `budget` tokens with padding (one sequence
    may have more).  The best last cut before each length is found by dynamic programming over the sorted lengths.
    """
    order = sorted(range(len(lengths)), key=lambda i: (lengths[i], i))
    edges = [at for at in range(1, len(order)) if lengths[order[at]] != lengths[order[at - 1]]]
    limit = most or max(len(order), 1)
    stops = sorted({*edges, *range(limit, len(order), limit), len(order)})
    cost, cut = {0: 0}, {0: 0}
    for stop in stops if order else []:
        longest = lengths[order[stop - 1]]
        starts = [s for s in cost if stop - s <= limit]
        cut[stop] = min(starts, key=lambda s: cost[s] + (stop - s) * longest)
        cost[stop] = cost[cut[stop]] + (stop - cut[stop]) * longest + overhead
    found, stop = [], len(order)
    while stop:
        some, stop = order[cut[stop] : stop], cut[stop]
        while some:  # what is over the budget is cut from its longest sequences on
            fit = max(1, budget // lengths[some[-1]]) if budget else len(some)
            found.append(some[-fit:])
            some = some[:-fit]
    return found[::-1]
