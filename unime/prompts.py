"""Every string that a model sees, and the parser of its answer.  No model, no torch: a prompt is text with image markers.

Texts come from the paper (section 3.2, judge; section 3.4, reranker) and from the data (instructions are inside `qry`).  A prompt is
a sequence of parts, each a `str` or an image; backbones turn parts into tokens.  The candidate stands last in the judge's prompt,
so all candidates of one query share their prefix, the query's image included.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

IMAGE_MARK = "<|image_1|>"
YES, NO = "Yes", "No"

JUDGE = (
    "I will provide you with a query and a candidate. Please evaluate whether the candidate meets the requirements of the query. "
    "If it does, respond with 'Yes'; if it doesn't, respond with 'No'. "
)
LISTWISE = (
    "I will provide you with a query followed by multiple candidates in the format: (1) cand1 (2) cand2, etc. Each candidate is "
    "independent of the others. Evaluate each candidate against the query, and respond with the number corresponding to the candidate "
    "that best meets the requirements of the query. "
)

LIST = " Candidates:"
"""What stands between the query of a list and its first candidate."""

FIND_CAPTION = f"{IMAGE_MARK} Find an image caption describing the given image."
"""The image's side of the caption sets, as query and as candidate; the other side is the bare caption."""

_ANSWER = re.compile(r"\((\d+)\)")


def unmarked(text: str) -> str:
    """The text without its image mark and the line end behind it, as the public code takes marks out of chats and LLaVA's items."""
    return text.replace(IMAGE_MARK + "\n", "").replace(IMAGE_MARK, "")


def parts(text: str, image: Any | None) -> list[Any]:
    """One item as parts: its image where the marker stands (first, if no marker), its text around it.

    A marker without an image is taken out with its line end: in a chat nothing stands for it (public code, model_utils.py).  A second
    marker is a ValueError: the row is damaged.
    """
    pieces = text.split(IMAGE_MARK)
    if len(pieces) > 2:
        raise ValueError(f"{len(pieces) - 1} image marks in one text; one item holds one image: {text[:80]!r}")
    if image is None:
        return [unmarked(text)]
    before, after = pieces if len(pieces) == 2 else ("", text)
    return [part for part in (before, image, after) if part is not image and part or part is image]


def image_first(item: Sequence[Any]) -> list[Any]:
    """The item (as `parts`) with its image before its text, the image's mark cut out of the text together with a line end behind it."""
    images = [piece for piece in item if not isinstance(piece, str)]
    marked = "".join(piece if isinstance(piece, str) else IMAGE_MARK for piece in item)
    text = unmarked(marked)
    return [*images, text] if text else images


class Format(NamedTuple):
    """The fixed words of a prompt format, and how an item stands between them."""

    pair: str
    """Instruction of a prompt with one candidate."""
    taught_pair: str
    """The same instruction as the reranker sees it in training."""
    candidate: str
    """What stands between the query and the one candidate."""
    listing: str
    """Instruction of a prompt with several candidates."""
    candidates: str
    """What stands between the query and the first of several candidates."""
    arranged: Callable[[Sequence[Any]], list[Any]]
    """An item's parts in the order in which the format shows them."""


UNIME, PUBLIC = "unime", "public"

FORMATS = {
    UNIME: Format(JUDGE, JUDGE, " Candidate:", LISTWISE, LIST, list),
    # Public code: Rerank/dataset/datasets_MMEB_rerank.py (training, whose pairwise instruction is misspelled) and
    # Embedding/src/model_utils.py (evaluation, where it is spelled right).  Otherwise the two agree.
    PUBLIC: Format(
        pair=JUDGE.rstrip(),
        taught_pair=JUDGE.rstrip().replace("respond with 'No'", "responed with 'No'"),
        candidate="Candidate:",
        listing=LISTWISE.rstrip(),
        candidates="Candidates:",
        arranged=image_first,
    ),
}
"""Prompt formats by name: `unime`, ours, and `public`, the public code's, in which the published reranker was trained and is evaluated."""


def judge_turn(query: Sequence[Any], candidate: Sequence[Any], form: str = UNIME, *, taught: bool = False) -> list[Any]:
    """The user's turn that asks whether one candidate meets one query; both as `parts`.

    `form` is a name of FORMATS.  `taught`: the turn as the reranker's training shows it, which is another one in `public`.
    """
    words = FORMATS[form]
    instruction = words.taught_pair if taught else words.pair
    return [instruction + "Query:", *words.arranged(query), words.candidate, *words.arranged(candidate)]


def list_turn(query: Sequence[Any], candidates: Sequence[Sequence[Any]], form: str = UNIME) -> list[Any]:
    """The user's turn that shows all candidates, numbered from 1; `form` is a name of FORMATS."""
    words = FORMATS[form]
    turn: list[Any] = [words.listing + "Query:", *words.arranged(query), words.candidates]
    for number, candidate in enumerate(candidates, start=1):
        turn += [mark(number), *words.arranged(candidate)]
    return turn


def mark(number: int) -> str:
    """What stands before the candidate with this number (from 1) in a list."""
    return f"({number}) "


def list_answer(number: int) -> str:
    """The assistant's turn for the candidate with this number (from 1)."""
    return f"Ans: ({number})"


def read_list_answer(text: str, count: int) -> int | None:
    """The number (from 1) of the candidate that a generated answer names, or None if it names none of the `count`.

    As in the public code (Embedding/eval_rerank.py) it is the first number in parentheses, without blanks in them, and `(0)` names the
    last candidate, because the public code looks up element 0 - 1 of a Python list.
    """
    found = _ANSWER.search(text)
    if found is None:
        return None
    number = int(found[1])
    if number == 0:
        return count
    return number if number <= count else None
