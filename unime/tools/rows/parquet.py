"""Hugging Face's parquet files with the pictures inside: a column {bytes, path} (or of plain bytes), and one of captions."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path, PurePosixPath

import polars as pl

from unime import artifacts, config
from unime.data import archives, own, parquet, tables
from unime.data.rows import DataError
from unime.tools.rows import text
from unime.tools.rows.folder import Folder
from unime.tools.rows.model import Caption, Options, Source, where
from unime.tools.rows.tables import captions_of

_WINDOW = 1 << 12  # rows whose texts are Python objects at a time


def is_pictures(file: Path, root: Path, options: Options) -> bool:
    """Whether a file is parquet with a column that may hold pictures, and is not in the project's own format already."""
    if file.suffix != ".parquet":
        return False
    schema = _schema(file)
    return any(parquet.holds_images(kind) for kind in schema.values()) and not set(own.SIDES) & set(schema)


def is_own(file: Path) -> bool:
    """Whether a parquet file is in the project's own format."""
    return bool(set(own.SIDES) & set(_schema(file)))


def read(folder: Folder, files: list[Path], options: Options) -> Source:
    """The captions of every row, one or a list of them.  A picture is called `<file>/<row>`, and its own name if the row tells one.

    Raises DataError for columns that are missing or may both be meant.
    """
    source = Source("parquet with pictures")
    for file in files:
        shown = where(file, folder.root)
        archive = file.resolve().as_posix()
        schema = _schema(file)
        image = _image_column(schema, options, file)
        words = text.column(options.text_column, ("text", *text.TEXT_COLUMNS), _texts(schema), "--text-column", str(file))
        for number, has_bytes, path, captions in _rows(file, image, words, schema):
            place = f"{shown}: row {number}"
            if has_bytes:
                name = f"{shown.removesuffix('.parquet')}/{number:06}"
                name += f"-{PurePosixPath(archives.whole(path)).name}" if path else ""
                source.pictures[name] = (archive, f"{image}/{number}")
            else:
                found = folder.file(path) if path else None
                if found is None:
                    source.no_picture.append(f"{place}: {image} holds no bytes" + (f", and {path!r} is no file" if path else ""))
                    continue
                name = found
                source.pictures[name] = folder.place(name)
            source.captions += [Caption(place, name, caption) for caption in captions_of(captions, source, place, words)]
    return source


def _schema(file: Path) -> dict[str, pl.DataType]:
    try:
        return dict(pl.read_parquet_schema(file))
    except artifacts.UNREADABLE as error:
        raise DataError(f"{file}: not a parquet file that can be read ({error}); download it again") from error


def _image_column(schema: dict[str, pl.DataType], options: Options, file: Path) -> str:
    columns = [name for name, kind in schema.items() if parquet.holds_images(kind)]
    asked = options.image_column
    if asked is not None:
        if asked not in columns:
            raise ValueError(f"{file}: no column of pictures {asked!r}{config.nearest(asked, columns)}")
        return asked
    if len(columns) > 1 and "image" not in columns:
        raise ValueError(f"{file}: columns {' and '.join(map(repr, columns))} hold pictures; name one with --image-column")
    return "image" if "image" in columns else columns[0]


def _texts(schema: dict[str, pl.DataType]) -> list[str]:
    """The columns that hold a text or a list of texts."""
    plain = {name: tables.plain_kind(kind) for name, kind in schema.items()}
    return [name for name, kind in plain.items() if kind in (pl.String, pl.List(pl.String))]


def _rows(file: Path, image: str, words: str, schema: dict[str, pl.DataType]) -> Iterator[tuple[int, bool, str, text.Json]]:
    """(row, whether it has a picture's bytes, the picture's path or '', its captions); no picture is read."""
    nested = isinstance(schema[image], pl.Struct)
    data = pl.col(image).struct.field("bytes") if nested else pl.col(image)
    has_path = isinstance(schema[image], pl.Struct) and "path" in [field.name for field in schema[image].fields]
    path = pl.col(image).struct.field("path").fill_null("") if has_path else pl.lit("")
    chosen = pl.scan_parquet(file, glob=False).select(
        has_bytes=data.is_not_null() & (data.bin.size() > 0), path=path, captions=pl.col(words)
    )
    try:
        frame = tables.plain(chosen.collect(engine="streaming"))
    except artifacts.UNREADABLE as error:
        raise DataError(f"{file}: not a parquet file that can be read ({error}); download it again") from error
    for start in range(0, len(frame), _WINDOW):
        for offset, row in enumerate(frame.slice(start, _WINDOW).iter_rows()):
            yield start + offset, *row
