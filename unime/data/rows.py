"""From (text, image path) references to items: where the image lies, whether it is whole, the content id, and what is wrong.

Every loader of a published source goes through here, so all of them refuse the same things with the same words.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import polars as pl

from unime import artifacts, prompts
from unime.data import archives, checks
from unime.data.copies import merged
from unime.data.images import Decoding

Copies = Literal["keep", "merge"]

LISTED = 1000
"""Left-out rows that a report lists one by one; the count is always of all."""

IDENTIFIED = {**dict.fromkeys(("text", "path", "id", "archive", "member", "image"), pl.String), "reason": pl.String}
"""One reference: its item (`id`, `archive`, `member`, `image`), or the `reason` why there is none (null: it is good)."""


class DataError(ValueError):
    """A source cannot be used; the message names file, row or column, reason and remedy."""


@dataclass(frozen=True)
class Rules:
    """What a source's texts may be.

    `bare_marks`: what becomes of a text that has an image mark and no image, which MMEB publishes (every query of WebQA and EDIS): refuse
    makes it a bad row, keep leaves it as it is, remove takes the mark and its line end out.  `blank`: white space alone is a text.
    """

    bare_marks: Literal["refuse", "keep", "remove"] = "refuse"
    blank: bool = False

    @classmethod
    def published(cls, image_marks: str) -> Rules:
        """The rules of MMEB's files, where the public code refuses neither; `image_marks` is the setting data.image_marks."""
        return cls("keep" if image_marks == "public" else "remove", blank=True)

    def applied(self, frame: pl.DataFrame, text: str, path: str) -> pl.DataFrame:
        """The frame with column `text` as its items have it, and `<text>_marked`: whether a row's mark had no image."""
        before, marks = pl.col(text), pl.col(text).str.count_matches(prompts.IMAGE_MARK, literal=True)
        marked = (pl.col(path) == "") & (marks > 0)
        frame = frame.with_columns(marked.alias(f"{text}_marked"))
        if self.bare_marks != "remove":
            return frame
        bare = before.str.replace_all(prompts.IMAGE_MARK + "\n", "", literal=True).str.replace_all(prompts.IMAGE_MARK, "", literal=True)
        nothing_else = bare.str.strip_chars() == ""
        shown = pl.when(nothing_else).then(pl.lit("")).otherwise(bare)
        one = marked & (marks == 1)
        return frame.with_columns(pl.when(one).then(shown).otherwise(before).alias(text))

    def applied_to(self, text: str, path: str) -> str:
        """As `applied`, of one text."""
        if self.bare_marks != "remove" or path or text.count(prompts.IMAGE_MARK) != 1:
            return text
        bare = prompts.unmarked(text)
        return bare if bare.strip() else ""


STRICT = Rules()
"""The rules of a user's own rows and of caption sets, in which such a text is a mistake."""


class Shelf:
    """The places where one data set's images may lie, best first; those that exist are opened when the first image is asked for.

    A path that a place has as it stands comes first, then one that a place has below further folders, then one that it has without some
    of its leading folders.  `more(row_path)` names further places, all there, of a path that says itself where it lies: they come first.
    `means(path, place, member)` says whether the path may mean that member, which lacks some of its folders: 0.png is in every archive.
    """

    def __init__(
        self,
        places: Sequence[Path],
        more: Callable[[str], Sequence[Path]] = lambda row_path: (),
        means: Callable[[str, str, str], bool] = lambda path, place, member: True,
    ):
        self._places = [place.as_posix() for place in places]
        self._more, self._means = more, means
        self._there: list[str] | None = None

    def find(self, row_path: str) -> tuple[str, str] | None:
        """(archive, member) of a row's image path, or None.  Raises DataError without any archive, ArchiveError for a torn one."""
        if self._there is None:
            self._there = [place for place in self._places if Path(place).exists()]
        names = [*(place.as_posix() for place in self._more(row_path)), *self._there]
        if not names:
            raise DataError(f"no image archive: none of {', '.join(self._places)} exists; download it or correct data.root")
        path = archives.whole(row_path)
        places = [(name, archives.archive(name)) for name in names]
        exact = ((name, path) for name, place in places if place.has(path))
        longer = ((name, member) for name, place in places if (member := place.longer(path)))
        shorter = ((name, member) for name, place in places if (member := place.shorter(path)) and self._means(path, name, member))
        return next((found for way in (exact, longer, shorter) for found in way), None)

    @property
    def where(self) -> str:
        """The places that were searched, in words."""
        return " or ".join(self._there or self._places)


def identify(
    references: pl.DataFrame,
    shelf: Shelf,
    decoding: Decoding,
    threads: int,
    track: Callable[..., Iterable[Any]],
    label: str,
    rules: Rules = STRICT,
    copies: Copies = "keep",
) -> pl.DataFrame:
    """Table IDENTIFIED of the distinct references (text, path; '' = absent), every image proved to decode and hashed once.

    `track(iterable, total, label)` shows progress.  `copies`: with `merge`, items that are equal but for their form are one item.
    Nothing is raised for a bad image: its references carry the reason.
    """
    references = references.unique(maintain_order=True)
    paths = references.filter(pl.col("path") != "")["path"].unique(maintain_order=True).to_list()
    places = {path: shelf.find(path) for path in paths}
    distinct = list(dict.fromkeys(place for place in places.values() if place is not None))
    results = track(checks.check_all(distinct, decoding, threads), len(distinct), label)
    digests = dict(zip(distinct, results, strict=True))

    rows: list[tuple[str, str, str | None, str, str, str, str | None]] = []
    for text, path in references.iter_rows():
        place = places.get(path)
        digest = digests[place] if place is not None else None
        reason = _reason(text, path, place, digest, shelf, rules)
        if reason is not None:
            rows.append((text, path, None, "", "", "", reason))
            continue
        archive, member = place or ("", "")
        image = digest if isinstance(digest, bytes) else None
        rows.append((text, path, artifacts.content_id_of(text, image), archive, member, artifacts.image_id(image), None))
    found = pl.DataFrame(rows, schema=IDENTIFIED, orient="row")
    if copies == "keep":
        return found
    of_pixels = {}
    whole = {artifacts.image_id(digest): place for place, digest in digests.items() if isinstance(digest, bytes)}
    for image, place in track(whole.items(), len(whole), f"{label}, compared"):
        of_pixels[image] = checks.pixels(*place, decoding)
    return merged(found, of_pixels)


def _reason(
    text: str, path: str, place: tuple[str, str] | None, digest: bytes | archives.BadImage | None, shelf: Shelf, rules: Rules
) -> str | None:
    """Why a reference is no item, or None."""
    marks = text.count(prompts.IMAGE_MARK)
    if path and place is None:
        return f"image {path!r} is not in {shelf.where}"
    if isinstance(digest, archives.BadImage):
        return f"image {digest}"
    if not path:
        if marks and rules.bare_marks == "refuse":
            return "its text has an image mark but there is no image"
        blank = not text.replace(prompts.IMAGE_MARK, "").strip()
        allowed = rules.blank and text and not marks
        if blank and not allowed:
            return "has neither text nor image"
    return f"its text has {marks} image marks, an item holds one image" if marks > 1 else None


def items_table(identified: pl.DataFrame, used: pl.Series) -> pl.DataFrame:
    """Table ITEMS of the identified references whose id is in `used`, each once, sorted by id (the first reference's image place)."""
    wanted = identified.filter(pl.col("id").is_in(used.unique().implode()))
    return wanted.unique("id", keep="first", maintain_order=True).select(list(artifacts.ITEMS)).sort("id")


def kind(side: str) -> pl.Expr:
    """`text`, `image` or `image+text`: what the side `side` of a frame shows (columns <side>_text, <side>_path)."""
    words = pl.col(f"{side}_text").str.replace(prompts.IMAGE_MARK, "", literal=True).str.strip_chars()
    text, image = words != "", pl.col(f"{side}_path") != ""
    return pl.when(text & image).then(pl.lit("image+text")).when(image).then(pl.lit("image")).otherwise(pl.lit("text"))


def places(frame: pl.DataFrame, key: str, step: int = 1) -> list[dict[str, Any]]:
    """Where the source rows of a frame (columns `key`, file, row) lie: of each run of rows its `first` key, `file`, `row` and `step`.

    In a run the row number grows by `step` from one key to the next (0: several keys are of one row), so that a source of a few files
    takes a few lines, and a row that a later stage leaves out can still be named.
    """
    expected = pl.col("row") - step * pl.col(key).cast(pl.Int64)
    begins = (pl.col("file") != pl.col("file").shift()) | (expected != expected.shift())
    runs = frame.sort(key).filter(begins.fill_null(True))
    return runs.select(pl.col(key).cast(pl.Int64).alias("first"), "file", "row", pl.lit(step).alias("step")).to_dicts()


def left_out(rows: pl.DataFrame) -> dict[str, Any]:
    """{count, listed}: all left-out rows counted, the first LISTED as {file, row, reason} (and `candidate`, where it is one)."""
    return {"count": len(rows), "listed": rows.head(LISTED).to_dicts()}


def refuse_if_asked(bad_rows: str, what: str, rows: pl.DataFrame) -> None:
    """Raise DataError for the first left-out row where `data.bad_rows` is `fail`."""
    if bad_rows == "fail" and len(rows):
        first = rows.row(0, named=True)
        raise DataError(
            f"{first['file']}: row {first['row']}: {first['reason']} "
            f"({what}: {len(rows)} bad rows; data.bad_rows: skip leaves them out and lists them)"
        )


def count(values: pl.Series) -> dict[str, int]:
    """How often each value is there, by value."""
    return dict(values.value_counts().sort(values.name).iter_rows())
