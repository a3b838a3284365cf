"""Fetch a request into a folder: whole, checked, with a record of what it is, or not at all.

1. Own copies first (`copies`): linked, never copied.  2. What they do not have: the revision becomes a commit, the repository is
listed, the files are chosen.  3. Is there room?  4. Files come into `scratch`, which a killed run leaves to the next one.  5. Only when
every file is there and right, the folder is put together and takes its name, with `source.json`: what, from where, which
commit, licence, sizes and hashes, and no date, so that two runs which fetched the same are the same.

Refused: huggingface_hub's `snapshot_download`, which starts a file of 13 GB anew after a kill and knows nothing of other hosts, and its
Xet transport for the same reason; a cache shared by all checkouts, since DVC's is one.
"""

from __future__ import annotations

import hashlib
import logging
import os
import shutil
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from unime import artifacts
from unime.fetch import checks, download, hub, select
from unime.fetch import copies as own_copies
from unime.fetch.hub import Hosts
from unime.fetch.need import FetchError, Part, Request, readable, refused
from unime.fetch.select import Chosen

WORKERS = 4
"""Files at once."""

MARGIN = 256 << 20
"""Bytes of a disk that are left free."""

RECORD = "source.json"
"""`fetched_from` of what was not fetched; where they are on this machine is in the log only."""

Track = Callable[..., Iterable[Any]]


@dataclass(frozen=True)
class _Run:
    """What every part of a fetch is told."""

    source: str
    out: Path
    scratch: Path
    copies: Path | None
    hosts: Hosts
    workers: int
    track: Track
    log: logging.Logger


@dataclass(frozen=True)
class _Got:
    """A part that is there: its files, each with its place on this machine and its SHA-256; `own` ones are linked, others move."""

    part: Part
    commit: str
    licence: str
    files: Sequence[tuple[Chosen, Path, str, bool]]


def fetch(
    request: Request,
    out: str | Path,
    *,
    scratch: Path,
    track: Track,
    log: logging.Logger,
    copies: str | Path | None = None,
    hosts: Hosts | None = None,
    workers: int = WORKERS,
    before: Path | None = None,
) -> dict[str, Any]:
    """Make the folder `out` of a request's files and return its record, which is also `out`/source.json.

    `before` is the folder that `out` will replace: what it has of the same commits is used again, and a file in it that was not fetched
    is an error, since it would be lost.

    `track(iterable, total, label)` shows progress in MiB.  `scratch` keeps what a killed run has fetched.  `copies` is the folder of own
    copies, '' or None where there is none.  Raises FetchError; then there is no `out`.
    """
    if copies and not Path(copies).is_dir():
        raise FetchError(f"fetch.copies: {copies} is not a folder; correct it, or set it to null to download")
    own = Path(copies) if copies else None
    run = _Run(request.source, Path(out), Path(scratch), own, hosts or Hosts(), workers, track, log)
    if before is not None and before.exists():
        _keep(before, run.scratch)
    got = [_part(part, run) for part in request.parts]
    with artifacts.whole(out) as folder:
        record = {"source": request.source, "parts": [_put(one, folder) for one in got]}
        artifacts.write_json(record, folder / RECORD)
    return record


def _keep(before: Path, scratch: Path) -> None:
    """Link the whole files of an earlier fetch into `scratch`, where downloads look for what is there already.

    Raises FetchError where the folder holds anything else.
    """
    record = artifacts.read_json(before / RECORD) if (before / RECORD).exists() else {"parts": []}
    known = {file["path"] for part in record["parts"] for file in part["files"]} | {RECORD}
    for path in sorted(before.rglob("*")):
        if not path.is_dir() and (name := path.relative_to(before).as_posix()) not in known and path.name != ".snakemake_timestamp":
            raise FetchError(
                f"{before}: {name} was not fetched, and would be lost; move it elsewhere, or take {before.name} out of fetch.*"
            )
    for part in record["parts"]:
        for file in part["files"] if part["commit"] else []:
            place, old = _scratch(scratch, part["repository"], part["commit"]) / file["from"], before / file["path"]
            if old.exists() and not place.exists() and old.stat().st_size == file["size"] and checks.sha256(old) == file["sha256"]:
                place.parent.mkdir(parents=True, exist_ok=True)
                _link(old, place, own=True)


def _scratch(scratch: Path, repository: str, state: str) -> Path:
    return scratch / "fetch" / repository.replace("/", "--") / state


def summary(record: dict[str, Any]) -> str:
    """What was fetched, in one line: files, bytes, commits."""
    said = []
    for part in record["parts"]:
        size = sum(file["size"] for file in part["files"])
        at = f" at {part['commit']}" if part["commit"] else ""
        said.append(f"{part['repository']}{at}: {len(part['files'])} files, {readable(size)} ({part['licence']})")
    return "; ".join(said)


def _part(part: Part, run: _Run) -> _Got:
    there = own_copies.held(part, run.copies) if run.copies else None
    extra = own_copies.own(part, there) if there else []
    for want in part.wants:
        if want.own and not select.matching(want.pattern, [it.file.path for it in extra]):
            place = f"{part.repository}/{want.pattern}"
            run.log.warning("%s is not in the repository, and left out; own copies may hold it: <fetch.copies>/%s", place, place)
    published = replace(part, wants=tuple(want for want in part.wants if not want.own))
    files = own_copies.chosen(published, there) if there else None
    if there and files is not None:
        if not there.commit and part.kind != "web":
            run.log.warning("%s: nothing in %s says which commit it is; recorded as unknown", part.repository, there.folder)
        return _Got(part, there.commit, part.licence, _linked(there, files + extra, run))
    got = _downloaded(published, run)
    return replace(got, files=[*got.files, *_linked(there, extra, run)]) if there else got


def _linked(there: own_copies.Held, files: list[Chosen], run: _Run) -> list[tuple[Chosen, Path, str, bool]]:
    if not files:
        return []
    digests = own_copies.check(there, files)
    unknown = sum(not it.file.sha for it in files)
    run.log.info("%d files from %s, %d of them with no published hash to compare", len(files), there.folder, unknown)
    return [(it, there.folder / it.file.path, digests[it.file.path], True) for it in files]


def _downloaded(part: Part, run: _Run) -> _Got:
    host, listing = run.hosts.of(part), hub.listing(part, run.hosts)
    try:
        files = select.choose(part, listing.files)
    except select.Absent as absent:
        at = f" at commit {listing.commit}" if listing.commit else ""
        raise refused(part, f"it does not hold{at} all that is asked for", host, str(absent)) from None
    if listing.commit and listing.commit != part.revision:
        said = "%s: %s is commit %s now; write that into the configuration to get the same files again"
        run.log.warning(said, part.repository, part.revision, listing.commit)
    # A folder a commit; on a plain server, a folder a state of its files.
    state = listing.commit or hashlib.sha256(repr([(it.file.url, it.file.size) for it in files]).encode()).hexdigest()[:16]
    folder = _scratch(run.scratch, part.repository, state)
    folder.mkdir(parents=True, exist_ok=True)
    wanted = [it.file for it in files]
    total, left = sum(file.size for file in wanted), download.remaining(wanted, folder)
    names = ", ".join(file.path for file in wanted[:6]) + (f" and {len(wanted) - 6} more" if len(wanted) > 6 else "")
    what = f"{names} ({readable(left)} of {readable(total)})"
    _room(part, host, what, {folder: left} | ({} if _same_disk(folder, run.out) else {run.out.parent: total}))
    run.log.info("%s: %d files, %s, %s of them to come", listing.address, len(wanted), readable(total), readable(left))
    come = download.fetch_all(wanted, folder, listing.headers, run.workers, lambda file: run.log.info("%s is whole", file.path))
    try:
        for _ in run.track(come, -(-left // download.MIB), f"{run.source}: MiB of {part.repository}"):
            pass
    except download.Failed as failed:
        raise refused(part, str(failed), host, what) from failed
    except hub.PROBLEMS as error:
        raise hub.refusal(error, part, run.hosts, what) from error
    finally:
        come.close()  # `track` may end without the generator's end: no thread outlives this call
    placed = [(it, folder / it.file.path, _digest(it, folder), False) for it in files]
    return _Got(part, listing.commit, listing.licence or part.licence, placed)


def _digest(it: Chosen, folder: Path) -> str:
    """A fetched file's SHA-256: the published one, which has been compared, else computed."""
    return it.file.sha if len(it.file.sha) == 64 else checks.sha256(folder / it.file.path)


def _same_disk(folder: Path, out: Path) -> bool:
    out.parent.mkdir(parents=True, exist_ok=True)
    return folder.stat().st_dev == out.parent.stat().st_dev


def _room(part: Part, host: str, what: str, needed: dict[Path, int]) -> None:
    for folder, size in needed.items():
        free = shutil.disk_usage(folder).free
        if size and size + MARGIN > free:
            lacking = f"the disk of {folder} has {readable(free)} free, {readable(size + MARGIN)} are needed"
            raise refused(part, f"{lacking}: free {readable(size + MARGIN - free)}, or ask for fewer sets or tasks", host, what)


def _put(got: _Got, folder: Path) -> dict[str, Any]:
    """Put a part's files into the folder and describe them."""
    files = []
    for it, place, digest, own in got.files:
        target = folder / it.to
        if target.exists():
            raise FetchError(f"{got.part.repository}: two files would become {it.to}; this is a fault of unime/fetch/sources.py")
        target.parent.mkdir(parents=True, exist_ok=True)
        _link(place, target, own)
        files.append({"path": it.to, "from": it.file.path, "size": target.stat().st_size, "sha256": digest})
    return {
        "repository": got.part.repository,
        "commit": got.commit or None,
        "licence": got.licence,
        "files": sorted(files, key=lambda file: file["path"]),
    }


def _link(place: Path, target: Path, own: bool) -> None:
    """A hard link where the file system allows one; else a symbolic link to an own file (never a copy), or a move of a fetched one.

    A fetched file that is linked stays in scratch too, for a run that fails after this.
    """
    real = place.resolve(strict=True)
    try:
        os.link(real, target)
    except OSError:  # another file system, or links are forbidden or used up
        if own:
            target.symlink_to(real)
        else:
            shutil.move(real, target)
