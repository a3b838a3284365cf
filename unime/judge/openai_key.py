"""The key of a judge's server: read from the environment, refused where it cannot be sent, and masked wherever the server repeats it.

A server's words reach messages and logs, and some servers repeat the request's headers in them.  `Mask` therefore looks for every piece of
the key that is long enough to be worth something, in plain text and as JSON, URLs and HTML escape it, in base64 and in hexadecimal.
"""

from __future__ import annotations

import base64
import html
import os
import re

from unime.config import ConfigError

KEY = "OPENAI_API_KEY"

PIECE = 8
"""Letters of the key in a row that are masked; of a shorter key, all of them."""

CODED_PIECE = 12
"""The same for base64 and hexadecimal."""

SHOWN = 500
"""Letters of a server's text that a message shows at most."""

_LETTER = re.compile(
    r"""\\{1,8}u00([0-9a-f]{2})   # JSON
      | \\{1,8}x([0-9a-f]{2})     # Python
      | %(?:25){0,4}([0-9a-f]{2})  # URLs, escaped again or not
      | &\#x0{0,6}([0-9a-f]{2});
      | &\#0{0,6}([0-9]{2,3});
      | (&[a-z]{2,5};)            # HTML
      | (.)""",
    re.VERBOSE | re.IGNORECASE | re.DOTALL,
)


def read_key() -> str:
    """The key that OPENAI_API_KEY holds; empty where it is not set.  Raises ConfigError, which does not show it."""
    key = os.environ.get(KEY, "")
    unfit = [place for place, letter in enumerate(key, start=1) if not "!" <= letter <= "~"]
    if unfit:
        raise ConfigError(
            f"{KEY}: character {unfit[0]} of {len(key)} is a blank, a line end or no ASCII, and a key in an HTTP header has none of these; "
            "set it to the key alone (the value is not shown here)"
        )
    return key


class Mask:
    """Replaces the key in a text by as many stars; without a key it changes nothing."""

    def __init__(self, key: str) -> None:
        self._pieces: dict[int, set[str]] = {}
        if key:
            self._add(key, PIECE)
        for coded in _coded(key):
            if len(coded) >= CODED_PIECE:
                self._add(coded, CODED_PIECE)

    def _add(self, text: str, size: int) -> None:
        letters = "".join(letter for letter, _, _ in _letters(text))
        size = min(size, len(letters))
        for start in range(len(letters) - size + 1 if size else 0):
            self._pieces.setdefault(size, set()).add(letters[start : start + size])

    def __call__(self, text: str) -> str:
        if not self._pieces:
            return text
        read = list(_letters(text))
        plain = "".join(letter for letter, _, _ in read)
        masked = list(text)
        for size, pieces in self._pieces.items():
            for first in range(len(plain) - size + 1):
                if plain[first : first + size] in pieces:
                    start, end = read[first][1], read[first + size - 1][2]
                    masked[start:end] = "*" * (end - start)
        return "".join(masked)

    def shown(self, text: str) -> str:
        """The beginning of a server's text as a message may show it: masked, and with control characters written out."""
        masked = self(text[: 8 * SHOWN])[:SHOWN]
        return "".join(letter if letter.isprintable() else letter.encode("unicode_escape").decode("ascii") for letter in masked)


def _letters(text: str) -> list[tuple[str, int, int]]:
    """The letters that a text stands for, in lower case and without backslashes, each with where its spelling begins and ends."""
    found: list[tuple[str, int, int]] = []
    for match in _LETTER.finditer(text):
        in_hexadecimal = match[1] or match[2] or match[3] or match[4]
        if in_hexadecimal:
            letter = chr(int(in_hexadecimal, 16))
        elif match[5]:
            letter = chr(int(match[5]))
        elif match[6]:
            letter = html.unescape(match[6])
        else:
            letter = match[7]
        if letter == "\\":
            continue  # of an escaped letter, or escaped itself
        if len(letter) == 1:
            found.append((letter.lower()[0], match.start(), match.end()))
        else:  # no name that HTML knows: as it stands
            found += [(one.lower()[0], match.start() + place, match.start() + place + 1) for place, one in enumerate(letter)]
    return found


def _coded(key: str) -> list[str]:
    """The key in hexadecimal, and in base64 at each of the three places where it may begin in what is encoded with it."""
    data = key.encode()
    found = [data.hex()]
    for before in range(3):
        text = base64.b64encode(bytes(before) + data).decode("ascii")
        first = (8 * before + 5) // 6
        end = 8 * (before + len(data)) // 6  # what follows would change the letters from here on
        found += [text[first:end], text[first:end].replace("+", "-").replace("/", "_")]
    return found
