"""What every reader of a format returns: pictures by name, and captions of them or pairs of a query and its answer."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

NAMED = 3
"""Names that a message lists of one kind of trouble; it counts the others."""

Place = tuple[str, str]
"""(archive, member) of a picture, as `unime.data.archives` reads it: a folder, a tar or a parquet file, and the name in it."""


@dataclass(frozen=True)
class Side:
    """A query or an answer: a text, a picture (its name in the source), or both; '' for what is absent."""

    text: str = ""
    image: str = ""


@dataclass(frozen=True)
class Caption:
    """One caption of one picture; `place` is its file, and its line or row, as a message names it."""

    place: str
    image: str
    text: str


@dataclass(frozen=True)
class Pair:
    """A query with its right answer, and wrong answers if the source has some."""

    place: str
    query: Side
    positive: Side
    negatives: tuple[Side, ...] = ()

    def sides(self) -> tuple[Side, ...]:
        """Query, right answer and wrong answers."""
        return (self.query, self.positive, *self.negatives)


@dataclass(frozen=True)
class Options:
    """Which columns (keys, suffixes in a WebDataset) hold picture and caption; None: those of a known name."""

    image_column: str | None = None
    text_column: str | None = None


@dataclass
class Source:
    """All that a reader found: `captions` or `pairs`, as `unit` says, and in `pictures` every picture, with a caption or without.

    What cannot become a row is kept by its kind, each entry in words that name file and line or row:
    `bad_rows` (malformed), `no_picture` (a caption whose picture is missing), `no_caption` (a picture without one).
    `notes` are counts that a user should see and that are no mistake, such as hidden files; `hint` is what to do about pictures without
    a caption, where more is known than that they have none.
    """

    form: str
    unit: Literal["captions", "pairs"] = "captions"
    pictures: dict[str, Place] = field(default_factory=dict)
    captions: list[Caption] = field(default_factory=list)
    pairs: list[Pair] = field(default_factory=list)
    bad_rows: list[str] = field(default_factory=list)
    no_picture: list[str] = field(default_factory=list)
    no_caption: list[str] = field(default_factory=list)
    unreadable: list[str] = field(default_factory=list)
    lost_with_picture: int = 0
    negatives_lost: int = 0
    hint: str = ""
    notes: dict[str, int] = field(default_factory=dict)

    def note(self, what: str, count: int = 1) -> None:
        """Add to one of the counts."""
        if count:
            self.notes[what] = self.notes.get(what, 0) + count


def folded(text: str) -> str:
    """A text as two equal captions have it: in Unicode's composed form, each run of blanks and line ends one blank."""
    return " ".join(unicodedata.normalize("NFC", text).split())


def one_line(text: str) -> str:
    """A caption on one line."""
    return " ".join(text.split())


def listed(names: Sequence[str]) -> str:
    """The first names, and how many more there are."""
    first = ", ".join(names[:NAMED])
    more = len(names) - NAMED
    return f"{first} and {more:,} more" if more > 0 else first


def where(file: Path, root: Path) -> str:
    """A file as messages name it: its path below the folder that is read."""
    return file.relative_to(root).as_posix() if file.is_relative_to(root) else file.as_posix()
