"""Precision@1, recall@k and the order of candidates, from score rows (numpy, no torch).

Ties decide what a degenerate model earns, and public code differs, so the rule is a setting (`evaluate.tie_rule`):

    content     a candidate equal in content to the right one counts as right; any other candidate with the best score makes the answer
                wrong.  A model that scores all alike earns nothing (unless all candidates are equal to the right one).
    vlm2vec_v1  VLM2Vec, version 1 (evaluation/eval_utils.py): `argmax`, so the first of equals in the list is the answer.  MMEB lists the
                right one first, so ties earn.
    vlm2vec_v2  VLM2Vec, version 2 (eval.py, src/eval_utils/metrics.py): the answer is the first of `argsort`, and it is right if it has the
                right one's name.  A name says what a candidate is, so repeats of the right one are right.
    unime_v2    UniME-V2's public code (Embedding/eval.py and evaluation/utils/utils.py): `argpartition` finds the ten best, `argsort`
                puts them in order, and the answer is right if it stands in the right one's place of the list.  A repeat of it in
                another place is wrong.

The last two leave the order of equals to numpy's sorts, which are not stable: it is the same in each run on one machine, and may be
another on a processor with other vector instructions.  Here as there, each list is sorted as a whole, its repeats included.

Each rule is one ordering: by score, then by what the rule says of equals.  Under `content` a wanted candidate stands last among equals,
under `vlm2vec_v1` the position in the list decides.  The prediction is the first of the order, it is right if and only if it is wanted,
and recall@1 is Precision@1.  Equals that `content` does not tell apart stand in the order of their content ids, which says nothing
about the right answer.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

TIE_RULES = ("content", "vlm2vec_v1", "vlm2vec_v2", "unime_v2")
SORTED_AS_PUBLISHED = ("vlm2vec_v2", "unime_v2")
"""Rules whose order of equals is that of the public code's sort of a whole list, repeats included."""

PARTITIONED = 10
"""Best candidates that UniME-V2's public code takes out of a list before it sorts them (`topk` in Embedding/eval.py)."""

SLACK = 1e-5
"""Twice the most that float32 products of unit vectors are off by, and more."""

_FEW = 0.25  # share of scores from which on computing all of them again is cheaper than some
_PAIRS = 1 << 12  # scores computed one by one at a time
_BLOCK = 1 << 25  # float64 values of one block: 256 MiB
_SHARED = 32  # one product costs about a thirtieth of a gather for each pair (memory traffic), so it wins up to this many times the pairs


@dataclass(frozen=True)
class Pool:
    """The candidates of Q queries as numbers.

    ids: the U distinct candidates, sorted.  columns: (Q, C) int64, index into `ids` by list position, -1 where a list is shorter and,
    under the rules that do not sort whole lists, where a candidate repeats one before it.  wanted: (Q, C) bool, the positions that count
    as right, at least one in each row.
    """

    ids: list[str]
    columns: np.ndarray
    wanted: np.ndarray

    @staticmethod
    def of(candidates: Sequence[Sequence[str]], right: Sequence[int], rule: str = "content") -> Pool:
        """From candidate ids and the index of the right one of each query, for a tie rule.

        Wanted are the positions of the right one's content; under `unime_v2` its own position alone.  Raises ValueError for an unknown
        rule, and for an empty list or an index outside it, naming the query's place.
        """
        _check_rule(rule)
        for row, (ids, index) in enumerate(zip(candidates, right, strict=True)):
            if not 0 <= index < len(ids):
                raise ValueError(f"query {row}: the right answer is number {index} of {len(ids)} candidates; repair the task's rows")
        ids = sorted({i for row in candidates for i in row})
        number = {name: k for k, name in enumerate(ids)}
        width = max((len(row) for row in candidates), default=0)
        columns = np.full((len(candidates), width), -1, dtype=np.int64)
        for k, row in enumerate(candidates):
            columns[k, : len(row)] = [number[i] for i in row]
        places = np.asarray(right, dtype=np.int64)[:, None]
        chosen = np.take_along_axis(columns, places, axis=1)
        if rule not in SORTED_AS_PUBLISHED:
            columns[_repeats(columns)] = -1
        wanted = np.arange(width) == places if rule == "unime_v2" else columns == chosen
        return Pool(ids, columns, wanted)

    def only(self, lists: Sequence[Sequence[str]]) -> Pool:
        """The same queries with these candidates in this order; a list may lack every wanted one.

        Wanted are all that have a wanted one's content, under `unime_v2` too: its public code compares a reranker's choice by content
        (Embedding/eval_rerank.py).
        """
        number = {name: k for k, name in enumerate(self.ids)}
        columns = np.full((len(lists), max((len(row) for row in lists), default=0)), -1, dtype=np.int64)
        for k, row in enumerate(lists):
            columns[k, : len(row)] = [number[i] for i in row]
        right = np.where(self.wanted, self.columns, -2)  # (Q, C); -2 equals no column
        return Pool(self.ids, columns, (columns[:, :, None] == right[:, None, :]).any(axis=2))

    def listed(self, places: np.ndarray) -> list[list[str]]:
        """Candidate ids at list positions (Q, n), -1 left out: what `order` found, as ids."""
        columns = np.take_along_axis(self.columns, np.maximum(places, 0), axis=1)
        return [[self.ids[c] for c in row[place >= 0]] for row, place in zip(columns, places, strict=True)]


def similarities(queries: np.ndarray, candidates: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """Cosines (Q, C) float32 of unit rows (Q, D) and (U, D) at `columns` (Q, C); -inf where a column is -1.

    Summed in float64 and rounded once to float32, so equal vectors score equal wherever they stand: the blocks of a matrix product
    would otherwise tell them apart in the last bit and break ties at random.  Candidates that queries share (label sets) are one
    matrix product; where each query has mostly its own, its vectors are gathered.  Both go block by block over the queries.
    """
    q, u = queries.astype(np.float64), candidates.astype(np.float64)
    absent = columns < 0
    safe = np.where(absent, 0, columns)
    shared = len(u) <= _SHARED * columns.shape[1]
    step = max(1, _BLOCK // max(1, len(u) if shared else columns.shape[1] * u.shape[1]))
    found = np.empty(columns.shape)
    for k in range(0, len(q), step):
        rows = slice(k, k + step)
        if shared:
            found[rows] = np.take_along_axis(q[rows] @ u.T, safe[rows], axis=1)
        else:
            found[rows] = (u[safe[rows]] @ q[rows, :, None])[:, :, 0]
    scores = found.astype(np.float32)
    scores[absent] = -np.inf
    return scores


def ranks(scores: np.ndarray, pool: Pool, rule: str) -> np.ndarray:
    """(Q,) int64: how many distinct candidates come before the best wanted one under a tie rule; 0 is a right answer.

    Rows without a wanted candidate (a reranker's list that the right one did not reach) get the number of all their candidates.
    """
    present = _checked(scores, pool, rule)
    if rule in SORTED_AS_PUBLISHED:
        places = order(scores, pool, rule)
        hits = np.take_along_axis(pool.wanted, np.maximum(places, 0), axis=1) & (places >= 0)
        return np.where(pool.wanted.any(axis=1), hits.argmax(axis=1), present.sum(axis=1))
    best = np.where(pool.wanted, scores, -np.inf).max(axis=1, initial=-np.inf)[:, None]
    others = present & ~pool.wanted
    if rule == "content":
        before = others & (scores >= best)
    else:
        position = np.arange(scores.shape[1])[None, :]
        first = np.where(pool.wanted & (scores == best), position, scores.shape[1]).min(axis=1, initial=scores.shape[1])
        before = others & ((scores > best) | ((scores == best) & (position < first[:, None])))
    return np.where(pool.wanted.any(axis=1), before.sum(axis=1), present.sum(axis=1))


def order(scores: np.ndarray, pool: Pool, rule: str) -> np.ndarray:
    """(Q, C) int64: list positions, best first, equals as the tie rule says; -1 after the last candidate of a row."""
    present = _checked(scores, pool, rule)
    if rule in SORTED_AS_PUBLISHED:
        found = np.full(pool.columns.shape, -1, dtype=np.int64)
        for row in range(len(found)):
            places = np.flatnonzero(present[row])
            found[row, : len(places)] = places[sorted_as_published(scores[row, places], rule)]
        return found
    among, place = _equals(pool, rule)
    found = np.lexsort((place, among, -scores, ~present), axis=1)
    return np.where(np.take_along_axis(present, found, axis=1), found, -1)


def sorted_as_published(scores: np.ndarray, rule: str) -> np.ndarray:
    """(C,) int64: the positions of one list's scores, best first, equals as the public code of `vlm2vec_v2` or `unime_v2` leaves them.

    UniME-V2's public code keeps ten; the others follow here by score, equals in the list's order.
    """
    if rule == "vlm2vec_v2":
        return np.argsort(-scores)
    count = min(PARTITIONED, len(scores))
    best = np.argpartition(scores, -count)[-count:]
    best = best[np.argsort(-scores[best])]
    others = np.setdiff1d(np.arange(len(scores)), best)
    return np.concatenate([best, others[np.argsort(-scores[others], kind="stable")]])


def search(queries: np.ndarray, candidates: np.ndarray, pool: Pool, rule: str, keep: int) -> tuple[np.ndarray, np.ndarray]:
    """What `ranks` (Q,) and the first `keep` columns of `order` (Q, keep) give for `similarities` of these vectors, for the price of a
    float32 product: only scores that decide something are summed in float64.

    1. All scores in float32, which are off by less than half of SLACK.
    2. As `similarities` sums them: those within SLACK of the best wanted one, where there are several, and those among the best `keep`
       that have another one within SLACK.  Where they are many (all candidates alike), all scores.
    3. No other one can change a rank or a place.

    The rules that sort whole lists as the public code does get all scores as `similarities` sums them.
    """
    keep = min(keep, pool.columns.shape[1])
    if rule in SORTED_AS_PUBLISHED:
        scores = similarities(queries, candidates, pool.columns)
        return ranks(scores, pool, rule), order(scores, pool, rule)[:, :keep]
    scores, present = _rough(queries, candidates, pool.columns), pool.columns >= 0
    last = np.partition(scores, scores.shape[1] - keep, axis=1)[:, scores.shape[1] - keep, None]
    top = present & (scores >= last - SLACK)
    row, column = top.nonzero()
    by_row = np.lexsort((-scores[top], row))
    row, column = row[by_row], column[by_row]
    unclear = _unclear(row, scores[row, column])
    best = np.where(pool.wanted, scores, -np.inf).max(axis=1)[:, None]
    near = (scores >= best - SLACK) & (scores <= best + SLACK) & present
    near &= near.sum(axis=1, keepdims=True) > 1
    near[row[unclear], column[unclear]] = True
    if near.sum() > _FEW * present.sum():
        scores = similarities(queries, candidates, pool.columns)
    else:
        again = near.nonzero()
        for start in range(0, len(again[0]), _PAIRS):
            some = again[0][start : start + _PAIRS], again[1][start : start + _PAIRS]
            left, right = (table.astype(np.float64) for table in (queries[some[0]], candidates[pool.columns[some]]))
            scores[some] = np.einsum("nd,nd->n", left, right)
    found = ranks(scores, pool, rule)
    among, place = _equals(pool, rule)
    by_row = np.lexsort((place[row, column], among[row, column], -scores[row, column], row))
    row, column = row[by_row], column[by_row]
    at = np.arange(len(row)) - np.searchsorted(row, row)  # place in its own row's list
    first = np.full((len(scores), keep), -1, dtype=np.int64)
    first[row[at < keep], at[at < keep]] = column[at < keep]
    return found, first


def _unclear(row: np.ndarray, score: np.ndarray) -> np.ndarray:
    """(n,) bool, of scores in the order of their row and falling in it: those within SLACK of the one before or behind."""
    close = (row[1:] == row[:-1]) & (score[:-1] - score[1:] <= SLACK)
    return np.concatenate([[False], close]) | np.concatenate([close, [False]])


def recall_at(found: np.ndarray, k: int) -> float:
    """Share of queries with fewer than k candidates before the right one; k = 1 is Precision@1.  `found` is `ranks`'."""
    return float((found < k).mean())


def _equals(pool: Pool, rule: str) -> tuple[np.ndarray, np.ndarray]:
    """(Q, C) each: what puts equal scores in order, and what does where that is equal too."""
    if rule == "content":
        return pool.wanted, pool.columns
    return np.zeros_like(pool.wanted), np.broadcast_to(np.arange(pool.columns.shape[1]), pool.columns.shape)


def _rough(queries: np.ndarray, candidates: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """As `similarities`, in float32."""
    queries, candidates = queries.astype(np.float32, copy=False), candidates.astype(np.float32, copy=False)
    shared = len(candidates) <= _SHARED * columns.shape[1]
    step = max(1, 2 * _BLOCK // max(1, len(candidates) if shared else columns.shape[1] * candidates.shape[1]))
    found = np.empty(columns.shape, dtype=np.float32)
    for k in range(0, len(queries), step):
        rows = slice(k, k + step)
        if shared:
            found[rows] = np.take_along_axis(queries[rows] @ candidates.T, columns[rows], axis=1)
        else:
            found[rows] = (candidates[columns[rows]] @ queries[rows, :, None])[:, :, 0]
    found[columns < 0] = -np.inf
    return found


def _checked(scores: np.ndarray, pool: Pool, rule: str) -> np.ndarray:
    _check_rule(rule)
    if scores.shape != pool.columns.shape:
        raise ValueError(f"scores of shape {scores.shape} for candidates of shape {pool.columns.shape}; one score each is needed")
    present = pool.columns >= 0
    bad = present & np.isnan(scores)
    if bad.any():
        row, column = np.argwhere(bad)[0]
        raise ValueError(
            f"query {row}: the score of candidate {pool.ids[pool.columns[row, column]]} is NaN; check the model's weights and dtype"
        )
    return present


def _check_rule(rule: str) -> None:
    if rule not in TIE_RULES:
        raise ValueError(f"tie rule {rule!r} is not one of {', '.join(TIE_RULES)}")


def _repeats(columns: np.ndarray) -> np.ndarray:
    """(Q, C) bool: positions that hold a value which stands earlier in the same row."""
    by_value = np.argsort(columns, axis=1, kind="stable")
    value = np.take_along_axis(columns, by_value, axis=1)
    again = np.zeros(columns.shape, dtype=bool)
    again[:, 1:] = value[:, 1:] == value[:, :-1]
    found = np.zeros_like(again)
    np.put_along_axis(found, by_value, again, axis=1)
    return found
