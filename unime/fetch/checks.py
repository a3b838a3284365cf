"""Is a file whole, and is it the one that was published?

Size and hash say so where they are known: the Hub gives a SHA-256 for large files and git's own hash for small ones.  Where they are
not (own copies, plain web files), the end of a file tells most of what goes wrong, a download that was cut off: archives, parquet and
safetensors say at their end, or in their header, how long they must be.
"""

from __future__ import annotations

import hashlib
import json
import struct
import zipfile
from pathlib import Path

BLOCK = 1 << 22
POINTER = b"version https://git-lfs.github.com/spec/v1"


def sha256(path: Path) -> str:
    """64 hex digits of a file's content."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def git_sha1(path: Path) -> str:
    """40 hex digits by which git knows a file's content (the blob's header counts)."""
    digest = hashlib.sha1(b"blob %d\0" % path.stat().st_size, usedforsecurity=False)
    with path.open("rb") as file:
        while block := file.read(BLOCK):
            digest.update(block)
    return digest.hexdigest()


def differs(path: Path, *, size: int, sha: str) -> str:
    """What is wrong with a file, by its right size (-1: not known) and hash (SHA-256 or git's SHA-1; '': not known); '' if nothing."""
    found = path.stat().st_size
    if size not in (-1, found):
        return f"{found} bytes, {size} are right"
    if sha:
        digest = sha256(path) if len(sha) == 64 else git_sha1(path)
        if digest != sha:
            return f"its hash is {digest[:12]}..., {sha[:12]}... is right"
    return ""


def torn(path: Path, name: str) -> str:
    """Why a file cannot be whole, by its own structure; '' where nothing speaks against it.  `name` tells its kind."""
    with path.open("rb") as file:
        if file.read(len(POINTER)) == POINTER:
            return "a Git LFS pointer, not the file itself: `git lfs pull` in that clone brings it"
    try:
        check = {".zip": _zip, ".parquet": _parquet, ".safetensors": _safetensors, ".json": _json}.get(Path(name).suffix)
        return check(path) if check else ""
    except (OSError, ValueError, KeyError, TypeError, AttributeError, struct.error, zipfile.BadZipFile) as error:
        return f"not a whole {Path(name).suffix[1:]} file ({error})"


def _zip(path: Path) -> str:
    """The table of contents, which is at the end, and the first and the last member's own header."""
    with zipfile.ZipFile(path) as archive:
        members = sorted(archive.infolist(), key=lambda member: member.header_offset)
    with path.open("rb") as file:
        for member in {id(one): one for one in (members[:1] + members[-1:])}.values():
            file.seek(member.header_offset)
            if file.read(4) != b"PK\3\4":
                return f"not a whole zip file ({member.filename} is not where the table of contents has it)"
    return ""


def _parquet(path: Path) -> str:
    size = path.stat().st_size
    with path.open("rb") as file:
        start = file.read(4)
        file.seek(max(size - 8, 0))
        end = file.read()
    if size < 12 or start != b"PAR1" or end[4:] != b"PAR1":
        return "not a whole parquet file (its mark PAR1 is missing at the start or the end)"
    length = struct.unpack("<I", end[:4])[0]
    return "" if length <= size - 12 else f"not a whole parquet file (its footer of {length} bytes is longer than the file)"


def _safetensors(path: Path) -> str:
    size = path.stat().st_size
    with path.open("rb") as file:
        length = struct.unpack("<Q", file.read(8))[0]
        if length > size - 8:
            return f"not a whole safetensors file (a header of {length} bytes in a file of {size})"
        header = json.loads(file.read(length))
    ends = [tensor["data_offsets"][1] for name, tensor in header.items() if name != "__metadata__"]
    needed = 8 + length + max(ends, default=0)
    return "" if size == needed else f"not a whole safetensors file ({size} bytes, its header says {needed})"


def _json(path: Path) -> str:
    with path.open("rb") as file:
        start = file.read(4096).lstrip(b"\xef\xbb\xbf \t\r\n")[:1]
        file.seek(max(path.stat().st_size - 4096, 0))
        end = file.read().rstrip()[-1:]
    if (start, end) in ((b"{", b"}"), (b"[", b"]")):
        return ""
    return f"not a whole JSON file (it starts with {start.decode('latin1')!r} and ends with {end.decode('latin1')!r})"
