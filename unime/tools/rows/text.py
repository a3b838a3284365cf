"""Text files as people save them, and tables in them: encodings, delimiters, quotes."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from unime import config
from unime.data import stream
from unime.tools.rows.folder import Folder
from unime.tools.rows.model import Source, where

Wanted = tuple[str | None, Sequence[str]]
"""Which column is looked for: the one that the user names, or one of known names (see `column`)."""

Json = str | int | float | bool | None | list["Json"] | dict[str, "Json"]

IMAGE_COLUMNS = ("image", "file_name", "filename", "image_name", "image_path", "img", "img_path")
TEXT_COLUMNS = ("caption", "text", "captions", "texts", "sentence", "sentences", "description", "comment", "title", "alt_text")
JSON = (".jsonl", ".ndjson", ".json")
DELIMITERS = (",", "\t", ";", "|")

_PEEKED = 20  # rows of a JSON file that are looked at to know its format
_MARKS = (
    (b"\x00\x00\xfe\xff", "UTF-32"),
    (b"\xff\xfe\x00\x00", "UTF-32"),
    (b"\xef\xbb\xbf", "utf-8-sig"),
    (b"\xff\xfe", "utf-16"),
    (b"\xfe\xff", "utf-16"),
)


_NULS = "it holds NULs: damaged, or UTF-16 without a byte order mark"


def _encoding(start: bytes) -> str:
    """The encoding that a file's first bytes tell of, UTF-8 where they tell of none."""
    return next((name for mark, name in _MARKS if start.startswith(mark)), "utf-8")


def head(file: Path) -> str:
    """The first line of a table, as far as it can be read: enough to know the table, whose reader says what is wrong with the rest."""
    with file.open("rb") as opened:
        start = opened.read(1 << 16)
    words, _ = without_sign(start.decode(_encoding(start), errors="replace"))
    return next(iter(io.StringIO(words, newline="")), "")


def decoded(file: Path, kind: str = "text", remedy: str = "save it as UTF-8") -> str:
    """The text of a file in UTF-8, or in UTF-16 with a byte order mark, as Windows saves it.

    Raises ValueError for any other encoding, with the file's name.  None is guessed: a wrong guess changes letters and says nothing.
    """
    data = file.read_bytes()
    encoding = _encoding(data)
    if encoding == "UTF-32":
        raise ValueError(f"{file}: not {kind} in UTF-8 (it is UTF-32); {remedy}")
    try:
        text = data.decode(encoding)
    except UnicodeDecodeError as error:
        why = _NULS if b"\0" in data else str(error)
        raise ValueError(f"{file}: not {kind} in UTF-8 ({why}); {remedy}") from error
    if "\0" in text:
        raise ValueError(f"{file}: not {kind} in UTF-8 ({_NULS}); {remedy}")
    return text


@dataclass(frozen=True)
class Record:
    """One row of a table: its `place` (file and line, or file and row) and its values by column."""

    place: str
    values: dict[str, Json]


@dataclass(frozen=True)
class Table:
    """A table of text: names of its columns, its rows in order, and what is wrong with lines that are no rows."""

    columns: list[str]
    records: list[Record]
    bad: list[str]


def column(asked: str | None, known: Sequence[str], columns: Sequence[str], option: str, place: str) -> str:
    """The column of a table that `asked` names, else the one of a known name.

    The first of the known names is the format's own and is taken whatever else is there.  Raises ValueError where the column is missing,
    or where several others may be meant.
    """
    if asked is not None:
        if asked in columns:
            return asked
        raise ValueError(f"{place}: no column {asked!r}{config.nearest(asked, columns)}")
    plain = {name.strip().casefold(): name for name in columns}
    found = [plain[name] for name in known if name in plain]
    if len(found) == 1 or found and found[0].strip().casefold() == known[0]:
        return found[0]
    if found:
        raise ValueError(f"{place}: columns {' and '.join(map(repr, found))} may both be meant; name one with {option}")
    there = ", ".join(map(repr, columns))
    raise ValueError(f"{place}: column {known[0]!r} is missing; its columns are {there}; name one with {option}, or rename it")


def separated(file: Path, shown: str, image: Wanted, text: Wanted) -> Table:
    """A table in a file of separated values (CSV, TSV); `image` and `text` are what `column` is to look for.

    The header decides about the delimiter: the one that splits it into names among which both columns are.  A line with more or fewer
    fields than the header is a bad one.  Raises ValueError for a file that is no such table, naming the line.
    """
    words = decoded(file, "a table of text", "save it as CSV in UTF-8")
    words, skipped = without_sign(words)
    head = next(iter(io.StringIO(words, newline="")), "")
    delimiter = _delimiter(head, file.suffix == ".tsv", image, text)
    reader = csv.reader(io.StringIO(words, newline=""), delimiter=delimiter, strict=True, skipinitialspace=True)
    columns: list[str] = []
    records: list[Record] = []
    bad: list[str] = []
    line = skipped + 1
    try:
        for fields in reader:
            place = f"{shown}: line {line}"
            line = skipped + reader.line_num + 1
            if not any(field.strip() for field in fields):
                continue
            if not columns:
                columns = [name.strip() for name in fields]
                continue
            fields = _without_empty_end(fields, len(columns))
            if len(fields) == len(columns):
                records.append(Record(place, dict(zip(columns, fields, strict=True))))
            else:
                bad.append(f"{place}: {_miscounted(fields, columns, delimiter)}")
    except csv.Error as error:
        raise ValueError(
            f"{file}: not a table of text in UTF-8 (line {line}: {error}); correct its quotes, and save it as CSV in UTF-8"
        ) from error
    return Table(columns, records, bad)


def without_sign(words: str) -> tuple[str, int]:
    """(the table without a first line `sep=;`, which Excel writes, how many lines that took)."""
    first, _, rest = words.partition("\n")
    if first.startswith("sep=") and len(first.strip()) == len("sep=;"):
        return rest, 1
    return words, 0


def _delimiter(head: str, tabs: bool, image: Wanted, text: Wanted) -> str:
    """The delimiter of a header, the one with most names where none gives both columns."""
    candidates = ("\t", *(sign for sign in DELIMITERS if sign != "\t")) if tabs else DELIMITERS
    widths: dict[str, int] = {}
    for delimiter in candidates:
        names = next(csv.reader([head], delimiter=delimiter, skipinitialspace=True), [])
        widths[delimiter] = len(names)
        try:
            column(*image, names, "", "")
            column(*text, names, "", "")
        except ValueError:
            continue
        return delimiter
    return max(candidates, key=lambda delimiter: widths[delimiter])


def _without_empty_end(fields: list[str], width: int) -> list[str]:
    """The fields without empty ones that stand beyond the last column, as spreadsheets write them: nothing is lost with those."""
    while len(fields) > width and not fields[-1].strip():
        fields = fields[:-1]
    return fields


def _miscounted(fields: list[str], columns: list[str], delimiter: str) -> str:
    there = f"{len(fields)} fields where the first line names {len(columns)}"
    if len(fields) < len(columns):
        return f"{there} ({delimiter.join(columns)}); complete the line"
    blank = " " if delimiter == "," else ""  # blanks after a delimiter were passed over
    last = f"{delimiter}{blank}".join(fields[len(columns) - 1 :])
    whole = delimiter.join([*fields[: len(columns) - 1], f'"{last}"'])
    sign = {",": "a comma", "\t": "a tab", ";": "a semicolon"}.get(delimiter, delimiter)
    return f"{there}; a text with {sign} in it must stand in quotes, perhaps {whole}"


def json_rows(file: Path, shown: str) -> Iterator[tuple[str, Json, str | None]]:
    """(place, value, why there is none or None) of the rows of a file of JSON lines, or of one JSON list.

    Raises ValueError for another encoding, DataError for a list that is damaged.
    """
    with file.open("rb") as opened:
        start = opened.read(4096)
    encoding = _encoding(start)
    if not encoding.startswith("utf-8"):
        raise ValueError(f"{file}: not JSON in UTF-8 (it is {encoding.upper()}); save it as UTF-8")
    if start.removeprefix(b"\xef\xbb\xbf").lstrip().startswith(b"["):
        for index, value in stream.rows(file):
            yield f"{shown}: row {index}", value, None
        return
    for number, value, reason in stream.lines(file):
        yield f"{shown}: line {number}", value, reason


def good_rows(source: Source, folder: Folder, files: Sequence[Path]) -> Iterator[tuple[str, str, Json]]:
    """(folder of the file below the source's, place, value) of the rows of JSON files; a row that is no JSON is added to the bad ones."""
    for file in files:
        below = where(file.parent, folder.root)
        for place, value, reason in json_rows(file, where(file, folder.root)):
            if reason is not None:
                source.bad_rows.append(f"{place}: {reason}")
                continue
            yield below, place, value


def first_keys(file: Path) -> frozenset[str]:
    """The keys of the first row of a JSON file (lines, or one list); none for anything else."""
    if file.suffix not in JSON or file.stat().st_size == 0:
        return frozenset()
    try:
        for number, (_, value, _) in enumerate(json_rows(file, file.name)):
            if isinstance(value, dict):
                return frozenset(value)
            if number == _PEEKED:
                break
    except ValueError:  # not JSON, or in another encoding: of no format here
        return frozenset()
    return frozenset()


def kind_of(value: Json) -> str:
    """A JSON value's type in words."""
    if isinstance(value, bool):
        return "a truth value"
    if isinstance(value, (int, float)):
        return "a number"
    names = {str: "a string", list: "a list", dict: "an object", type(None): "null"}
    return names[type(value)]


def strings(value: Json) -> list[str] | None:
    """The texts of a cell that holds one text or a list of them; None for anything else."""
    if value is None:
        return []
    values = value if isinstance(value, list) else [value]
    texts = [text for text in values if isinstance(text, str)]
    return texts if len(texts) == len(values) else None


def shortened(value: Json) -> str:
    """A value as a message can hold it."""
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else text[:57] + "..."
