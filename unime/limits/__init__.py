"""Which rows a run's models can read, decided before anything is embedded, judged or trained.

1. An image must be one that the model's image processor takes (`lengths`).
2. An item alone, a query with a candidate, and a query with the longest list that it may be shown with must not be longer than
   models.max_length.  Nothing is ever cut off, so a longer prompt would stop the stage that meets it.
3. In a training set any candidate may be mined for any query, so a query is measured against the longest candidates of its set.  Where
   not all of them fit, either long candidates go or long queries: `cut` takes what loses the fewest rows.

Refused: lengths in characters or in UTF-8 bytes (a row would be left out that fits), and a check of every query with every candidate.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np


class Cut(NamedTuple):
    """What a bound on prompts leaves out of P candidates and m pairs: `candidates` (P,) bool, `pairs` (m,) bool, and `needed` (m,) int64,
    the tokens of each pair's longest prompt among the candidates that stay."""

    candidates: np.ndarray
    pairs: np.ndarray
    needed: np.ndarray


def cut(query: np.ndarray, candidate: np.ndarray, pool: np.ndarray, room: int, others: int, *, own: bool) -> Cut:
    """The pairs and candidates that must go so that every prompt has at most `room` tokens, the fewest pairs that a cut by length loses.

    `query` (m,) are the tokens of each pair's query, `candidate` (m,) the place of its positive in the pool and `pool` (P,) the tokens of
    the candidates.  A prompt shows the query and `others` distinct candidates of the pool, whichever these are; with `own` the pair's
    positive too.
    """
    size = len(pool)
    others = min(others, size - 1 if own else size)
    order = np.argsort(-pool, kind="stable")
    longest_first = pool[order]
    rank = np.empty(size, dtype=np.int64)
    rank[order] = np.arange(size)
    own_rank = rank[candidate]

    # sums[k]: the longest `others` candidates where the k longest of all are gone
    total = np.concatenate([[0], np.cumsum(longest_first)])
    sums = total[others:] - total[: size - others + 1]
    fixed = query + pool[candidate] if own else query

    def longest(k: int) -> np.ndarray:
        """Tokens of each pair's longest prompt where the k longest candidates are gone, for pairs whose positive is not."""
        needed = fixed + sums[k]
        if not own:
            return needed
        next_one = longest_first[k + others] if k + others < size else 0
        among = (own_rank >= k) & (own_rank < k + others)  # the positive is no other candidate of its own pair: the next takes its place
        return np.where(among, needed - pool[candidate] + next_one, needed)

    best = 0
    if longest(0).max(initial=0) > room:
        gone = np.searchsorted(np.sort(own_rank), np.arange(len(sums)))  # pairs whose positive is among the k longest
        over = len(fixed) - np.searchsorted(np.sort(fixed), room - sums, side="right")
        best = int(np.argmin(gone + over))
    needed = longest(best)
    return Cut(rank < best, (own_rank < best) | (needed > room), needed)
