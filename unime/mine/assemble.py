"""Published rows as numbers while their file is read, and as table MINED afterwards.  Whole columns, no loop over negatives."""

from __future__ import annotations

from array import array
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import polars as pl

from unime import artifacts
from unime.data import rows
from unime.mine import KEPT, REPEATED
from unime.mine.lookup import ABSENT, Lookup

BETA = 0.01
"""Only counted with, nothing is dropped by it: the published rows have been through mining."""


@dataclass
class Listed:
    """Rows (or negatives) that were left out: all counted, by kind too, the first `rows.LISTED` kept as {file, row, reason}."""

    file: str
    kinds: Counter[str] = field(default_factory=Counter)
    listed: list[dict[str, Any]] = field(default_factory=list)

    def add(self, row: int, reason: str, kind: str) -> None:
        self.kinds[kind] += 1
        if len(self.listed) < rows.LISTED:
            self.listed.append({"file": self.file, "row": row, "reason": reason})

    def refuse_if_asked(self, bad_rows: str) -> None:
        """Raise DataError for the first one where `data.bad_rows` is `fail`."""
        rows.refuse_if_asked(bad_rows, f"of {self.kinds.total()}", pl.DataFrame(self.listed))

    def report(self) -> dict[str, Any]:
        return {"count": self.kinds.total(), "kinds": dict(sorted(self.kinds.items())), "listed": self.listed}


class Matched:
    """The rows of one training set as numbers of `lookup`: 120 bytes a row of ten negatives, however long its texts are."""

    def __init__(self, lookup: Lookup, width: int):
        self.lookup, self.width = lookup, width
        self.row, self.query, self.positive, self.negatives = array("q"), array("i"), array("i"), array("i")
        self.sigma, self.scores = array("d"), array("d")
        self.by_pair = 0

    def add(self, row: int, value: dict[str, Any]) -> None:
        number, short = self.lookup.number, self.width - len(value["hard_negatives"])
        self.row.append(row)
        self.query.append(number(value["query_text"], value["query_image"] or ""))
        self.positive.append(number(value["pos_text"], value["pos_image"] or ""))
        self.sigma.append(value["query_pos_scores"])
        self.negatives.extend([number(text, path or "") for text, path in value["hard_negatives"]] + [ABSENT] * short)
        self.scores.extend(value["hard_negatives_scores"] + [0.0] * short)


def assemble(
    one: Matched, identified: pl.DataFrame, pairs: pl.DataFrame, left_out: Listed, lost: Listed
) -> tuple[pl.DataFrame, pl.DataFrame, dict[str, Any]]:
    """(MINED, further ITEMS, figures) of one set; `identified` says what `one.lookup.extras()` are, in their order.

    Rows without query, positive or any negative go to `left_out`, single negatives to `lost`.
    """
    lookup, width = one.lookup, one.width
    codes, ids = _codes(lookup, identified)
    sigma, scores = np.asarray(one.sigma), np.asarray(one.scores).reshape(-1, width)
    query, positive = codes[np.asarray(one.query)], codes[np.asarray(one.positive)]  # (R,)
    negatives = codes[np.asarray(one.negatives)].reshape(-1, width)
    there = negatives >= 0
    same = there & (negatives == positive[:, None])  # a positive is no negative of itself, whatever its score
    labelled = there & ~same & _labelled(lookup, query, positive, negatives, len(ids))
    itself = there & ~same & ~labelled & (negatives == query[:, None])
    usable = there & ~same & ~labelled & ~itself
    good = (query >= 0) & (positive >= 0) & usable.any(axis=1)
    _name_the_lost(one, good, query, positive, negatives, identified, left_out, lost)
    taken = _filled(usable[good])
    negatives, scores = (np.take_along_axis(table[good], taken, axis=1) for table in (negatives, scores))
    again = np.zeros(negatives.shape, dtype=bool)
    for place in range(1, width):
        again[:, place] = (negatives[:, :place] == negatives[:, place, None]).any(axis=1)

    def lists(values: pl.Series) -> pl.Series:
        return values.reshape((-1, width)).arr.to_list() if len(values) else pl.Series(dtype=pl.List(values.dtype))

    words = pl.Series([KEPT, REPEATED], dtype=pl.String)
    table = pl.DataFrame(
        {
            "query": ids.gather(query[good]),
            "positive": ids.gather(positive[good]),
            "sigma": sigma[good],
            "negatives": lists(ids.gather(negatives.ravel())),
            "scores": lists(pl.Series(scores.ravel())),
            "ranks": lists(pl.Series(taken.astype(np.int32).ravel())),
            "reasons": lists(words.gather(again.astype(np.uint32).ravel())),
            "same": same[good].sum(axis=1),
            "labelled": labelled[good].sum(axis=1),
            "itself": itself[good].sum(axis=1),
            "again": again.sum(axis=1),
            "above": (scores > sigma[good][:, None] - BETA).sum(axis=1),
        }
    )
    return _finish(one, table, pairs, identified)


def _labelled(lookup: Lookup, query: np.ndarray, positive: np.ndarray, negatives: np.ndarray, size: int) -> np.ndarray:
    """Whether each negative (R, width) is a positive of its row's query (R,) in another row of the file or in a pair of the set.

    Items are numbers below `size`, or negative where there is none.
    """
    known = (query >= 0) & (positive >= 0)
    pairs = lookup.pairs()
    keys = np.concatenate([query[known] * size + positive[known], pairs[:, 0] * size + pairs[:, 1]])
    found = np.isin(query[:, None] * size + negatives, keys)
    return found & (query >= 0)[:, None] & (negatives >= 0)


def _name_the_lost(
    one: Matched,
    good: np.ndarray,
    query: np.ndarray,
    positive: np.ndarray,
    negatives: np.ndarray,
    identified: pl.DataFrame,
    left_out: Listed,
    lost: Listed,
) -> None:
    """Rows that are not `good` to `left_out`, missing negatives of the others to `lost`, each with its reason."""
    reasons = identified["reason"].to_list()
    numbers = np.asarray(one.negatives).reshape(negatives.shape)

    def why(number: int) -> str:
        return reasons[number - one.lookup.known]

    for at in (~good).nonzero()[0]:
        if query[at] < 0:
            left_out.add(one.row[at], f"the query {why(one.query[at])}", "query")
        elif positive[at] < 0:
            left_out.add(one.row[at], f"the positive {why(one.positive[at])}", "positive")
        elif (missing := numbers[at][(negatives[at] < 0) & (numbers[at] != ABSENT)]).size:
            left_out.add(one.row[at], f"none of its negatives is usable; the first {why(missing[0])}", "negatives")
        else:
            left_out.add(one.row[at], "all its negatives are labelled positives of its query, or the query itself", "negatives")
    for at, place in np.argwhere((negatives < 0) & (numbers != ABSENT) & good[:, None]):
        lost.add(one.row[at], f"hard negative {place} {why(numbers[at, place])}", "negative")


def _finish(
    one: Matched, table: pl.DataFrame, pairs: pl.DataFrame, identified: pl.DataFrame
) -> tuple[pl.DataFrame, pl.DataFrame, dict[str, Any]]:
    """Each pair once and in order, the items that are new and used, and the counts."""
    lookup = one.lookup
    keys = [artifacts.pair_id(lookup.name, query, positive) for query, positive in table.select("query", "positive").iter_rows()]
    table = table.with_columns(pl.Series("pair", keys, dtype=pl.String), pl.lit(lookup.name).alias("dataset"))
    first = table.unique("pair", keep="first", maintain_order=True)
    order = pairs.select("pair").with_row_index("position")
    first = first.join(order, on="pair", how="left", maintain_order="left").sort("position", nulls_last=True, maintain_order=True)
    mined = first.select(list(artifacts.MINED))
    artifacts.check(mined, artifacts.MINED, "mined")
    used = pl.concat([mined["query"], mined["positive"].alias("query"), mined["negatives"].explode().alias("query")])
    further = identified.filter(~pl.col("id").is_in(lookup.ids.implode()))
    items = rows.items_table(further, used) if len(further) else pl.DataFrame(schema=artifacts.ITEMS)
    known = len(first) - first["position"].null_count()
    figures = {
        "dataset": lookup.name,
        "rows": len(one.row),
        "rows_by_pair": one.by_pair,
        "mined": len(mined),
        "new_pairs": len(mined) - known,
        "duplicate_pairs": len(table) - len(first),
        "pairs_without_scores": len(pairs) - known,
        "texts_exact": lookup.exact,
        "texts_stripped": lookup.stripped,
        "references_outside_items": len(lookup.extra),
        "new_items": len(items),
        "negatives": len(mined) * one.width,
        "repeated": int(first["again"].sum()),
        "equal_to_positive": int(first["same"].sum()),
        "labelled": int(first["labelled"].sum()),
        "itself": int(first["itself"].sum()),
        "above_alpha": int(first["above"].sum()),
    }
    return mined, items, figures | {"above_alpha_share": figures["above_alpha"] / max(1, figures["negatives"])}


def _codes(lookup: Lookup, identified: pl.DataFrame) -> tuple[np.ndarray, pl.Series]:
    """(number -> row of the ids, equal content one row, -1 where there is no item; the ids).  ABSENT is the last place: -1."""
    codes = np.arange(lookup.known + len(identified) + 1, dtype=np.int64)
    known = {id: number for number, id in enumerate(lookup.ids)} if len(identified) else {}
    for number, id in enumerate(identified["id"], start=lookup.known):
        codes[number] = ABSENT if id is None else known.setdefault(id, number)
    codes[ABSENT] = ABSENT
    return codes, pl.concat([lookup.ids, identified["id"]])


def _filled(there: np.ndarray) -> np.ndarray:
    """(R, width) int64: places of each row's present negatives in order, and again from the first until the row is full."""
    order, count = np.argsort(~there, axis=1, kind="stable"), there.sum(axis=1, keepdims=True)
    return np.take_along_axis(order, np.arange(there.shape[1])[None, :] % np.maximum(count, 1), axis=1)
