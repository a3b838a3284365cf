"""Caption sets as tables: image to text, text to image, and a true against a false caption.

An item is what it shows: equal captions of different images are one item, which is right for all of them, and so are equal images.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import polars as pl

from unime import artifacts, config, prompts
from unime.data import benchmarks, figures, rows, tables
from unime.data.benchmarks import PARTS
from unime.data.copies import equal_but_for_form
from unime.data.images import Decoding
from unime.data.rows import Copies, DataError

DIRECTIONS = ("i2t", "t2i")
_LEFT_OUT = ("file", "row", "reason")

Tables = tuple[pl.DataFrame, pl.DataFrame, pl.DataFrame, dict[str, Any]]


def read_captions(
    root: str,
    task: str,
    decoding: Decoding,
    bad_rows: str,
    job: Any,
    line_end: str = "strip",
    copies: Copies = "keep",
) -> Tables:
    """The task `<benchmark>_<i2t, t2i, replace, swap or add>` as (ITEMS sorted by id, CAPTION_QUERIES, POOL, report).

    Queries and pool are in the source's order.  A source row whose image or whose every caption is bad is left out and listed, as are
    single bad captions, or fatal where `bad_rows` is `fail`; `line_end` as for `benchmarks.retrieval`.  Raises DataError, ArchiveError.
    """
    benchmark, _, what = task.rpartition("_")
    if what not in (*DIRECTIONS, *PARTS) or not benchmark:
        raise DataError(f"unknown task {task!r}: needed <benchmark>_ and one of {', '.join((*DIRECTIONS, *PARTS))}")
    home = Path(root) / "crossmodal"
    folder = home / benchmark
    if not home.is_dir():
        raise DataError(f"{home}: no such folder; data.root must hold crossmodal/, a folder for each benchmark")
    if not folder.is_dir():
        raise DataError(f"{home}: unknown benchmark {benchmark!r}{config.nearest(benchmark, known(home))}")
    if what in DIRECTIONS:
        return _retrieval(folder, task, what, decoding, bad_rows, job, line_end, copies)
    return _compositional(folder, task, what, decoding, bad_rows, job, copies)


def known(home: Path) -> list[str]:
    """The benchmarks of a folder."""
    return sorted(path.name for path in home.iterdir() if path.is_dir())


def _retrieval(folder: Path, task: str, what: str, decoding: Decoding, bad_rows: str, job: Any, line_end: str, copies: Copies) -> Tables:
    frame, shelf = benchmarks.retrieval(folder, line_end)
    total = len(frame)
    frame = frame.with_row_index("index").with_columns(pl.col("index").cast(pl.Int64), text=pl.lit(prompts.FIND_CAPTION))
    usable = frame.filter(pl.col("wrong").is_null())
    # one line a caption; `number` counts the captions of all rows, so that it does not depend on which are bad
    said = frame.select("index", "file", "row", "wrong", caption="captions").explode("caption", empty_as_null=False)
    said = said.with_row_index("number").filter(pl.col("wrong").is_null())
    said = said.with_columns(pl.col("number").cast(pl.Int64), place=pl.int_range(pl.len()).over("index"))
    references = pl.concat([usable.select("text", "path"), said.select(text="caption", path=pl.lit(""))])
    identified = rows.identify(references, shelf, decoding, job.threads, job.track, f"{task}: images", copies=copies)
    keys = identified.select("text", "path", "id", "reason")
    frame = frame.join(keys, on=["text", "path"], how="left", maintain_order="left")
    words = keys.filter(pl.col("path") == "").select(caption="text", words="id", unread="reason")
    said = said.join(words, on="caption", how="left", maintain_order="left")

    mute = said.group_by("index").agg(mute=pl.col("words").is_null().all()).filter("mute").select("index", "mute")
    frame = frame.join(mute, on="index", how="left", maintain_order="left")
    silent = pl.when("mute").then(pl.lit("none of its captions can be used"))
    frame = frame.with_columns(reason=pl.coalesce("wrong", "reason", silent))
    bad = frame.filter(pl.col("reason").is_not_null()).select(_LEFT_OUT)
    kept = frame.filter(pl.col("reason").is_null()).select("index", image="id")
    said = said.join(kept, on="index", how="inner", maintain_order="left")
    lost = said.filter(pl.col("words").is_null())
    lost = lost.select("file", "row", pl.format("caption {} {}", "place", "unread").alias("reason"))
    rows.refuse_if_asked(bad_rows, task, pl.concat([bad, lost]))
    if kept.is_empty():
        raise DataError(f"{folder}: no usable row of {total}" + tables.first(bad))

    said = said.filter(pl.col("words").is_not_null())
    asked, answer = ("image", "words") if what == "i2t" else ("words", "image")
    right = said.group_by(asked, maintain_order=True).agg(right=pl.col(answer).unique(maintain_order=True))
    entries = said.unique("index", keep="first", maintain_order=True) if what == "i2t" else said
    entries = entries.join(right, on=asked, how="left", maintain_order="left")
    queries = entries.select(
        pl.lit(task).alias("task"),
        pl.col("index" if what == "i2t" else "number").alias("row"),
        pl.col(asked).alias("query"),
        "right",
        pl.lit([], pl.List(pl.String)).alias("candidates"),
        pl.lit("").alias("part"),
    )
    pool = said.select(id=answer).unique(maintain_order=True)
    items = rows.items_table(identified, pl.concat([queries["query"], pool["id"].alias("query")]))
    report = {"name": task, "rows": total, **_counts(queries, len(said) if what == "i2t" else len(kept), pool, said)}
    report["places"] = rows.places(frame, "index") if what == "i2t" else rows.places(said, "number", step=0)
    report["equal_but_for_form"] = equal_but_for_form(items, pool["id"])
    return items, queries, pool, {**report, **_damage(items, bad, lost)}


def _compositional(
    folder: Path,
    task: str,
    what: str,
    decoding: Decoding,
    bad_rows: str,
    job: Any,
    copies: Copies = "keep",
) -> Tables:
    frame, shelf = benchmarks.compositional(folder, what)
    frame = frame.with_row_index("index").with_columns(pl.col("index").cast(pl.Int64), text=pl.lit(prompts.FIND_CAPTION))
    usable = frame.filter(pl.col("wrong").is_null())
    sides = [usable.select("text", "path"), *(usable.select(text=side, path=pl.lit("")) for side in ("true", "false"))]
    identified = rows.identify(pl.concat(sides), shelf, decoding, job.threads, job.track, f"{task}: images", copies=copies)
    keys = identified.select("text", "path", "id", "reason")
    frame = frame.join(keys.rename({"id": "query"}), on=["text", "path"], how="left", maintain_order="left")
    for side in ("true", "false"):
        words = keys.filter(pl.col("path") == "").select(
            pl.col("text").alias(side), pl.col("id").alias(f"{side}_id"), pl.col("reason").alias(f"{side}_reason")
        )
        frame = frame.join(words, on=side, how="left", maintain_order="left")
    unread = [pl.format("the {} caption: {}", pl.lit(side), pl.col(f"{side}_reason")) for side in ("true", "false")]
    frame = frame.with_columns(reason=pl.coalesce("wrong", "reason", *unread))
    bad = frame.filter(pl.col("reason").is_not_null()).select(_LEFT_OUT)
    rows.refuse_if_asked(bad_rows, task, bad)
    kept = frame.filter(pl.col("reason").is_null())
    if kept.is_empty():
        raise DataError(f"{folder}: no usable row of {len(frame)}" + tables.first(bad))
    queries = kept.select(
        pl.lit(task).alias("task"),
        pl.col("index").alias("row"),
        "query",
        pl.concat_list("true_id").alias("right"),
        pl.concat_list("true_id", "false_id").alias("candidates"),
        "part",
    )
    items = rows.items_table(identified, pl.concat([queries["query"], queries["candidates"].explode().alias("query")]))
    report = {
        "name": task,
        "rows": len(frame),
        **figures.caption_pair_counts(queries),
        "places": rows.places(frame, "index"),
    }
    return items, queries, pl.DataFrame(schema=artifacts.POOL), {**report, **_damage(items, bad, bad.clear())}


def _counts(queries: pl.DataFrame, candidates: int, pool: pl.DataFrame, said: pl.DataFrame) -> dict[str, Any]:
    """Queries and candidates, as many as the source has and how many are distinct, and the captions that tell of several images."""
    right = queries["right"].list.len()
    told = said.group_by("words").agg(images=pl.col("image").n_unique())
    return {
        "queries": len(queries),
        "distinct_queries": queries["query"].n_unique(),
        "candidates": candidates,
        "distinct": len(pool),
        "duplicates": candidates - len(pool),
        "captions_of_several_images": int((told["images"] > 1).sum()),
        "right": {"fewest": right.min(), "most": right.max()},
    }


def _damage(items: pl.DataFrame, bad: pl.DataFrame, lost: pl.DataFrame) -> dict[str, Any]:
    return {"resource_forks": tables.forks(items), "left_out": rows.left_out(bad), "captions_left_out": rows.left_out(lost)}
