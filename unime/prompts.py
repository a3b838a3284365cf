"""Every string that a model sees, and the parser of its answer.  No model, no torch: a prompt is text with image markers.

Texts come from the paper (section 3.2, judge; section 3.4, reranker) and from the data (instructions are inside `qry`).  A prompt is
a sequence of parts, each a `str` or an image; backbones turn parts into tokens.  The candidate stands last in the judge's prompt,
so all candidates of one query share their prefix, the query's image included.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

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

FIND_CAPTION = f"{IMAGE_MARK} Find an image caption describing the given image."
"""The image's side of the caption sets, as query and as candidate; the other side is the bare caption."""

LIST = " Candidates:"
"""What stands between the query of a list and its first candidate."""

_ANSWER = re.compile(r"\(\s*(\d+)\s*\)")


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


def judge_turn(query: Sequence[Any], candidate: Sequence[Any]) -> list[Any]:
    """The user's turn that asks whether one candidate meets one query; both as `parts`."""
    return [JUDGE + "Query:", *query, " Candidate:", *candidate]


def list_turn(query: Sequence[Any], candidates: Sequence[Sequence[Any]]) -> list[Any]:
    """The user's turn that shows all candidates, numbered from 1."""
    turn: list[Any] = [LISTWISE + "Query:", *query, LIST]
    for number, candidate in enumerate(candidates, start=1):
        turn += [mark(number), *candidate]
    return turn


def mark(number: int) -> str:
    """What stands before the candidate with this number (from 1) in a list."""
    return f"({number}) "


def list_answer(number: int) -> str:
    """The assistant's turn for the candidate with this number (from 1)."""
    return f"Ans: ({number})"


def read_list_answer(text: str, count: int) -> int | None:
    """The first `(number)` of a generated answer, or None where there is none or it is not in 1..count."""
    found = _ANSWER.search(text)
    return int(found[1]) if found and 1 <= int(found[1]) <= count else None
