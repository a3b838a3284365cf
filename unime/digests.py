"""SHA-256 of whole files, each hashed once for as long as it stays as it is.

What is remembered of a file lies in `scratch/digests`, a small JSON file for each path, renamed into place: jobs that run side by side, on
several nodes too, may all read and write it.  A digest holds while bytes, inode, time of last write and time of last change are the
same.  No program can set the time of last change, so a file that is written over in place and given its old time of last write is
seen.  Removing the folder costs one more reading of each file.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from pathlib import Path

FOLDER = Path("scratch/digests")

REMEMBERED = 1 << 20
"""Bytes; a smaller file is read again, which costs no more than looking up its digest."""

SETTLED = 2 * 10**9
"""Nanoseconds since a file's last change before its digest is remembered: file systems count time in steps, and a second write within a
step would leave no sign."""


def stamp(found: os.stat_result) -> tuple[int, ...]:
    """(bytes, inode, time of last write, time of last change) of a file, times in nanoseconds."""
    return found.st_size, found.st_ino, found.st_mtime_ns, found.st_ctime_ns


def sha256(path: Path, folder: Path = FOLDER) -> str:
    """Hex SHA-256 of the file's whole content, from memory where the file is as it was when it was hashed."""
    before = path.stat()
    if before.st_size < REMEMBERED:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    place = folder / hashlib.sha256(os.fsencode(path.absolute())).hexdigest()[:32]
    known = _remembered(place)
    if known is not None and known["stamp"] == list(stamp(before)):
        return str(known["sha256"])
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    unchanged = stamp(path.stat()) == stamp(before)
    settled = time.time_ns() - before.st_ctime_ns > SETTLED
    if unchanged and settled:
        _remember(place, {"path": str(path), "stamp": stamp(before), "sha256": digest})
    return digest


def _remembered(place: Path) -> dict[str, object] | None:
    try:
        found = json.loads(place.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    whole = isinstance(found, dict) and "stamp" in found and "sha256" in found
    return found if whole else None


def _remember(place: Path, known: dict[str, object]) -> None:
    place.parent.mkdir(parents=True, exist_ok=True)
    temporary = place.with_name(f".{place.name}.{os.getpid()}.tmp")
    temporary.write_text(json.dumps(known), encoding="utf-8")
    os.replace(temporary, place)
