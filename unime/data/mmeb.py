"""MMEB-train and MMEB-eval in their published layout, and anything written in that layout (the embedded suite is).

Train: `<root>/MMEB-train/<set>/<instructions>-*.parquet` with qry, qry_image_path, pos_text, pos_image_path ('' = absent; other
columns are ignored: the published negatives are not used).  Images: `images_zip/<set>.zip`.
Eval: `<root>/MMEB-eval/<task>/test-*.parquet` with qry_text, qry_img_path, tgt_text, tgt_img_path (lists of equal length, the right
one first).  Images: `images.zip`, in the task's folder or above.  An unpacked folder serves in place of either archive.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from unime import artifacts, config
from unime.data import images, rows
from unime.data.rows import DataError, Shelf

_TRAIN = {"qry": "query_text", "qry_image_path": "query_path", "pos_text": "positive_text", "pos_image_path": "positive_path"}
_EVAL = {"qry_text": "query_text", "qry_img_path": "query_path", "tgt_text": "texts", "tgt_img_path": "paths"}
_LEFT_OUT = {"file": pl.String, "row": pl.Int64, "reason": pl.String}


def read_train(
    root: str, name: str, instructions: str, cap: int, seed: int, max_pixels: int, bad_rows: str, job: Any
) -> tuple[pl.DataFrame, pl.DataFrame, dict[str, Any]]:
    """One training set as (ITEMS sorted by id, PAIRS in the order of rows, report).

    Of a set with more than `cap` rows, `cap` are drawn with the seed and the set's name.  Bad rows are left out and listed, or fatal
    where `bad_rows` is `fail`.  Raises DataError, ArchiveError.
    """
    folder = Path(root) / "MMEB-train"
    frame = _read(folder, name, instructions, dict.fromkeys(_TRAIN, pl.String), _TRAIN)
    total = len(frame)
    if total > cap:
        entropy = hashlib.sha256(f"{seed}\0{name}".encode()).digest()
        chosen = np.random.default_rng(np.frombuffer(entropy, dtype=np.uint32)).choice(total, size=cap, replace=False)
        frame = frame[np.sort(chosen)]

    def other(row_path: str) -> Path | None:  # a path images/<other set>/... lies in the other set's archive
        parts = row_path.split("/")
        return folder / "images_zip" / f"{parts[1]}.zip" if len(parts) > 2 and parts[0] == "images" and parts[1] != name else None

    shelf = Shelf([folder / "images_zip" / f"{name}.zip", folder / "images_zip" / name, *_unpacked(folder, name)], other)
    sides = pl.concat([frame.select(text=f"{side}_text", path=f"{side}_path") for side in ("query", "positive")])
    identified = rows.identify(sides, shelf, max_pixels, job.threads, job.track, f"{name}: images")
    for side in ("query", "positive"):
        keys = identified.select("text", "path", pl.col("id").alias(side), pl.col("reason").alias(f"{side}_reason"))
        frame = frame.join(keys, left_on=[f"{side}_text", f"{side}_path"], right_on=["text", "path"], how="left", maintain_order="left")
    reasons = [pl.format("the {} {}", pl.lit(side), pl.col(f"{side}_reason")) for side in ("query", "positive")]
    frame = frame.with_columns(reason=pl.coalesce(reasons))
    bad = frame.filter(pl.col("reason").is_not_null()).select(pl.col(column).cast(kind) for column, kind in _LEFT_OUT.items())
    rows.refuse_if_asked(bad_rows, name, bad)
    good = frame.filter(pl.col("reason").is_null())
    if good.is_empty():
        raise DataError(f"{frame['file'][0] if total else folder / name}: no usable row of {total}" + _first(bad))
    kept = good.unique(["query", "positive"], keep="first", maintain_order=True)
    ids = [artifacts.pair_id(name, query, positive) for query, positive in kept.select("query", "positive").iter_rows()]
    pairs = kept.select(
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
        "pairs": len(pairs),
        "duplicate_pairs": len(good) - len(kept),
        "queries": pairs["query"].n_unique(),
        "candidates": pairs["positive"].n_unique(),
        "duplicate_candidates": good.select("positive_text", "positive_path").n_unique() - pairs["positive"].n_unique(),
        "modalities": rows.count(kept.select(m=pl.format("{} -> {}", rows.kind("query"), rows.kind("positive")))["m"]),
        "resource_forks": _forks(items),
        "left_out": rows.left_out(bad),
    }
    return items, pairs, report


def read_eval(root: str, name: str, max_pixels: int, bad_rows: str, job: Any) -> tuple[pl.DataFrame, pl.DataFrame, dict[str, Any]]:
    """One evaluation task as (ITEMS sorted by id, TASKS in the source's order, report).

    A row is left out where its query, its candidate list or its right answer (index 0) is bad.  A bad wrong candidate is left out of
    its list and listed too, and the row stays: one damaged image in a pool must not cost the queries that share it.
    Raises DataError, ArchiveError.
    """
    folder = Path(root) / "MMEB-eval"
    strings = pl.List(pl.String)
    frame = _read(folder, name, "test", dict(zip(_EVAL, (pl.String, pl.String, strings, strings), strict=True)), _EVAL)
    places = [folder / name / "images.zip", folder / "images.zip", folder / "images_zip" / f"{name}.zip", *_unpacked(folder, name)]
    shelf = Shelf(places)
    n_texts, n_paths = pl.col("texts").list.len(), pl.col("paths").list.len()
    frame = frame.with_columns(
        listed=pl.when((n_texts == 0) & (n_paths == 0))
        .then(pl.lit("the candidate list is empty"))
        .when(n_texts != n_paths)
        .then(pl.format("tgt_text has {} entries, tgt_img_path {}", n_texts, n_paths))
    )
    shown = frame.filter(pl.col("listed").is_null()).select("index", "file", "row", text="texts", path="paths").explode("text", "path")
    shown = shown.with_columns(pl.col("text", "path").fill_null(""), candidate=pl.int_range(pl.len()).over("index"))
    references = pl.concat([frame.select(text="query_text", path="query_path"), shown.select("text", "path")])
    identified = rows.identify(references, shelf, max_pixels, job.threads, job.track, f"{name}: images")
    keys = identified.select("text", "path", "id", "reason")
    frame = frame.join(keys, left_on=["query_text", "query_path"], right_on=["text", "path"], how="left", maintain_order="left")
    shown = shown.join(keys, on=["text", "path"], how="left", maintain_order="left")

    absent = pl.format("the right answer (index 0) is absent: it {}", "reason")
    right = shown.filter((pl.col("candidate") == 0) & pl.col("reason").is_not_null()).select("index", absent=absent)
    lists = shown.filter(pl.col("reason").is_null()).group_by("index", maintain_order=True).agg(candidates="id")
    lonely = (pl.col("candidates").list.len() == 1) & (n_texts > 1)
    frame = frame.join(right, on="index", how="left", maintain_order="left").join(lists, on="index", how="left", maintain_order="left")
    lone = pl.when(lonely).then(pl.lit("no candidate is left beside the right one"))
    frame = frame.with_columns(reason=pl.coalesce("listed", pl.format("the query {}", "reason"), "absent", lone))
    bad = frame.filter(pl.col("reason").is_not_null()).select(pl.col(column).cast(kind) for column, kind in _LEFT_OUT.items())
    kept = frame.filter(pl.col("reason").is_null())
    lost = shown.filter(pl.col("reason").is_not_null() & pl.col("index").is_in(kept["index"].implode()))
    lost = lost.select("file", pl.col("row").cast(pl.Int64), pl.format("candidate {} {}", "candidate", "reason").alias("reason"))
    rows.refuse_if_asked(bad_rows, name, pl.concat([bad, lost]))
    if kept.is_empty():
        raise DataError(f"{folder / name}: no usable row of {len(frame)}" + _first(bad))
    tasks = kept.select(
        pl.lit(name).alias("task"),
        pl.col("index").cast(pl.Int64).alias("row"),
        pl.col("id").alias("query"),
        "candidates",
        pl.lit(0, pl.Int64).alias("right"),
    )
    items = rows.items_table(identified, pl.concat([tasks["query"], tasks["candidates"].explode().alias("query")]))
    used = shown.filter(pl.col("reason").is_null() & pl.col("index").is_in(kept["index"].implode()))
    report = {
        "name": name,
        "rows": len(frame),
        **_counts(tasks),
        "modalities": {
            "query": rows.count(kept.select(m=rows.kind("query"))["m"]),
            "candidate": rows.count(used.select(answer_text="text", answer_path="path").select(m=rows.kind("answer"))["m"]),
        },
        "resource_forks": _forks(items),
        "left_out": rows.left_out(bad),
        "candidates_left_out": rows.left_out(lost),
    }
    return items, tasks, report


def _counts(tasks: pl.DataFrame) -> dict[str, Any]:
    """Queries, candidates, and candidates equal in content to another of their list (ties that no model can break)."""
    lengths, distinct = tasks["candidates"].list.len(), tasks["candidates"].list.n_unique()
    flat = tasks.select("row", "candidates").explode("candidates")
    as_right = flat.group_by("row").agg(same=(pl.col("candidates") == pl.col("candidates").first()).sum())
    return {
        "queries": len(tasks),
        "distinct_queries": tasks["query"].n_unique(),
        "candidates": {"fewest": lengths.min(), "most": lengths.max(), "distinct": tasks["candidates"].explode().n_unique()},
        "duplicate_candidates": {
            "candidates": int((lengths.cast(pl.Int64) - distinct.cast(pl.Int64)).sum()),
            "queries": int((lengths != distinct).sum()),
            "queries_where_right": int((as_right["same"] > 1).sum()),
        },
    }


def known(folder: Path) -> list[str]:
    """The data sets of a folder: its folders that hold a parquet file."""
    return sorted({file.parent.name for file in folder.glob("*/*.parquet")})


def _read(folder: Path, name: str, stem: str, schema: dict[str, Any], names: dict[str, str]) -> pl.DataFrame:
    """All rows of a data set's files, columns renamed, with `file`, `row` (in its file) and `index` (in the set), '' for null."""
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder; data.root must hold {folder.name}/ in its published layout")
    files = sorted((folder / name).glob(f"{stem}-*.parquet"))
    if not files:
        there = sorted(file.name for file in (folder / name).glob("*.parquet"))
        if there:
            raise DataError(f"{folder / name}: no {stem}-*.parquet; found {', '.join(there)} (data.instructions)")
        raise DataError(f"{folder}: unknown data set {name!r}{config.nearest(name, known(folder))}")
    frames = [_read_file(file, schema) for file in files]
    frame = pl.concat(frames).with_row_index("index").rename(names)
    return frame.with_columns(pl.col(column).fill_null("") for column, kind in frame.schema.items() if kind == pl.String)


def _read_file(file: Path, schema: dict[str, Any]) -> pl.DataFrame:
    try:
        frame = pl.read_parquet(file, glob=False)
    except (pl.exceptions.PolarsError, OSError) as error:
        raise DataError(f"{file}: not a parquet file that can be read ({error}); download it again") from error
    for column, kind in schema.items():
        if column not in frame.columns:
            raise DataError(f"{file}: column {column!r} is missing{config.nearest(column, frame.columns)}")
        if frame[column].dtype not in (kind, pl.Null):
            raise DataError(f"{file}: column {column!r} is {frame[column].dtype}, needed {kind}")
    empty = {column: [] for column, kind in schema.items() if kind != pl.String}  # a null list is an empty one
    frame = frame.select(
        pl.col(column).cast(kind).fill_null(pl.lit(empty[column], dtype=kind) if column in empty else "") for column, kind in schema.items()
    )
    return frame.with_row_index("row").with_columns(file=pl.lit(file.as_posix()))


def _unpacked(folder: Path, name: str) -> list[Path]:
    """Where images lie that somebody has unpacked: below images/, or in folders beside the data set's parquet files."""
    below = [folder / "images" / name, folder / "images", folder] if (folder / "images").is_dir() else []
    beside = [folder / name] if any(place.is_dir() for place in (folder / name).iterdir()) else []
    return [*below, *beside]


def _first(bad: pl.DataFrame) -> str:
    return f"; row {bad['row'][0]}: {bad['reason'][0]}" if len(bad) else ": the file is empty"


def _forks(items: pl.DataFrame) -> int:
    """Resource forks (._ entries) in the archives that gave an image; they are never read."""
    return sum(images.archive(path).forks for path in items["archive"].unique().sort() if path)
