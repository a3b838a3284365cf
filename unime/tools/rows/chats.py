"""Conversations as LLaVA (`conversations`: from, value) and Qwen-VL (`messages`: role, content) are tuned with."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from unime import prompts
from unime.tools.rows import text
from unime.tools.rows.anchors import side_of
from unime.tools.rows.folder import Folder
from unime.tools.rows.model import Options, Pair, Source
from unime.tools.rows.text import Json

KEYS = frozenset({"messages", "conversations"})
_MARK = "<image>"
_ROLES = {"human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant", "model": "assistant", "system": "system"}


class Unusable(ValueError):
    """A conversation that cannot become pairs; the message says why."""


@dataclass(frozen=True)
class Turn:
    """One message: who speaks, its text with a mark where an image stands, and paths of images that it brings itself."""

    role: str
    text: str
    images: tuple[str, ...]


def read(folder: Folder, files: list[Path], options: Options) -> Source:
    """A pair for each answer: the user's turn before it, with the conversation's image, and the answer.

    An item holds one image, so a conversation with several is a bad row.  System turns are counted and left out.
    """
    source = Source("conversations", unit="pairs")
    for below, place, value in text.good_rows(source, folder, files):
        try:
            source.pairs += _pairs(source, folder, below, place, value)
        except Unusable as problem:
            source.bad_rows.append(f"{place}: {problem}")
    return source


def _pairs(source: Source, folder: Folder, below: str, place: str, value: Json) -> list[Pair]:
    if not isinstance(value, dict):
        raise Unusable(f"{text.kind_of(value)}, needed an object with messages or conversations")
    spoken = value.get("messages", value.get("conversations"))
    if not isinstance(spoken, list):
        raise Unusable("messages or conversations must be a list of turns")
    turns = [_turn(one) for one in spoken]
    source.note("system turns left out", sum(turn.role == "system" for turn in turns))
    turns = [turn for turn in turns if turn.role != "system"]
    if not turns or len(turns) % 2:
        raise Unusable(f"{len(turns)} turns; each user's turn needs an answer")
    image = _image(value, turns)
    pairs = []
    for number in range(0, len(turns), 2):
        asked, answered = turns[number : number + 2]
        if (asked.role, answered.role) != ("user", "assistant"):
            raise Unusable(f"turns {number} and {number + 1} are of {asked.role} and {answered.role}; needed user, then assistant")
        where_said = place if len(turns) == 2 else f"{place}, turn {number}"
        answer_image = answered.images[0] if answered.images else ""
        query_image = "" if answer_image else image
        sides = []
        for turn, path in ((asked, query_image), (answered, answer_image)):
            words = turn.text.replace(_MARK, prompts.IMAGE_MARK).strip() if path else turn.text.replace(_MARK, "").strip()
            if not words and not path:
                raise Unusable(f"a turn of {turn.role} without text and without image")
            sides.append(side_of(source, folder, below, where_said, words, path))
        query, positive = sides
        if query is not None and positive is not None:
            pairs.append(Pair(where_said, query, positive))
    return pairs


def _turn(value: Json) -> Turn:
    """One message of either form."""
    if not isinstance(value, dict):
        raise Unusable(f"a turn is {text.kind_of(value)}, needed an object")
    role = value.get("role", value.get("from"))
    if not isinstance(role, str) or role not in _ROLES:
        raise Unusable(f"a turn is of {role!r}; known: {', '.join(_ROLES)}")
    content = value.get("content", value.get("value"))
    if isinstance(content, str):
        return Turn(_ROLES[role], content, ())
    if not isinstance(content, list):
        raise Unusable(f"a turn's content is {text.kind_of(content)}, needed a text or a list of parts")
    words: list[str] = []
    images: list[str] = []
    for part in content:
        if not isinstance(part, dict):
            raise Unusable(f"a part of a turn is {text.kind_of(part)}, needed an object")
        if isinstance(part.get("text"), str):
            words.append(part["text"])
            continue
        path = part.get("image", part.get("image_url"))
        if isinstance(path, dict):
            path = path.get("url", path.get("path"))
        if part.get("type") not in ("image", "image_url", None) or not isinstance(path, str | None):
            raise Unusable(f"a part of a turn is {text.shortened(part)}; needed a text or an image")
        if path:
            images.append(path)
        words.append(_MARK)
    return Turn(_ROLES[role], "".join(words), tuple(images))


def _image(value: dict[str, Json], turns: list[Turn]) -> str:
    """The path of the conversation's image, or ''."""
    named: list[str] = []
    for key in ("image", "images"):
        listed = text.strings(value.get(key))
        if listed is None:
            raise Unusable(f"{key} is {text.shortened(value[key])}, needed the path of a picture")
        named += [path for path in listed if path]
    for turn in turns:
        named += turn.images
    distinct = list(dict.fromkeys(named))
    marks = max((turn.text.count(_MARK) for turn in turns), default=0)
    if len(distinct) > 1 or marks > 1:
        raise Unusable(f"{max(len(distinct), marks)} images; an item holds one")
    if marks and not distinct:
        raise Unusable(f"its text has the mark {_MARK} and there is no image")
    if distinct and distinct[0].startswith(("http:", "https:", "data:")):
        raise Unusable(f"its image is {distinct[0][:40]!r}, not a file; save it as one and name its path")
    return distinct[0] if distinct else ""
