"""A user's own data, in the project's format: `train/<name>/` and `eval/<name>/` with *.jsonl or *.parquet, and images beside them.

A row has query_text, query_image, positive_text, positive_image ('' or absent = none; one of text and image on either side), and
`candidates`, a list of wrong {text, image}.  Image paths are relative to the folder, or name members of images.zip, images.tar or
images/ in it.  A parquet file may hold its images itself: query_image and positive_image are then columns {bytes, path}, as Hugging
Face's `datasets` writes images, or of plain bytes.

In training `candidates` is checked and not used, since negatives are mined; an evaluation row without it has the right answers of all
the other rows as candidates, except those of rows with the same query.

Unknown keys are refused: a misspelt `query_imgae` would silently be a row without an image.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import polars as pl

from unime import artifacts, config, prompts
from unime.data import archives, parquet, stream, tables
from unime.data.images import Decoding
from unime.data.rows import Copies, DataError, Shelf

SIDES = ("query_text", "query_image", "positive_text", "positive_image")
_KEYS = (*SIDES, "candidates")
_CANDIDATE = ("text", "image")
_PARQUET = {**dict.fromkeys(SIDES, pl.String), "candidates": pl.List(pl.Struct(dict.fromkeys(_CANDIDATE, pl.String)))}
_ROWS = 1 << 13  # read as Python objects at a time
_HALF = re.compile("[\ud800-\udfff]")
_JSON = {str: "a string", int: "a number", float: "a number", bool: "a truth value", list: "a list", dict: "an object", type(None): "null"}


def files(folder: Path) -> list[Path]:
    """The files of a folder that hold rows in this format: *.jsonl, and *.parquet that are no published ones and no side table."""
    found = [*folder.glob("*.jsonl"), *(file for file in folder.glob("*.parquet") if not published(file) and file.name != "truth.parquet")]
    return sorted(found)


def published(file: Path) -> bool:
    """Whether a parquet file is one of MMEB's.  Others call theirs `train-...` and `test-...` too, so of those the columns decide."""
    if file.name.startswith(("original-", "diverse_instruction-")):
        return True
    if not file.name.startswith(("train-", "test-")):
        return False
    is_test = file.name.startswith("test-")
    try:
        columns = pl.read_parquet_schema(file)
        return not set(SIDES) & set(columns) if is_test else "qry" in columns
    except artifacts.UNREADABLE:
        return is_test or any(file.parent.glob("original-*.parquet")) or any(file.parent.glob("diverse_instruction-*.parquet"))


def read_train(
    root: str,
    name: str,
    cap: int,
    seed: int,
    decoding: Decoding,
    bad_rows: str,
    job: Any,
    copies: Copies = "keep",
) -> tuple[pl.DataFrame, pl.DataFrame, dict[str, Any], pl.DataFrame]:
    """One training set as (ITEMS sorted by id, PAIRS in the order of rows, report, LABELS); see `tables.pairs`.

    Raises DataError, ArchiveError.
    """
    folder = Path(root) / "train" / name
    pairs = (
        {**place, "wrong": wrong, "query_text": row[0], "query_path": row[1], "positive_text": row[2], "positive_path": row[3]}
        for place, wrong, row, _ in rows(folder)
    )
    frame = _frame(pairs, tables.TRAIN)
    return tables.pairs(frame, name, folder, _shelf(folder), cap, seed, decoding, bad_rows, job, copies=copies)


def read_eval(
    root: str,
    name: str,
    decoding: Decoding,
    bad_rows: str,
    job: Any,
    copies: Copies = "keep",
) -> tuple[pl.DataFrame, pl.DataFrame, dict[str, Any]]:
    """One task as (ITEMS sorted by id, TASKS in the source's order, report); see `tables.tasks`.  Raises DataError, ArchiveError."""
    folder = Path(root) / "eval" / name

    def asked() -> Iterator[dict[str, Any]]:
        for place, wrong, (query_text, query_path, *right), candidates in rows(folder):
            texts, paths = zip(right, *candidates, strict=True)
            row = {"query_text": query_text, "query_path": query_path, "texts": texts, "paths": paths, "open": not candidates}
            yield {**place, "wrong": wrong, **row}

    return tables.tasks(_frame(asked(), tables.EVAL), name, folder, _shelf(folder), decoding, bad_rows, job, copies=copies)


def _frame(rows: Iterator[dict[str, Any]], schema: dict[str, Any]) -> pl.DataFrame:
    """Rows as a table with their `index`, some at a time: as Python objects all of them would take ten times their size."""
    kinds = {key: kind for key, kind in schema.items() if key != "index"}
    parts = [pl.DataFrame(schema=kinds)]
    while some := list(islice(rows, _ROWS)):
        parts.append(pl.DataFrame(some, schema=kinds))
    return pl.concat(parts, rechunk=True).with_row_index("index")


def _shelf(folder: Path) -> Shelf:
    """Where the images of a folder's rows lie: beside them, or inside its parquet files (`_table` writes such paths)."""
    holders = {file.name: file for file in files(folder) if file.suffix == ".parquet"}

    def inside(path: str) -> list[Path]:
        name = path.partition("/")[0]
        return [holders[name]] if name in holders else []

    def means(path: str, place: str, member: str) -> bool:
        holder = Path(place).name
        return path == f"images/{member}" or (holder in holders and path == f"{holder}/{member}")

    return Shelf([*archives.beside(folder), folder], inside, means)


Row = tuple[dict[str, Any], str | None, list[str], list[list[str]]]
"""{file, row}, what is wrong or None, the four SIDES, and the wrong candidates as [text, image]; all '' where something is wrong."""


def rows(folder: Path) -> Iterator[Row]:
    """Every row of every file, in order.  A text whose item has an image and whose mark is missing gets the mark first.

    `prompts.parts` shows the image first in either case: the mark makes equal items equal, whoever wrote them.
    """
    for file in files(folder):
        for number, value, reason in _lines(file):
            place = {"file": file.as_posix(), "row": number}
            reason = reason or _wrong(value)
            if reason is not None:
                yield place, reason, [""] * 4, []
                continue
            query, positive = (marked(value.get(f"{side}_text"), value.get(f"{side}_image")) for side in ("query", "positive"))
            candidates = [marked(one.get("text"), one.get("image")) for one in value.get("candidates") or ()]
            yield place, None, [*query, *positive], candidates


def marked(text: str | None, image: str | None) -> list[str]:
    """[text, image] as an item has them: '' for what is absent, the mark first where there is an image."""
    text, image = text or "", image or ""
    return [prompts.IMAGE_MARK + text if image and prompts.IMAGE_MARK not in text else text, image]


def _lines(file: Path) -> Iterator[tuple[int, Any, str | None]]:
    """(row, value, reason) of a file's rows: lines from 1 of JSONL, rows from 0 of parquet.  Raises DataError for the whole file."""
    if file.suffix == ".jsonl":
        yield from stream.lines(file)
        return
    frame = _table(file)
    for column, kind in frame.schema.items():
        if column not in _KEYS:
            raise DataError(f"{file}: unknown column {column!r}{config.nearest(column, list(_KEYS))}")
        empty = kind == pl.Null or kind == pl.List(pl.Null)
        if not empty and kind != _PARQUET[column] and not (column == "candidates" and _candidates(kind)):
            raise DataError(f"{file}: column {column!r} is {kind}, needed {_PARQUET[column]}; all {len(frame):,} rows are lost by it")
    yield from ((number, row, None) for number, row in enumerate(frame.iter_rows(named=True)))


def _table(file: Path) -> pl.DataFrame:
    """The table of a parquet file.  A column that holds images becomes one of paths, `<file>/<column>/<row>`, and no image is read.

    An image without bytes, only a path, keeps that path.  Raises DataError for a file that cannot be read, or that has other columns.
    """
    try:
        schema = pl.read_parquet_schema(file)
        holders = [name for name, kind in schema.items() if parquet.holds_images(kind)]
        if holders and not set(SIDES) & set(schema):
            raise DataError(
                f"{file}: images in column {holders[0]!r}, and none of {', '.join(SIDES)}: not rows; `python -m unime rows {file} NAME` "
                "makes rows of images with captions"
            )
        images = [name for name in holders if name in ("query_image", "positive_image")]
        columns: list[pl.Expr] = [pl.col(name) for name in schema if name not in images]
        for name in images:
            nested = isinstance(schema[name], pl.Struct)
            data = pl.col(name).struct.field("bytes") if nested else pl.col(name)
            has_path = isinstance(schema[name], pl.Struct) and any(field.name == "path" for field in schema[name].fields)
            path = pl.col(name).struct.field("path") if has_path else pl.lit(None, pl.String)
            columns += [path.alias(name), data.is_not_null().alias(f"{name} has bytes")]
        frame = tables.plain(pl.scan_parquet(file, glob=False).select(columns).collect(engine="streaming"))
    except artifacts.UNREADABLE as error:
        raise DataError(f"{file}: not a parquet file that can be read ({error}); write it again") from error
    for name in images:
        inside = pl.format("{}/{}/{}", pl.lit(file.name), pl.lit(name), pl.int_range(pl.len()))
        frame = frame.with_columns(pl.when(f"{name} has bytes").then(inside).otherwise(name).alias(name)).drop(f"{name} has bytes")
    return frame


def _candidates(kind: Any) -> bool:
    """Whether a column's type is a list of {text, image} in any order, or of one of the two."""
    inner = kind.inner if isinstance(kind, pl.List) else None
    return isinstance(inner, pl.Struct) and all(f.name in _CANDIDATE and f.dtype in (pl.String, pl.Null) for f in inner.fields)


def _wrong(value: Any) -> str | None:
    """Why a row is not of the format, or None."""
    if not isinstance(value, dict):
        return f"{_JSON[type(value)]}, needed an object with {', '.join(SIDES)}"
    for key in value:
        if key not in _KEYS:
            return f"unknown key {key!r}{config.nearest(key, list(_KEYS))}"
    for key in SIDES:
        if reason := _no_text(value.get(key), key):
            return reason
    candidates = value.get("candidates")
    if not isinstance(candidates, (list, type(None))):
        return f"candidates is {_JSON[type(candidates)]}, needed a list of objects with text, image"
    for number, one in enumerate(candidates or ()):
        if not isinstance(one, dict):
            return f"candidates[{number}] is {_JSON[type(one)]}, needed an object with text, image"
        for key in one:
            if key not in _CANDIDATE:
                return f"candidates[{number}]: unknown key {key!r}{config.nearest(key, list(_CANDIDATE))}"
            if reason := _no_text(one[key], f"candidates[{number}].{key}"):
                return reason
    return None


def _no_text(value: Any, name: str) -> str | None:
    if value is not None and not isinstance(value, str):
        return f"{name} is {_JSON[type(value)]}, needed a string"
    if value and _HALF.search(value):
        return f"{name} holds half of a character (an unpaired \\u escape)"
    return None
