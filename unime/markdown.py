"""Text from outside (file names, reasons, captions) inside the reports' Markdown: it is shown as it is and never read as markup."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import NamedTuple

# What starts markup in the middle of a line, in CommonMark or in GitHub's tables, strikethrough and bare links.  An underscore inside a
# word does not: names such as MSCOCO_i2t stay readable as source.
_MARKUP = re.compile(r"[\\`*\[\]<|~]|(?<![A-Za-z0-9])_|_(?![A-Za-z0-9])|&(?=#?\w+;)|(?<=http):|(?<=https):|(?<=www)\.", re.ASCII)


class Code(NamedTuple):
    """A cell of our own to be set as code: no backtick and no bar is in it."""

    text: str


def escaped(text: object) -> str:
    """The text on one line, with a backslash before everything that Markdown would read as markup.

    White space becomes one blank; characters that cannot be printed (control characters, marks that turn the direction of writing, half
    characters) are written as escapes such as \\x1b.
    """
    line = " ".join(str(text).split())
    printable = "".join(letter if letter.isprintable() else letter.encode("unicode_escape").decode("ascii") for letter in line)
    return _MARKUP.sub(r"\\\g<0>", printable)


def grid(header: Sequence[str], rows: Iterable[Sequence[str | Code]], right: Sequence[bool]) -> list[str]:
    """The lines of a Markdown table; every cell is escaped.  `right`: which columns are right aligned."""
    rule = ["---:" if side else "---" for side in right]
    cells = [[_cell(cell) for cell in row] for row in (header, *rows)]
    cells.insert(1, rule)
    return ["| " + " | ".join(row) + " |" for row in cells]


def _cell(cell: str | Code) -> str:
    return f"`{cell.text}`" if isinstance(cell, Code) else escaped(cell)
