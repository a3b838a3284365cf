"""sentence-transformers' rows: JSON objects with `anchor`, `positive` and optional `negative` (or `negative_1`, `negative_2` ...)."""

from __future__ import annotations

import re
from pathlib import Path

from unime.tools.rows import text
from unime.tools.rows.folder import Folder, is_picture
from unime.tools.rows.model import Options, Pair, Side, Source
from unime.tools.rows.text import Json

KEYS = frozenset({"anchor", "positive"})
_NEGATIVE = re.compile(r"negatives?(_\d+)?")
_LONGEST = 255  # characters of a file's name; a longer text that ends in .jpg is a text


def read(folder: Folder, files: list[Path], options: Options) -> Source:
    """The pairs of all rows.

    A value is a text, the path of a picture (one line that ends as a picture's name does), or an object with `text` and `image`; a
    negative may be a list of them.  A row with any other key, or with a picture that is missing, is a bad one.
    """
    source = Source("sentence-transformers' anchors and positives", unit="pairs")
    for below, place, value in text.good_rows(source, folder, files):
        pair = _pair(source, folder, below, place, value)
        if pair is not None:
            source.pairs.append(pair)
    return source


def _pair(source: Source, folder: Folder, below: str, place: str, value: Json) -> Pair | None:
    """The pair of one row, or None; what is wrong with it is added to the source."""
    if not isinstance(value, dict) or not value.keys() >= KEYS:
        source.bad_rows.append(f"{place}: {text.shortened(value)}, needed an object with anchor and positive")
        return None
    given: list[tuple[str, Json]] = [("anchor", value["anchor"]), ("positive", value["positive"])]
    for key, one in value.items():
        if key in KEYS:
            continue
        if not _NEGATIVE.fullmatch(key):
            source.bad_rows.append(f"{place}: unknown key {key!r}; a row has anchor, positive and negative")
            return None
        given += [(key, negative) for negative in (one if isinstance(one, list) else [one]) if negative is not None]
    sides = []
    for key, one in given:
        side = _side(source, folder, below, f"{place}: {key}", one)
        if side is None:
            return None
        sides.append(side)
    return Pair(place, sides[0], sides[1], tuple(sides[2:]))


def _side(source: Source, folder: Folder, below: str, place: str, value: Json) -> Side | None:
    """One value of a row as a side, or None; what is wrong with it is added to the source."""
    if isinstance(value, str):
        value = {"image": value} if _is_path(value) else {"text": value}
    if not isinstance(value, dict) or not value.keys() <= {"text", "image"}:
        source.bad_rows.append(
            f"{place} is {text.shortened(value)}, needed a text, the path of a picture, or an object with text and image"
        )
        return None
    words, path = value.get("text") or "", value.get("image") or ""
    if not isinstance(words, str) or not isinstance(path, str) or not (words.strip() or path):
        source.bad_rows.append(f"{place} is {text.shortened(value)}, needed a text or the path of a picture")
        return None
    return side_of(source, folder, below, place, words, path)


def side_of(source: Source, folder: Folder, below: str, place: str, words: str, path: str) -> Side | None:
    """A text with the picture at a path ('' for none) as a side, or None where the picture is missing."""
    if not path:
        return Side(words)
    name = folder.file(path, below)
    if name is None:
        source.no_picture.append(f"{place}: {path!r} is no image in {folder.root}")
        return None
    source.pictures[name] = folder.place(name)
    return Side(words, name)


def _is_path(words: str) -> bool:
    return is_picture(words.strip()) and "\n" not in words.strip() and len(words.rpartition("/")[2]) <= _LONGEST
