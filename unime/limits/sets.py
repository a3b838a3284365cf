"""A training set's rows that every model of the run can read: items, the judge's pairs, the reranker's lists."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence

import numpy as np
import polars as pl

from unime.limits import cut
from unime.limits.lengths import Reader, image_problem
from unime.limits.places import Places

BAD = {"file": pl.String, "row": pl.Int64, "reason": pl.String}


def fitting(
    pairs: pl.DataFrame, items: Sequence[Reader], prompts: Sequence[tuple[Reader, int, bool]], places: Places
) -> tuple[pl.DataFrame, pl.DataFrame]:
    """(PAIRS that fit, the others as BAD, in the order of rows).

    `items` read each item alone.  Each of `prompts` is (reader, others, own): it shows a query to so many candidates of the set, and with
    `own` to the pair's positive too (`cut`).
    """
    bad: list[pl.DataFrame] = []

    def leave_out(reasons: list[str | None]) -> None:
        nonlocal pairs
        marked = pairs.with_columns(reason=pl.Series(reasons, dtype=pl.String))
        bad.append(marked.filter(pl.col("reason").is_not_null()).select("row", "reason"))
        pairs = marked.filter(pl.col("reason").is_null()).drop("reason")

    readers = [*items, *(reader for reader, _, _ in prompts)]
    leave_out(of_sides(pairs, {id: image_problem(readers, id) for id in distinct(pairs)}))
    for reader in items:
        leave_out(of_sides(pairs, alone(reader, distinct(pairs))))
    for reader, others, own in prompts:
        leave_out(_of_prompts(pairs, reader, others, own))
    return pairs, places.named(pl.concat(bad).sort("row"))


def distinct(pairs: pl.DataFrame) -> list[str]:
    """Ids of the items of PAIRS, each once."""
    return pl.concat([pairs["query"], pairs["positive"].alias("query")]).unique(maintain_order=True).to_list()


def of_sides(pairs: pl.DataFrame, problems: dict[str, str | None]) -> list[str | None]:
    """Of each pair the reason why its query or its positive is none; None where both are fine."""
    found: list[str | None] = []
    for query, positive in pairs.select("query", "positive").iter_rows():
        if problems[query] is not None:
            found.append(f"the query: {problems[query]}")
        elif problems[positive] is not None:
            found.append(f"the positive: {problems[positive]}")
        else:
            found.append(None)
    return found


def alone(reader: Reader, ids: Sequence[str]) -> dict[str, str | None]:
    """Of each item why it cannot be embedded: more tokens than models.max_length, or a text that the model cannot be given."""
    problems: dict[str, str | None] = dict.fromkeys(ids)
    bounds = reader.upper_bounds(ids) + reader.template
    for place in np.flatnonzero(bounds > reader.max_length):
        id = ids[place]
        tokens = reader.alone(id)
        if tokens > reader.max_length:
            problems[id] = f"{tokens:,} tokens are more than {limit(reader)}; {reader.advice([id])}"
    return problems


def limit(reader: Reader) -> str:
    """The bound on a prompt's tokens, in words."""
    return f"models.max_length ({reader.max_length:,}) in {reader.name}"


def _of_prompts(pairs: pl.DataFrame, reader: Reader, others: int, own: bool) -> list[str | None]:
    """Of each pair the reason why one of its prompts can be too long; None where all fit."""
    reasons: list[str | None] = [None] * len(pairs)
    pool = pairs["positive"].unique(maintain_order=True).to_list()
    if pairs.is_empty() or len(pool) <= own:
        return reasons
    others = min(others, len(pool) - own)
    listed = others + own
    longest = np.sort(reader.upper_bounds(pool))[::-1][:listed].sum()
    if reader.frame(listed) + int(reader.upper_bounds(pairs["query"].to_list()).max()) + int(longest) <= reader.max_length:
        return reasons

    queries = _tokens_of(pairs["query"].unique(maintain_order=True).to_list(), reader.as_query)
    last = _tokens_of(pool, reader.as_candidate)
    candidates = last
    frame = reader.frame(listed)
    if listed > 1:
        # Any candidate may stand last.  A prompt's end costs more or less than the number of a next candidate, the most for one of them.
        candidates = _tokens_of(pool, functools.partial(reader.as_candidate, last=False))
        frame += max(0, *(last[id] - candidates[id] for id in pool))
    at = {id: place for place, id in enumerate(pool)}
    query = np.array([queries[id] for id in pairs["query"]], dtype=np.int64)
    positive = np.array([at[id] for id in pairs["positive"]], dtype=np.int64)
    found = cut(query, positive, np.array(list(candidates.values()), dtype=np.int64), reader.max_length - frame, others, own=own)

    with_candidates = f"the {others} longest other candidates" if others > 1 else "the longest other candidate"
    for place in np.flatnonzero(found.pairs):
        query_id, positive_id = pairs["query"][int(place)], pairs["positive"][int(place)]
        if found.candidates[positive[place]]:
            what = f"its positive of {candidates[positive_id]:,} tokens is a candidate too long for the set's queries: a prompt would be"
        else:
            with_own = f", its positive of {candidates[positive_id]:,}" if own else ""
            what = f"its query of {queries[query_id]:,} tokens{with_own} and {with_candidates} of the set make a prompt"
            what += f" of {frame + found.needed[place]:,} tokens,"
        reasons[place] = f"{what} over {limit(reader)}; {reader.advice([query_id, positive_id])}"
    return reasons


def _tokens_of(ids: Sequence[str], measure: Callable[[str], int]) -> dict[str, int]:
    return {id: measure(id) for id in ids}
