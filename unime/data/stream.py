"""JSON files too large to load: the rows of one top-level list, or of a file with one object a line, each parsed when it is asked for.

The file is read in blocks and each row decoded by the standard library's C scanner where it stands in the block, so memory holds a
block and a row, however long the list is, and a reader that wants the first thousand rows reads no further.  Refused: `json.load`
(gigabytes of objects for the published score files) and an event parser, which costs tens of times as long for rows that are small.
"""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from unime.data.rows import DataError

_BLOCK = 1 << 20  # bytes read at a time
_LONGEST = 1 << 26  # characters of one row: a file that is no list of rows is refused before it is all in memory
_CUT = 16  # an error so close to the end of what was read may be a word or an escape cut in two
_SPACE = re.compile(r"[ \t\n\r]*")
_DECODER = json.JSONDecoder()


def rows(path: str | Path) -> Iterator[tuple[int, Any]]:
    """(index from 0, value) of every row of a JSON file that is one list, in order; NaN and Infinity are let through as floats.

    Raises DataError naming the file and the row, for a file that is missing, no list, malformed, or truncated: all rows before the
    damage have been given by then, and none after it.
    """
    with _opened(path) as file:
        text = _Text(path, file)
        if text.peek() != "[":
            raise DataError(f"{path}: not a JSON list of rows (it starts with {text.peek()!r}); download it again")
        text.at += 1
        index, ended = 0, text.peek() == "]"
        text.at += ended
        while not ended:
            yield index, text.value(index)
            mark = text.peek()
            if mark not in (",", "]"):
                raise _torn(path, index) if not mark else DataError(f"{path}: row {index}: {mark!r} where ',' or ']' must follow")
            text.at, ended, index = text.at + 1, mark == "]", index + 1
        if mark := text.peek():
            raise DataError(f"{path}: {mark!r} after the end of the list of {index} rows; download it again")


def lines(path: str | Path) -> Iterator[tuple[int, Any, str | None]]:
    """(line from 1, value, reason why there is none or None) of every line of a JSONL file; empty lines are passed over.

    A damaged line costs that line only.  Raises DataError where the file cannot be read or one line is longer than any row.
    """
    with _opened(path) as file:
        number = 0
        while line := file.readline(_LONGEST + 1):
            number += 1
            if len(line) > _LONGEST:
                raise DataError(f"{path}: line {number}: more than {_LONGEST} bytes; a JSONL file has one row a line")
            try:
                text = line.decode("utf-8-sig" if number == 1 else "utf-8").strip()
                if text:
                    yield number, json.loads(text), None
            except UnicodeDecodeError as error:
                yield number, None, f"not UTF-8 ({error.reason} at byte {error.start})"
            except (ValueError, RecursionError) as error:
                yield number, None, f"not JSON ({error})"


def _opened(path: str | Path) -> BinaryIO:
    if Path(path).exists() and not Path(path).is_file():
        raise DataError(f"{path}: not a file but a folder, FIFO, socket or device; remove it, or correct data.root")
    try:
        return open(path, "rb")
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}); download it or correct data.root") from error


def _torn(path: str | Path, index: int) -> DataError:
    return DataError(f"{path}: the file ends in or after row {index}, before its list does; it is truncated, download it again")


class _Text:
    """The part of a file that is in memory, and the place in it where the next value starts."""

    def __init__(self, path: str | Path, file: BinaryIO):
        self.path, self.file = path, file
        self.text, self.at, self.ended = "", 0, False
        self._index = 0
        self._decode = codecs.getincrementaldecoder("utf-8-sig")().decode

    def peek(self) -> str:
        """The next character that is no space, '' at the end of the file; `at` moves up to it."""
        while True:
            self.at = _SPACE.match(self.text, self.at).end()
            if self.at < len(self.text):
                return self.text[self.at]
            if not self.more():
                return ""

    def more(self, size: int = _BLOCK) -> bool:
        """Read on; what lies before `at` is let go.  False at the end of the file."""
        if self.ended:
            return False
        data = self.file.read(size)
        self.ended = not data
        try:
            self.text, self.at = self.text[self.at :] + self._decode(data, final=self.ended), 0
        except UnicodeDecodeError as error:
            raise DataError(f"{self.path}: row {self._index} or the next: not UTF-8 ({error.reason}); download it again") from error
        return True

    def value(self, index: int) -> Any:
        """The value that starts at `at`, which moves behind it."""
        self._index = index
        self.peek()
        while True:
            try:
                value, end = _DECODER.raw_decode(self.text, self.at)
            except json.JSONDecodeError as error:
                self._read_on(error, index)
            except (RecursionError, ValueError) as error:  # nested without end, or a number of thousands of digits
                raise DataError(f"{self.path}: row {index}: not JSON that can be a row ({error})") from None
            else:
                # Cut by the block's end, 1.25 reads as 1 or as 1 and a dot: a value ends where something follows that ends it.
                if self.text[end : end + 1] in (",", "]", " ", "\t", "\n", "\r") or len(self.text) - end > _CUT:
                    self.at = end
                    return value
                if not self.more():
                    mark = self.text[end : end + 1]
                    raise DataError(f"{self.path}: row {index}: {mark!r} where ',' or ']' must follow") if mark else _torn(self.path, index)

    def _read_on(self, error: json.JSONDecodeError, index: int) -> None:
        """Read on where a value may be cut by the block's end; raise where it is damaged, at the file's end, or endless."""
        if not error.msg.startswith("Unterminated string") and error.pos < len(self.text) - _CUT:
            raise DataError(f"{self.path}: row {index}: not JSON ({error.msg}, {error.pos - self.at} characters into the row)")
        held = len(self.text) - self.at
        if held > _LONGEST:
            raise DataError(f"{self.path}: row {index}: more than {_LONGEST} characters; not a list of rows")
        if self.ended and not error.msg.startswith("Unterminated string") and error.pos < len(self.text):
            raise DataError(f"{self.path}: row {index}: not JSON ({error.msg}, {error.pos - self.at} characters into the row)")
        if not self.more(max(_BLOCK, held)):  # doubling: a long row is tried a few times, not once a block
            raise _torn(self.path, index)
