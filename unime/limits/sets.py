"""A training set's rows that every model of the run can read: items, the judge's pairs, the reranker's lists."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import polars as pl

from unime.limits import Cut, cut
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
    bounds = reader.rough(ids) + reader.template
    for place in np.flatnonzero(bounds > reader.most):
        id = ids[place]
        if (tokens := reader.alone(id)) > reader.most:
            problems[id] = f"{tokens:,} tokens are more than models.max_length ({reader.most:,}) in {reader.name}; {reader.advice([id])}"
    return problems


def _of_prompts(pairs: pl.DataFrame, reader: Reader, others: int, own: bool) -> list[str | None]:
    pool = pairs["positive"].unique(maintain_order=True)
    if pairs.is_empty() or len(pool) <= own:
        return [None] * len(pairs)
    others = min(others, len(pool) - own)
    room = reader.most - reader.frame(others + own)
    longest = np.sort(reader.rough(pool.to_list()))[::-1][: others + own].sum()
    if int(reader.rough(pairs["query"].to_list()).max()) + int(longest) <= room:
        return [None] * len(pairs)

    asked = pairs["query"].unique(maintain_order=True).to_list()
    query = dict(zip(asked, map(reader.as_query, asked), strict=True))
    pool_ids = pool.to_list()
    last = np.array([reader.as_candidate(id) for id in pool_ids], dtype=np.int64)
    lengths = last
    if others + own > 1:  # any candidate may stand last: what the end of a prompt costs more than the next candidate's number
        lengths = np.array([reader.as_candidate(id, last=False) for id in pool_ids], dtype=np.int64)
        room -= max(0, int((last - lengths).max()))
    at = {id: place for place, id in enumerate(pool_ids)}
    positive = np.array([at[id] for id in pairs["positive"]], dtype=np.int64)
    queries = np.array([query[id] for id in pairs["query"]], dtype=np.int64)
    found = cut(queries, positive, lengths, room, others, own=own)
    return _reasons(pairs, reader, found, lengths, positive, queries, reader.most - room, others, own)


def _reasons(
    pairs: pl.DataFrame,
    reader: Reader,
    found: Cut,
    lengths: np.ndarray,
    positive: np.ndarray,
    queries: np.ndarray,
    frame: int,
    others: int,
    own: bool,
) -> list[str | None]:
    reasons: list[str | None] = [None] * len(pairs)
    for place in np.flatnonzero(found.pairs):
        ids = list(pairs.select("query", "positive").row(int(place)))
        shown = int(lengths[positive[place]])
        if found.candidates[positive[place]]:
            said = f"its positive of {shown:,} tokens is a candidate too long for the set's queries: a prompt would be"
        else:
            with_own = f", its positive of {shown:,}" if own else ""
            most = f"{others} longest other candidates" if others > 1 else "longest other candidate"
            said = f"its query of {queries[place]:,} tokens{with_own} and the {most} of the set make a prompt"
            said += f" of {frame + found.needed[place]:,} tokens,"
        reasons[place] = f"{said} over models.max_length ({reader.most:,}) in {reader.name}; {reader.advice(ids)}"
    return reasons
