"""Bytes over HTTP, several files at once, each going on where it was cut off.

1. A file grows under `<name>.part`; what is there after a broken connection, or a kill of the whole process, is asked for no more (Range).
2. Whole, it is checked (length, hash, its own structure) and renamed: a file that has its name is right, and is not fetched again.
3. A file that is wrong after it was put together from several answers may owe that to an old beginning: it is fetched once more from
   the start.  Wrong then, or wrong in one answer, it is an error.

One failure stops all files; what they have stays for the next run.
"""

from __future__ import annotations

import queue
import re
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import BinaryIO

import httpx2
from huggingface_hub import get_session
from huggingface_hub.utils import hf_raise_for_status

from unime.fetch import checks
from unime.fetch.select import File

MIB = 1 << 20
TIMEOUT = 30.0
"""Seconds that a server may keep silent."""

PATIENCE = 6
"""Attempts in a row that bring nothing before a file is given up."""

PAUSE = 1.0
"""Seconds before the second attempt; twice as many before each further one."""


class Failed(ValueError):
    """A file did not come, or not the one that was published."""


class Stopped(Exception):
    """Another file failed, or the run was ended."""


class _Cut(Exception):
    """An answer ended early, or the server asks for patience: `wait` is how many seconds, where it says so."""

    def __init__(self, reason: str, wait: float = 0.0) -> None:
        super().__init__(reason)
        self.wait = wait


def fetch_all(
    files: Sequence[File], folder: Path, headers: Mapping[str, str], workers: int, whole: Callable[[File], None]
) -> Iterator[int]:
    """Bring every file to folder/<path>, the largest first; yields the number of MiB that have come, once each.

    `whole` is told of each file that is there and right.  Raises Failed, or what a request raises.
    """
    arrived: queue.SimpleQueue[int | Exception | None] = queue.SimpleQueue()  # bytes; None: a file is whole; or why it is not
    stop = threading.Event()

    def one(file: File) -> None:
        try:
            _bring(file, folder / file.path, headers, arrived.put, stop)
            whole(file)
        except Exception as error:
            arrived.put(error)
        else:
            arrived.put(None)

    with ThreadPoolExecutor(workers) as pool:
        begun = [pool.submit(one, file) for file in sorted(files, key=lambda file: -file.size)]
        try:
            left, come, told = len(files), 0, 0
            while left:
                step = arrived.get()
                if isinstance(step, Exception):
                    raise step
                come += step or 0
                left -= step is None
                while told < come // MIB:
                    told += 1
                    yield told
        finally:
            stop.set()
            for future in begun:
                future.cancel()


def remaining(files: Sequence[File], folder: Path) -> int:
    """Bytes still to come, after what an earlier run left in the folder."""
    left = 0
    for file in files:
        place, part = folder / file.path, _part(folder / file.path)
        if not place.exists():
            left += file.size - min(max(_size(part), 0), file.size)
    return left


def _part(place: Path) -> Path:
    return place.with_name(place.name + ".part")


def _bring(file: File, place: Path, headers: Mapping[str, str], count: Callable[[int], None], stop: threading.Event) -> None:
    """One file to its place, checked; nothing to do where it is there already."""
    if place.exists():
        return
    part = _part(place)
    part.parent.mkdir(parents=True, exist_ok=True)
    for again in (False, True):
        fresh = _to_its_end(file, part, headers, count, stop)
        wrong = checks.differs(part, size=file.size, sha=file.sha) or checks.torn(part, file.path)
        if not wrong:
            part.replace(place)
            return
        part.unlink()
        if fresh or again:
            raise Failed(f"{file.path} came wrong: {wrong}; the server, or something on the way, gives other bytes than were published")


def _to_its_end(file: File, part: Path, headers: Mapping[str, str], count: Callable[[int], None], stop: threading.Event) -> bool:
    """Let the part grow to the file's size.  Returns whether all of it came in one answer, just now."""
    failures, begun = 0, _size(part)
    fresh = begun <= 0
    while begun < file.size or begun == -1:
        try:
            fresh = _stream(file, part, max(begun, 0), headers, count, stop) and begun <= 0
            break
        except (httpx2.TransportError, _Cut) as cut:
            fresh = False
            failures = 0 if _size(part) > begun else failures + 1
            if failures >= PATIENCE:
                said = f"{file.path}: nothing came in {PATIENCE} attempts in a row ({type(cut).__name__.strip('_')}: {cut})"
                raise Failed(f"{said}; what has come is kept, and the same command goes on from there") from cut
            if stop.wait(getattr(cut, "wait", 0.0) or PAUSE * 2**failures / 2):
                raise Stopped(file.path) from None
        begun = _size(part)
    return fresh


def _size(part: Path) -> int:
    return part.stat().st_size if part.exists() else -1


def _stream(file: File, part: Path, begun: int, headers: Mapping[str, str], count: Callable[[int], None], stop: threading.Event) -> bool:
    """One answer, appended to the part where the server goes on from `begun`, else instead of it; whether it was the whole file."""
    asked = {**headers, "Accept-Encoding": "identity"} | ({"Range": f"bytes={begun}-"} if begun else {})
    with get_session().stream("GET", file.url, headers=asked, timeout=TIMEOUT) as answer:
        if answer.status_code in (408, 429) or answer.status_code >= 500:
            after = answer.headers.get("Retry-After", "")
            raise _Cut(f"{file.path}: the server answers {answer.status_code}", float(after) if after.isdecimal() else 0.0)
        if answer.status_code == 416:
            part.unlink(missing_ok=True)
            raise _Cut(f"{file.path}: the server has nothing from byte {begun} on")
        if answer.is_error:
            answer.read()
        hf_raise_for_status(answer)
        goes_on = answer.status_code == 206
        span = re.fullmatch(r"bytes (\d+)-\d+/(\d+)", answer.headers.get("Content-Range", "")) if goes_on else None
        if goes_on and (span is None or int(span[1]) != begun):
            part.unlink(missing_ok=True)
            raise _Cut(f"{file.path}: asked for byte {begun} on, the server sent {answer.headers.get('Content-Range')!r}")
        length = span[2] if span else answer.headers.get("Content-Length", "")
        if length.isdecimal() and "Content-Encoding" not in answer.headers and int(length) != file.size:
            raise Failed(f"{file.path}: the server has {length} bytes of it, the repository says {file.size}")
        at = begun if goes_on else 0
        with part.open("ab" if goes_on else "wb") as out:
            for block in answer.iter_bytes():
                if stop.is_set():
                    raise Stopped(file.path)
                _write(out, block, file)
                at += len(block)
                count(len(block))
    if at < file.size:
        raise _Cut(f"{file.path}: the answer ended at byte {at} of {file.size}")
    return not goes_on


def _write(out: BinaryIO, block: bytes, file: File) -> None:
    """Out of this process at once: a kill costs what is on the way, no more."""
    try:
        out.write(block)
        out.flush()
    except OSError as error:
        raise Failed(f"{file.path} cannot be written ({error}); what has come is kept, and the same command goes on from there") from error
