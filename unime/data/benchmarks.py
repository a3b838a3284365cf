"""Caption sets as published, each read into one frame; the files that a folder holds decide which format it is, not its name.

Flickr30K and COCO: parquet files with `image` (bytes) and `text` (captions).  Urban1K: Urban1k.zip, or the folder, with image/<n>.jpg and
caption/<n>.txt.  ShareGPT4V: share-captioner*.json, of which the first 1,000 rows are read and no more of the file than they take.
SugarCrepe: seven JSON files and the images of COCO val2017.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path, PurePosixPath
from typing import Any

import polars as pl

from unime import artifacts, config
from unime.data import archives, parquet, stream, tables
from unime.data.archives import BadImage
from unime.data.rows import DataError, Shelf

CAPTIONS = 5
"""Captions an image; further ones, which some rows of COCO have, are not read."""
SHARE_ROWS = 1000
PARTS = {"replace": ("att", "obj", "rel"), "swap": ("att", "obj"), "add": ("att", "obj")}
"""SugarCrepe's tasks and their files, <task>_<part>.json."""

RETRIEVAL = {"file": pl.String, "row": pl.Int64, "path": pl.String, "captions": pl.List(pl.String), "wrong": pl.String}
"""An image and its captions; `wrong` says why it is none (null: it is one)."""
COMPOSITIONAL = {"file": pl.String, "part": pl.String, "row": pl.Int64} | dict.fromkeys(("path", "true", "false", "wrong"), pl.String)
"""An image with a caption that is true of it and one that is false."""

_PLACED = "\n"  # between archive and member in the path of an image whose place needs no search
_SHAPE = "needed {'image': path, 'conversations': [question, {'value': caption}]}"


class Placed:
    """In place of a Shelf, for sources whose images have known members."""

    where = "its file"

    def find(self, row_path: str) -> tuple[str, str]:
        archive, _, member = row_path.partition(_PLACED)
        return archive, member


Row = tuple[str, int, str, list[str], str | None]


def retrieval(folder: Path, line_end: str = "strip") -> tuple[pl.DataFrame, Shelf | Placed]:
    """The rows RETRIEVAL of a benchmark's folder, and where its images lie.

    `line_end` is the setting data.caption_line_end, for captions in files of lines (Urban1K).  Raises DataError, ArchiveError.
    """
    found = {read: files for read, find in _FORMATS.items() if (files := find(folder))}
    if not found:
        raise DataError(f"{folder}: no captions; needed *.parquet, Urban1k.zip or share-captioner*.json (found {_content(folder)})")
    if len(found) > 1:
        raise DataError(f"{folder}: captions in {len(found)} formats, {' and '.join(files[0].name for files in found.values())}; keep one")
    ((read, files),) = found.items()
    rows, shelf = read(folder, files, line_end)
    return pl.DataFrame(list(rows), schema=RETRIEVAL, orient="row"), shelf


def _content(folder: Path) -> str:
    return ", ".join(sorted(path.name for path in folder.iterdir())) or "nothing"


# ---- Flickr30K, COCO ----------------------------------------------------------------------------------------------------------------


def _parquet(folder: Path, files: list[Path], line_end: str) -> tuple[Iterator[Row], Placed]:
    return (row for file in files for row in _parquet_file(file)), Placed()


def _parquet_file(file: Path) -> Iterator[Row]:
    try:
        schema = pl.read_parquet_schema(file)
        for column in ("image", "text"):
            if column not in schema:
                raise DataError(f"{file}: column {column!r} is missing{config.nearest(column, list(schema))}")
        if not parquet.holds_images(schema["image"]):
            raise DataError(f"{file}: column 'image' is {schema['image']}, needed Binary or Struct(bytes: Binary, path: String)")
        if tables.plain_kind(schema["text"]) not in (pl.List(pl.String), pl.List(pl.Null)):
            raise DataError(f"{file}: column 'text' is {schema['text']}, needed List(String)")
        lists = tables.plain(pl.scan_parquet(file, glob=False).select("text").collect()).to_series().to_list()
    except artifacts.UNREADABLE as error:
        raise DataError(f"{file}: not a parquet file that can be read ({error}); download it again") from error
    for row, captions in enumerate(lists):
        captions = [caption or "" for caption in captions or ()][:CAPTIONS]
        yield file.as_posix(), row, f"{file.as_posix()}{_PLACED}image/{row}", captions, None if captions else "it has no caption"


# ---- Urban1K ------------------------------------------------------------------------------------------------------------------------


def _urban_files(folder: Path) -> list[Path]:
    zipped = [*folder.glob("Urban1k.zip"), *folder.glob("Urban1K.zip")]
    return zipped or [place for place in (folder / "Urban1k", folder) if (place / "caption").is_dir()][:1]


def _urban(folder: Path, files: list[Path], line_end: str) -> tuple[Iterator[Row], Placed]:
    place = files[0].as_posix()
    names = archives.archive(place).names()
    if files[0].is_dir():
        names = [f"{part}/{file.name}" for part in ("image", "caption") for file in (files[0] / part).glob("*")]
    images, captions = ({_stem(name): name for name in names if _is_in(name, part)} for part in ("image", "caption"))
    if not captions:
        raise DataError(f"{place}: no caption/<n>.txt in it; download it again")

    def rows() -> Iterator[Row]:
        stems = sorted({*images, *captions}, key=lambda stem: (len(stem), stem))  # 2 before 10
        for number, stem in enumerate(stems):
            if stem not in captions or stem not in images:
                part = "caption" if stem in images else "image"
                yield place, number, "", [], f"there is no {part} of {stem}"
                continue
            text, wrong = _first_line(place, captions[stem], line_end)
            yield f"{place}/{captions[stem]}", number, f"{place}{_PLACED}{images[stem]}", [text], wrong

    return rows(), Placed()


def _is_in(name: str, part: str) -> bool:
    path = PurePosixPath(name)
    endings = (".txt",) if part == "caption" else (".jpg", ".jpeg", ".png", ".webp")
    return path.parent.name == part and not path.name.startswith(".") and path.suffix.lower() in endings


def _stem(name: str) -> str:
    return PurePosixPath(name).stem


def _first_line(place: str, member: str, line_end: str) -> tuple[str, str | None]:
    """A caption's file as (its first line, what is wrong or None).

    `keep` leaves the line as it is, with its line end if the file has one, as the public code reads it (urban1k.py); an embedder that
    takes its input as raw text then pools at the line end.
    """
    try:
        text = archives.archive(place).read(member).decode("utf-8-sig")
    except BadImage as bad:
        return "", f"its caption cannot be read ({bad.reason})"
    except UnicodeDecodeError as error:
        return "", f"its caption is not UTF-8 ({error.reason} at byte {error.start})"
    if not text.strip():
        return "", "it has no caption"
    text = text.replace("\r\n", "\n").replace("\r", "\n")
    line, ended, _ = text.partition("\n")
    if line_end == "keep" and line.strip():
        return line + ended, None
    return text.strip().split("\n", 1)[0].strip(), None


# ---- ShareGPT4V ---------------------------------------------------------------------------------------------------------------------


def _share(folder: Path, files: list[Path], line_end: str) -> tuple[Iterator[Row], Shelf]:
    def rows() -> Iterator[Row]:
        for number, value in islice(stream.rows(files[0]), SHARE_ROWS):
            image, caption, wrong = _shared(value)
            yield files[0].as_posix(), number, image, [caption], wrong

    packed = sorted(path for pattern in ("*.zip", "*.tar", "*.tar.*", "*.tgz") for path in folder.glob(pattern))
    return rows(), Shelf([*packed, folder])


def _shared(value: Any) -> tuple[str, str, str | None]:
    """Image path and caption of a row, newlines as spaces, or what is wrong."""
    image = value.get("image") if isinstance(value, dict) else None
    turns = value.get("conversations") if isinstance(value, dict) else None
    turn = turns[1] if isinstance(turns, list) and len(turns) > 1 else None
    caption = turn.get("value") if isinstance(turn, dict) else None
    if not isinstance(image, str) or not image:
        return "", "", f"it has no image path; {_SHAPE}"
    if not isinstance(caption, str) or not caption.strip():
        return "", "", f"it has no caption; {_SHAPE}"
    return image, _whole(" ".join(caption.split("\n"))), None


# ---- SugarCrepe ---------------------------------------------------------------------------------------------------------------------


def compositional(folder: Path, task: str) -> tuple[pl.DataFrame, Shelf]:
    """The rows COMPOSITIONAL of one of SugarCrepe's tasks, and where its images lie.  Raises DataError."""
    rows: list[tuple[Any, ...]] = []
    for name in PARTS[task]:
        part = f"{task}_{name}"
        files = [place / f"{part}.json" for place in (folder, folder / "data") if (place / f"{part}.json").exists()]
        if not files:
            raise DataError(f"{folder}: no {part}.json; download it (found {_content(folder)})")
        rows += [(files[0].as_posix(), part, number, *row) for number, row in enumerate(_crepe_file(files[0]))]
    images = [folder / name for name in ("val2017.zip", "val2017.tar", "val2017.tar.gz", "val2017")]
    return pl.DataFrame(rows, schema=COMPOSITIONAL, orient="row"), Shelf([*images, *archives.below(folder)])


def _crepe_file(file: Path) -> Iterator[tuple[str, str, str, str | None]]:
    try:
        table = json.loads(file.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"{file}: not a JSON file that can be read ({error}); download it again") from error
    if not isinstance(table, dict):
        raise DataError(f"{file}: not a JSON object of rows by id; download it again")
    for row in table.values():
        wrong = None if isinstance(row, dict) else "it is no object"
        for key in ("filename", "caption", "negative_caption") if wrong is None else ():
            if not isinstance(row.get(key), str) or not row[key].strip():
                there = ", ".join(map(str, row)) or "nothing"
                wrong = wrong or f"{key!r} is missing, empty or no string (it has {there})"
        if wrong is not None:
            yield "", "", "", wrong
        else:
            yield f"val2017/{row['filename']}", _whole(row["caption"]), _whole(row["negative_caption"]), None


def _whole(text: str) -> str:
    """The text with half characters (unpaired \\u escapes of JSON), which no UTF-8 can hold, replaced."""
    return text.encode("utf-8", "replace").decode("utf-8")


_FORMATS: dict[Callable[[Path, list[Path], str], tuple[Iterator[Row], Shelf | Placed]], Callable[[Path], list[Path]]] = {
    _parquet: lambda folder: sorted(folder.rglob("*.parquet")),
    _urban: _urban_files,
    _share: lambda folder: sorted(folder.glob("share-captioner*.json"))[:1],
}
