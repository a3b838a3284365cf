"""Captions of picture files: text files beside them, `captions.csv`, and Hugging Face's ImageFolder (`metadata.csv`, `metadata.jsonl`)."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

import polars as pl

from unime import artifacts
from unime.data.rows import DataError
from unime.tools.rows import text
from unime.tools.rows.folder import Folder
from unime.tools.rows.model import Caption, Options, Source, where
from unime.tools.rows.text import Json, Record, Table, Wanted

SEPARATED = (".csv", ".tsv", ".txt")
_OWN_NAMES = ("captions.csv", "captions.tsv", "captions.txt")
_METADATA = ("metadata.csv", "metadata.jsonl", "metadata.parquet")


def beside_pictures(folder: Folder) -> Source:
    """The captions of `0001.jpg` in `0001.txt`, one a picture."""
    source = Source("pictures with a .txt beside each")
    source.pictures = {name: folder.place(name) for name in folder.pictures}
    stems = {str(PurePosixPath(name).with_suffix("")) for name in folder.pictures}
    texts = [name for name in folder.files if PurePosixPath(name).suffix.lower() == ".txt"]
    text_of = {str(PurePosixPath(name).with_suffix("")): name for name in texts}
    for name in folder.pictures:
        file = text_of.get(str(PurePosixPath(name).with_suffix("")))
        words = text.decoded(folder.root / file) if file else ""
        if file and words.strip():
            source.captions.append(Caption(file, name, words))
    for stem, name in text_of.items():
        if stem not in stems:
            source.no_picture.append(f"{name}: no picture {PurePosixPath(stem).name}.jpg (or of another type) beside it")
    source.note("other files ignored", len(folder.files) - len(folder.pictures) - len(texts))
    return source


def is_captions(file: Path, root: Path, options: Options) -> bool:
    """Whether a file is a table of captions: by its name, or by columns (keys, in JSON) of known names."""
    suffix = file.suffix.lower()
    if file.name in _METADATA or file.parent != root:
        return False
    if file.name in _OWN_NAMES[:2]:
        return True
    if suffix in text.JSON:
        return _has_columns(list(text.first_keys(file)), options)
    if suffix not in SEPARATED or suffix == ".txt" and file.name != _OWN_NAMES[2]:
        return False
    head = text.head(file)
    for delimiter in text.DELIMITERS:
        names = next(csv.reader([head], delimiter=delimiter, skipinitialspace=True), [])
        if _has_columns(names, options):
            return True
    return False


def _has_columns(names: list[str], options: Options) -> bool:
    """Whether a picture's and a caption's column are among these, by a name that was given or is known."""
    try:
        text.column(options.image_column, text.IMAGE_COLUMNS, names, "", "")
        text.column(options.text_column, text.TEXT_COLUMNS, names, "", "")
    except ValueError:
        return False
    return True


def read_captions(folder: Folder, files: list[Path], options: Options) -> Source:
    """The captions of tables with a picture's path and a caption in each line; a picture may have several lines."""
    images = (options.image_column, text.IMAGE_COLUMNS)
    texts = (options.text_column, text.TEXT_COLUMNS)
    source = Source("a table of captions")
    for file in files:
        shown = where(file, folder.root)
        if file.suffix.lower() in text.JSON:
            table = _json_table(file, shown)
        else:
            table = text.separated(file, shown, images, texts)
        _take(source, folder, file, table, images, texts)
    return _with_pictures(source, folder)


def is_metadata(file: Path, root: Path, options: Options) -> bool:
    """Whether a file is the table of an ImageFolder."""
    return file.name in _METADATA


def read_metadata(folder: Folder, files: list[Path], options: Options) -> Source:
    """The captions of an ImageFolder: `file_name` is a path as seen from its table, the text column one text or a list of them."""
    images = (options.image_column, ("file_name",))
    texts = (options.text_column, ("text", *(name for name in text.TEXT_COLUMNS if name != "text")))
    source = Source("ImageFolder")
    for file in files:
        shown = where(file, folder.root)
        if file.suffix == ".csv":
            table = text.separated(file, shown, images, texts)
        elif file.suffix == ".jsonl":
            table = _json_table(file, shown)
        else:
            table = _parquet_table(file, shown)
        _take(source, folder, file, table, images, texts)
    return _with_pictures(source, folder)


def _json_table(file: Path, shown: str) -> Table:
    """A table with an object in each line; its columns are the keys of all of them."""
    columns: dict[str, None] = {}
    records: list[Record] = []
    bad: list[str] = []
    for place, value, reason in text.json_rows(file, shown):
        if reason is not None:
            bad.append(f"{place}: {reason}")
        elif not isinstance(value, dict):
            bad.append(f"{place}: {text.kind_of(value)}, needed an object")
        else:
            columns |= dict.fromkeys(value)
            records.append(Record(place, value))
    return Table(list(columns), records, bad)


def _parquet_table(file: Path, shown: str) -> Table:
    try:
        frame = pl.read_parquet(file, glob=False)
    except artifacts.UNREADABLE as error:
        raise DataError(f"{file}: not a parquet file that can be read ({error}); write it again") from error
    records = [Record(f"{shown}: row {number}", row) for number, row in enumerate(frame.iter_rows(named=True))]
    return Table(frame.columns, records, [])


def _take(source: Source, folder: Folder, file: Path, table: Table, images: Wanted, texts: Wanted) -> None:
    """Add a table's captions, and what is wrong with its lines."""
    shown = file.as_posix()
    image_column = text.column(*images, table.columns, "--image-column", shown)
    text_column = text.column(*texts, table.columns, "--text-column", shown)
    source.bad_rows += table.bad
    below = where(file.parent, folder.root)
    for record in table.records:
        path = record.values.get(image_column)
        if not isinstance(path, str) or not path.strip():
            source.bad_rows.append(f"{record.place}: {image_column} is {_absent(path)}, needed the path of a picture")
            continue
        name = folder.file(path, below)
        if name is None:
            source.no_picture.append(f"{record.place}: {path!r} is no image in {folder.root}")
            continue
        source.pictures[name] = folder.place(name)
        for words in captions_of(record.values.get(text_column), source, record.place, text_column):
            source.captions.append(Caption(record.place, name, words))


def captions_of(value: Json, source: Source, place: str, named: str) -> Iterator[str]:
    """The captions of a cell, one or a list of them; a cell without any is added to the source's bad rows."""
    texts = text.strings(value)
    if texts is None:
        source.bad_rows.append(f"{place}: {named} is {text.shortened(value)}, needed a text or a list of texts")
        return
    good = [words for words in texts if words.strip()]
    if len(good) < max(1, len(texts)):
        source.bad_rows.append(f"{place}: {named} is empty, needed a caption")
    yield from good


def _absent(value: Json) -> str:
    return "empty" if value in (None, "") or isinstance(value, str) else text.kind_of(value)


def _with_pictures(source: Source, folder: Folder) -> Source:
    """The source with every picture of the folder, also those that no table names."""
    for name in folder.pictures:
        source.pictures.setdefault(name, folder.place(name))
    return source
