"""Which candidates of a set may never be shown as negatives of a query.

1. All its labelled positives: a query (equal content is an equal id) may stand in several pairs, and each pair's positive answers it.
   LABELS has those of rows that `data.cap` left out.
2. The query itself: the candidate of its own id, and every candidate that holds the query's picture.  An instruction in the query's text
   makes another item of it ("Find a picture like this." and a picture), so the id alone would not find the picture among the candidates.
   Where a labelled positive of the query holds the query's picture too, the picture tells candidates of this query apart no more (what is
   asked is another text to the same picture), and rule 2 looks at the id alone.

Pictures are compared by the bytes of their files, so a copy under another name is the same picture.

Refused: a list of barred candidates per pair (a label set with 3,000 positives a query would hold 9 million), and a table of queries by
candidates.  Here a labelled positive takes 8 bytes, and a picture is a number that is compared.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import polars as pl

from unime import prompts

_NONE = -1  # a query without a picture, or whose picture bars nothing
_OTHER = -2  # a candidate without a picture


class Excluded(NamedTuple):
    """Of one set with Q distinct queries and P candidates, by their numbers.

    `keys`: query * P + candidate, int64 and sorted, of every labelled positive and of every query that is a candidate.
    `query_image` (Q,) and `candidate_image` (P,): numbers of pictures.  `labelled` (Q,): distinct labelled positives of a query; `itself`
    (Q,): candidates that rule 2 leaves out and rule 1 does not.
    """

    keys: np.ndarray
    query_image: np.ndarray
    candidate_image: np.ndarray
    labelled: np.ndarray
    itself: np.ndarray

    @staticmethod
    def of(queries: pl.Series, pool: pl.Series, pair_query: np.ndarray, pair_positive: np.ndarray, items: pl.DataFrame | None) -> Excluded:
        """What is barred, from the ids of the distinct queries (Q,) and of the pool (P,), and the numbers (query, positive) of all pairs.

        Without `items` (table ITEMS) nothing is known of pictures, and a query's own id alone is compared.
        """
        size = len(pool)
        positives = np.unique(pair_query * size + pair_positive)
        labelled = np.bincount(positives // size, minlength=len(queries))

        place = pl.DataFrame({"id": pool}).with_row_index("position")
        own = pl.DataFrame({"id": queries}).join(place, on="id", how="left", maintain_order="left")["position"]
        is_candidate = own.is_not_null().to_numpy()
        own_keys = np.flatnonzero(is_candidate) * size + own.drop_nulls().to_numpy().astype(np.int64)
        itself = np.zeros(len(queries), dtype=np.int64)
        itself[own_keys // size] = ~np.isin(own_keys, positives)

        query_image, candidate_image = _images(queries, items, _NONE), _images(pool, items, _OTHER)
        shared = query_image[positives // size] == candidate_image[positives % size]
        query_image[(positives // size)[shared]] = _NONE
        holders = np.bincount(candidate_image[candidate_image >= 0], minlength=1 + int(query_image.max(initial=0)))
        has_image = query_image >= 0
        itself[has_image] = holders[query_image[has_image]]
        return Excluded(np.union1d(positives, own_keys), query_image, candidate_image, labelled, itself)

    @property
    def counts(self) -> np.ndarray:
        """How many candidates are barred for each query, (Q,) int64."""
        return self.labelled + self.itself

    def barred(self, queries: np.ndarray, positions: np.ndarray) -> np.ndarray:
        """Whether the candidates at `positions` (n, w) may not be shown to `queries` (n,), (n, w) bool; anything where a position is -1."""
        wanted = queries[:, None] * len(self.candidate_image) + positions
        place = np.searchsorted(self.keys, wanted)
        place[place == len(self.keys)] = 0
        by_id = self.keys[place] == wanted
        if not len(self.candidate_image) or self.candidate_image.max() < 0:
            return by_id
        return by_id | (self.candidate_image[positions] == self.query_image[queries][:, None])


def with_labels(
    queries: pl.Series, pool: pl.Series, query: np.ndarray, positive: np.ndarray, labels: pl.DataFrame | None
) -> tuple[np.ndarray, np.ndarray]:
    """The numbers (query, positive) of all pairs, then those of the table LABELS, each (m,) int64, as `Excluded.of` takes them.

    A number is the place of an id among the distinct `queries` (Q,) or in the `pool` (P,); labels of other ids are left out.
    """
    if labels is None or labels.is_empty():
        return query, positive
    more_queries, more_positives = _numbers(labels, queries, pool)
    return np.concatenate([query, more_queries]), np.concatenate([positive, more_positives])


def _numbers(table: pl.DataFrame, queries: pl.Series, pool: pl.Series) -> tuple[np.ndarray, np.ndarray]:
    """The numbers of the rows' queries and positives, each (m,) int64 in the table's order, without rows that name another id."""
    places = table.select("query", "positive")
    for side, ids in (("query", queries), ("positive", pool)):
        place = pl.DataFrame({side: ids}).with_row_index(f"{side}_place")
        places = places.join(place, on=side, maintain_order="left")
    query, positive = (places[f"{side}_place"].to_numpy().astype(np.int64) for side in ("query", "positive"))
    return query, positive


def parts(pairs: pl.DataFrame, items: pl.DataFrame | None, pool: str) -> list[pl.DataFrame]:
    """One set's PAIRS in parts whose positives are each other's candidates: all together, or with the pool `same_modality` those whose
    positives show the same (text, image, or both)."""
    if pool == "all" or items is None:
        return [pairs]
    words = pl.col("text").str.replace(prompts.IMAGE_MARK, "", literal=True).str.strip_chars() != ""
    shown = items.select(positive="id", modality=words.cast(pl.Int8) + 2 * (pl.col("image") != "").cast(pl.Int8))
    known = pairs.join(shown, on="positive", how="left", maintain_order="left")
    return [part.drop("modality") for part in known.partition_by("modality", maintain_order=True)]


def counts_of(pairs: pl.DataFrame, items: pl.DataFrame | None, labels: pl.DataFrame | None = None, pool: str = "all") -> np.ndarray:
    """How many candidates of one set are none of each of its PAIRS, (n,) int64: barred ones (`Excluded.of`), and those of other `parts`."""
    everything = pairs["positive"].n_unique()
    found = []
    for part in parts(pairs, items, pool):
        candidates = part["positive"].unique().sort()
        queries = part["query"].unique().sort()
        query, positive = _numbers(part, queries, candidates)
        excluded = Excluded.of(queries, candidates, *with_labels(queries, candidates, query, positive, labels), items)
        barred = excluded.counts[query] + everything - len(candidates)
        found.append(part.select("pair").with_columns(barred=pl.Series(barred)))
    return pairs.select("pair").join(pl.concat(found), on="pair", how="left", maintain_order="left")["barred"].to_numpy()


def _images(ids: pl.Series, items: pl.DataFrame | None, absent: int) -> np.ndarray:
    """A number of the picture that each item holds (n,) int64, the same where the files' bytes are; `absent` where it holds none."""
    if items is None:
        return np.full(len(ids), absent, dtype=np.int64)
    with_image = items.filter(pl.col("image") != "")
    numbers = with_image.select("id", number=pl.col("image").rank("dense").cast(pl.Int64))
    found = pl.DataFrame({"id": ids}).join(numbers, on="id", how="left", maintain_order="left")["number"]
    return found.fill_null(absent).to_numpy().copy()
