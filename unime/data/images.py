"""Images where they are: in zip archives or folders, read by member name, checked before anything is believed.

No archive is unpacked.  A process keeps one open handle per archive; a forked child opens its own, because a shared file offset
would mix the bytes of two readers.  Whatever is wrong with one image is a BadImage with file, member and reason; a broken archive
is an ArchiveError, since it is no property of one row.
"""

from __future__ import annotations

import hashlib
import io
import os
import struct
import threading
import zipfile
import zlib
from collections import OrderedDict
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePosixPath

from PIL import Image

# Pillow's own bomb limit is a fixed global; ours is a setting and is checked on the header, before a pixel is decoded.
Image.MAX_IMAGE_PIXELS = None
Image.init()  # all formats are known before any thread asks

_FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM")  # a JPEG of several pictures (MPO) is one of the first
_MAX_BYTES = 1 << 29  # of one encoded image: a zip bomb is refused before it is inflated
_MAX_OPEN = 64  # archives a process keeps open
_AHEAD = 4096  # images handed to the decoding threads at a time

# What Pillow's plugins raise for damaged or hostile files: OSError (truncated, unidentified), SyntaxError (PNG, TIFF structure),
# ValueError (chunk sizes), and the others from numbers in headers that make no sense.
_DAMAGED = (OSError, SyntaxError, ValueError, EOFError, zlib.error, struct.error, ArithmeticError, LookupError, TypeError, MemoryError)

_lock = threading.RLock()
_open: OrderedDict[tuple[int, str], Archive] = OrderedDict()


class BadImage(ValueError):
    """One image cannot be used; `file` is the archive or folder, `member` the name in it, `reason` a short text."""

    def __init__(self, file: str, member: str, reason: str):
        super().__init__(file, member, reason)
        self.file, self.member, self.reason = file, member, reason

    def __str__(self) -> str:
        return f"{self.file}: {self.member}: {self.reason}"


class ArchiveError(ValueError):
    """An archive as a whole cannot be read; the message names file, reason and remedy."""


class Archive:
    """A zip file or a folder of images.  `find` resolves a row's path to a member name, `read` gives a member's bytes."""

    def __init__(self, path: str):
        self.path = path
        self._tails: dict[str, list[str]] | None = None
        self._zip: zipfile.ZipFile | None = None
        if os.path.isdir(path):
            return
        try:
            self._zip = zipfile.ZipFile(path)
        except FileNotFoundError:
            raise ArchiveError(f"{path}: no such archive; download it or correct data.root") from None
        except (zipfile.BadZipFile, OSError, ValueError) as error:
            raise ArchiveError(f"{path}: not a whole zip archive ({error}); download it again") from error

    @property
    def forks(self) -> int:
        """macOS resource forks (`._` entries) in a zip; 0 for a folder, which is not walked."""
        return sum(PurePosixPath(name).name.startswith("._") for name in self._zip.namelist()) if self._zip is not None else 0

    def has(self, member: str) -> bool:
        if self._zip is not None:
            return member in self._zip.NameToInfo
        return _inside(member) and os.path.isfile(os.path.join(self.path, member))

    def find(self, row_path: str) -> str | None:
        """The member that a row's path means, or None.

        The path itself; else the path without some of its leading folders (an archive made inside one of them); else, in a zip, the
        only member that ends with the whole path (an archive made outside).  Never a mere equal file name in another folder.
        """
        parts = PurePosixPath(row_path.replace("\\", "/")).parts
        for start in range(len(parts)):
            member = "/".join(parts[start:])
            if self.has(member):
                return member
        if self._zip is None or not parts:
            return None
        if self._tails is None:
            self._tails = {}
            for name in self._zip.namelist():
                self._tails.setdefault(name.rsplit("/", 1)[-1], []).append(name)
        longer = [name for name in self._tails.get(parts[-1], ()) if name.endswith("/" + "/".join(parts))]
        return longer[0] if len(longer) == 1 else None

    def read(self, member: str) -> bytes:
        """The member's bytes.  Raises BadImage where it is missing, no image file, damaged or unreasonably large."""
        if PurePosixPath(member).name.startswith("._"):
            raise BadImage(self.path, member, "a macOS resource fork (._ entry), not an image")
        if not self.has(member):
            raise BadImage(self.path, member, "no such image")
        try:
            if self._zip is None:
                path = Path(self.path, member)
                _bounded(self.path, member, path.stat().st_size)
                return path.read_bytes()
            _bounded(self.path, member, self._zip.getinfo(member).file_size)
            return self._zip.read(member)
        except (zipfile.BadZipFile, zlib.error, EOFError, OSError, RuntimeError, NotImplementedError) as error:
            raise BadImage(self.path, member, f"its bytes cannot be read ({error})") from error


def archive(path: str) -> Archive:
    """This process's handle of an archive, opened once.  Raises ArchiveError."""
    key = (os.getpid(), path)
    with _lock:
        found = _open.get(key)
        if found is None:
            found = _open[key] = Archive(path)
            while len(_open) > _MAX_OPEN:
                _open.popitem(last=False)
        _open.move_to_end(key)
        return found


def open_image(path: str, member: str, max_pixels: int) -> Image.Image:
    """The decoded RGB image.  Raises BadImage."""
    return decode(archive(path).read(member), max_pixels, path, member)


def decode(data: bytes, max_pixels: int, file: str, member: str) -> Image.Image:
    """Decode an image's bytes to RGB.  Raises BadImage where they are no whole image, or one of more than `max_pixels`."""
    image = header(data, max_pixels, file, member)
    with _named(file, member):
        return image.convert("RGB")


def header(data: bytes, max_pixels: int, file: str, member: str) -> Image.Image:
    """The image with its header read and no pixel decoded: `.size` is known.  Raises BadImage."""
    if not data:
        raise BadImage(file, member, "an empty file")
    with _named(file, member):
        image = Image.open(io.BytesIO(data), formats=_FORMATS)
    width, height = image.size
    if width * height > max_pixels:
        raise BadImage(file, member, f"{width}x{height} = {width * height} pixels, more than data.max_pixels {max_pixels}")
    return image


def check(path: str, member: str, max_pixels: int) -> bytes:
    """The SHA-256 digest of an image's bytes, after proving that it decodes to its end.  Raises BadImage."""
    data = archive(path).read(member)
    image = header(data, max_pixels, path, member)
    with _named(path, member):
        # A JPEG is decoded at an eighth of its size: the whole stream is read, so a truncated one is found, at a third of the time.
        image.draft("L", (max(1, image.size[0] // 8), max(1, image.size[1] // 8)))
        image.load()
    return hashlib.sha256(data).digest()


def check_all(places: Iterable[tuple[str, str]], max_pixels: int, threads: int) -> Iterator[bytes | BadImage]:
    """`check` of every (archive, member), in order: its digest, or what is wrong with it.  Decoding runs on `threads` threads."""

    def one(place: tuple[str, str]) -> bytes | BadImage:
        try:
            return check(*place, max_pixels)
        except BadImage as bad:
            return bad

    places = list(places)
    with ThreadPoolExecutor(max(1, threads)) as pool:
        for start in range(0, len(places), _AHEAD):  # a bounded number of waiting jobs, however many images there are
            yield from pool.map(one, places[start : start + _AHEAD])


class _named:
    """Turns every error that Pillow raises for damaged bytes into a BadImage."""

    def __init__(self, file: str, member: str):
        self.file, self.member = file, member

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: type | None, error: BaseException | None, trace: object) -> None:
        if isinstance(error, BadImage) or error is None:
            return
        if isinstance(error, _DAMAGED):
            reason = "not an image that can be read" if isinstance(error, Image.UnidentifiedImageError) else f"does not decode ({error})"
            raise BadImage(self.file, self.member, reason) from error


def _inside(member: str) -> bool:
    parts = PurePosixPath(member).parts
    return bool(parts) and ".." not in parts and not PurePosixPath(member).is_absolute()


def _bounded(file: str, member: str, size: int) -> None:
    if size > _MAX_BYTES:
        raise BadImage(file, member, f"{size} bytes, more than {_MAX_BYTES}")
