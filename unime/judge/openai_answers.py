"""What a judge's server answered, checked value by value: the log-probabilities of Yes and No, token ids, and counts of tokens.

A server may send any JSON.  What a score is computed from is refused unless it is what it should be; the counts are statistics, so one that
is no count is 0 and stops nothing.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from typing import NamedTuple

from unime.judge.openai_key import Mask

ROUNDING = 1e-3
"""How far rounding to float16 may take a log-probability above 0, and two of one word apart."""

LOWEST = -1e30
"""The least log-probability that is taken; servers write about -10000 for a word that cannot come."""

MOST = 2**53
"""The largest count of tokens that is believed."""


class Unusable(ValueError):
    """An answer without what is needed; the message says what it lacks, without pair and remedy."""


class Absent(Unusable):
    """Yes or No is not among the words that the answer lists."""


class Usage(NamedTuple):
    """Tokens of the prompt, and how many of them the server had in its prefix cache."""

    read: int
    cached: int


def parsed(body: bytes) -> dict[str, object]:
    """The JSON object that a body holds.  Raises Unusable."""
    try:
        answer = json.loads(body)
    except RecursionError:
        raise Unusable("it is nested too deeply") from None
    except ValueError:  # UnicodeDecodeError is one
        raise Unusable("it is not JSON") from None
    if not isinstance(answer, dict):
        raise Unusable(f"it is JSON, but {_kind(answer)} instead of an object")
    return answer


def log_probabilities(answer: dict[str, object], words: Sequence[str], mask: Mask) -> list[float]:
    """The log-probabilities of `words` at the first token of the answer.  Raises Unusable, or Absent where a word is not listed."""
    first = _at(answer, "choices", 0, "logprobs", "content", 0)
    likeliest = _at(first, "top_logprobs")
    if not isinstance(likeliest, list):
        raise Unusable(f"`top_logprobs` is {_kind(likeliest)}")
    listed: dict[str, list[float]] = {}
    for entry in [first, *likeliest]:
        token = _at(entry, "token")
        if not isinstance(token, str):
            raise Unusable(f"a `token` is {_kind(token)}")
        listed.setdefault(token, []).append(_log_probability(_at(entry, "logprob"), token, mask))
    return [_only(word, listed, mask) for word in words]


def _log_probability(value: object, token: str, mask: Mask) -> float:
    number = math.nan
    if isinstance(value, int | float) and not isinstance(value, bool):
        try:
            number = float(value)
        except OverflowError:  # an integer of more than 308 digits
            number = math.inf if value > 0 else -math.inf
    if number <= ROUNDING:  # which NaN is not
        return number
    shown = f"{number:g}" if isinstance(value, float) or number == number else _kind(value)
    raise Unusable(f"the log-probability of {_quoted(token, mask)} is {shown}, and one is a number of at most 0")


def _only(word: str, listed: dict[str, list[float]], mask: Mask) -> float:
    """The one log-probability of a word; the answer's own token stands among the likeliest once more, with the same one."""
    if word not in listed:
        shown = ", ".join(_quoted(token, mask) for token in list(listed)[:5])
        raise Absent(f"{word!r} is not among the {len(listed)} likeliest words ({shown} ...)")
    values = listed[word]
    if max(values) - min(values) > ROUNDING:
        raise Unusable(
            f"{word!r} is listed with the log-probabilities {max(values):g} and {min(values):g}: which word is meant is not clear"
        )
    if values[-1] < LOWEST:
        raise Unusable(f"the log-probability of {word!r} is {values[-1]:g}, and a finite number is needed")
    return values[0]


def usage(answer: dict[str, object]) -> Usage:
    """How many tokens the server says it read; 0 where it does not say so."""
    told = answer.get("usage")
    if not isinstance(told, dict):
        return Usage(0, 0)
    details = told.get("prompt_tokens_details")
    cached = details.get("cached_tokens") if isinstance(details, dict) else 0
    return Usage(_count(told.get("prompt_tokens")), _count(cached))


def _count(value: object) -> int:
    return value if type(value) is int and 0 <= value <= MOST else 0


def only_token(answer: dict[str, object], word: str) -> int:
    """The id of the one token that a word is.  Raises Unusable."""
    ids = answer.get("tokens")
    if not isinstance(ids, list):
        raise Unusable(f"`tokens` is {_kind(ids)} instead of a list")
    if len(ids) != 1:
        raise Unusable(f"{word!r} is {len(ids)} tokens, one is needed")
    if type(ids[0]) is not int or not 0 <= ids[0] <= MOST:
        raise Unusable(f"the token of {word!r} is no id")
    return ids[0]


def _at(value: object, *path: str | int) -> object:
    """The value at a path of names and places.  Raises Unusable naming the path to what is lacking."""
    for depth, step in enumerate(path, start=1):
        if isinstance(step, str):
            there = isinstance(value, dict) and step in value
        else:
            there = isinstance(value, list) and step < len(value)
        if not there:
            raise Unusable(f"it has no log-probabilities: no `{'.'.join(map(str, path[:depth]))}`")
        value = value[step]
    return value


def _kind(value: object) -> str:
    """What a JSON value is called."""
    names = {dict: "an object", list: "a list", str: "text", bool: "true or false", type(None): "null"}
    return names.get(type(value), "a number")


def _quoted(token: str, mask: Mask) -> str:
    return mask.shown(repr(token[:60]))
