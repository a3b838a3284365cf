"""The rows that are held out for a task: whole groups of them, so that no answer of the task is seen in training.

Rows that share a picture (equal pixels, under whatever name) or a text that stands alone on its side (equal after NFC and folding of
blanks) are one group, and so are rows that are linked through others.  A text beside a picture links nothing: it is a question or an
instruction, and many rows have the same.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Literal, TypedDict

from unime.tools.rows.model import Side, folded

By = Literal["answers", "pictures"]
_LARGEST = 0.5
"""Share of all rows above which one group makes a split impossible: it would decide alone how much is held out."""


class Candidate(TypedDict):
    """A wrong answer of a row."""

    text: str
    image: str


class Row(TypedDict, total=False):
    """A row of the project's own format."""

    query_text: str
    query_image: str
    positive_text: str
    positive_image: str
    candidates: list[Candidate]


@dataclass(frozen=True)
class Entry:
    """A caption with its picture, or a pair: what it becomes (`rows`), and what it shows (`sides`; of a caption its text and picture)."""

    rows: tuple[Row, ...]
    sides: tuple[Side, ...]
    answers: tuple[Side, ...]

    @property
    def images(self) -> list[str]:
        """Names of the pictures of query and answer."""
        return sorted({side.image for side in self.sides if side.image})


@dataclass(frozen=True)
class Part:
    """One side of the split, and the digests of its pictures by name."""

    entries: list[Entry]
    digests: dict[str, str]

    def counts(self) -> dict[str, int]:
        """Rows, captions or pairs, pictures by name, and how many of the pictures are distinct."""
        names: set[str] = set()
        for entry in self.entries:
            names.update(entry.images)
        return {
            "rows": sum(len(entry.rows) for entry in self.entries),
            "captions": len(self.entries),
            "pictures": len(names),
            "distinct_pictures": len({self.digests[name] for name in names}),
        }


@dataclass(frozen=True)
class Split:
    """Both sides, the number of groups, and how many distinct answers the task has and how many of them occur in training."""

    train: Part
    held: Part
    groups: int
    answers: int
    answers_in_training: int


def key(side: Side, digests: dict[str, str]) -> str:
    """What a side shows: its picture's pixels, or its text if it has no picture."""
    return f"picture {digests[side.image]}" if side.image else f"text {folded(side.text)}"


def _keys(sides: Iterable[Side], digests: dict[str, str]) -> set[str]:
    return {key(side, digests) for side in sides}


def split(entries: Sequence[Entry], digests: dict[str, str], files: set[str], share: float, by: By) -> Split:
    """The entries on two sides, `share` of the groups held out, by a hash of what a group shows, whatever the order of files and rows.

    A group of one picture that is a file (`files`) goes by the hash of its name, as it always did.  `by` pictures: equal texts link
    nothing.  Raises ValueError where one group has more than half of all rows, since no share of the rows can be held out then.
    """
    groups = list(_groups(entries, digests, by))
    if share:
        _refuse_one_large(groups, len(entries), digests, by)
    held_groups = [group for group in groups if _hash(group, digests, files, by) < share]
    held = set(map(id, chain.from_iterable(held_groups)))
    train = Part([entry for entry in entries if id(entry) not in held], digests)
    task = Part([entry for entry in entries if id(entry) in held], digests)
    shown = _keys(chain.from_iterable(entry.sides for entry in train.entries), digests)
    answers = _keys(chain.from_iterable(entry.answers for entry in task.entries), digests)
    return Split(train, task, len(groups), len(answers), len(answers & shown))


def _links(entry: Entry, digests: dict[str, str], by: By) -> list[str]:
    """What an entry may share with others."""
    return [key(side, digests) for side in entry.sides if side.image or by == "answers"]


def _groups(entries: Sequence[Entry], digests: dict[str, str], by: By) -> Iterator[list[Entry]]:
    """The entries that are linked, together: the connected components, by union-find."""
    parent = list(range(len(entries)))

    def root(at: int) -> int:
        while parent[at] != at:
            parent[at] = parent[parent[at]]
            at = parent[at]
        return at

    first: dict[str, int] = {}
    for number, entry in enumerate(entries):
        for link in _links(entry, digests, by):
            other = first.setdefault(link, number)
            parent[root(number)] = root(other)
    members: dict[int, list[Entry]] = {}
    for number, entry in enumerate(entries):
        members.setdefault(root(number), []).append(entry)
    yield from members.values()


def _hash(group: list[Entry], digests: dict[str, str], files: set[str], by: By) -> float:
    """A number from 0 to below 1 that follows from what the group shows."""
    names = set(chain.from_iterable(entry.images for entry in group))
    links = set(chain.from_iterable(_links(entry, digests, by) for entry in group))
    if len(names) == 1 and names <= files:
        (content,) = names
    elif links:
        content = min(links)  # the groups have no link in common, so each has a hash of its own
    else:
        content = "\n".join(key(side, digests) for side in group[0].sides)
    return int(hashlib.sha256(content.encode("utf-8")).hexdigest()[:8], 16) / 2**32


def _refuse_one_large(groups: list[list[Entry]], total: int, digests: dict[str, str], by: By) -> None:
    largest = max(groups, key=len)
    pixels = {digests[name] for name in chain.from_iterable(entry.images for entry in largest)}
    if len(largest) <= _LARGEST * total or len(pixels) == 1 or len(largest) == 1:
        return
    sides = chain.from_iterable(entry.sides for entry in largest)
    texts = Counter(folded(side.text) for side in sides if not side.image)
    said, often = texts.most_common(1)[0] if texts else ("", 0)
    why = f"; {said[:60]!r} alone is in {often:,} of them" if by == "answers" and often > 1 else ""
    remedy = "--split pictures lets equal texts be on both sides (they are counted), " if by == "answers" else ""
    raise ValueError(
        f"{len(largest):,} of {total:,} captions or pairs are linked by equal captions, answers or pictures{why}: no share of them can be "
        f"held out such that no answer of the task is seen in training; {remedy}--held 0 makes a training set only"
    )
