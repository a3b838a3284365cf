"""Recall of all queries in one pool that they share, block by block (numpy, no torch).

COCO asks 25,000 captions for 5,000 images and back: 125 million similarities, which a table of ids or of positions would make
gigabytes.  So no (Q, C) table exists: for a block of queries all scores are there, are counted, and go.

1. Scores are summed in float64 and rounded once to float32, as in `metrics.similarities`: equal vectors score equal in whatever
   block they stand, and blocks of any size give the same.
2. The rank of a query is how many candidates come before its best right one under the tie rule; any right one is a hit.
3. The best candidates are those at or above the k-th score, put in order.  Among equals a right one stands last under `content`; the
   rest stand as the pool does: under `content` in the order of their ids, which says nothing about the right answer, under `vlm2vec_v1`
   in the source's.  Under `vlm2vec_v2` and `unime_v2` equals stand as those rules' sorts leave them (`metrics.sorted_as_published`).
   UniME-V2's public code takes torch's `topk` for these sets, whose order of equals is as arbitrary; a right one that the pool holds
   again counts once under every rule.

Memory beside vectors and result: 12 bytes a score of a block (96 MiB for `SCORES`) and 24 bytes a value of `ROWS` vectors (42 MiB at
D = 3584), whatever the size of the task.  The result holds 8 bytes a kept candidate.

What was refused: float32 products (their blocks break ties at random), an approximate index (the figure would be another one).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from unime.evaluate.metrics import SORTED_AS_PUBLISHED, TIE_RULES, sorted_as_published

SCORES = 1 << 23
"""Scores of one block of queries; one query's scores where the pool is larger."""

ROWS = 1 << 9
"""Queries, or candidates, whose vectors are float64 at a time."""


@dataclass(frozen=True)
class Shared:
    """The pool of Q queries as numbers.

    ids: the C distinct candidates, in the order in which equals are listed.  wanted: for each query the positions in `ids` that count as
    right, ascending, at least one.  rule: the tie rule.
    """

    ids: list[str]
    wanted: list[np.ndarray]
    rule: str

    @staticmethod
    def of(pool: Sequence[str], right: Sequence[Sequence[str]], rule: str) -> Shared:
        """From the pool's ids (one that is there again counts once) and the ids of each query's right answers.

        Raises ValueError for a query without a right answer or with one outside the pool, naming the query's place.
        """
        if rule not in TIE_RULES:
            raise ValueError(f"tie rule {rule!r} is not one of {', '.join(TIE_RULES)}")
        ids = sorted(set(pool)) if rule == "content" else list(dict.fromkeys(pool))
        place = {name: k for k, name in enumerate(ids)}
        wanted = []
        for row, answers in enumerate(right):
            if not answers:
                raise ValueError(f"query {row} has no right answer; repair the task's rows")
            if absent := [name for name in answers if name not in place]:
                raise ValueError(f"query {row}: the right answer {absent[0]} is not in the pool of {len(ids)}; make both tables again")
            wanted.append(np.unique([place[name] for name in answers]))
        return Shared(ids, wanted, rule)


def search(vectors: np.ndarray, queries: np.ndarray, candidates: np.ndarray, shared: Shared, keep: int) -> tuple[np.ndarray, np.ndarray]:
    """Ranks (Q,) int64, 0 is a hit at 1, and the positions in `shared.ids` of the best `keep` candidates (Q, min(keep, C)) int64.

    `vectors` (N, D) unit rows; `queries` (Q,) and `candidates` (C,), in the order of `shared.ids`, are row numbers in it.  Raises
    ValueError for a score that is NaN, naming the query and the candidate.
    """
    q, c = len(queries), len(candidates)
    keep = min(keep, c)
    ranks, best = np.empty(q, dtype=np.int64), np.empty((q, keep), dtype=np.int64)
    step = max(1, min(ROWS, SCORES // c))
    for k in range(0, q, step):
        rows = slice(k, min(k + step, q))
        scores = _scores(vectors, queries[rows], candidates)
        if (bad := np.argwhere(np.isnan(scores))).size:
            name = shared.ids[bad[0, 1]]
            raise ValueError(f"query {k + bad[0, 0]}: the score of candidate {name} is NaN; check the model's weights and dtype")
        if shared.rule in SORTED_AS_PUBLISHED:
            ranks[rows], best[rows] = _as_published(scores, shared.wanted[rows], shared.rule, keep)
            continue
        ranks[rows] = _ranks(scores, shared.wanted[rows], shared.rule)
        best[rows] = _best(scores, shared.wanted[rows], shared.rule, keep)
    return ranks, best


def _scores(vectors: np.ndarray, queries: np.ndarray, candidates: np.ndarray) -> np.ndarray:
    """(B, C) float32."""
    block = vectors[queries].astype(np.float64)
    found = np.empty((len(queries), len(candidates)), dtype=np.float32)
    for k in range(0, len(candidates), ROWS):
        columns = slice(k, k + ROWS)
        found[:, columns] = block @ vectors[candidates[columns]].astype(np.float64).T
    return found


def _as_published(scores: np.ndarray, wanted: Sequence[np.ndarray], rule: str, keep: int) -> tuple[np.ndarray, np.ndarray]:
    """Ranks (B,) and the positions of the best (B, keep), in the order that the public code's sort of each row leaves."""
    ranks = np.empty(len(scores), dtype=np.int64)
    best = np.empty((len(scores), keep), dtype=np.int64)
    for row, (own, places) in enumerate(zip(scores, wanted, strict=True)):
        order = sorted_as_published(own, rule)
        ranks[row] = np.isin(order, places).argmax()
        best[row] = order[:keep]
    return ranks, best


def _ranks(scores: np.ndarray, wanted: Sequence[np.ndarray], rule: str) -> np.ndarray:
    """(B,) int64: candidates before the best wanted one.  None of those is wanted: wanted ones are not better than the best of them."""
    starts = np.cumsum([0, *(len(places) for places in wanted[:-1])])
    owner, place = np.repeat(np.arange(len(wanted)), [len(places) for places in wanted]), np.concatenate(wanted)
    own = scores[owner, place]
    best = np.maximum.reduceat(own, starts)
    level = own == best[owner]  # wanted ones that share the best score
    before = np.count_nonzero(scores > best[:, None], axis=1)
    if rule == "content":
        before += np.count_nonzero(scores == best[:, None], axis=1) - np.add.reduceat(level.astype(np.int64), starts)
    else:
        first = np.minimum.reduceat(np.where(level, place, scores.shape[1]), starts)
        before += np.count_nonzero((scores == best[:, None]) & (np.arange(scores.shape[1]) < first[:, None]), axis=1)
    return before


def _best(scores: np.ndarray, wanted: Sequence[np.ndarray], rule: str, keep: int) -> np.ndarray:
    """(B, keep) int64: positions of the best, best first, equals as the rule says."""
    least = np.partition(scores, scores.shape[1] - keep, axis=1)[:, scores.shape[1] - keep]
    found = np.empty((len(scores), keep), dtype=np.int64)
    for row, (own, places) in enumerate(zip(scores, wanted, strict=True)):
        near = np.flatnonzero(own >= least[row])
        last = np.isin(near, places) if rule == "content" else np.zeros(len(near), dtype=bool)
        found[row] = near[np.lexsort((last, -own[near]))[:keep]]  # stable: equals of the same kind stay in the pool's order
    return found
