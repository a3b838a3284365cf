"""How fast this machine is: a few real batches of each kind of work, with the configured models on the configured device.

1. A measurement runs on one prompt first (warm-up), then on two or four times as many, as long as that fits its share of the time.
2. What was computed last, the largest, gives the rate; it is repeated while there is time.
3. Trainers and the judge keep what a frozen vision tower made of an image, so its time an image is measured apart.  A tower that is
   trained runs inside the passes, and its time is in their rate.
A measurement of seconds knows nothing of a machine that grows hot or is shared: what comes out is an estimate.
"""

from __future__ import annotations

import json
import logging
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import polars as pl

from unime import shards
from unime.backbones import Backbone
from unime.embed import Lanes, embed
from unime.evaluate import rerank
from unime.job import Job
from unime.judge import Question
from unime.judge.transformers_backend import TransformersJudge
from unime.mine import mine
from unime.plan import lists
from unime.plan import tokens as sizes_of
from unime.plan.tokens import Sizes
from unime.train.data import Shown, batch_at
from unime.train.loop import accelerator_for, fit, prepared


class Rate(NamedTuple):
    """`each` tokens (or products, or candidates) a second; `image` seconds an image in the vision tower where that is apart; `start`
    seconds until its model is open (the search: its process); `side` CPU threads that jobs share, 1 where they wait for a GPU; `sample`
    says what was measured."""

    each: float
    image: float = 0.0
    start: float = 0.0
    side: int = 1
    sample: str = ""


class Measured(NamedTuple):
    """One try: what was computed, of it images by the tower before the clock of `seconds` ran, and their seconds."""

    amount: float
    seconds: float
    images: int = 0
    tower: float = 0.0


def grown(work: Callable[[int], Measured], most: int, seconds: float) -> tuple[Measured, int, int]:
    """The sum of the tries of the last size (from 1 up to `most`), that size, and how many tries; `images` and `tower` are of all.

    The first try of a size is left out where there is another: it also pays for what is made once.
    """
    begin, size, tried = time.monotonic(), 1, []
    while True:
        start = time.monotonic()
        tried.append((size, work(size)))
        took, left = time.monotonic() - start, begin + seconds - time.monotonic()
        if took > left:
            break
        factor = 4 if 4 * took < left else 2 if 2 * took < left else 1
        size = min(most, factor * size)
    last = [one for count, one in tried if count == tried[-1][0]]
    last = last[1:] or last
    images, tower = (sum(getattr(one, name) for _, one in tried) for name in ("images", "tower"))
    return Measured(sum(one.amount for one in last), sum(one.seconds for one in last), images, tower), tried[-1][0], len(last)


def clocked(work: Callable[[], Any]) -> float:
    """Seconds of one call; what it computes must have reached the CPU when it returns."""
    start = time.monotonic()
    work()
    return time.monotonic() - start


def quiet(iterable: Iterable[Any], total: int | None = None, label: str = "") -> Iterable[Any]:
    return iterable


def embedding(backbone: Backbone, sizes: Sizes, ids: Sequence[str], batch_tokens: int, seconds: float) -> Rate:
    """Tokens a second of `unime.embed`."""

    def work(count: int) -> Measured:
        some = sorted(ids[:count])
        with tempfile.TemporaryDirectory() as scratch:
            took = clocked(
                lambda: embed(some, sizes.items, backbone, batch_tokens=batch_tokens, shard=count, scratch=Path(scratch), track=quiet)
            )
        return Measured(sum(map(sizes.length, some)), took)

    found, size, tries = grown(work, len(ids), seconds)
    return Rate(found.amount / found.seconds, sample=f"{tries} x {size} items")


def judging(backbone: Backbone, sizes: Sizes, asked: Sequence[Question], batch_tokens: int, form: str, seconds: float) -> Rate:
    """Tokens a second of the judge in a prompt format, as it packs them, and seconds an image of its vision tower."""
    judge, seen = TransformersJudge(backbone, sizes.items, batch_tokens, form), set()

    def work(count: int) -> Measured:
        some = asked[:count]
        shown = {id for question in some for id in (question.query, *question.candidates)}
        new = sorted(id for id in shown - seen if sizes.items.has_image(id))
        seen.update(shown)
        with Lanes(backbone.device) as lanes:
            alone = backbone.device.type == "cpu"
            see = judge.pictures.__getitem__ if alone else lambda some: judge.pictures.of(some, lanes.turn)
            tower = clocked(lambda: list(shards.spread(new if alone else [new], see, lanes.count)))
        amount, _ = sizes_of.of_questions(some, sizes, batch_tokens, form)
        return Measured(amount, clocked(lambda: judge.answers(some)), len(new), tower)

    found, size, tries = grown(work, len(asked), seconds)
    pairs = sum(len(question.candidates) for question in asked[:size])
    return Rate(found.amount / found.seconds, found.tower / max(1, found.images), sample=f"{tries} x {pairs:,} judgements")


def training(kind: str, backbone: Backbone, sizes: Sizes, table: pl.DataFrame, config: Any, threads: int, seconds: float) -> Rate:
    """Tokens a second of a training's steps, and seconds an image of its vision tower."""
    settings, seed = getattr(config.train, kind).resolved(len(table)), config.seed
    backbone.add_lora(settings.lora if kind == "reranker" else config.train.lora, seed)
    accelerator, shown = accelerator_for(backbone), Shown(backbone, sizes.items, limit=1 << 33)
    table = table.head(min(settings.batch, max(16, 4 * settings.micro)))
    one, seen = sizes_of.trainer(kind, table, shown, settings, seed, accelerator), set()
    one.budget, _ = prepared(backbone, config.train.passes, "ddp", accelerator)

    def work(count: int) -> Measured:
        batch = batch_at(0, len(table), count, seed)
        amount, ids = sizes_of.of_batch(one, batch.rows, 0, settings.micro, sizes.length)
        new = sorted(id for id in set(ids) - seen if sizes.items.has_image(id))
        tower = clocked(lambda: shown.contents(new))
        seen.update(ids)
        step = settings.model_copy(update={"batch": count, "steps": 1, "warmup": 0, "checkpoint": 2})
        with tempfile.TemporaryDirectory() as scratch:
            job = Job(None, threads, Path(scratch), logging.getLogger("unime.plan"))
            took = clocked(lambda: fit(backbone, step, len(table), seed, job, accelerator, one))
        return Measured(amount, took, len(new), tower)

    found, size, tries = grown(work, len(table), seconds)
    return Rate(found.amount / found.seconds, found.tower / max(1, found.images), sample=f"{tries} steps of {size} queries")


def reranking(
    backbone: Backbone, sizes: Sizes, asked: Sequence[tuple[str, list[str]]], mode: str, form: str, batch_tokens: int, seconds: float
) -> Rate:
    """Tokens a second of the reranker, which reads (query, candidates shown) in a mode of evaluate.rerank_mode and a prompt format."""
    queries, shown = [query for query, _ in asked], [candidates for _, candidates in asked]
    lengths = [lists.read(sizes, query, candidates, mode, form) for query, candidates in asked]
    read = rerank.reader(mode)
    given = rerank.Lists(backbone, sizes.items.on_white(), queries, shown, form)

    def work(count: int) -> Measured:
        return Measured(sum(lengths[:count]), clocked(lambda: read(given, range(count), batch_tokens)))

    found, size, tries = grown(work, len(asked), seconds)
    pairs = sum(map(len, shown[:size]))
    sample = f"{tries} x {pairs} pairs" if mode == "pairwise" else f"{tries} x {size} lists"
    return Rate(found.amount / found.seconds, sample=sample)


def mining(rule: Any, k: int, seconds: float) -> Rate:
    """Candidates a second of `unime.mine`, on made-up scores."""

    def work(count: int) -> Measured:
        number = pl.int_range(count * k, eager=True)
        hits = pl.DataFrame({"pair": (number // k).cast(pl.String), "candidate": (number % k).cast(pl.String)})
        hits = hits.with_columns(rank=(number % k).cast(pl.Int32), similarity=pl.lit(0.5, pl.Float32))
        scores = hits.select("pair", "candidate", positive=False, score=(number * 7919 % 997) / 1994)
        own = hits["pair"].unique(maintain_order=True).to_frame()
        pairs = own.select("pair", dataset=pl.lit("all"), row=pl.int_range(pl.len()), query="pair", positive=pl.lit("own"))
        judged = pl.concat([own.select("pair", candidate=pl.lit("own"), positive=True, score=pl.lit(0.6)), scores])
        rest = {"beta": rule.beta, "negatives": rule.negatives, "interval": rule.interval, "order": rule.order, "seed": 0}
        return Measured(len(hits), clocked(lambda: mine(pairs, hits, judged, **rest)))

    found, size, tries = grown(work, 4096, seconds)
    return Rate(found.amount / found.seconds, sample=f"{tries} x {size} pairs")


def searching(width: int, pool: int, neighbours: int, seconds: float) -> Rate:
    """Products a second of the exact search, and the seconds that its process needs to start.  Raises ValueError where it fails."""
    command = [sys.executable, "-m", "unime.plan.searching", *map(str, (width, pool, neighbours, seconds))]
    start = time.monotonic()
    done = subprocess.run(command, capture_output=True, encoding="utf-8", errors="replace")
    if done.returncode:
        raise ValueError(f"the search's process ended with {done.returncode}: {(done.stderr.splitlines() or ['no message'])[-1]}")
    found = json.loads(done.stdout)
    took = found["queries"] * pool / found["rate"]
    sample = f"{int(found['queries']):,} queries x {pool:,}"
    return Rate(found["rate"], start=max(0.0, time.monotonic() - start - took), sample=sample)
