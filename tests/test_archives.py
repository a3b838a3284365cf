"""Every kind of archive gives the same images, to threads and forked processes, and a torn one is named."""

from __future__ import annotations

import gzip
import hashlib
import io
import multiprocessing
import tarfile
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from published import LIMIT, png

from unime.data import archives, checks, images, parquet
from unime.data.archives import ArchiveError, BadImage

COUNT = 70  # more than two windows of a parquet file
PNGS = [png(i) for i in range(COUNT)]


def tarred(path: Path, members: dict[str, bytes], links: dict[str, str] | None = None) -> Path:
    with tarfile.open(path, "w") as tar:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
        for name, target in (links or {}).items():
            info = tarfile.TarInfo(name)
            info.type, info.linkname = tarfile.LNKTYPE, target
            tar.addfile(info)
    return path


def place(kind: str, folder: Path) -> tuple[str, list[str]]:
    """The same images in an archive of this kind: its path and the members in order."""
    names = [f"d/{i}.png" for i in range(COUNT)]
    members = dict(zip(names, PNGS, strict=True))
    if kind == "zip":
        with zipfile.ZipFile(folder / "a.zip", "w") as archive:
            for name, data in members.items():
                archive.writestr(name, data)
        return str(folder / "a.zip"), names
    if kind == "tar":
        return str(tarred(folder / "a.tar", members)), names
    if kind == "folder":
        (folder / "a/d").mkdir(parents=True)
        for name, data in members.items():
            (folder / "a" / name).write_bytes(data)
        return str(folder / "a"), names
    column = [{"bytes": data, "path": f"{i}.png"} for i, data in enumerate(PNGS)] if kind == "struct" else PNGS
    frame = pl.DataFrame({"text": ["x"] * COUNT, "image": column})
    frame.write_parquet(folder / "a.parquet", row_group_size=20)
    return str(folder / "a.parquet"), [f"image/{i}" for i in range(COUNT)]


KINDS = ["zip", "tar", "folder", "struct", "binary"]


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_gives_the_same_bytes_in_any_order(kind: str, tmp_path: Path):
    path, names = place(kind, tmp_path)
    order = np.random.default_rng(0).permutation(COUNT)
    assert [archives.archive(path).read(names[i]) for i in order] == [PNGS[i] for i in order]
    assert images.open_image(path, names[3], LIMIT).size == (28, 28)
    assert checks.check(path, names[3], LIMIT) == hashlib.sha256(PNGS[3]).digest()
    assert archives.archive(path).find(names[5]) == names[5] and archives.archive(path).find("other/x") is None


@pytest.mark.parametrize("kind", KINDS)
def test_threads_read_one_archive_together(kind: str, tmp_path: Path):
    path, names = place(kind, tmp_path)
    order = list(np.random.default_rng(1).permutation(np.repeat(np.arange(COUNT), 4)))
    with ThreadPoolExecutor(6) as pool:
        found = list(pool.map(lambda i: archives.archive(path).read(names[i]), order))
    assert found == [PNGS[i] for i in order]


def _read_all(path: str, names: list[str]) -> list[bytes]:
    return [archives.archive(path).read(name) for name in names]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("opened", [True, False])
def test_forked_processes_read_what_the_parent_has_or_has_not_open(kind: str, opened: bool, tmp_path: Path):
    """Polars in a forked child would wait for ever for threads that only its parent has."""
    path, names = place(kind, tmp_path)
    if opened:
        assert _read_all(path, names[:2]) == PNGS[:2]
    with multiprocessing.get_context("fork").Pool(2) as pool:
        results = [pool.apply_async(_read_all, (path, names)) for _ in range(2)]
        assert _read_all(path, names) == PNGS
        assert all(result.get(60) == PNGS for result in results)


def test_a_forked_child_names_what_is_wrong_too(tmp_path: Path):
    frame = pl.DataFrame({"image": [b"x", None]})
    frame.write_parquet(tmp_path / "a.parquet")
    (tmp_path / "torn.parquet").write_bytes((tmp_path / "a.parquet").read_bytes()[:-6])
    with multiprocessing.get_context("fork").Pool(1) as pool:
        with pytest.raises(BadImage, match="a.parquet: image/1: its bytes cannot be read .the row holds no bytes"):
            pool.apply(_read_all, (str(tmp_path / "a.parquet"), ["image/1"]))
        with pytest.raises(ArchiveError, match="torn.parquet: not a whole parquet file"):
            pool.apply(_read_all, (str(tmp_path / "torn.parquet"), ["image/0"]))


def test_a_parquet_file_is_never_held_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(parquet, "_WINDOWS", 2)
    path, names = place("struct", tmp_path)
    read, windows = [], parquet._WORK["window"]
    monkeypatch.setitem(parquet._WORK, "window", lambda *arguments: read.append(arguments[-1]) or windows(*arguments))
    archive = archives.archive(path)
    for name in names:
        archive.read(name)
    assert read == [0, 32, 64] and len(archive._inside._windows) == 2, "in order, each window is read once"
    archive.read(names[0])
    assert read == [0, 32, 64, 0]
    monkeypatch.setattr(parquet, "_HELD", 10)
    archive.read(names[-1])
    archive.read(names[40])
    assert len(archive._inside._windows) == 1, "large images: the newest window only"


@pytest.mark.parametrize("member", ["image/70", "image/-1", "image/01", "text/0", "other/0", "image/", "image"])
def test_what_is_no_row_of_an_image_column_is_no_member(member: str, tmp_path: Path):
    path, _ = place("struct", tmp_path)
    with pytest.raises(BadImage, match="no such image"):
        archives.archive(path).read(member)


@pytest.mark.parametrize("kind", KINDS)
def test_a_damaged_image_is_named_and_the_others_are_read(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(globals(), "PNGS", [*PNGS[:7], PNGS[7][:100], b"", *PNGS[9:]])
    path, names = place(kind, tmp_path)
    results = list(checks.check_all([(path, name) for name in names], LIMIT, 2))
    assert [i for i, result in enumerate(results) if isinstance(result, BadImage)] == [7, 8]
    assert (results[7].file, results[7].member) == (path, names[7]) and "an empty file" in str(results[8])


def test_a_row_without_bytes_is_a_bad_image(tmp_path: Path):
    rows = [None, {"bytes": None, "path": "elsewhere.jpg"}, {"bytes": PNGS[0], "path": None}]
    pl.DataFrame({"image": rows}, schema={"image": pl.Struct({"bytes": pl.Binary, "path": pl.String})}).write_parquet(
        tmp_path / "a.parquet"
    )
    path = str(tmp_path / "a.parquet")
    for row in (0, 1):
        with pytest.raises(BadImage, match=f"image/{row}: .*holds no bytes"):
            checks.check(path, f"image/{row}", LIMIT)
    assert checks.check(path, "image/2", LIMIT)


def test_a_bomb_is_refused_in_every_kind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(archives, "_MAX_BYTES", 100)
    for kind in KINDS:
        path, names = place(kind, tmp_path)
        with pytest.raises(BadImage, match=r"\d+ bytes, more than 100"):
            archives.archive(path).read(names[0])


@pytest.mark.parametrize("kind", ["zip", "tar", "struct"])
def test_an_archive_cut_anywhere_is_an_error_of_the_archive(kind: str, tmp_path: Path):
    path, names = place(kind, tmp_path)
    whole = Path(path).read_bytes()
    end = len(whole.rstrip(b"\0")) if kind == "tar" else len(whole)
    suffix = Path(path).suffix
    cuts = [0, 1, 600, end // 2, end // 2 - 1, end - 1000, end - 1]
    # a tar that stops between two members, or loses a header in the middle, is one that tarfile takes for whole
    cuts += [tarfile.open(path).getmember(names[40]).offset] if kind == "tar" else []
    for number, size in enumerate(cuts):
        torn = tmp_path / f"torn{number}{suffix}"
        torn.write_bytes(whole[:size])
        with pytest.raises(ArchiveError, match=f"torn{number}{suffix}: not a whole (zip|tar|parquet) .*; download it again"):
            archives.archive(str(torn))
    if kind == "tar":
        at = tarfile.open(path).getmember(names[40]).offset
        (tmp_path / "hole.tar").write_bytes(whole[:at] + b"\xff" * 512 + whole[at + 512 :])
        with pytest.raises(ArchiveError, match="no member and no end mark at byte .*, after 40 members"):
            archives.archive(str(tmp_path / "hole.tar"))


def test_damage_inside_a_parquet_file_costs_the_rows_read_with_it_and_no_others(tmp_path: Path):
    path, names = place("struct", tmp_path)
    data = bytearray(Path(path).read_bytes())
    start = data.index(PNGS[0]) - 200  # the header of the first page of images
    data[start : start + 150] = bytes(255 - b for b in data[start : start + 150])
    Path(path).write_bytes(data)
    bad = [isinstance(result, BadImage) for result in checks.check_all([(path, name) for name in names], LIMIT, 1)]
    assert any(bad) and not any(bad[2 * parquet._ROWS :])


@pytest.mark.parametrize("name", ["a.tar.gz", "a.tgz"])
def test_a_compressed_tar_is_refused_with_the_remedy(name: str, tmp_path: Path):
    (tmp_path / name).write_bytes(gzip.compress(tarred(tmp_path / "b.tar", {"x.png": PNGS[0]}).read_bytes()))
    with pytest.raises(ArchiveError, match=f"{name}: a compressed tar archive cannot be read in places; decompress it once: gunzip {name}"):
        archives.archive(str(tmp_path / name))
    (tmp_path / "c.tar").write_bytes((tmp_path / name).read_bytes())
    with pytest.raises(ArchiveError, match="c.tar: a compressed tar archive .*: rename it to c.tar.gz, then gunzip"):
        archives.archive(str(tmp_path / "c.tar"))


def test_hard_links_and_leading_dots_of_a_tar_are_followed(tmp_path: Path):
    path = str(tarred(tmp_path / "a.tar", {"./d/x.png": PNGS[0], "d/._x.png": b"Mac"}, {"d/y.png": "./d/x.png"}))
    assert archives.archive(path).read("d/y.png") == archives.archive(path).read("d/x.png") == PNGS[0]
    assert archives.archive(path).forks == 1 and archives.archive(path).find("x.png") == "d/x.png"


def test_a_tar_that_shrank_after_it_was_opened_gives_no_half_image(tmp_path: Path):
    path, names = place("tar", tmp_path)
    archive = archives.archive(path)
    with open(path, "r+b") as file:
        file.truncate(2000)
    with pytest.raises(BadImage, match="its bytes cannot be read"):
        archive.read(names[-1])


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_gives_the_start_of_a_member(kind: str, tmp_path: Path):
    path, members = place(kind, tmp_path)
    found = archives.Archive(path)
    for count in (1, 20, 10_000_000):
        assert [found.start(member, count) for member in members] == [data[:count] for data in PNGS]
    with pytest.raises(BadImage, match="no such image"):
        found.start("other", 10)
