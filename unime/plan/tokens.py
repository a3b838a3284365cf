"""Tokens that each stage will compute, from a sample of its real prompts: no weights are loaded and no pixel is decoded.

A stage's own code makes the prompts (the judge's packing, the trainers' batches); images stand as `Picture`s of which only the number of
tokens is known.  What is small is taken whole, the rest by a sample drawn with a fixed seed.  Padding is not counted here: what it costs
is part of the measured rate (`unime.plan.rates`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import polars as pl
import torch

from unime import artifacts
from unime.backbones import Backbone, Picture, Prompt, family_of, limit_tokens
from unime.backbones.files import check_model
from unime.backbones.opening import processor_of, tokenizer_of
from unime.backbones.weights import hollow
from unime.data.items import Content, Items
from unime.judge import Question, blocks, by_query, cut_by_query, questions
from unime.judge.shared_prefix import common_prefix
from unime.judge.transformers_backend import BLOCK, STORED, TransformersJudge, passes
from unime.mine import KEPT
from unime.train.coupled import Coupled
from unime.train.data import KEPT as KEPT_BYTES
from unime.train.data import Shown, batch_at
from unime.train.embedder import accumulator
from unime.train.reranker import Answers

SAMPLE = 1000
"""Prompts of a stage that are counted, about."""

ASKED = 64
"""Pairs whose questions to the judge are counted; each has dozens of prompts."""


class Load(NamedTuple):
    """What a stage computes: `tokens` in all, `plain` tokens where each pair is a sequence of its own (the judge), images that pass the
    vision tower apart from the tokens, and how many prompts were looked at.  `by_mode` are a reranker's tokens by how it reads."""

    tokens: float
    images: float = 0.0
    plain: float | None = None
    sample: int = 0
    by_mode: Mapping[str, float] = {}


def without_weights(folder: str | Path, models: Any, image_size: int, max_tokens: int | None = None) -> Backbone:
    """A backbone that makes prompts and counts their tokens; the folder need not have its weights yet.

    Raises ModelError where the folder is not there, of no known family, or lacks another file than weights or has a damaged one.
    """
    folder = Path(folder)
    family = family_of(folder)
    check_model(folder, weights=False)
    model = hollow(family.MODEL, folder)
    tokenizer = tokenizer_of(folder)
    processor = processor_of(family.IMAGE_PROCESSOR, folder, family.IMAGE_SETTINGS)
    backbone = family(folder, model, tokenizer, processor, models, image_size)
    limit_tokens(backbone, max_tokens)
    return backbone


class Sizes:
    """Items whose images are only numbers of tokens, and the lengths of their prompts; each image's header is read once."""

    def __init__(self, backbone: Backbone, items: Items) -> None:
        self.backbone, self.items = backbone, items
        self._pictures: dict[tuple[str, str], Picture] = {}
        self._lengths: dict[str, int] = {}

    def __getitem__(self, id: str) -> Picture:
        """The item's image, features of width 0; the same object wherever the same image is shown."""
        place = self.items.image_place(id)
        if place not in self._pictures:
            tokens = self.backbone.length(Prompt(self.backbone.IMAGE_TOKEN, (self.items.peek(id).image,)))
            self._pictures[place] = Picture(tokens, torch.empty(1, 0), features=torch.empty(tokens, 0))
        return self._pictures[place]

    def content(self, id: str) -> Content:
        return Content(self.items.text(id), self[id] if self.items.has_image(id) else None)

    def length(self, id: str) -> int:
        """Tokens of the embedder's input for one item.  Raises ValueError naming one that is too long."""
        if id not in self._lengths:
            try:
                found = self.backbone.length(self.backbone.item_prompt(self.content(id)))
            except ValueError as error:
                raise ValueError(f"item {id}: {error}") from error
            if found > (most := self.backbone.models.max_length):
                remedy = "lower image_size" if self.items.has_image(id) else "shorten the text"
                raise ValueError(f"item {id}: {found} tokens are over models.max_length ({most}); raise it, or {remedy}")
            self._lengths[id] = found
        return self._lengths[id]

    def image_tokens(self) -> float:
        """Mean tokens of the images seen so far."""
        return float(np.mean([picture.tokens for picture in self._pictures.values()])) if self._pictures else 0.0


class Seen(Shown):
    """What a trainer is shown, from `Sizes`."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__(sizes.backbone, sizes.items)
        self.sizes = sizes

    def content(self, id: str) -> Content:
        return self.sizes.content(id)


def drawn(things: Sequence[Any], most: int) -> list[Any]:
    """All of them, or `most` drawn with a fixed seed, in their order."""
    if len(things) <= most:
        return list(things)
    return [things[place] for place in np.sort(np.random.default_rng(0).permutation(len(things))[:most])]


def of_items(folders: Sequence[tuple[Sizes, Sequence[str]]], times: int = 1) -> Load:
    """Each of the ids once, or `times` times: (sizes, ids) of every data folder."""
    tokens, sample = 0.0, 0
    for sizes, ids in folders:
        some = drawn(ids, max(1, SAMPLE // len(folders)))
        tokens += len(ids) * float(np.mean([sizes.length(id) for id in some] or [0]))
        sample += len(some)
    return Load(times * tokens, sample=sample)


# The judge


def asked(pairs: pl.DataFrame, hits: pl.DataFrame | None, k: int, most: int) -> pl.DataFrame:
    """(query, candidates, the positive first) of all pairs, or of `most` in one place; candidates drawn from the pool stand in for hits
    that are not there yet."""
    some = by_query(pairs).slice(max(0, len(pairs) - most) // 2, most)
    if hits is not None:
        lists = hits.join(some, on="pair", how="semi").group_by("pair").agg(hits=pl.col("candidate").sort_by("rank"))
        rows = some.join(lists, on="pair", how="left", maintain_order="left")
        return rows.select("query", candidates=pl.concat_list("positive", pl.col("hits").fill_null([])))
    pool, rng = pairs["positive"].unique().sort().to_numpy(), np.random.default_rng(0)
    found = [[own, *(one for one in rng.choice(pool, min(k + 1, len(pool)), False) if one != own)][: k + 1] for own in some["positive"]]
    return pl.DataFrame({"query": some["query"], "candidates": found}, schema={"query": pl.String, "candidates": pl.List(pl.String)})


def shards_of(rows: pl.DataFrame, shard: int) -> list[list[Question]]:
    """Questions of shards as the judge makes them."""
    return [questions(some.iter_rows()) for some in cut_by_query(rows, shard)]


def of_questions(asking: Sequence[Question], sizes: Sizes, batch_tokens: int, form: str) -> tuple[int, int]:
    """Tokens of one shard's questions as they are packed (prefixes once a forward pass), and as one sequence a pair.

    `form` is the judge's prompt format, a name of `prompts.FORMATS`.
    """
    judge = TransformersJudge(sizes.backbone, sizes.items, batch_tokens, form)
    judge.pictures = sizes
    shared = plain = 0
    for block in blocks(asking, BLOCK[_device(sizes)]):
        groups = [judge.sequences(question) for question in block]
        plain += sum(len(sequence.ids) for group in groups for sequence in group)
        for some in passes(groups, sizes.backbone.image_token, batch_tokens):
            for group in some:
                prefix = common_prefix(group, sizes.backbone.image_token)
                shared += prefix + sum(len(sequence.ids) - prefix for sequence in group)
    return shared, plain


def of_judge(sets: Sequence[tuple[Sizes, pl.DataFrame, pl.DataFrame | None]], settings: Any, k: int) -> Load:
    """(sizes, PAIRS, HITS or None) of every training set."""
    shared = plain = images = 0.0
    sample = 0
    for sizes, pairs, hits in sets:
        rows = asked(pairs, hits, k, max(1, ASKED // len(sets)))
        chosen = shards_of(rows, settings.shard)
        found = [of_questions(some, sizes, settings.transformers.batch_tokens, settings.prompt) for some in chosen]
        factor = len(pairs) / max(1, len(rows))
        shared += factor * sum(one for one, _ in found)
        plain += factor * sum(one for _, one in found)
        sample += sum(len(question.candidates) for some in chosen for question in some)
        images += _towers(sizes, pairs, k)
    return Load(shared, images, plain, sample)


def _device(sizes: Sizes) -> str:
    """Where the model will compute; it may be open without weights here."""
    return "cuda" if torch.cuda.is_available() and sizes.backbone.models.device != "cpu" else "cpu"


def _towers(sizes: Sizes, pairs: pl.DataFrame, k: int) -> float:
    """Images that pass the judge's vision tower: each once where the set's fit its store, else wherever they are shown."""
    items, pool = sizes.items, pairs["positive"].unique().to_list()
    places = {items.image_place(id) for id in {*pairs["query"], *pool} if items.has_image(id)}
    if len(places) * sizes.image_tokens() <= STORED[_device(sizes)]:
        return float(len(places))
    shown = sum(map(items.has_image, pool)) / max(1, len(pool)) * min(k + 1, len(pool))
    return sum(map(items.has_image, pairs["query"])) + len(pairs) * shown


# Training


def stand_in(pairs: pl.DataFrame, negatives: int) -> pl.DataFrame:
    """A table MINED before anything is mined: negatives drawn from the set's own candidates, scores that say nothing."""
    rows, rng = [], np.random.default_rng(0)
    for (name,), part in pairs.group_by("dataset", maintain_order=True):
        pool = part["positive"].unique().sort().to_numpy()
        for pair, query, own in part.select("pair", "query", "positive").iter_rows():
            others = [one for one in rng.choice(pool, negatives + 1) if one != own][:negatives]
            if others:
                others = (others * negatives)[:negatives]
                rows.append((pair, name, query, own, 1.0, others, [0.0] * negatives, list(range(negatives)), [KEPT] * negatives))
    return pl.DataFrame(rows, schema=artifacts.MINED, orient="row")


def trainer(kind: str, table: pl.DataFrame, shown: Shown, settings: Any, seed: int, accelerator: Any = None) -> Any:
    """What adds up a batch's gradient, of one of the four trainings."""
    if kind == "reranker":
        return Answers(shown, table, settings, seed, accelerator)
    return accumulator(kind, shown, table, settings, accelerator)


def of_batch(one: Any, rows: Sequence[int], epoch: int, micro: int, length: Any) -> tuple[int, list[str]]:
    """Tokens that a trainer computes for these rows, and the ids of the items shown; `length(id)` are an item's tokens."""
    if isinstance(one, Answers):
        turns = [turn for row in rows for turn in one.turns(row, epoch)]
        tokens = sum(one.backbone.length(one.prompt(turn)) + ending(one.backbone, turn.answer) for turn in turns)
        return tokens, [id for turn in turns for id in (turn.query, *turn.candidates)]
    size = one.micro if isinstance(one, Coupled) else micro  # queries of a micro-batch; train.in_batch.micro counts items
    parts = []  # an item is embedded once a micro-batch, not once a batch
    for start in range(0, len(rows), size):
        parts.append({id for row in rows[start : start + size] for id in one.items[row]})
    return sum(length(id) for part in parts for id in part), [id for part in parts for id in part]


def of_training(kind: str, table: pl.DataFrame, sizes: Sizes, settings: Any, seed: int, itemsize: int) -> Load:
    """All steps of a training, from some of them.  Raises ValueError for a batch larger than the table."""
    one = trainer(kind, table, Seen(sizes), settings, seed)
    each = 3 if kind == "reranker" else 2 if kind == "in_batch" else 2 + settings.negatives
    steps = drawn(range(settings.steps), max(2, SAMPLE // (settings.batch * each)))
    tokens, sample, shown, images = 0, 0, set(), 0
    for step in steps:
        batch = batch_at(step, len(table), settings.batch, seed)
        found, ids = of_batch(one, batch.rows, batch.epoch, settings.micro, sizes.length)
        tokens, sample, images = tokens + found, sample + len(ids), images + sum(sizes.items.has_image(id) for id in ids)
        shown.update(id for id in ids if sizes.items.has_image(id))
    factor = settings.steps / len(steps)
    have = sum(map(sizes.items.has_image, _all_items(one)))
    width = sizes.backbone.head.weight.shape[1] * itemsize
    fits = have * sizes.image_tokens() * width <= KEPT_BYTES
    return Load(factor * tokens, min(have, factor * images) if fits else factor * images, sample=sample)


def _all_items(one: Any) -> set[str]:
    if isinstance(one, Answers):
        return {id for row in one.rows for id in (row.query, row.positive, row.wrong, *row.negatives)}
    return {id for ids in one.items for id in ids}


def ending(backbone: Backbone, answer: str) -> int:
    """Tokens of an answer, the turn's end included."""
    return len(backbone.tokenizer.encode(answer, add_special_tokens=False)) + 1
