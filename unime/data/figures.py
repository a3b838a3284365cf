"""What the report of a set, a task or a caption column counts in its tables, as they were read or after rows were left out."""

from __future__ import annotations

from typing import Any

import polars as pl

from unime.data import rows


def modalities(table: pl.DataFrame, items: pl.DataFrame) -> dict[str, int]:
    """How many of the PAIRS show what on either side, as in the report of `pairs`."""
    frame = table
    for side in ("query", "positive"):
        own = items.select(pl.col("id").alias(side), pl.col("text").alias(f"{side}_text"), pl.col("member").alias(f"{side}_path"))
        frame = frame.join(own, on=side, how="left", maintain_order="left")
    return rows.count(frame.select(m=pl.format("{} -> {}", rows.kind("query"), rows.kind("positive")))["m"])


def query_modalities(table: pl.DataFrame, items: pl.DataFrame) -> dict[str, int]:
    """How many queries of TASKS show what, as in the report of `tasks`."""
    own = items.select(pl.col("id").alias("query"), query_text="text", query_path="member")
    return rows.count(table.join(own, on="query", how="left", maintain_order="left").select(m=rows.kind("query"))["m"])


def counts(tasks: pl.DataFrame) -> dict[str, Any]:
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


def caption_pair_counts(queries: pl.DataFrame) -> dict[str, Any]:
    """Counts of CAPTION_QUERIES that bring their two captions along."""
    return {
        "parts": rows.count(queries["part"]),
        "queries": len(queries),
        "distinct_queries": queries["query"].n_unique(),
        "candidates": 2 * len(queries),
        "distinct": queries["candidates"].explode().n_unique(),
        "duplicates": len(queries) - queries.select("query", "candidates").n_unique(),
    }


def shared_pool_counts(queries: pl.DataFrame, pool: pl.DataFrame, duplicates: int) -> dict[str, Any]:
    """Counts of CAPTION_QUERIES that share a POOL, whose candidates the source repeats so many times in all."""
    right = queries["right"].list.len()
    return {
        "queries": len(queries),
        "distinct_queries": queries["query"].n_unique(),
        "candidates": len(pool) + duplicates,
        "distinct": len(pool),
        "duplicates": duplicates,
        "right": {"fewest": right.min(), "most": right.max()},
    }
