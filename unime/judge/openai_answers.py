"""What a judge's server answered, checked value by value: the log-probabilities of Yes and No, token ids, and counts of tokens.

A server may send any JSON.  What a score is computed from is refused unless it is what it should be; the counts are statistics, so one that
is no count is 0 and stops nothing.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence
from typing import NamedTuple

from unime.judge.openai_key import Mask

ROUNDING = 1e-3
"""How far rounding to float16 may take a log-probability above 0, and two of one word apart."""

LOWEST = -1e30
"""The least log-probability that is taken; servers write about -10000 for a word that cannot come."""

MOST = 2**53
"""The largest count of tokens that is believed."""

BLANKS = " \n\t\u2581\u0120"
"""What stands before a word in a token of its own; tokenizers write a blank as one of the last two."""


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


def error_code(answer: dict[str, object]) -> int | None:
    """The status code of an error that stands in a good answer's place, as gateways send with status 200.

    0 where the error has no code, None where there is no error.
    """
    choices = answer.get("choices")
    first = choices[0] if isinstance(choices, list) and choices else None
    told = answer if answer.get("object") == "error" else answer.get("error")
    if not told and isinstance(first, dict):
        told = first.get("error")
    if not told:
        return None
    code = told.get("code") if isinstance(told, dict) else None
    if isinstance(code, str) and re.fullmatch("[1-5][0-9][0-9]", code):
        return int(code)
    return _count(code)


def log_probabilities(answer: dict[str, object], words: Sequence[str], mask: Mask) -> list[float]:
    """The log-probabilities of `words` at the first token of the answer.  Raises Unusable, or Absent where a word is not listed."""
    listed: dict[str, list[object]] = {}
    for token, value in _listed(answer):
        if not isinstance(token, str):
            raise Unusable(f"a `token` is {_kind(token)}")
        listed.setdefault(token, []).append(value)
    return [_only(word, listed, mask) for word in words]


def _listed(answer: dict[str, object]) -> list[tuple[object, object]]:
    """The words at the answer's first place, each with its log-probability: the one that was drawn, then the likeliest."""
    told = _at(answer, "choices", 0, "logprobs")
    if isinstance(told, dict) and told.get("content") is None and told.get("top_logprobs") is not None:
        return _listed_as_before(told)
    first = _at(answer, "choices", 0, "logprobs", "content", 0)
    likeliest = _at(first, "top_logprobs")
    if not isinstance(likeliest, list):
        raise Unusable(f"`top_logprobs` is {_kind(likeliest)}")
    found = []
    for entry in [first, *likeliest]:
        token = _at(entry, "token")
        found.append((token, entry.get("logprob")))
    return found


def _listed_as_before(told: dict[str, object]) -> list[tuple[object, object]]:
    """The same from the form of the older completions API, which some servers keep for chats: words and numbers in lists of their own."""
    likeliest = _at(told, "top_logprobs", 0)
    if not isinstance(likeliest, dict):
        raise Unusable(f"`top_logprobs.0` is {_kind(likeliest)}")
    return [(_at(told, "tokens", 0), _at(told, "token_logprobs", 0)), *likeliest.items()]


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


def _only(word: str, listed: dict[str, list[object]], mask: Mask) -> float:
    """The one log-probability of a word; the answer's own token stands among the likeliest once more, with the same one.

    Other words' numbers are not looked at: a server may write null for one that cannot come.
    """
    if word not in listed:
        shown = ", ".join(_quoted(token, mask) for token in list(listed)[:5])
        near = [token for token in listed if token.strip(BLANKS) == word]
        another = f"; {near[0]!r} is, which is another token" if near else ""
        raise Absent(f"{word!r} is not among the {len(listed)} likeliest words ({shown} ...){another}")
    values = [_log_probability(value, word, mask) for value in listed[word]]
    if max(values) - min(values) > ROUNDING:
        raise Unusable(
            f"{word!r} is listed with the log-probabilities {max(values):g} and {min(values):g}: which word is meant is not clear "
            "(judge.openai.token_ids tells two tokens of one text apart on a server of vLLM's)"
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
