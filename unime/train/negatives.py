"""Which candidates of other queries are no negatives of a query, where a loss looks at the whole batch.

A batch mixes queries, so another query's candidate may be right for this one.  The config key `mask` says which are left out:

    none      none, as in VLM2Vec
    equal     candidates with the content of one of the query's own: its positive, or a mined negative, which stands in the loss already
              (and which, under a soft target, the judge has scored)
    labelled  these, and every candidate that is labelled as a positive of the same query in another pair: a query may stand in several
              pairs, and the same query may be in a batch twice.  A pair counts even where no negative was mined for it, or where
              data.cap left its row out

Contents are compared by their ids, which are equal where text and image are.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet

import numpy as np
import polars as pl


def labelled_positives(*tables: pl.DataFrame | None) -> dict[str, set[str]]:
    """The ids of all positives of each query that stands in several pairs, by the query's id.

    `tables` have the columns `query` and `positive`, of all training sets: the same query may stand in several sets.  A pair that one of
    them holds counts; the same pair may stand in several.  None is passed over.
    """
    labels = pl.concat([table.select("query", "positive") for table in tables if table is not None])
    positives = labels.group_by("query").agg(pl.col("positive").unique())
    several = positives.filter(pl.col("positive").list.len() > 1)
    return {query: set(ids) for query, ids in several.iter_rows()}


def left_out(mask: str, lists: Sequence[Sequence[str]], labelled: Mapping[str, AbstractSet[str]]) -> np.ndarray | None:
    """(B, B * C) bool, the candidates of the batch that are no negatives of a query; None where nothing is left out.

    `lists` (B) holds the ids of each query and its C candidates; the columns are the candidates of the first query, of the second, and so
    on.  `labelled` is `labelled_positives`, needed for `mask` labelled.  A query's own candidates are never left out.
    """
    if mask == "none":
        return None
    columns_of: dict[str, list[int]] = defaultdict(list)
    column = 0
    for _, *candidates in lists:
        for id in candidates:
            columns_of[id].append(column)
            column += 1
    found = np.zeros((len(lists), column), dtype=bool)
    own = 0
    for row, (query, *candidates) in enumerate(lists):
        known = set(candidates)
        if mask == "labelled":
            known |= labelled.get(query, frozenset())
        for id in known:
            found[row, columns_of.get(id, [])] = True
        found[row, own : own + len(candidates)] = False
        own += len(candidates)
    return found
