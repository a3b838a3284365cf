"""An MLLM as judge: for each pair and each of its candidates, does the candidate meet the query's requirements?  (paper, section 3.2)

A backend reads questions and gives the logits of Yes and No at the first token of the answer; scores, shards and the table are the
same for all backends and are here.  The pair's own positive is judged too.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
import polars as pl

from unime import artifacts, shards
from unime.data.items import Items

PENALTY = 1.05
"""Repetition penalty in the generation config of the published judge; Yes and No both stand in its prompt."""


class Question(NamedTuple):
    """A query's item id, and the distinct ids of the candidates to judge."""

    query: str
    candidates: tuple[str, ...]


class Backend(Protocol):
    def answers(self, questions: Sequence[Question]) -> list[np.ndarray]:
        """Per question (candidates, 2) float32: the raw logits of Yes and of No."""


def open_backend(name: str, folder: str | Path, items: Items, *, models: Any, batch_tokens: int, image_size: int = 0) -> Backend:
    """The judge of this name on a model folder; `models` is the config's section of that name, `image_size` as for `backbones.load`."""
    if name != "transformers":
        raise ValueError(f"judge.backend {name!r} is not known; known: 'transformers'")
    from unime.backbones import load
    from unime.judge.transformers_backend import TransformersJudge

    return TransformersJudge(load(folder, models=models, image_size=image_size), items, batch_tokens)


def judge(
    pairs: pl.DataFrame,
    hits: pl.DataFrame,
    backend: Backend,
    *,
    mode: str,
    shard: int,
    scratch: Path,
    track: Callable[..., Iterable[Any]],
) -> pl.DataFrame:
    """Table JUDGEMENTS: for every pair, in the order of `pairs`, its positive and then its hits in the order of rank.

    `shard` pairs at a time are written to `scratch` whole; a rerun judges the rest.  In a shard equal (query, candidate) are judged
    once.  Raises ArtifactError for a logit that is not finite, and for hits of unknown pairs.
    """
    lists = hits.group_by("pair").agg(hits=pl.col("candidate").sort_by("rank"))
    unknown = lists.join(pairs, on="pair", how="anti")["pair"]
    if len(unknown):
        raise artifacts.ArtifactError(f"hits: pair {unknown.min()} is not in pairs; the tables are of different runs")
    rows = pairs.select("pair", "query", "positive").join(lists, on="pair", how="left", maintain_order="left")
    parts = shards.run(
        [rows[start : start + shard] for start in range(0, len(rows), shard)],
        scratch,
        "judge",
        make=lambda some: _judge(some, backend, mode),
        write=lambda table, place: artifacts.write_table(table, place, artifacts.JUDGEMENTS),
        read=lambda place: artifacts.read_table(place, artifacts.JUDGEMENTS),
        track=track,
    )
    return pl.concat([pl.DataFrame(schema=artifacts.JUDGEMENTS), *parts])


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


def _judge(table: pl.DataFrame, backend: Backend, mode: str) -> pl.DataFrame:
    """JUDGEMENTS of some pairs (pair, query, positive, hits; null hits: none)."""
    rows = [(pair, query, positive, found or []) for pair, query, positive, found in table.iter_rows()]
    wanted: dict[str, dict[str, None]] = {}
    for _, query, positive, candidates in rows:
        wanted.setdefault(query, {}).update(dict.fromkeys((positive, *candidates)))
    questions = [Question(query, tuple(candidates)) for query, candidates in wanted.items()]
    logits = {
        (question.query, candidate): pair
        for question, answer in zip(questions, backend.answers(questions), strict=True)
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
