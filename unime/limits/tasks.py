"""The queries and candidates of evaluation tasks and caption columns that the base embedder and the reranker can read.

A query whose own item or whose right answer does not fit is left out.  A wrong candidate that does not fit is left out of the lists that
show it, and the query stays: one long text in a pool must not cost the queries that share it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import polars as pl

from unime import artifacts
from unime.limits import cut
from unime.limits.lengths import Reader, image_problem
from unime.limits.places import Places
from unime.limits.sets import alone

Bad = tuple[int, str]
"""`row` of a query, and the reason why it, or one of its candidates, is left out."""


def problems_of(ids: Sequence[str], embedder: Reader, reranker: Reader) -> dict[str, str | None]:
    """Of each item why one of the models cannot read it, None where both can."""
    found = {id: image_problem([embedder, reranker], id) for id in ids}
    good = [id for id in ids if found[id] is None]
    return found | alone(embedder, good)


class Shown:
    """Lengths of a reranker's prompts that show a query to its `most` best candidates, whichever these are."""

    def __init__(self, reranker: Reader, most: int) -> None:
        self.reader, self.most = reranker, most
        self._query: dict[str, int] = {}
        self._candidate: dict[str, int] = {}
        self._last: dict[str, int] = {}

    def proven(self, queries: Sequence[str], candidates: Sequence[str]) -> bool:
        """Whether a quick bound shows that every prompt fits."""
        longest = np.sort(self.reader.rough(candidates))[::-1][: self.most].sum()
        return self.reader.frame(self.most) + int(self.reader.rough(queries).max()) + int(longest) <= self.reader.most

    def query(self, id: str) -> int:
        if id not in self._query:
            self._query[id] = self.reader.as_query(id)
        return self._query[id]

    def candidate(self, id: str) -> int:
        """Tokens of a candidate that another may follow."""
        if id not in self._candidate:
            self._candidate[id] = self.reader.as_candidate(id, last=self.most == 1)
        return self._candidate[id]

    def last(self, id: str) -> int:
        """Tokens that the candidate takes more where it stands last."""
        if id not in self._last:
            self._last[id] = self.reader.as_candidate(id) - self.candidate(id)
        return self._last[id]

    def needed(self, query: str, candidates: Sequence[str]) -> int:
        """Tokens of the longest prompt of this query and some of its candidates; these are sorted by length."""
        shown = candidates[-self.most :]
        end = max(0, *(self.last(id) for id in shown))
        return self.reader.frame(len(shown)) + self.query(query) + sum(self.candidate(id) for id in shown) + end


def fitting_lists(
    table: pl.DataFrame, embedder: Reader, reranker: Reader, most: int, places: Places
) -> tuple[pl.DataFrame, pl.DataFrame, pl.DataFrame]:
    """(TASKS that fit, left-out queries, left-out candidates), the last two as (file, row, reason).

    Also of CAPTION_QUERIES that bring their two captions along.
    """
    queries = table["query"].unique(maintain_order=True).to_list()
    candidates = table["candidates"].explode().unique(maintain_order=True).to_list()
    problems = problems_of(list(dict.fromkeys([*queries, *candidates])), embedder, reranker)
    good = [id for id in candidates if problems[id] is None]
    asked = [id for id in queries if problems[id] is None]
    shown = Shown(reranker, most)
    proven = not good or not asked or shown.proven(asked, good)
    if proven and all(problem is None for problem in problems.values()):
        return table, places.named(_frame([])), places.named(_frame([]))

    kept: list[dict[str, object]] = []
    lost: list[Bad] = []
    dropped: list[Bad] = []
    for row in table.iter_rows(named=True):
        right = _right(row)
        reason, without = _one(row["query"], row["candidates"], right, problems, None if proven else shown)
        if reason is not None:
            lost.append((row["row"], reason))
            continue
        dropped += [(row["row"], f"candidate {row['candidates'].index(id)}: {why}") for id, why in without.items()]
        candidates = [id for id in row["candidates"] if id not in without]
        kept.append(row | {"candidates": candidates} | _place(row, candidates, right))
    return pl.DataFrame(kept, schema=table.schema), places.named(_frame(lost)), places.named(_frame(dropped))


def _right(row: Mapping[str, object]) -> str:
    """The id of the right answer of a row of TASKS, or of CAPTION_QUERIES with two captions."""
    right, candidates = row["right"], row["candidates"]
    assert isinstance(candidates, list)
    return str(right[0] if isinstance(right, list) else candidates[right])  # type: ignore[call-overload]


def _place(row: Mapping[str, object], candidates: list[str], right: str) -> dict[str, object]:
    return {} if isinstance(row["right"], list) else {"right": candidates.index(right)}


def _one(
    query: str, candidates: Sequence[str], right: str, problems: Mapping[str, str | None], shown: Shown | None
) -> tuple[str | None, dict[str, str]]:
    """Why a query is left out, or None, and the wrong candidates that are, each with its reason.  No `shown`: its prompts fit."""
    if problems[query] is not None:
        return f"the query: {problems[query]}", {}
    if problems[right] is not None:
        return f"the right answer: {problems[right]}", {}
    distinct = list(dict.fromkeys(candidates))
    without = {id: str(problems[id]) for id in distinct if problems[id] is not None}
    left = [id for id in distinct if id not in without]
    if shown is not None:
        left.sort(key=shown.candidate)
        while (tokens := shown.needed(query, left)) > shown.reader.most:
            wrong = [id for id in left if id != right]
            what = f"a prompt of {tokens:,} tokens, over models.max_length ({shown.reader.most:,}) in {shown.reader.name}"
            if len(wrong) < max(2, shown.most):
                return f"its query, its right answer and its candidates make {what}; {shown.reader.advice([query, right])}", {}
            without[wrong[-1]] = f"with its query and the next longest candidates it makes {what}; {shown.reader.advice([wrong[-1]])}"
            left.remove(wrong[-1])
    if len(left) == 1 and len(distinct) > 1:
        return f"no candidate is left beside the right one; the first left out: {next(iter(without.values()))}", {}
    return None, without


def fitting_pool(
    table: pl.DataFrame, pool: pl.DataFrame, embedder: Reader, reranker: Reader, most: int, places: Places
) -> tuple[pl.DataFrame, pl.DataFrame, pl.DataFrame]:
    """(CAPTION_QUERIES that fit, their POOL, left-out queries as (file, row, reason)), of a retrieval in which all share the pool.

    A candidate of the pool that does not fit leaves it, and with it the queries that have no other right answer.
    """
    queries = table["query"].unique(maintain_order=True).to_list()
    problems = problems_of(list(dict.fromkeys([*queries, *pool["id"]])), embedder, reranker)
    lost: list[Bad] = []

    def without(gone: Mapping[str, str], over: Mapping[str, str]) -> None:
        """Take candidates out of the pool, and queries out of the table."""
        nonlocal table, pool
        kept = []
        for row in table.iter_rows(named=True):
            right = [id for id in row["right"] if id not in gone]
            if row["query"] in over:
                lost.append((row["row"], f"the query: {over[row['query']]}"))
            elif not right:
                lost.append((row["row"], f"the right answer: {gone[row['right'][0]]}"))
            else:
                kept.append(row | {"right": right})
        table = pl.DataFrame(kept, schema=artifacts.CAPTION_QUERIES)
        pool = pool.filter(~pl.col("id").is_in(list(gone)))

    bad = {id: problem for id, problem in problems.items() if problem is not None}
    if bad:
        without(bad, bad)
    shown = Shown(reranker, min(most, max(1, len(pool))))
    if len(table) and not shown.proven(table["query"].to_list(), pool["id"].to_list()):
        gone, over = _too_long(table, pool, shown)
        without(gone, over)
    return table, pool, places.named(_frame(sorted(lost)))


def _too_long(table: pl.DataFrame, pool: pl.DataFrame, shown: Shown) -> tuple[dict[str, str], dict[str, str]]:
    """Candidates and queries that must go, each with its reason, so that the reranker can read every query with any candidates."""
    at = {id: place for place, id in enumerate(pool["id"])}
    pairs = table.select("query", "right").explode("right")
    lengths = np.array([shown.candidate(id) for id in at], dtype=np.int64)
    queries = np.array([shown.query(id) for id in pairs["query"]], dtype=np.int64)
    positive = np.array([at[id] for id in pairs["right"]], dtype=np.int64)
    reader = shown.reader
    frame = reader.frame(shown.most) + max(0, *(shown.last(id) for id in at))
    found = cut(queries, positive, lengths, reader.most - frame, shown.most, own=False)
    over = f"over models.max_length ({reader.most:,}) in {reader.name}"
    gone = {}
    for id, place in at.items():
        if found.candidates[place]:
            advice = reader.advice([id])
            gone[id] = f"as a candidate of {lengths[place]:,} tokens it would make prompts {over}; {advice}"
    too_long = {}
    for place in np.flatnonzero(found.pairs & ~found.candidates[positive]):
        id = pairs["query"][int(place)]
        tokens = frame + found.needed[place]
        too_long[id] = f"with the {shown.most} longest candidates it makes a prompt of {tokens:,} tokens, {over}; {reader.advice([id])}"
    return gone, too_long


def _frame(bad: Sequence[Bad]) -> pl.DataFrame:
    return pl.DataFrame(list(bad), schema={"row": pl.Int64, "reason": pl.String}, orient="row")
