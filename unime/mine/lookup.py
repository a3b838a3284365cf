"""The items of one training set by what a published row says of them: a text and an image path, not the image's bytes.

ITEMS keeps text, archive and member of every item.  A row's path is resolved to a member as `images.Archive.find` does it (the path
itself, the path without leading folders, the only member that ends with it), but among the members that ITEMS names: no archive is
opened.  What is not found so may still be an item of the set (its image under another name, say): it gets a number of its own here,
and its bytes decide later.  Texts are compared exactly first, then without the white space around them.

Refused: joining whole tables on text and path, which needs all rows of the file in memory at once.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import accumulate
from pathlib import Path

import numpy as np
import polars as pl

from unime import artifacts
from unime.data.rows import DataError

_NO_IMAGE = -1  # the place of an item without image
ABSENT = -1


def config_of(path: str) -> str | None:
    """The data set that an image path `images/<config>/...` names, or None."""
    parts = path.replace("\\", "/").split("/")
    at = parts.index("images") + 1 if "images" in parts else len(parts)
    return parts[at] if at + 1 < len(parts) else None


class Lookup:
    """Numbers of one set's items: row numbers of ITEMS, and beyond them those of `extra`, references that ITEMS lacks."""

    def __init__(self, name: str, items: pl.DataFrame, pairs: pl.DataFrame):
        """Raises ArtifactError for a table of another schema, DataError for a pair whose item is not in ITEMS."""
        artifacts.check(items, artifacts.ITEMS, f"items of {name}")
        artifacts.check(pairs, artifacts.PAIRS, f"pairs of {name}")
        self.name, self.ids, self.known = name, items["id"], len(items)
        self.extra: dict[tuple[str, str], int] = {}  # (text, path)
        self.exact = self.stripped = 0
        self._archives: dict[str, dict[str, int]] = {}  # member -> place
        self._longer: dict[str, int | None] = {}  # images/... -> place of the only member that ends with it
        self._numbers: dict[tuple[str, int], int | tuple[int, ...]] = {}  # (stripped text, place)
        self._around: list[tuple[str, str]] = []  # what was stripped from each item's text
        self._index(items)
        self._names = {archive: {*Path(archive).parts, Path(archive).stem} for archive in self._archives}
        self._pairs = set(self._pair_numbers(pairs))

    def find(self, text: str, path: str) -> tuple[int, bool]:
        """(number of the item in ITEMS or ABSENT, whether its text is exactly this one).  path '' = no image."""
        place = self._place(path) if path else _NO_IMAGE
        if place is None:
            return ABSENT, False
        bare, around = _stripped(text)
        found = self._numbers.get((bare, place))
        if found is None:
            return ABSENT, False
        if type(found) is int:
            return found, self._around[found] == around
        for number in found:  # texts that differ in white space only: no guess
            if self._around[number] == around:
                return number, True
        return ABSENT, False

    def number(self, text: str, path: str) -> int:
        """As `find`; what is not in ITEMS becomes one of `extra`.  Counts what was found how."""
        found, exact = self.find(text, path)
        if found == ABSENT:
            return self.extra.setdefault((text, path), self.known + len(self.extra))
        self.exact += exact
        self.stripped += not exact
        return found

    def has_pair(self, query: int, positive: int) -> bool:
        """Whether two numbers are a pair of PAIRS."""
        return query << 32 | positive in self._pairs  # ABSENT is negative, which no pair is

    def pairs(self) -> np.ndarray:
        """The numbers (query, positive) of all PAIRS, (n, 2) int64, in no order."""
        keys = np.fromiter(self._pairs, dtype=np.int64, count=len(self._pairs))
        return np.stack([keys >> 32, keys & 0xFFFFFFFF], axis=1)

    def extras(self) -> pl.DataFrame:
        """The references (text, path) that ITEMS lacks, in the order of their numbers."""
        columns = list(zip(*self.extra, strict=True)) or [(), ()]
        return pl.DataFrame({"text": columns[0], "path": columns[1]}, schema={"text": pl.String, "path": pl.String})

    def _index(self, items: pl.DataFrame) -> None:
        interned: dict[tuple[str, str], tuple[str, str]] = {}
        places = 0
        for number, (text, archive, member) in enumerate(items.select("text", "archive", "member").iter_rows()):
            place = _NO_IMAGE
            if member:
                place = self._archives.setdefault(archive, {}).setdefault(member, places)
                if place == places:
                    places += 1
                    if (at := member.find("/images/")) >= 0:
                        self._longer[member[at + 1 :]] = None if member[at + 1 :] in self._longer else place
            bare, around = _stripped(text)
            self._around.append(interned.setdefault(around, around))
            key = bare, place
            before = self._numbers.setdefault(key, number)
            if before != number:
                self._numbers[key] = (before, number) if isinstance(before, int) else (*before, number)

    def _pair_numbers(self, pairs: pl.DataFrame) -> Iterator[int]:
        number = {id: row for row, id in enumerate(self.ids)}
        for pair, query, positive in pairs.select("pair", "query", "positive").iter_rows():
            if query not in number or positive not in number:
                lost = positive if query in number else query
                raise DataError(f"{self.name}: pair {pair}: item {lost} is not in the set's items; run the data stage again")
            yield number[query] << 32 | number[positive]

    def _place(self, path: str) -> int | None:
        for members in self._archives.values():
            if (place := members.get(path)) is not None:
                return place
        path = path.replace("\\", "/")
        parts, config = path.split("/"), config_of(path)
        starts = list(accumulate((len(part) + 1 for part in parts[:-1]), initial=0))
        for archive, members in self._archives.items():
            # A member that does not name the data set means this path only in an archive that does: 0.png is in every archive.
            named = config is None or config in self._names[archive]
            for part, start in enumerate(starts):
                if (named or config in parts[part:]) and (place := members.get(path[start:])) is not None:
                    return place
        return self._longer.get(path)


def _stripped(text: str) -> tuple[str, tuple[str, str]]:
    """The text without white space around it, and that."""
    bare = text.strip()
    at = text.find(bare)
    return bare, (text[:at], text[at + len(bare) :])
