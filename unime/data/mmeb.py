"""MMEB-train and MMEB-eval as published, and anything written in that layout (the embedded suite is).

Train: `<root>/train/<set>/<instructions>-*.parquet` with qry, qry_image_path, pos_text, pos_image_path ('' = absent; other columns are
ignored: the published negatives are not used), and `images.zip` beside it.  A path images/<other set>/... lies in the other set's.
Eval: `<root>/eval/<task>/test-*.parquet` with qry_text, qry_img_path, tgt_text, tgt_img_path (lists of equal length, the right one
first).  Images: `images.zip`, in the task's folder or above.  A plain tar or an unpacked folder serves in place of either archive.
A whole download, with the images of all sets in one folder as its own script unpacks them, is read as it lies (`_common`).

Every query of WebQA and EDIS has an image mark and no image.  The public code refuses no such text, and no text of white space alone;
`image_marks` says what becomes of the mark (`rows.Rules`).
"""

from __future__ import annotations

import functools
from pathlib import Path, PurePosixPath
from typing import Any

import polars as pl

from unime import artifacts, config
from unime.data import archives, tables
from unime.data.images import Decoding
from unime.data.rows import Copies, DataError, Rules, Shelf

_TRAIN = {"qry": "query_text", "qry_image_path": "query_path", "pos_text": "positive_text", "pos_image_path": "positive_path"}
_NAMED = 8  # files that a message lists
_EVAL = {"qry_text": "query_text", "qry_img_path": "query_path", "tgt_text": "texts", "tgt_img_path": "paths"}


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
    """One training set as (ITEMS sorted by id, PAIRS in the order of rows, report, LABELS); see `tables.pairs`.

    Raises DataError, ArchiveError.
    """
    folder = Path(root) / "train"
    frame = _read(folder, name, instructions, dict.fromkeys(_TRAIN, pl.String), _TRAIN)
    rules = Rules.published(image_marks)
    return tables.pairs(frame, name, folder / name, shelf(root, name), cap, seed, decoding, bad_rows, job, rules, copies)


def shelf(root: str, name: str) -> Shelf:
    """Where a training set's images lie: beside its rows, or beside those of the set that a path names."""
    folder = Path(root) / "train"

    @functools.cache
    def places(other: str) -> list[Path]:
        zipped = [place / "images_zip" / f"{other}.zip" for place in (folder, Path(root))]
        return [place for place in (*archives.below(folder / other), *zipped) if place.exists()]

    def named(path: str) -> str | None:
        parts = path.split("/")
        return parts[1] if len(parts) > 2 and parts[0] == "images" and parts[1] != ".." else None

    def more(row_path: str) -> list[Path]:
        other = named(archives.whole(row_path))
        return places(other) if other not in (name, None) else []

    def means(path: str, place: str, member: str) -> bool:
        at = PurePosixPath(place)
        return named(path) in (None, *at.parts[-2:], at.stem, *PurePosixPath(member).parts)

    zipped = [place / "images_zip" / f"{name}.zip" for place in (folder, Path(root))]
    return Shelf([*archives.below(folder / name), *zipped, *_common(Path(root), "train")], more, means)


def _common(root: Path, part: str) -> list[Path]:
    """Where the images of all sets or tasks may lie together, best first: in `root`/train or `root`/eval, then in `root` itself.

    `images/<set>/Train/...` is what the script in MMEB-train makes of its archives, `eval_images/` what VLM2Vec unpacks MMEB-eval into.
    """
    places = [*archives.beside(root / part), *archives.beside(root)]
    return [*places, root / part / "eval_images", root / "eval_images"] if part == "eval" else places


def read_eval(
    root: str,
    name: str,
    decoding: Decoding,
    bad_rows: str,
    job: Any,
    image_marks: str = "public",
    copies: Copies = "keep",
) -> tuple[pl.DataFrame, pl.DataFrame, dict[str, Any]]:
    """One evaluation task as (ITEMS sorted by id, TASKS in the source's order, report); see `tables.tasks`.

    Raises DataError, ArchiveError.
    """
    folder = Path(root) / "eval"
    strings = pl.List(pl.String)
    frame = _read(folder, name, "test", dict(zip(_EVAL, (pl.String, pl.String, strings, strings), strict=True)), _EVAL)
    n_texts, n_paths = pl.col("texts").list.len(), pl.col("paths").list.len()
    wrong = (
        pl.when(pl.col("wrong").is_not_null())
        .then("wrong")
        .when((n_texts == 0) & (n_paths == 0))
        .then(pl.lit("the candidate list is empty"))
        .when(n_texts != n_paths)
        .then(pl.format("tgt_text has {} entries, tgt_img_path {}", n_texts, n_paths))
    )
    frame = frame.with_columns(wrong=wrong, open=pl.lit(False))
    places = Shelf([*archives.below(folder / name), *_common(Path(root), "eval")])
    return tables.tasks(frame, name, folder / name, places, decoding, bad_rows, job, Rules.published(image_marks), copies)


def known(folder: Path) -> list[str]:
    """The data sets of a folder: its folders that hold rows."""
    return sorted({file.parent.name for pattern in ("*/*.parquet", "*/*.jsonl") for file in folder.glob(pattern)})


def _read(folder: Path, name: str, stem: str, schema: dict[str, Any], names: dict[str, str]) -> pl.DataFrame:
    """All rows of a data set's files, columns renamed, with `file`, `row` (in its file) and `index` (in the set), '' for null."""
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder; data.root must hold {folder.name}/, a folder for each data set")
    files = sorted((folder / name).glob(f"{stem}-*.parquet"))
    if not files:
        there = sorted(file.name for file in (folder / name).glob("*.parquet"))
        if there and all(file.startswith("train-") for file in there):
            raise DataError(
                f"{folder / name}: no {stem}-*.parquet; found {', '.join(there)}: MMEB-train's first upload, from before there was a "
                f"choice of instructions, which is not read; download {stem}-*.parquet (data.instructions)"
            )
        if there:
            raise DataError(f"{folder / name}: no {stem}-*.parquet; found {', '.join(there)} (data.instructions)")
        if (folder / name).is_dir():
            raise DataError(_without_rows(folder / name, stem))
        raise DataError(f"{folder}: unknown data set {name!r}{config.nearest(name, known(folder))}")
    frames = [read_file(file, schema) for file in files]
    frame = pl.concat(frames).with_row_index("index").rename(names)
    return frame.with_columns(pl.col(column).fill_null("") for column in names.values() if frame.schema[column] == pl.String)


def _without_rows(folder: Path, stem: str) -> str:
    """What to say of a folder that holds no rows: the files that are there, and the formats that are read."""
    names = sorted(path.name + ("/" if path.is_dir() else "") for path in folder.iterdir() if not path.name.startswith("."))
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    found = f"found {', '.join(names[:_NAMED])}{more}" if names else "it is empty"
    return (
        f"{folder}: no rows in a format that is read here ({found}); needed are *.jsonl (an object in each line) or *.parquet with "
        f"query_text, query_image, positive_text, positive_image, or MMEB's {stem}-*.parquet; `python -m unime rows FOLDER NAME` makes "
        "such rows of images with captions (.txt, captions.csv, ImageFolder, COCO, WebDataset, parquet with images), of anchors and "
        "positives, and of conversations (docs/data.md)"
    )


def read_file(file: Path, schema: dict[str, Any]) -> pl.DataFrame:
    """These columns of a parquet file, with `row`, `file` and `wrong` (why a row is none, or null); '' and [] for null.

    Raises DataError naming file and column.
    """
    try:
        frame = tables.plain(pl.read_parquet(file, glob=False))
    except artifacts.UNREADABLE as error:
        raise DataError(f"{file}: not a parquet file that can be read ({error}); download it again") from error
    for column in schema:
        if column not in frame.columns:
            raise DataError(f"{file}: column {column!r} is missing{config.nearest(column, frame.columns)}")
    frame = _listed(frame.with_columns(wrong=pl.lit(None, pl.String)), [column for column in schema if schema[column] != pl.String])
    for column, kind in schema.items():
        if frame[column].dtype not in (kind, pl.Null):
            raise DataError(f"{file}: column {column!r} is {frame[column].dtype}, needed {kind}; all {len(frame):,} rows are lost by it")
    empty = {column: [] for column, kind in schema.items() if kind != pl.String}  # a null list is an empty one
    values = [
        pl.col(column).cast(kind).fill_null(pl.lit(empty[column], dtype=kind) if column in empty else "") for column, kind in schema.items()
    ]
    place = pl.lit(file.as_posix())
    return frame.select(*values, "wrong").with_row_index("row").with_columns(pl.col("row").cast(pl.Int64), file=place)


def _listed(frame: pl.DataFrame, columns: list[str]) -> pl.DataFrame:
    """The frame with a string in place of a list, in one of two `columns`, as a list as long as the other's.

    The public code reads '' so (dataset.py, get_paired_data): no text, or no image, for every entry of the other list.  Any other string
    says of no entry that it is its own, so such a row is a bad one.
    """
    single = [column for column in columns if frame[column].dtype == pl.String]
    if len(single) != 1:
        return frame
    (column,) = single
    (other,) = [name for name in columns if name != column]
    words = pl.col(column).fill_null("")
    reason = pl.format("{} is one string, {}, where {} is a list; a list as long is needed", pl.lit(column), words, pl.lit(other))
    wrong = pl.when(words != "").then(reason).otherwise("wrong")
    repeated = pl.lit("").repeat_by(pl.col(other).list.len().fill_null(0))
    return frame.with_columns(wrong=wrong, **{column: repeated})
