"""Where images lie: folders, zip archives, plain tar archives and parquet files, read by member name and never unpacked.

A process keeps one open handle an archive, used by all its threads; a forked child opens its own, because a shared file offset would
mix the bytes of two readers.  Whatever is wrong with one image is a BadImage with file, member and reason; a broken archive is an
ArchiveError, since it is no property of one row.  Compressed tar archives are refused: to read one member, all before it would have
to be inflated.  A member of a parquet file is `<column>/<row>`; see `parquet`.
"""

from __future__ import annotations

import functools
import os
import tarfile
import threading
import zipfile
import zlib
from collections import OrderedDict
from collections.abc import Callable, Iterable
from pathlib import Path, PurePosixPath
from typing import Protocol

from unime.data import parquet

_MAX_BYTES = 1 << 29  # of one encoded image: a zip bomb is refused before it is inflated
_MAX_OPEN = 64  # archives a process keeps open
_TAR_BLOCK = 512
_COMPRESSED = {".gz": "gunzip", ".tgz": "gunzip", ".bz2": "bunzip2", ".xz": "unxz", ".zst": "unzstd"}
_MAGIC = {b"\x1f\x8b": ".gz", b"BZh": ".bz2", b"\xfd7": ".xz", b"(\xb5": ".zst"}
_REFUSED = "{}: a compressed tar archive cannot be read in places; decompress it once: {}"

_lock = threading.RLock()
_open: OrderedDict[str, Archive] = OrderedDict()


class BadImage(ValueError):
    """One image cannot be used; `file` is the archive or folder, `member` the name in it, `reason` a short text."""

    def __init__(self, file: str, member: str, reason: str):
        super().__init__(file, member, reason)
        self.file, self.member, self.reason = file, member, reason

    def __str__(self) -> str:
        return f"{self.file}: {self.member}: {self.reason}"


class ArchiveError(ValueError):
    """An archive as a whole cannot be read; the message names file, reason and remedy."""


class Container(Protocol):
    """What an archive needs to know of its kind of file."""

    def names(self) -> Iterable[str]:
        """All members, where they are known at once; nothing for a folder, which is not walked, or a parquet file."""

    def has(self, member: str) -> bool: ...

    def size(self, member: str) -> int:
        """Bytes of a member that is there."""

    def read(self, member: str) -> bytes: ...

    def start(self, member: str, count: int) -> bytes:
        """The first `count` bytes, or all where there are fewer."""


class Archive:
    """One place of images.  `find` resolves a row's path to a member name, `read` gives a member's bytes, `start` the first of them."""

    def __init__(self, path: str):
        self.path = path
        self._tails: dict[str, list[str]] | None = None
        try:
            self._inside = _container(path)
        except FileNotFoundError:
            raise ArchiveError(f"{path}: no such archive; download it or correct data.root") from None
        except (zipfile.BadZipFile, tarfile.TarError, parquet.Torn, OSError, ValueError, EOFError) as error:
            if isinstance(error, ArchiveError):
                raise
            raise ArchiveError(f"{path}: not a whole {_kind(path)} ({error}); download it again") from error

    @property
    def forks(self) -> int:
        """macOS resource forks (`._` entries) in a zip or tar; 0 for a folder, which is not walked."""
        return sum(PurePosixPath(name).name.startswith("._") for name in self._inside.names())

    def names(self) -> Iterable[str]:
        """All members of a zip or tar; nothing for a folder or a parquet file."""
        return self._inside.names()

    def has(self, member: str) -> bool:
        return self._inside.has(member)

    def find(self, row_path: str) -> str | None:
        """The member that a row's path means, or None: the path itself, else `longer`, else `shorter`."""
        path = whole(row_path)
        return path if self.has(path) else self.longer(path) or self.shorter(path)

    def longer(self, path: str) -> str | None:
        """The only member of a zip or tar that ends with the whole path (an archive made outside)."""
        if self._tails is None:
            tails: dict[str, list[str]] = {}
            for name in self._inside.names():
                tails.setdefault(name.rsplit("/", 1)[-1], []).append(name)
            self._tails = tails
        found = [name for name in self._tails.get(path.rsplit("/", 1)[-1], ()) if name.endswith(f"/{path}")]
        return found[0] if len(found) == 1 else None

    def shorter(self, path: str) -> str | None:
        """The path without as few of its leading folders as lead to a member (an archive made inside one of them)."""
        parts = path.split("/")
        return next((member for start in range(1, len(parts)) if self.has(member := "/".join(parts[start:]))), None)

    def read(self, member: str) -> bytes:
        """The member's bytes.  Raises BadImage where it is missing, no image file, damaged or unreasonably large."""
        return self._read(member, self._inside.read)

    def start(self, member: str, count: int) -> bytes:
        """The member's first `count` bytes, enough for most headers; what follows is neither read nor checked.  Raises BadImage."""
        return self._read(member, lambda member: self._inside.start(member, count))

    def _read(self, member: str, read: Callable[[str], bytes]) -> bytes:
        if PurePosixPath(member).name.startswith("._"):
            raise BadImage(self.path, member, "a macOS resource fork (._ entry), not an image")
        if not self.has(member):
            raise BadImage(self.path, member, "no such image")
        try:
            size = self._inside.size(member)
            if size > _MAX_BYTES:
                raise BadImage(self.path, member, f"{size} bytes, more than {_MAX_BYTES}")
            return read(member)
        except (zipfile.BadZipFile, zlib.error, parquet.Torn, EOFError, OSError, RuntimeError, NotImplementedError) as error:
            raise BadImage(self.path, member, f"its bytes cannot be read ({error})") from error


def archive(path: str) -> Archive:
    """This process's handle of an archive, opened once.  Raises ArchiveError."""
    with _lock:
        found = _open.get(path)
        if found is None:
            found = _open[path] = Archive(path)
            while len(_open) > _MAX_OPEN:
                _open.popitem(last=False)
        _open.move_to_end(path)
        return found


def whole(row_path: str) -> str:
    """A row's path as archives write it: slashes, no `./`."""
    return PurePosixPath(row_path.replace("\\", "/")).as_posix()


def beside(folder: Path) -> list[Path]:
    """Where images that belong to a folder's rows may lie, best first: images.zip, images.tar, images/.

    A compressed tar is among them, so that it is refused with the remedy instead of passed over.
    """
    return [folder / name for name in ("images.zip", "images.tar", "images.tar.gz", "images.tgz", "images")]


def below(folder: Path) -> list[Path]:
    """As `beside`, then the folder itself, if images may lie in folders of it."""
    return beside(folder) + ([folder] if folder.is_dir() and any(place.is_dir() for place in folder.iterdir()) else [])


def _forget() -> None:
    """A forked child starts without its parent's handles, and with a lock that no thread of the parent holds."""
    global _lock, _open
    _lock, _open = threading.RLock(), OrderedDict()


os.register_at_fork(after_in_child=_forget)


def _kind(path: str) -> str:
    return {".tar": "tar archive", ".parquet": "parquet file"}.get(PurePosixPath(path).suffix, "zip archive")


def _container(path: str) -> Container:
    if os.path.isdir(path):
        return _Folder(path)
    if os.path.exists(path) and not os.path.isfile(path):
        raise ArchiveError(f"{path}: not a file but a FIFO, socket or device; remove it, or correct data.root")
    suffix = PurePosixPath(path).suffix
    if suffix == ".tar":
        return _Tar(path)
    if suffix == ".parquet":
        return parquet.Parquet(path)
    if suffix in _COMPRESSED:
        raise ArchiveError(_REFUSED.format(path, f"{_COMPRESSED[suffix]} {PurePosixPath(path).name}"))
    return _Zip(path)


class _Folder:
    def __init__(self, path: str):
        self.path = path

    def names(self) -> Iterable[str]:
        return ()

    def has(self, member: str) -> bool:
        parts = PurePosixPath(member).parts
        inside = bool(parts) and ".." not in parts and not PurePosixPath(member).is_absolute()
        return inside and os.path.isfile(os.path.join(self.path, member))

    def size(self, member: str) -> int:
        return os.path.getsize(os.path.join(self.path, member))

    def read(self, member: str) -> bytes:
        return Path(self.path, member).read_bytes()

    def start(self, member: str, count: int) -> bytes:
        with open(os.path.join(self.path, member), "rb") as file:
            return file.read(count)


class _Zip:
    def __init__(self, path: str):
        self._zip = zipfile.ZipFile(path)

    def names(self) -> Iterable[str]:
        return self._zip.NameToInfo

    def has(self, member: str) -> bool:
        return member in self._zip.NameToInfo

    def size(self, member: str) -> int:
        return self._zip.getinfo(member).file_size

    def read(self, member: str) -> bytes:
        return self._zip.read(member)

    def start(self, member: str, count: int) -> bytes:
        with self._zip.open(member) as file:
            return file.read(count)


class _Tar:
    """A plain tar: an index of where each member's bytes lie, then reads at a place, which no other reader's offset disturbs."""

    def __init__(self, path: str):
        self._file = open(path, "rb", buffering=0)
        status = os.fstat(self._file.fileno())
        self._index = _tar_index(path, status.st_size, status.st_mtime_ns)

    def names(self) -> Iterable[str]:
        return self._index

    def has(self, member: str) -> bool:
        return member in self._index

    def size(self, member: str) -> int:
        return self._index[member][1]

    def read(self, member: str) -> bytes:
        start, size = self._index[member]
        data = os.pread(self._file.fileno(), size, start)
        if len(data) < size:
            raise EOFError(f"{len(data)} of {size} bytes are there")
        return data

    def start(self, member: str, count: int) -> bytes:
        start, size = self._index[member]
        return os.pread(self._file.fileno(), min(size, count), start)


def _compressed(start: bytes) -> str | None:
    """The suffix of the compression that a file's first bytes tell of."""
    return next((suffix for magic, suffix in _MAGIC.items() if start.startswith(magic)), None)


@functools.lru_cache(maxsize=_MAX_OPEN)  # what a process has read of an archive, the children forked from it need not
def _tar_index(path: str, size: int, changed: int) -> dict[str, tuple[int, int]]:
    """Member -> (offset, bytes) of a tar of this size.  Raises tarfile.TarError where it does not end as a whole one does.

    tarfile takes a file that stops between two members, or a damaged header after the first, for the archive's end.
    """
    index: dict[str, tuple[int, int]] = {}
    with open(path, "rb") as file:
        if suffix := _compressed(file.read(3)):
            raise ArchiveError(_REFUSED.format(path, f"rename it to {PurePosixPath(path).name}{suffix}, then {_COMPRESSED[suffix]}"))
        file.seek(0)
        with tarfile.open(fileobj=file, mode="r:", errors="backslashreplace") as tar:
            for info in tar:
                name, end = info.name.removeprefix("./"), info.offset_data + info.size
                if info.isreg() and not info.sparse:
                    index[name] = (info.offset_data, info.size)
                    if end > size:
                        raise tarfile.ReadError(f"it ends inside {name}")
                elif info.islnk() and (first := index.get(info.linkname.removeprefix("./"))):
                    index[name] = first
            file.seek(tar.offset)
            if file.read(_TAR_BLOCK) != bytes(_TAR_BLOCK):
                raise tarfile.ReadError(f"no member and no end mark at byte {tar.offset:,}, after {len(index):,} members")
    return index
