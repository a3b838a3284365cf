"""The files of a folder: which look like pictures, which are hidden, and what a path in a table means."""

from __future__ import annotations

import os
import unicodedata
from functools import cached_property
from pathlib import Path, PurePosixPath

from unime.data import archives
from unime.tools.rows.model import Place

PICTURES = frozenset(
    ".jpg .jpeg .jpe .jfif .mpo .png .webp .gif .bmp .tif .tiff .ppm .pgm .pbm .heic .heif .avif .jxl .jp2 .svg .ico .psd .dng .cr2 .nef "
    ".arw .raw".split()
)
"""Suffixes of files that a user takes for pictures.  Some of these formats cannot be read; such files are counted and named."""


def is_picture(name: str) -> bool:
    """Whether a file's name is that of a picture."""
    return PurePosixPath(name).suffix.lower() in PICTURES


def is_hidden(name: str) -> bool:
    """Whether a file is hidden, or one of those that macOS adds: `._x.jpg`, `.DS_Store`, all in `__MACOSX/`."""
    parts = PurePosixPath(name).parts
    return "__MACOSX" in parts or any(part.startswith(".") and part != ".." for part in parts)


class Folder:
    """A folder's files by name (the path in it, with slashes), hidden ones counted and left out."""

    def __init__(self, root: Path):
        self.root = root
        self.hidden = 0
        self.files: list[str] = []
        for folder, folders, files in os.walk(root):
            folders.sort()
            for file in files:
                name = Path(folder, file).relative_to(root).as_posix()
                if is_hidden(name):
                    self.hidden += 1
                else:
                    self.files.append(name)
        self.files.sort()
        self._outside: dict[str, Place] = {}

    @cached_property
    def pictures(self) -> list[str]:
        """Names of the files that look like pictures."""
        return [name for name in self.files if is_picture(name)]

    @cached_property
    def _names(self) -> frozenset[str]:
        return frozenset(self.files)

    @cached_property
    def _composed(self) -> dict[str, list[str]]:
        """Names in Unicode's composed form -> names as they are: macOS writes an accent as a character of its own, tables do not."""
        found: dict[str, list[str]] = {}
        for name in self.files:
            found.setdefault(unicodedata.normalize("NFC", name), []).append(name)
        return found

    @cached_property
    def _tails(self) -> dict[str, list[str]]:
        """Composed last parts -> composed names."""
        found: dict[str, list[str]] = {}
        for name in self._composed:
            found.setdefault(name.rpartition("/")[2], []).append(name)
        return found

    def file(self, path: str, below: str = "") -> str | None:
        """The name of the file that a path in a table means, or None.

        First the path as seen from folder `below` (where the table lies), then from the root, then the only file whose name ends with
        the whole path: the pictures of a table often lie in a folder beside it.  An absolute path is taken as it is.
        """
        path = archives.whole(path.strip().removeprefix("file://"))
        if not path or path == ".":
            return None
        if PurePosixPath(path).is_absolute():
            return self._absolute(path)
        if ".." in PurePosixPath(path).parts:
            path = os.path.normpath(PurePosixPath(below, path)).replace(os.sep, "/")
        for name in (PurePosixPath(below, path).as_posix(), path):
            if name in self._names:
                return name
            composed = self._composed.get(unicodedata.normalize("NFC", name), [])
            if len(composed) == 1:
                return composed[0]
        return self._ending(unicodedata.normalize("NFC", path))

    def _ending(self, path: str) -> str | None:
        last = path.rpartition("/")[2]
        names = [name for name in self._tails.get(last, ()) if name.endswith(f"/{path}")]
        if len(names) != 1:
            return None
        written = self._composed[names[0]]
        return written[0] if len(written) == 1 else None

    def _absolute(self, path: str) -> str | None:
        file = Path(path)
        if not file.is_file():
            return None
        if file.is_relative_to(self.root.resolve()):
            name = file.relative_to(self.root.resolve()).as_posix()
            return name if name in self._names else None
        name = path.lstrip("/")
        self._outside[name] = (file.parent.as_posix(), file.name)
        return name

    def place(self, name: str) -> Place:
        """Where the file of that name lies."""
        return self._outside.get(name) or (self.root.as_posix(), name)
