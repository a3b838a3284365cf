"""SHA-256 of whole files, each hashed once for as long as it stays as it is.

What is remembered of a file lies in `scratch/digests`, a small JSON file for each path, renamed into place: jobs that run side by side, on
several nodes too, may all read and write it.  A digest holds while bytes, inode, time of last write and time of last change are the
same.  Jobs that start together and need the same file hash it once: the first one holds the file's lock, the others wait for its result.
No program can set the time of last change, so a file that is written over in place and given its old time of last write is seen.
Removing the folder costs one more reading of each file.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

FOLDER = Path("scratch/digests")

REMEMBERED = 1 << 20
"""Bytes; a smaller file is read again, which costs no more than looking up its digest."""

SETTLED = 2 * 10**9
"""Nanoseconds from a file's last change to the start of its hashing, before its digest is remembered: file systems count time in steps,
and a second write within a step would leave no sign."""

WITHOUT_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL)
"""What flock answers on a file system that is mounted without locks, as Lustre and NFS may be."""


def stamp(found: os.stat_result) -> tuple[int, ...]:
    """(bytes, inode, time of last write, time of last change) of a file, times in nanoseconds."""
    return found.st_size, found.st_ino, found.st_mtime_ns, found.st_ctime_ns


def sha256(path: Path, folder: Path = FOLDER) -> str:
    """Hex SHA-256 of the file's whole content, from memory where the file is as it was when it was hashed."""
    if path.stat().st_size < REMEMBERED:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    place = folder / hashlib.sha256(os.fsencode(path.absolute())).hexdigest()[:32]
    known = _remembered(place, path)
    if known is not None:
        return known
    with _alone(place):
        known = _remembered(place, path)  # by the process that held the lock until now
        return _hashed(place, path) if known is None else known


def _hashed(place: Path, path: Path) -> str:
    """The digest, read from the file itself, and remembered if the file was at rest."""
    began = time.time_ns()
    before = path.stat()
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    unchanged = stamp(path.stat()) == stamp(before)
    settled = began - before.st_ctime_ns > SETTLED
    if unchanged and settled:
        _remember(place, {"path": str(path), "stamp": stamp(before), "sha256": digest})
    return digest


@contextmanager
def _alone(place: Path) -> Iterator[None]:
    """Hold the lock of one digest.  The kernel gives it back when its holder ends, also by kill -9, so that nobody waits for a dead one.

    A file system without locks costs each process a reading of its own, as if it were alone.
    """
    place.parent.mkdir(parents=True, exist_ok=True)
    with place.with_suffix(".lock").open("a") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)
        except OSError as problem:
            if problem.errno not in WITHOUT_LOCKS:
                raise
        yield


def _remembered(place: Path, path: Path) -> str | None:
    """The digest, if it is remembered and the file is as it was."""
    try:
        found = json.loads(place.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    whole = isinstance(found, dict) and "stamp" in found and "sha256" in found
    return str(found["sha256"]) if whole and found["stamp"] == list(stamp(path.stat())) else None


def _remember(place: Path, known: dict[str, object]) -> None:
    temporary = place.with_name(f".{place.name}.{os.getpid()}.tmp")
    temporary.write_text(json.dumps(known), encoding="utf-8")
    os.replace(temporary, place)
