"""Images inside parquet files, as Hugging Face stores them: a struct column {bytes, path}, or a plain binary column.

A member is `<column>/<row>`.  Rows are read in windows of a few dozen, so that memory holds some windows and never the file; polars
reads only the row groups that a window touches.  Polars works on threads that a forked child does not have (it would wait for them for
ever), so in such a child each window is read by a fresh interpreter.
"""

from __future__ import annotations

import functools
import json
import os
import struct
import subprocess
import sys
import threading
from collections import OrderedDict
from collections.abc import Iterable
from typing import Any

import polars as pl

from unime import artifacts

_ROWS = 32  # of a window
_WINDOWS = 8  # that are kept
_HELD = 1 << 28  # bytes that are kept, should single images be large; the newest window always is
_ABSENT = (1 << 64) - 1
_home = os.getpid()  # where polars was started


class Torn(ValueError):
    """A parquet file, or one window of it, cannot be read."""


class Parquet:
    """The images of one parquet file, by member name.  Safe in threads; a forked child opens its own."""

    def __init__(self, path: str):
        self.path = path
        status = os.stat(path)
        self.rows, self._columns = _shape(path, status.st_size, status.st_mtime_ns)
        self._windows: OrderedDict[tuple[str, int], list[bytes | None]] = OrderedDict()
        self._lock = threading.Lock()

    def names(self) -> Iterable[str]:
        return ()

    def has(self, member: str) -> bool:
        column, _, row = member.rpartition("/")
        return column in self._columns and row.isdecimal() and int(row) < self.rows and row == str(int(row))

    def size(self, member: str) -> int:
        return len(self.read(member))

    def read(self, member: str) -> bytes:
        column, _, number = member.rpartition("/")
        row = int(number)
        data = self._window(column, row // _ROWS)[row % _ROWS]
        if data is None:
            raise Torn("the row holds no bytes of an image")
        return data

    def start(self, member: str, count: int) -> bytes:
        return self.read(member)[:count]

    def _window(self, column: str, number: int) -> list[bytes | None]:
        with self._lock:
            found = self._windows.get((column, number))
            if found is None:
                nested = self._columns[column]
                found = self._windows[column, number] = _call("window", self.path, column, nested, number * _ROWS)
                while len(self._windows) > 1 and (len(self._windows) > _WINDOWS or self._bytes() > _HELD):
                    self._windows.popitem(last=False)
            self._windows.move_to_end((column, number))
            return found

    def _bytes(self) -> int:
        return sum(len(data or b"") for window in self._windows.values() for data in window)


@functools.lru_cache(maxsize=64)
def _shape(path: str, size: int, changed: int) -> tuple[int, dict[str, bool]]:
    """Number of rows, and the columns that may hold images: whether their bytes are a field of a struct."""
    rows, columns = json.loads(_call("shape", path)[0] or b"")
    return rows, columns


def _call(name: str, *arguments: Any) -> list[bytes | None]:
    """One of the two functions below, here or, in a forked child, in an interpreter of its own.  Raises Torn."""
    if os.getpid() == _home:
        return _WORK[name](*arguments)
    command = [sys.executable, "-m", "unime.data.parquet", json.dumps([name, *arguments])]
    path = os.pathsep.join(place or os.getcwd() for place in sys.path)
    done = subprocess.run(command, capture_output=True, env={**os.environ, "PYTHONPATH": path})
    if done.returncode:
        raise Torn(done.stderr.decode(errors="replace").strip().rpartition("\n")[2])
    found, at = [], 0
    while at < len(done.stdout):
        (length,) = struct.unpack_from("<Q", done.stdout, at)
        at += 8
        found.append(None if length == _ABSENT else done.stdout[at : at + length])
        at += 0 if length == _ABSENT else length
    return found


def _read_shape(path: str) -> list[bytes | None]:
    try:
        schema = pl.read_parquet_schema(path)
        rows = pl.scan_parquet(path, glob=False).select(pl.len()).collect().item()
    except artifacts.UNREADABLE as error:
        raise Torn(str(error)) from error
    nested = {name: isinstance(kind, pl.Struct) for name, kind in schema.items() if holds_images(kind)}
    return [json.dumps([rows, nested]).encode()]


def holds_images(kind: Any) -> bool:
    """Whether a column of this type may hold images: Binary, or Struct with a field `bytes` that is."""
    return kind == pl.Binary or isinstance(kind, pl.Struct) and any(f.name == "bytes" and f.dtype == pl.Binary for f in kind.fields)


def _read_window(path: str, column: str, nested: bool, start: int) -> list[bytes | None]:
    data = pl.col(column).struct.field("bytes") if nested else pl.col(column)
    try:
        return pl.scan_parquet(path, glob=False).slice(start, _ROWS).select(data).collect().to_series().to_list()
    except artifacts.UNREADABLE as error:
        raise Torn(f"rows {start} to {start + _ROWS - 1}: {error}") from error


_WORK = {"shape": _read_shape, "window": _read_window}


def _serve(request: str) -> None:
    name, *arguments = json.loads(request)
    try:
        found = _WORK[name](*arguments)
    except Torn as error:
        raise SystemExit(str(error).replace("\n", " ")) from None
    for data in found:
        sys.stdout.buffer.write(struct.pack("<Q", _ABSENT if data is None else len(data)) + (data or b""))


if __name__ == "__main__":
    _serve(sys.argv[1])
