"""Own copies: what the user has already takes the place of a download.

A folder may hold repositories in two forms, and need not hold all of them:

1. `<folder>/<owner>/<name>/<path in the repository>`, as `hf download --local-dir` and `git clone` leave it;
2. Hugging Face's cache: `<folder>/models--<owner>--<name>/snapshots/<commit>/<path>`, `datasets--...` for data.

Size and hash of a file are known from the cache (its blobs are named by them), from `hf download`'s own records, from a
`SHA256SUMS` or a `source.json` beside the files; the commit from the first two and the last.  What nobody knows is checked by the
file's own structure only.  A part of which the folder holds every file comes from there; one of which it holds nothing is downloaded;
anything between is an error, since a folder put together from two versions would say of itself that it is one.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from unime.fetch import checks, select
from unime.fetch.need import FetchError, Part, missing
from unime.fetch.select import Chosen, File

COMMIT = re.compile(r"[0-9a-f]{40}")
HASH = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")


@dataclass(frozen=True)
class Held:
    """A repository among own copies: its folder, its commit ('': not known), its files by path."""

    folder: Path
    commit: str
    files: Mapping[str, File]


def held(part: Part, copies: Path) -> Held | None:
    """What own copies have of a part's repository, None if nothing that is asked for.  Raises FetchError where it is another commit."""
    plain = copies / part.repository
    if plain.is_dir():
        found = _plain(plain, part)
    else:
        kind = {"dataset": "datasets", "model": "models"}.get(part.kind, part.kind)
        cache = copies / f"{kind}--{part.repository.replace('/', '--')}"
        snapshot = _snapshot(cache, part) if (cache / "snapshots").is_dir() else None
        if snapshot is None:
            return None
        found = Held(snapshot, snapshot.name, {path: _blob(file, path) for path, file in _walk(snapshot).items()})
    if not _asked_for(part, found.files):
        return None
    if COMMIT.fullmatch(part.revision) and found.commit and found.commit != part.revision:
        raise FetchError(
            f"{found.folder}: a copy of {part.repository} at commit {found.commit}, asked for is {part.revision}; "
            "write the copy's commit into the configuration, or take this copy away to download the other"
        )
    return found


def _asked_for(part: Part, files: Collection[str]) -> bool:
    """Whether any of these paths is wanted."""
    return any(select.matching(want.pattern, list(files)) for want in part.wants)


def own(part: Part, there: Held) -> list[Chosen]:
    """The files that can only come from own copies, as far as they are there."""
    return select.choose(replace(part, wants=tuple(want for want in part.wants if want.own)), there.files)


def chosen(part: Part, there: Held) -> list[Chosen] | None:
    """The files of a part, if own copies have them all; None if they have none.  Raises FetchError, naming what is missing."""
    if not _asked_for(part, there.files):
        return None
    try:
        return select.choose(part, there.files)
    except select.Absent as absent:
        raise FetchError(
            f"{there.folder}: own copies hold some of what is asked for of {part.repository}, not all; missing there: {absent}. "
            f"Put it there too, or take away what is there ({missing(part)}) and it is downloaded"
        ) from None


def check(there: Held, files: list[Chosen]) -> dict[str, str]:
    """The SHA-256 of every file, by path.  Raises FetchError naming every file that is not whole or not the published one."""
    digests, bad = {}, []
    for it in files:
        path = there.folder / it.file.path
        wrong = checks.torn(path, it.file.path) or checks.differs(path, size=it.file.size, sha=it.file.sha)
        if wrong:
            bad.append(f"{path}: {wrong}")
        else:
            digests[it.file.path] = checks.sha256(path)
    if bad:
        raise FetchError(f"own copies: {'; '.join(bad)}. Put the right file there, or take it away and it is downloaded")
    return digests


def _plain(folder: Path, part: Part) -> Held:
    sums, commits = dict(_sums(folder)), set()
    for record in sorted(folder.glob(".cache/huggingface/download/**/*.metadata")):
        lines = record.read_text(encoding="utf-8").split("\n")
        path = record.relative_to(folder / ".cache/huggingface/download").as_posix().removesuffix(".metadata")
        if len(lines) >= 2 and HASH.fullmatch(lines[1]):
            if any(select.matching(want.pattern, [path]) for want in part.wants):
                commits.add(lines[0])
            sums.setdefault(path, (-1, lines[1]))
    for one in _recorded(folder, part):
        commits |= {one["commit"]} if one.get("commit") else set()
        for file in one.get("files", []):
            sums.setdefault(file["from"], (file["size"], file["sha256"]))
    for want in part.wants:
        if want.sha:
            sums[want.pattern] = (-1, want.sha)
    if len(commits) > 1:
        raise FetchError(f"{folder}: a copy put together from commits {', '.join(sorted(commits))}; download it again at one of them")
    files = {path: File(path, *sums.get(path, (-1, ""))) for path in _walk(folder)}
    return Held(folder, "".join(commits), files)


def _sums(folder: Path) -> dict[str, tuple[int, str]]:
    """`SHA256SUMS`, as sha256sum writes it: a hash, two characters, a path."""
    file = folder / "SHA256SUMS"
    lines = file.read_text(encoding="utf-8").splitlines() if file.is_file() else []
    return {line[66:].removeprefix("./"): (-1, line[:64].lower()) for line in lines if HASH.fullmatch(line[:64].lower())}


def _recorded(folder: Path, part: Part) -> list[dict[str, Any]]:
    file = folder / "source.json"
    if not file.is_file():
        return []
    try:
        record = json.loads(file.read_text(encoding="utf-8"))
        return [one for one in record["parts"] if one["repository"] == part.repository]
    except (ValueError, KeyError, TypeError) as error:
        raise FetchError(f"{file}: not a source.json of this project ({error!r}); take it away") from error


def _snapshot(cache: Path, part: Part) -> Path | None:
    """Of the snapshots that hold what is asked for: the one of that revision (a commit, or a name the cache knows), or the only one."""
    there = sorted(path for path in (cache / "snapshots").iterdir() if path.is_dir() and _asked_for(part, _walk(path)))
    reference = cache / "refs" / part.revision
    asked = reference.read_text(encoding="utf-8").strip() if part.revision and reference.is_file() else part.revision
    for path in there:
        if path.name == asked:
            return path
    if len(there) > 1:
        raise FetchError(f"{cache}: several commits ({', '.join(path.name for path in there)}); write one of them into the configuration")
    return there[0] if there else None


def _walk(folder: Path) -> dict[str, Path]:
    """Files by path, without what starts with a dot (.git, .cache)."""
    found = {}
    for above, below, names in os.walk(folder):
        below[:] = sorted(name for name in below if not name.startswith("."))
        for name in sorted(names):
            if not name.startswith("."):
                path = Path(above, name)
                found[path.relative_to(folder).as_posix()] = path
    return found


def _blob(file: Path, path: str) -> File:
    """A file of the cache: a link to a blob that is named by its hash (a copy, where links cannot be made: nothing is known)."""
    name = os.path.basename(os.readlink(file)) if file.is_symlink() else ""
    return File(path, -1, name if HASH.fullmatch(name) else "")
