"""Training sets and tasks by name, whatever format they are in: the files that a folder holds decide."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import polars as pl

from unime.data import mmeb, own
from unime.data.images import Decoding
from unime.data.rows import Copies, DataError


def read_train(
    root: str,
    name: str,
    instructions: str,
    cap: int,
    seed: int,
    decoding: Decoding,
    bad_rows: str,
    job: Any,
    image_marks: str = "public",
    copies: Copies = "keep",
) -> tuple[pl.DataFrame, pl.DataFrame, dict[str, Any], pl.DataFrame]:
    """`<root>/train/<name>` as (ITEMS, PAIRS, report, LABELS).

    `instructions` and `image_marks` are for MMEB's format only.  Raises DataError, ArchiveError.
    """
    if _is_own(Path(root) / "train" / name):
        return own.read_train(root, name, cap, seed, decoding, bad_rows, job, copies)
    return mmeb.read_train(root, name, instructions, cap, seed, decoding, bad_rows, job, image_marks, copies)


def read_eval(
    root: str,
    name: str,
    decoding: Decoding,
    bad_rows: str,
    job: Any,
    image_marks: str = "public",
    copies: Copies = "keep",
) -> tuple[pl.DataFrame, pl.DataFrame, dict[str, Any]]:
    """`<root>/eval/<name>` as (ITEMS, TASKS, report).  Raises DataError, ArchiveError."""
    if _is_own(Path(root) / "eval" / name):
        return own.read_eval(root, name, decoding, bad_rows, job, copies)
    return mmeb.read_eval(root, name, decoding, bad_rows, job, image_marks, copies)


def _is_own(folder: Path) -> bool:
    """Raises DataError where a folder holds rows of both formats; one that holds none is left to MMEB's loader to refuse."""
    mine, theirs = own.files(folder), sorted(filter(own.published, folder.glob("*.parquet")))
    if mine and theirs:
        raise DataError(f"{folder}: rows in two formats, {theirs[0].name} as MMEB publishes it and {mine[0].name} of your own; keep one")
    return bool(mine)
