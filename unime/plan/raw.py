"""Rows of raw data that no data stage has read yet: bounds for the plan, from the files under data.root.

Looks at parquet metadata and at the rows' texts and image paths, never at an image.  No torch.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import polars as pl

from unime import artifacts
from unime.config.sections import Data
from unime.data import own, stream
from unime.data.mmeb import read_file
from unime.data.rows import DataError


class Rows(NamedTuple):
    """At most so many queries, and distinct items (queries and candidates together) that they show."""

    queries: int
    items: int


def training_rows(data: Data, name: str) -> int | None:
    """Rows of a training set before any is left out; None where its files are not there.  Raises DataError for one that is damaged."""
    folder = Path(data.root) / "train" / name
    mine = own.files(folder)
    files = mine or sorted(folder.glob(f"{data.instructions}-*.parquet"))
    return sum(map(_count, files)) if files else None


def task_rows(data: Data, name: str) -> Rows | None:
    """Queries and items of a task before any is left out; None where its files are not there.  Raises DataError for a damaged one."""
    folder = Path(data.root) / "eval" / name
    mine = own.files(folder)
    if mine:
        return _own_task(folder)
    files = sorted(folder.glob("test-*.parquet"))
    return _published_task(files) if files else None


def _count(file: Path) -> int:
    if file.suffix == ".jsonl":
        return sum(1 for _ in stream.lines(file))
    try:
        return pl.scan_parquet(file, glob=False).select(pl.len()).collect().item()
    except artifacts.UNREADABLE as error:
        raise DataError(f"{file}: not a parquet file that can be read ({error}); write it again") from error


def _own_task(folder: Path) -> Rows:
    queries, items = 0, set()
    for _, wrong, (query_text, query_image, text, image), candidates in own.rows(folder):
        if wrong is not None:
            continue
        queries += 1
        items.add((query_text, query_image))
        items.add((text, image))
        items.update(tuple(candidate) for candidate in candidates)
    return Rows(queries, len(items))


def _published_task(files: list[Path]) -> Rows:
    strings = pl.List(pl.String)
    schema = {"qry_text": pl.String, "qry_img_path": pl.String, "tgt_text": strings, "tgt_img_path": strings}
    queries, found = 0, []
    for file in files:
        table = read_file(file, schema)
        queries += len(table)
        equal = table.filter(pl.col("tgt_text").list.len() == pl.col("tgt_img_path").list.len())
        found.append(table.select(text="qry_text", path="qry_img_path"))
        found.append(equal.select(text="tgt_text", path="tgt_img_path").explode("text", "path"))
    return Rows(queries, pl.concat(found).n_unique())
