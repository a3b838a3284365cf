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
from unime.limits.sets import alone, limit

Bad = tuple[int, str]
"""`row` of a query, and the reason why it, or one of its candidates, is left out."""


def problems_of(ids: Sequence[str], embedder: Reader, reranker: Reader) -> dict[str, str | None]:
    """Of each item why one of the models cannot read it, None where both can."""
    found = {id: image_problem([embedder, reranker], id) for id in ids}
    good = [id for id in ids if found[id] is None]
    return found | alone(embedder, good)


class ListLengths:
    """Lengths of a reranker's prompts that show a query to `size` of its candidates at a time, whichever these are."""

    def __init__(self, reranker: Reader, size: int) -> None:
        self.reader, self.size = reranker, size
        self._query: dict[str, int] = {}
        self._candidate: dict[str, int] = {}
        self._last: dict[str, int] = {}

    def surely_fit(self, queries: Sequence[str], candidates: Sequence[str]) -> bool:
        """Whether a quick bound shows that every prompt fits."""
        longest = np.sort(self.reader.upper_bounds(candidates))[::-1][: self.size].sum()
        return self.reader.frame(self.size) + int(self.reader.upper_bounds(queries).max()) + int(longest) <= self.reader.max_length

    def query(self, id: str) -> int:
        """Tokens that the item adds to a prompt as its query."""
        if id not in self._query:
            self._query[id] = self.reader.as_query(id)
        return self._query[id]

    def candidate(self, id: str) -> int:
        """Tokens of a candidate that another may follow."""
        if id not in self._candidate:
            self._candidate[id] = self.reader.as_candidate(id, last=self.size == 1)
        return self._candidate[id]

    def last(self, id: str) -> int:
        """Tokens that the candidate takes more where it stands last."""
        if id not in self._last:
            self._last[id] = self.reader.as_candidate(id) - self.candidate(id)
        return self._last[id]

    def longest(self, query: str, candidates: Sequence[str]) -> int:
        """Tokens of the longest prompt of this query and some of its candidates, which are sorted by length, the longest last."""
        listed = candidates[-self.size :]
        end = max(0, *(self.last(id) for id in listed))
        return self.reader.frame(len(listed)) + self.query(query) + sum(self.candidate(id) for id in listed) + end


def fitting_lists(
    table: pl.DataFrame, embedder: Reader, reranker: Reader, size: int, places: Places
) -> tuple[pl.DataFrame, pl.DataFrame, pl.DataFrame]:
    """(TASKS that fit, left-out queries, left-out candidates), the last two as (file, row, reason).

    The reranker is shown `size` candidates at a time.  Also of CAPTION_QUERIES that bring their two captions along.
    """
    queries = table["query"].unique(maintain_order=True).to_list()
    candidates = table["candidates"].explode().unique(maintain_order=True).to_list()
    problems = problems_of(list(dict.fromkeys([*queries, *candidates])), embedder, reranker)
    good = [id for id in candidates if problems[id] is None]
    asked = [id for id in queries if problems[id] is None]
    lengths = ListLengths(reranker, size)
    all_fit = not good or not asked or lengths.surely_fit(asked, good)
    if all_fit and all(problem is None for problem in problems.values()):
        return table, places.named(_frame([])), places.named(_frame([]))

    kept: list[dict[str, object]] = []
    lost: list[Bad] = []
    dropped: list[Bad] = []
    for row in table.iter_rows(named=True):
        right = _right(row)
        reason, without = _one(row["query"], row["candidates"], right, problems, None if all_fit else lengths)
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
    query: str, candidates: Sequence[str], right: str, problems: Mapping[str, str | None], lengths: ListLengths | None
) -> tuple[str | None, dict[str, str]]:
    """Why a query is left out, or None, and the wrong candidates that are, each with its reason.  No `lengths`: its prompts fit."""
    if problems[query] is not None:
        return f"the query: {problems[query]}", {}
    if problems[right] is not None:
        return f"the right answer: {problems[right]}", {}
    distinct = list(dict.fromkeys(candidates))
    without = {id: str(problems[id]) for id in distinct if problems[id] is not None}
    left = [id for id in distinct if id not in without]
    if lengths is not None and len(left) > 1:
        too_long = _without_longest(query, left, right, lengths)
        if isinstance(too_long, str):
            return too_long, {}
        without |= too_long
        left = [id for id in left if id not in too_long]
    if len(left) == 1 and len(distinct) > 1:
        return f"no candidate is left beside the right one; the first left out: {next(iter(without.values()))}", {}
    return None, without


def _without_longest(query: str, candidates: Sequence[str], right: str, lengths: ListLengths) -> dict[str, str] | str:
    """The longest wrong candidates without which the query's prompts fit, each with its reason; or why the query must go.

    It must go where more than half of its wrong candidates would have to: then the query or its right answer is what is too long, and
    a list cut so short would be an easier question than the one that was asked.
    """
    reader = lengths.reader
    left = sorted(candidates, key=lengths.candidate)
    wrong = [id for id in left if id != right]
    fewest = max(1, (len(wrong) + 1) // 2)
    without: dict[str, str] = {}
    while (tokens := lengths.longest(query, left)) > reader.max_length:
        what = f"a prompt of {tokens:,} tokens, over {limit(reader)}"
        if len(wrong) == fewest:
            return f"its query, its right answer and its candidates make {what}; {reader.advice([query, right])}"
        longest = wrong.pop()
        left.remove(longest)
        without[longest] = f"with its query and the next longest candidates it makes {what}; {reader.advice([longest])}"
    return without


def fitting_pool(
    table: pl.DataFrame, pool: pl.DataFrame, embedder: Reader, reranker: Reader, size: int, places: Places
) -> tuple[pl.DataFrame, pl.DataFrame, pl.DataFrame, pl.DataFrame]:
    """(CAPTION_QUERIES that fit, their POOL, left-out queries, left-out candidates) of a retrieval in which all share the pool, the last
    two as (file, row, reason).

    A candidate of the pool that does not fit leaves it, and with it the queries that have no other right answer.  It is listed with each
    of these, or by itself where it costs no query.
    """
    row_of: dict[str, int] = {}
    for row, right in table.select("row", "right").iter_rows():
        for id in right:
            row_of.setdefault(id, row)
    queries = table["query"].unique(maintain_order=True).to_list()
    problems = problems_of(list(dict.fromkeys([*queries, *pool["id"]])), embedder, reranker)
    gone: dict[str, str] = {}
    named: set[str] = set()
    lost: list[Bad] = []

    def leave_out(candidates: Mapping[str, str], asked: Mapping[str, str]) -> None:
        """Take candidates out of the pool, and queries out of the table, each with its reason."""
        nonlocal table, pool
        gone.update((id, candidates[id]) for id in pool["id"] if id in candidates)
        kept = []
        for row in table.iter_rows(named=True):
            right = [id for id in row["right"] if id not in gone]
            if row["query"] in asked:
                lost.append((row["row"], f"the query: {asked[row['query']]}"))
            elif not right:
                lost.append((row["row"], f"the right answer: {gone[row['right'][0]]}"))
                named.update(row["right"])
            else:
                kept.append(row | {"right": right})
        table = pl.DataFrame(kept, schema=artifacts.CAPTION_QUERIES)
        pool = pool.filter(~pl.col("id").is_in(list(gone)))

    unreadable = {id: problem for id, problem in problems.items() if problem is not None}
    if unreadable:
        leave_out(unreadable, unreadable)
    lengths = ListLengths(reranker, min(size, max(1, len(pool))))
    if len(table) and not lengths.surely_fit(table["query"].to_list(), pool["id"].to_list()):
        leave_out(*_too_long(table, pool, lengths))
    dropped = [(row_of[id], f"a candidate: {reason}") for id, reason in gone.items() if id not in named]
    return table, pool, places.named(_frame(sorted(lost))), places.named(_frame(sorted(dropped)))


def _too_long(table: pl.DataFrame, pool: pl.DataFrame, lengths: ListLengths) -> tuple[dict[str, str], dict[str, str]]:
    """Candidates and queries that must go, each with its reason, so that the reranker can read every query with any candidates."""
    reader = lengths.reader
    at = {id: place for place, id in enumerate(pool["id"])}
    pairs = table.select("query", "right").explode("right")
    candidates = np.array([lengths.candidate(id) for id in at], dtype=np.int64)
    queries = np.array([lengths.query(id) for id in pairs["query"]], dtype=np.int64)
    positive = np.array([at[id] for id in pairs["right"]], dtype=np.int64)
    frame = reader.frame(lengths.size) + max(0, *(lengths.last(id) for id in at))
    found = cut(queries, positive, candidates, reader.max_length - frame, lengths.size, own=False)
    over = f"over {limit(reader)}"
    gone = {}
    for id, place in at.items():
        if found.candidates[place]:
            gone[id] = f"of {candidates[place]:,} tokens it would make prompts {over}; {reader.advice([id])}"
    too_long = {}
    for place in np.flatnonzero(found.pairs & ~found.candidates[positive]):
        id = pairs["query"][int(place)]
        tokens = frame + found.needed[place]
        too_long[id] = f"with the {lengths.size} longest candidates it makes a prompt of {tokens:,} tokens, {over}; {reader.advice([id])}"
    return gone, too_long


def _frame(bad: Sequence[Bad]) -> pl.DataFrame:
    return pl.DataFrame(list(bad), schema={"row": pl.Int64, "reason": pl.String}, orient="row")
