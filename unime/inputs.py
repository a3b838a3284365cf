"""Whether everything below an input can be read, and is seen by DVC too: plain files in plain folders, or links to files.

DVC hashes an input before its stage runs.  It waits for ever at a FIFO, does not look through a link to a folder (what changes there
would go unnoticed, and an old result would be taken for the new one), and reads what a link to a file points at.  So a link to a file is
an input like any other, and so is one to the input itself or to a folder above it; anything else that is no file or folder is refused,
before DVC or the stage meets it.

Imports the standard library only: workflow/dvc.smk asks here before DVC hashes anything.
"""

from __future__ import annotations

import os
import shlex
import stat
from pathlib import Path

SHOWN = 5
"""Problems of one input that a message lists; it counts the others."""

_KINDS = (
    (stat.S_ISFIFO, "a FIFO"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
)


def problems(path: Path) -> list[str]:
    """What below an input (a folder or a file) cannot be read or tracked, one line each: path, reason, remedy; none if it is missing.

    The path itself, and the folders above it, may be links.
    """
    if not os.path.isdir(path):
        there = os.path.lexists(path)
        problem = _of_file(path) if there else None
        return [problem] if problem else []
    unreadable = _of_folder(path)
    if unreadable:
        return [unreadable]
    found: list[str] = []
    for folder, folders, files in os.walk(path):
        for name in sorted(folders):
            problem = _of_folder_below(Path(folder, name))
            if problem:
                found.append(problem)
            if problem or _in_the_making(name):
                folders.remove(name)
        folders.sort()
        for name in sorted(files):
            problem = None if _in_the_making(name) else _of_file(Path(folder, name))
            if problem:
                found.append(problem)
    return found


def told(found: list[str]) -> str:
    """The first of the problems, a line each, and how many more there are."""
    lines = found[:SHOWN]
    if len(found) > SHOWN:
        lines.append(f"and {len(found) - SHOWN} more such files or folders")
    return "\n".join(lines)


def shown(path: Path) -> str:
    """A path as a message can hold it: on one line, whatever bytes are in it."""
    text = os.fspath(path)
    return text if text.isprintable() else repr(os.fsencode(path))


def _in_the_making(name: str) -> bool:
    """Whether a file or folder is a temporary one of another stage, which may be gone at the next look."""
    return name.startswith(".") and name.endswith(".tmp")


def _of_folder_below(path: Path) -> str | None:
    if path.is_symlink():
        target = shown(Path(os.path.realpath(path)))
        link = shlex.quote(shown(path))  # the command may be pasted into a shell
        return (
            f"{shown(path)}: a link to the folder {target}; DVC does not look through it, so changes there would go unnoticed; put a copy "
            f"in its place, or links to its files (rm -- {link} && cp -rs -- {shlex.quote(target)} {link})"
        )
    if path.name == ".dvc":
        return f"{shown(path.parent)}: a DVC repository of its own (.dvc), which DVC does not look into; move or remove its .dvc"
    return _of_name(path) or _of_folder(path)


def _of_folder(path: Path) -> str | None:
    if not os.access(path, os.R_OK | os.X_OK):
        return f"{shown(path)}: no permission to list this folder; chmod u+rx"
    return None


def _of_file(path: Path) -> str | None:
    """Why a file cannot be an input, or None; a link is followed."""
    if path.name == ".dvcignore":
        return f"{shown(path)}: DVC refuses a .dvcignore inside an input; remove it"
    try:
        mode = path.stat().st_mode
    except OSError as error:
        if path.is_symlink():
            return f"{shown(path)}: a link to {shown(Path(os.readlink(path)))}, which leads nowhere; put its target back or remove the link"
        return f"{shown(path)}: cannot be looked at ({error.strerror}); correct or remove it"
    for is_kind, kind in _KINDS:
        if is_kind(mode):
            return f"{shown(path)}: {kind}, not a file; whoever reads it may wait for ever; remove it"
    if not os.access(path, os.R_OK):
        return f"{shown(path)}: no permission to read it; chmod u+r"
    return _of_name(path)


def _of_name(path: Path) -> str | None:
    try:
        os.fsencode(path.name).decode("utf-8")
    except UnicodeDecodeError:
        return f"{shown(path)}: its name is not UTF-8, which DVC cannot record; rename it"
    return None
