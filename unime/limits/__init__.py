"""Which rows a run's models can read, decided before anything is embedded, judged or trained.

1. An image must be one that the model's image processor takes (`lengths`).
2. An item alone, a query with a candidate, and a query with the longest list that it may be shown with must not be longer than
   models.max_length.  Nothing is ever cut off, so a longer prompt would stop the stage that meets it.
3. In a training set any candidate may be mined for any query, so a query is measured against the longest candidates of its set.  Where
   not all of them fit, either long candidates go or long queries: `cut` takes the way that loses the fewest rows.

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
    """The pairs and candidates that must go so that every prompt has at most `room` tokens.

    `query` (m,) are the tokens of each pair's query, `candidate` (m,) the place of its positive in the pool and `pool` (P,) the tokens of
    the candidates.  A prompt shows the query and `others` distinct candidates of the pool, whichever these are; with `own` the pair's
    positive too.

    Candidates go longest first, and with each of them the pairs whose positive it is; then the pairs go whose query still makes a prompt
    that is too long.  Of all numbers of candidates that may go (two must stay), the one that loses the fewest pairs is taken.
    """
    size = len(pool)
    pairs_of = np.bincount(candidate, minlength=size)
    order = np.lexsort((pairs_of, -pool))  # of equally long candidates those first that cost fewer pairs
    rank = np.empty(size, dtype=np.int64)
    rank[order] = np.arange(size)
    own_rank = rank[candidate]
    own_length = pool[candidate]

    others = min(others, size - own)
    without_own = _sums_of_longest(pool[order], others)
    with_own = _sums_of_longest(pool[order], others + 1)
    # As long as so many candidates are gone, the pair's positive is not among the next ones, so it is shown beside the longest `others`.
    # From then on it is one of the longest `others` + 1 that are left, and these are the prompt.
    apart = np.maximum(own_rank - others, 0)

    def needed(gone: np.ndarray | int) -> np.ndarray:
        """Tokens of each pair's longest prompt where so many of the longest candidates are gone, for pairs whose positive is not."""
        if not own:
            return query + without_own[gone]
        return np.where(gone < apart, query + own_length + without_own[gone], query + with_own[gone])

    # Of each pair the smallest number of candidates that must go before all its prompts fit.  It is lost with more than its rank.
    if own:
        first = _first_at_most(without_own, room - query - own_length)
        first = np.where(first < apart, first, np.maximum(apart, _first_at_most(with_own, room - query)))
    else:
        first = _first_at_most(without_own, room - query)
    kept = first <= own_rank
    change = np.bincount(first[kept], minlength=size + 1) - np.bincount(own_rank[kept] + 1, minlength=size + 1)
    most = max(1, size - 1)  # two candidates are left, or there would be nothing to tell apart
    gone = int(np.argmax(np.cumsum(change)[:most]))  # the first of the best: no candidate goes without need
    tokens = needed(gone)
    return Cut(rank < gone, (own_rank < gone) | (tokens > room), tokens)


def _sums_of_longest(longest_first: np.ndarray, count: int) -> np.ndarray:
    """(P,) int64: the sum of the `count` longest candidates (all, where fewer are left) once the k longest are gone, k = 0 ... P - 1."""
    total = np.concatenate([[0], np.cumsum(longest_first)])
    start = np.arange(len(longest_first))
    end = np.minimum(start + count, len(longest_first))
    return total[end] - total[start]


def _first_at_most(falling: np.ndarray, bounds: np.ndarray) -> np.ndarray:
    """(m,) int64: where the falling numbers are first at most each bound; their length where they never are."""
    return np.searchsorted(-falling, -bounds, side="left")
