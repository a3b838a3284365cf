"""Which of a repository's files a part asks for: patterns, groups of numbered files, what is never taken."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import PurePosixPath

from unime import config
from unime.fetch.need import Part, Want

NEVER = (".bin", ".pth", ".pt", ".ckpt", ".pkl", ".py")
NUMBERED = re.compile(r"(.*-)(\d{5})(-of-)(\d{5})(.*)")


@dataclass(frozen=True)
class File:
    """One published file: `sha` is a SHA-256 (64 hex digits), git's SHA-1 (40) or '' (not known), `size` bytes, -1 where not known."""

    path: str
    size: int = -1
    sha: str = ""
    url: str = ""


@dataclass(frozen=True)
class Chosen:
    """A file and its place in the fetched folder."""

    file: File
    to: str


class Absent(ValueError):
    """A repository lacks files that are asked for; the message names them, and what comes nearest."""


def matching(pattern: str, paths: Sequence[str]) -> list[str]:
    """The paths that a pattern means, sorted; its `*` does not reach over a `/`, and what is NEVER taken does not match."""
    names = pattern.split("/")
    found = []
    for path in paths:
        parts = path.split("/")
        if len(parts) == len(names) and all(map(fnmatchcase, parts, names)) and PurePosixPath(path).suffix not in NEVER:
            found.append(path)
    return sorted(found)


def choose(part: Part, files: Mapping[str, File]) -> list[Chosen]:
    """The files of a part, each once, in the order of its wants.  Raises Absent, for all that is missing at once."""
    chosen: dict[str, Chosen] = {}
    absent = []
    for want in part.wants:
        found = matching(want.pattern, list(files))
        if not found and not want.optional:
            absent.append(_absent(want, list(files)))
        for path in found:
            absent += [f"{other} (beside {path})" for other in siblings(path) if not _is_there(other, files)]
            place = want.to.replace("{path}", path).replace("{name}", PurePosixPath(path).name)
            chosen.setdefault(path, Chosen(files[path], place))
    if absent:
        raise Absent(", ".join(dict.fromkeys(absent)))
    return list(chosen.values())


def siblings(path: str) -> list[str]:
    """All names of a group of files that is numbered -00000-of-00003 or -00001-of-00003, this one's too; none for another name."""
    match = NUMBERED.fullmatch(path)
    if not match:
        return []
    before, number, of, count, after = match.groups()
    first = 0 if path.endswith(".parquet") else 1  # data sets count from 0, shards of weights from 1
    if int(number) == (0 if first else int(count)):
        first = 1 - first
    return [f"{before}{index:05d}{of}{count}{after}" for index in range(first, first + int(count))]


def _is_there(part: str, files: Mapping[str, File]) -> bool:
    """Whether a numbered file is there; each may have a hash of its own behind its number."""
    match = NUMBERED.fullmatch(part)
    if part in files or match is None:
        return part in files
    start, suffix = part.removesuffix(match[5]), PurePosixPath(part).suffix
    return any(file.startswith(start) and file.endswith(suffix) and PurePosixPath(file).suffix not in NEVER for file in files)


def _absent(want: Want, paths: list[str]) -> str:
    if want.pattern.endswith(".safetensors"):
        folder = PurePosixPath(want.pattern).parent
        pickles = [path for path in paths if PurePosixPath(path).parent == folder and PurePosixPath(path).suffix in NEVER[:5]]
        if pickles:
            return (
                f"{want.pattern} (there is {', '.join(pickles[:3])}, a pickle, which can run code and is not fetched; "
                "name a revision that has safetensors, or convert it and use fetch.copies)"
            )
    if not paths:
        return f"{want.pattern} (there is no file at all)"
    near = config.nearest(want.pattern, paths)
    return want.pattern + (f" ({near[2:]})" if near.startswith("; nearest") else "")
