"""From rows of any source to the canonical tables: pairs of a training set, queries and candidate lists of a task.

A loader brings its rows as one frame; here their images are found and proved, equal content becomes one item, and bad rows are left out
and listed.  So every source is judged alike, and a loader is only what its format says.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from unime import artifacts
from unime.data import archives, figures, rows
from unime.data.copies import equal_but_for_form
from unime.data.images import Decoding
from unime.data.rows import STRICT, Copies, DataError, Rules, Shelf

ROWS = {"index": pl.UInt32, "file": pl.String, "row": pl.Int64, "wrong": pl.String}
"""Of every source row: its place in the set, its file, its place in the file, and why it cannot be a row (null: it can)."""

TRAIN = {**ROWS, **dict.fromkeys(("query_text", "query_path", "positive_text", "positive_path"), pl.String)}
"""A training row; '' where a text or an image is absent."""

EVAL = {
    **ROWS,
    "query_text": pl.String,
    "query_path": pl.String,
    "texts": pl.List(pl.String),
    "paths": pl.List(pl.String),
    "open": pl.Boolean,
}
"""An evaluation row: its candidates' texts and paths, the right one first; `open`: the others' right answers are candidates too."""

_LEFT_OUT = ("file", "row", "reason")
_MOST = 50_000_000
"""Entries of all candidate lists of an open task together."""


def pairs(
    frame: pl.DataFrame,
    name: str,
    source: Path,
    shelf: Shelf,
    cap: int,
    seed: int,
    decoding: Decoding,
    bad_rows: str,
    job: Any,
    rules: Rules = STRICT,
    copies: Copies = "keep",
) -> tuple[pl.DataFrame, pl.DataFrame, dict[str, Any], pl.DataFrame]:
    """Rows TRAIN of one set as (ITEMS sorted by id, PAIRS in the order of rows, report, LABELS of the rows that were not drawn).

    Of a set with more than `cap` rows, `cap` are drawn with the seed and the set's name.  Bad rows are left out and listed, or fatal
    where `bad_rows` is `fail`; `rules` say what a text may be.  Raises DataError, ArchiveError.
    """
    total = len(frame)
    for side in ("query", "positive"):
        frame = rules.applied(frame, f"{side}_text", f"{side}_path")
    every_row = frame
    frame = _draw(every_row, name, cap, seed)
    undrawn = every_row.join(frame.select("index"), on="index", how="anti")
    sides = pl.concat([frame.select(text=f"{side}_text", path=f"{side}_path") for side in ("query", "positive")])
    identified = rows.identify(sides, shelf, decoding, job.threads, job.track, f"{name}: images", rules, copies)
    for side in ("query", "positive"):
        keys = identified.select("text", "path", pl.col("id").alias(side), pl.col("reason").alias(f"{side}_reason"))
        frame = frame.join(keys, left_on=[f"{side}_text", f"{side}_path"], right_on=["text", "path"], how="left", maintain_order="left")
    reasons = [pl.format("the {} {}", pl.lit(side), pl.col(f"{side}_reason")) for side in ("query", "positive")]
    frame = frame.with_columns(reason=pl.coalesce("wrong", *reasons))
    bad = frame.filter(pl.col("reason").is_not_null()).select(_LEFT_OUT)
    rows.refuse_if_asked(bad_rows, name, bad)
    good = frame.filter(pl.col("reason").is_null())
    if good.is_empty():
        raise DataError(f"{frame['file'][0] if total else source}: no usable row of {total}" + first(bad))
    kept = good.unique(["query", "positive"], keep="first", maintain_order=True)
    ids = [artifacts.pair_id(name, query, positive) for query, positive in kept.select("query", "positive").iter_rows()]
    table = kept.select(
        pl.Series("pair", ids, dtype=pl.String),
        pl.lit(name).alias("dataset"),
        pl.col("index").cast(pl.Int64).alias("row"),
        "query",
        "positive",
    )
    items = rows.items_table(identified, pl.concat([kept["query"], kept["positive"].alias("query")]))
    report = {
        "name": name,
        "rows": total,
        "sampled": len(frame),
        "pairs": len(table),
        "duplicate_pairs": len(good) - len(kept),
        "queries": table["query"].n_unique(),
        "candidates": table["positive"].n_unique(),
        "duplicate_candidates": good.select("positive_text", "positive_path").n_unique() - table["positive"].n_unique(),
        "equal_but_for_form": equal_but_for_form(items, table["positive"]),
        "modalities": rows.count(kept.select(m=pl.format("{} -> {}", rows.kind("query"), rows.kind("positive")))["m"]),
        "marks_without_image": {side: int(kept[f"{side}_text_marked"].sum()) for side in ("query", "positive")},
        "resource_forks": forks(items),
        "left_out": rows.left_out(bad),
        "places": rows.places(every_row, "index"),
    }
    labels = _labels(undrawn, identified, table)
    return items, table, report | {"labels_not_drawn": len(labels)}, labels


def refuse_one_positive(table: pl.DataFrame, source: Path) -> None:
    """Raise DataError where all of a training set's PAIRS have one positive; `source` is the set's folder."""
    if table["positive"].n_unique() == 1:
        raise DataError(
            f"{source}: its {len(table):,} pairs have one distinct positive, nothing to tell apart: no negative can be mined and the "
            "in-batch loss cannot fall; add rows with other answers, or take the set out of data.train_sets"
        )


def _labels(undrawn: pl.DataFrame, identified: pl.DataFrame, table: pl.DataFrame) -> pl.DataFrame:
    """LABELS: rows that were not drawn, whose query and positive (text and image path) both stand in PAIRS `table`, each once, sorted.

    Images of rows that were not drawn are never read, so a row that names an equal image by another path is not recognised.
    """
    found = undrawn.filter(pl.col("wrong").is_null())
    for side in ("query", "positive"):
        used = identified.join(table.select(id=side).unique(), on="id", how="semi")
        keys = used.select(pl.col("text").alias(f"{side}_text"), pl.col("path").alias(f"{side}_path"), pl.col("id").alias(side))
        found = found.join(keys, on=[f"{side}_text", f"{side}_path"])
    labels = found.select(list(artifacts.LABELS)).unique()
    return labels.join(table, on=["query", "positive"], how="anti").sort("query", "positive")


def plain(frame: pl.DataFrame) -> pl.DataFrame:
    """The frame with categories as the strings that they stand for, and lists of one length as lists."""
    kinds = {name: plain_kind(kind) for name, kind in frame.schema.items()}
    return frame.cast({name: kind for name, kind in kinds.items() if kind != frame.schema[name]})


def plain_kind(kind: Any) -> Any:
    """The type of a column of this type after `plain`."""
    if isinstance(kind, (pl.Categorical, pl.Enum)):
        return pl.String()
    if isinstance(kind, (pl.List, pl.Array)):
        return pl.List(plain_kind(kind.inner))
    if isinstance(kind, pl.Struct):
        return pl.Struct({field.name: plain_kind(field.dtype) for field in kind.fields})
    return kind


def _draw(frame: pl.DataFrame, name: str, cap: int, seed: int) -> pl.DataFrame:
    if len(frame) <= cap:
        return frame
    entropy = hashlib.sha256(f"{seed}\0{name}".encode()).digest()
    chosen = np.random.default_rng(np.frombuffer(entropy, dtype=np.uint32)).choice(len(frame), size=cap, replace=False)
    return frame[np.sort(chosen)]


def tasks(
    frame: pl.DataFrame,
    name: str,
    source: Path,
    shelf: Shelf,
    decoding: Decoding,
    bad_rows: str,
    job: Any,
    rules: Rules = STRICT,
    copies: Copies = "keep",
) -> tuple[pl.DataFrame, pl.DataFrame, dict[str, Any]]:
    """Rows EVAL of one task as (ITEMS sorted by id, TASKS in the source's order, report).

    A row is left out where its query, its candidate list or its right answer (index 0) is bad.  A bad wrong candidate is left out of
    its list and listed too, and the row stays: one damaged image in a pool must not cost the queries that share it.
    `rules` say what a text may be.  Raises DataError, ArchiveError.
    """
    frame = rules.applied(frame, "query_text", "query_path")
    usable = frame.filter(pl.col("wrong").is_null())
    shown = usable.select("index", "file", "row", text="texts", path="paths").explode("text", "path")
    shown = shown.with_columns(pl.col("text", "path").fill_null(""), candidate=pl.int_range(pl.len()).over("index"))
    shown = rules.applied(shown, "text", "path")
    references = pl.concat([usable.select(text="query_text", path="query_path"), shown.select("text", "path")])
    identified = rows.identify(references, shelf, decoding, job.threads, job.track, f"{name}: images", rules, copies)
    keys = identified.select("text", "path", "id", "reason")
    frame = frame.join(keys, left_on=["query_text", "query_path"], right_on=["text", "path"], how="left", maintain_order="left")
    shown = shown.join(keys, on=["text", "path"], how="left", maintain_order="left")

    absent = pl.format("the right answer (index 0) is absent: it {}", "reason")
    right = shown.filter((pl.col("candidate") == 0) & pl.col("reason").is_not_null()).select("index", absent=absent)
    lists = shown.filter(pl.col("reason").is_null()).group_by("index", maintain_order=True).agg(candidates="id")
    frame = frame.join(right, on="index", how="left", maintain_order="left").join(lists, on="index", how="left", maintain_order="left")
    frame = frame.with_columns(reason=pl.coalesce("wrong", pl.format("the query {}", "reason"), "absent"))
    images = dict(identified.filter(pl.col("reason").is_null()).select("id", "image").iter_rows())
    frame = _opened(frame, name, source, images)
    lonely = (pl.col("candidates").list.len() == 1) & (pl.col("open") | (pl.col("texts").list.len() > 1))
    lone = pl.when(lonely).then(pl.lit("no candidate is left beside the right one"))
    frame = frame.with_columns(reason=pl.coalesce("reason", lone))
    bad = frame.filter(pl.col("reason").is_not_null()).select(_LEFT_OUT)
    kept = frame.filter(pl.col("reason").is_null())
    lost = shown.filter(pl.col("reason").is_not_null() & pl.col("index").is_in(kept["index"].implode()))
    lost = lost.select("file", "row", pl.format("candidate {} {}", "candidate", "reason").alias("reason"))
    rows.refuse_if_asked(bad_rows, name, pl.concat([bad, lost]))
    if kept.is_empty():
        raise DataError(f"{source}: no usable row of {len(frame)}" + first(bad))
    table = kept.select(
        pl.lit(name).alias("task"),
        pl.col("index").cast(pl.Int64).alias("row"),
        pl.col("id").alias("query"),
        "candidates",
        pl.lit(0, pl.Int64).alias("right"),
    )
    items = rows.items_table(identified, pl.concat([table["query"], table["candidates"].explode().alias("query")]))
    used = shown.filter(pl.col("reason").is_null() & pl.col("index").is_in(kept["index"].implode()))
    report = {"name": name, "rows": len(frame), **figures.counts(table), **_details(kept, used, items, bad, lost)}
    return items, table, report | {"places": rows.places(frame, "index")}


def _opened(frame: pl.DataFrame, name: str, source: Path, images: dict[str, str]) -> pl.DataFrame:
    """The frame with every open row's candidates: its right answer, then those of all good rows, in their order, each once.

    A right answer to another row with the same query is no wrong candidate of this one, and neither is what shows the query's own picture,
    unless the right answer shows it too.  `images`: id -> digest of the item's image, '' without one.
    """
    good = frame.filter(pl.col("reason").is_null())
    if not good["open"].any():
        return frame
    rights = good.select("id", right=pl.col("candidates").list.first())
    pool = rights["right"].unique(maintain_order=True).to_list()
    if (entries := int(good["open"].sum()) * len(pool)) > _MOST:
        raise DataError(
            f"{source}: {name} has {int(good['open'].sum()):,} queries without `candidates` and {len(pool):,} distinct positives: lists of "
            f"{entries:,} entries, more than {_MOST:,}; give each row its candidates"
        )
    of_query: dict[str, set[str]] = {}
    for query, right in rights.iter_rows():
        of_query.setdefault(query, set()).add(right)
    lists = []
    for reason, opened, query, candidates in frame.select("reason", "open", "id", "candidates").iter_rows():
        if reason is None and opened:
            right, picture = candidates[0], images[query]
            others = [other for other in pool if other not in of_query[query]]
            if picture and images[right] != picture:
                others = [other for other in others if images[other] != picture]
            candidates = [right, *others]
        lists.append(candidates)
    return frame.with_columns(pl.Series("candidates", lists, dtype=pl.List(pl.String)))


def _details(kept: pl.DataFrame, used: pl.DataFrame, items: pl.DataFrame, bad: pl.DataFrame, lost: pl.DataFrame) -> dict[str, Any]:
    return {
        "modalities": {
            "query": rows.count(kept.select(m=rows.kind("query"))["m"]),
            "candidate": rows.count(used.select(answer_text="text", answer_path="path").select(m=rows.kind("answer"))["m"]),
        },
        "marks_without_image": {"query": int(kept["query_text_marked"].sum()), "candidate": int(used["text_marked"].sum())},
        "equal_but_for_form": equal_but_for_form(items, used["id"]),
        "resource_forks": forks(items),
        "left_out": rows.left_out(bad),
        "candidates_left_out": rows.left_out(lost),
    }


def first(bad: pl.DataFrame) -> str:
    """The first bad row, for the message that none is good."""
    return f"; row {bad['row'][0]}: {bad['reason'][0]}" if len(bad) else ": the file is empty"


def forks(items: pl.DataFrame) -> int:
    """Resource forks (._ entries) in the archives that gave an image; they are never read."""
    return sum(archives.archive(path).forks for path in items["archive"].unique().sort() if path)
