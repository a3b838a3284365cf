"""An MLLM as judge: for each pair and each of its candidates, does the candidate meet the query's requirements?  (paper, section 3.2)

A backend reads questions and gives the logits of Yes and No at the first token of the answer (log-probabilities where its server tells
no more: their difference, and so the exact score, is the same); scores, shards and the table are the same for all backends and are
here.  The pair's own positive is judged too.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
import polars as pl

from unime import artifacts, shards
from unime.job import Part

PENALTY = 1.05
"""Repetition penalty in the generation config of the published judge; Yes and No both stand in its prompt."""


class Question(NamedTuple):
    """A query's item id, and the distinct ids of the candidates to judge."""

    query: str
    candidates: tuple[str, ...]


class Backend(Protocol):
    def answers(self, questions: Sequence[Question]) -> list[np.ndarray]:
        """Per question (candidates, 2) float32: the raw logits of Yes and of No, both less the same number where only that is known."""


class Later:
    """A backend that is opened when it is first asked: a run whose shards are all there opens none."""

    def __init__(self, opening: Callable[[], Backend]) -> None:
        self._opened = functools.cache(opening)

    def answers(self, questions: Sequence[Question]) -> list[np.ndarray]:
        return self._opened().answers(questions)


def blocks(questions: Sequence[Question], size: int) -> Iterator[list[Question]]:
    """Consecutive questions with `size` candidates or a little more together."""
    block: list[Question] = []
    for question in questions:
        block.append(question)
        if sum(len(one.candidates) for one in block) >= size:
            yield block
            block = []
    if block:
        yield block


def judge(
    pairs: pl.DataFrame,
    hits: pl.DataFrame,
    backend: Backend,
    *,
    mode: str,
    shard: int,
    scratch: Path,
    track: Callable[..., Iterable[Any]],
    part: Part | None = None,
) -> pl.DataFrame:
    """Table JUDGEMENTS: for every pair, in the order of `pairs`, its positive and then its hits in the order of rank.

    About `shard` pairs at a time are written to `scratch` whole; a rerun judges the rest.  In a shard equal (query, candidate) are judged
    once, and all pairs of a query, which have the same hits, are in one shard (`cut_by_query`).  Raises ArtifactError for a logit that is
    not finite, and for hits of unknown pairs, and PartMade after a `part`.
    """
    lists = hits.group_by("pair").agg(hits=pl.col("candidate").sort_by("rank"))
    unknown = lists.join(pairs, on="pair", how="anti")["pair"]
    if len(unknown):
        raise artifacts.ArtifactError(f"hits: pair {unknown.min()} is not in pairs; the tables are of different runs")
    rows = by_query(pairs).select("pair", "query", "positive").join(lists, on="pair", how="left", maintain_order="left")
    parts = shards.run(
        cut_by_query(rows, shard),
        scratch,
        "judge",
        make=lambda some: _judge(some, backend, mode),
        write=lambda table, place: artifacts.write_table(table, place, artifacts.JUDGEMENTS),
        read=lambda place: artifacts.read_table(place, artifacts.JUDGEMENTS),
        track=track,
        part=part,
    )
    judged = pl.concat([pl.DataFrame(schema=artifacts.JUDGEMENTS), *parts])
    if rows["pair"].equals(pairs["pair"]):
        return judged
    places = pairs.select("pair", place=pl.int_range(pl.len()))
    return judged.join(places, on="pair", how="left", maintain_order="left").sort("place", maintain_order=True).drop("place")


def by_query(pairs: pl.DataFrame) -> pl.DataFrame:
    """The pairs with those of a query together, where its first one is; as they are where each query has one pair."""
    numbered = pairs.with_row_index("place")
    first = pl.col("place").min().over("query")
    return numbered.sort(first, "place").drop("place")


def cut_by_query(rows: pl.DataFrame, shard: int) -> list[pl.DataFrame]:
    """Runs of at most `shard` rows, in their order; a query whose rows (which stand together) fit one run is not cut."""
    ends, start, stop = [], 0, 0
    for length in rows["query"].rle().struct.field("len").to_list():
        if stop > start and stop + length - start > shard:
            ends.append(stop)
            start = stop
        stop += length
        while stop - start > shard:  # more pairs of one query than a shard holds
            start += shard
            ends.append(start)
    starts = [0, *ends]
    return [rows[begin:end] for begin, end in zip(starts, [*ends, len(rows)], strict=True) if end > begin]


def score(yes: np.ndarray, no: np.ndarray, mode: str) -> np.ndarray:
    """s = e_yes / (e_yes + e_no), float64, of float32 logits.

    `exact` takes the logits as they are.  `published` takes them as the published scores were read: rounded to bfloat16 by the model,
    then a repetition penalty of 1.05 (a positive logit divided, a negative one multiplied), so that scores are of the form
    sigmoid(n * 0.125 / 1.05) where logits are between 16 and 32, and ties are common.
    """
    if mode == "published":
        yes, no = (_penalised(_bfloat16(logits)) for logits in (yes, no))
    difference = yes.astype(np.float64) - no.astype(np.float64)
    return np.where(difference >= 0, 1 / (1 + np.exp(-np.abs(difference))), np.exp(-np.abs(difference)) / (1 + np.exp(-np.abs(difference))))


def _bfloat16(values: np.ndarray) -> np.ndarray:
    """float32 rounded to the nearest bfloat16 (ties to even), as float32."""
    bits = values.astype(np.float32).view(np.uint32).astype(np.uint64)
    bits = (bits + 0x7FFF + ((bits >> 16) & 1)) & 0xFFFF0000
    return bits.astype(np.uint32).view(np.float32)


def _penalised(values: np.ndarray) -> np.ndarray:
    return np.where(values > 0, values.astype(np.float64) / PENALTY, values.astype(np.float64) * PENALTY)


def questions(rows: Iterable[tuple[str, Iterable[str]]]) -> list[Question]:
    """What is asked of a shard's pairs, as (query, all of its candidates): each query once, with the candidates of all its pairs."""
    wanted: dict[str, dict[str, None]] = {}
    for query, candidates in rows:
        wanted.setdefault(query, {}).update(dict.fromkeys(candidates))
    return [Question(query, tuple(candidates)) for query, candidates in wanted.items()]


def _judge(table: pl.DataFrame, backend: Backend, mode: str) -> pl.DataFrame:
    """JUDGEMENTS of some pairs (pair, query, positive, hits; null hits: none)."""
    rows = [(pair, query, positive, found or []) for pair, query, positive, found in table.iter_rows()]
    asking = questions((query, (positive, *candidates)) for _, query, positive, candidates in rows)
    logits = {
        (question.query, candidate): pair
        for question, answer in zip(asking, backend.answers(asking), strict=True)
        for candidate, pair in zip(question.candidates, answer, strict=True)
    }
    asked = [(pair, query, one, one == positive) for pair, query, positive, candidates in rows for one in (positive, *candidates)]
    both = np.array([logits[query, one] for _, query, one, _ in asked], dtype=np.float32)  # (n, 2)
    if not np.isfinite(both).all():
        pair, _, one, _ = asked[int((~np.isfinite(both).all(axis=1)).argmax())]
        raise artifacts.ArtifactError(
            f"judge: pair {pair}, candidate {one}: its logits are not finite; check the model's weights, or set models.dtype to float32"
        )
    return pl.DataFrame(
        {
            "pair": [pair for pair, _, _, _ in asked],
            "candidate": [one for _, _, one, _ in asked],
            "positive": [positive for _, _, _, positive in asked],
            "yes": both[:, 0],
            "no": both[:, 1],
            "score": score(both[:, 0], both[:, 1], mode),
        },
        schema=artifacts.JUDGEMENTS,
    )
