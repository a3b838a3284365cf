"""Damaged files in the data, between stages and in DVC's records: refused by file and reason, or healed to the same bytes."""

from __future__ import annotations

import json
import random
import re
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from checkouts import ROOT, sh
from published import LIMIT, MARK, job, png, train_set
from test_archives import tarred

from unime import artifacts, shards
from unime.artifacts import ArtifactError
from unime.data import sets
from unime.data.archives import ArchiveError
from unime.data.rows import DataError
from unime.tools.rows import formats
from unime.tools.rows.model import Options

# Rows of a user's own, and images: what is good stays, what is damaged is named


ROW = '{"query_text": "q", "positive_text": "t"}\n'
SECOND = ROW.replace('"q"', '"q2"')


def read(root: Path) -> tuple[int, list[dict]]:
    """Pairs of the set S, and the rows that were left out."""
    _, pairs, report, _ = sets.read_train(str(root), "S", "original", 100, 0, LIMIT, "skip", job(root))
    assert report["left_out"]["count"] == len(report["left_out"]["listed"])
    return len(pairs), report["left_out"]["listed"]


LINES = {
    "NULs at the end": (ROW.encode() + b"\0" * 512, 2, "not JSON"),
    "NULs between": (ROW.encode() + b"\0\0\n" + SECOND.encode(), 2, "not JSON"),
    "Latin-1": (ROW.encode() + ROW.replace('t"}', 'caf\u00e9"}').encode("latin-1"), 2, "not UTF-8"),
    "cut in a row": (ROW.encode() + SECOND.encode()[:20], 2, "not JSON"),
    "conflict marks": (b"<<<<<<< HEAD\n" + ROW.encode(), 1, "not JSON"),
}


@pytest.mark.parametrize("what", LINES)
def test_a_damaged_line_costs_itself_and_is_named(what: str, tmp_path: Path) -> None:
    data, line, reason = LINES[what]
    (tmp_path / "train/S").mkdir(parents=True)
    (tmp_path / "train/S/rows.jsonl").write_bytes(data)
    pairs, (left,) = read(tmp_path)
    assert pairs == data.count(b'"positive_text": "t"}')
    assert left["file"].endswith("S/rows.jsonl") and left["row"] == line and left["reason"].startswith(reason)


WHOLE = {
    "empty": (b"", r"train/S: no usable row of 0"),
    "NULs alone": (b"\0" * 4096, r"rows\.jsonl: no usable row of 1; row 1: not JSON"),
    "UTF-16": (ROW.encode("utf-16"), r"rows\.jsonl: no usable row of 2; row 1: not UTF-8"),
}


@pytest.mark.parametrize("what", WHOLE)
def test_a_file_without_one_good_line_is_refused(what: str, tmp_path: Path) -> None:
    data, reason = WHOLE[what]
    (tmp_path / "train/S").mkdir(parents=True)
    (tmp_path / "train/S/rows.jsonl").write_bytes(data)
    with pytest.raises(DataError, match=reason):
        read(tmp_path)


def pictures(root: Path) -> Path:
    rows = [(MARK + "q", f"images/S/Train/{number}.png", f"t{number}", "") for number in range(3)]
    train_set(root, "S", rows, {f"images/S/Train/{number}.png": png(number) for number in range(3)})
    return root / "train/S/images.zip"


def test_a_zip_member_whose_bytes_are_others_is_named_and_the_others_are_read(tmp_path: Path) -> None:
    archive = pictures(tmp_path)
    data = bytearray(archive.read_bytes())
    at = data.index(png(1)) + 60
    data[at] ^= 0xFF
    archive.write_bytes(bytes(data))
    pairs, (left,) = read(tmp_path)
    assert pairs == 2 and left["row"] == 1 and re.search(r"images\.zip: images/S/Train/1\.png: .*Bad CRC-32", left["reason"])


@pytest.mark.parametrize("kind", ["zip", "tar"])
@pytest.mark.parametrize("share", [0.0, 0.4, 0.98])
def test_a_truncated_archive_is_refused_by_name_with_a_remedy(kind: str, share: float, tmp_path: Path) -> None:
    archive = pictures(tmp_path)
    if kind == "tar":
        archive.unlink()
        archive = archive.with_suffix(".tar")
        tarred(archive, {f"images/S/Train/{number}.png": png(number) for number in range(3)})
    data = archive.read_bytes().rstrip(b"\0")  # a tar ends with blocks of zeros
    archive.write_bytes(data[: int(len(data) * share)])
    with pytest.raises(ArchiveError, match=rf"images\.{kind}: not a whole {kind} archive .*; download it again"):
        read(tmp_path)


def test_a_tar_with_a_name_that_is_not_utf8_is_read(tmp_path: Path) -> None:
    archive = pictures(tmp_path)
    archive.unlink()
    members = {f"caf\udce9/images/S/Train/{number}.png": png(number) for number in range(3)}
    tarred(archive.with_suffix(".tar"), members)
    assert read(tmp_path) == (3, [])


@pytest.mark.parametrize("share", [0.0, 0.5, 0.99])
def test_rows_in_a_truncated_parquet_file_are_refused_by_name(share: float, tmp_path: Path) -> None:
    file = tmp_path / "train/S/rows.parquet"
    file.parent.mkdir(parents=True)
    pl.DataFrame({"query_text": ["q", "q2"], "positive_text": ["t", "t2"]}).write_parquet(file)
    data = file.read_bytes()
    file.write_bytes(data[: int(len(data) * share)])
    with pytest.raises(DataError, match=r"rows\.parquet: not a parquet file that can be read .*; write it again"):
        read(tmp_path)


TABLES = {
    "NULs": b"image,caption\n0.png,\0\0\0\n",
    "UTF-16 without a byte order mark": "image,caption\n0.png,a dog\n".encode("utf-16-le"),
    "UTF-32": "image,caption\n0.png,a dog\n".encode("utf-32"),
    "Latin-1": "image,caption\n0.png,caf\u00e9\n".encode("latin-1"),
}


@pytest.mark.parametrize("what", TABLES)
def test_a_damaged_table_of_captions_is_refused_by_name(what: str, tmp_path: Path) -> None:
    (tmp_path / "0.png").write_bytes(png(0))
    (tmp_path / "captions.csv").write_bytes(TABLES[what])
    with pytest.raises(ValueError, match=r"captions\.csv: not a table of text in UTF-8 .*; save it as CSV in UTF-8"):
        formats.read(tmp_path, Options())


# Artifacts between stages


def values(kind: pl.DataType, number: int) -> object:
    if kind == pl.String:
        return f"id {number * 7919 % 1000}"
    if isinstance(kind, pl.List):
        return [values(kind.inner, number + place) for place in range(3)]
    return number % 2 == 0 if kind == pl.Boolean else number


def table(schema: dict[str, pl.DataType]) -> pl.DataFrame:
    return pl.DataFrame({name: [values(kind, number) for number in range(300)] for name, kind in schema.items()}, schema=schema)


ARTIFACTS = {"items": artifacts.ITEMS, "hits": artifacts.HITS, "judgements": artifacts.JUDGEMENTS, "mined": artifacts.MINED}


@pytest.mark.parametrize("name", ARTIFACTS)
def test_an_artifact_that_is_cut_or_overwritten_is_refused_by_name(name: str, tmp_path: Path) -> None:
    schema, file = ARTIFACTS[name], tmp_path / f"{name}.parquet"
    artifacts.write_table(table(schema), file, schema)
    data = file.read_bytes()
    for bad in (b"", data[:10], data[: len(data) // 2], data[:-1], b"\0" * len(data), data[:-60] + b"\0" * 60):
        file.write_bytes(bad)
        with pytest.raises(ArtifactError, match=rf"{name}\.parquet: cannot be read \(.*\); delete it and run its stage again"):
            artifacts.read_table(file, schema)


@pytest.mark.parametrize("name", ARTIFACTS)
def test_a_flipped_bit_never_ends_a_reader_otherwise_than_by_name(name: str, tmp_path: Path) -> None:
    """Polars panics at some damage.  What reads as another table is found by DVC, which hashes it before a stage reads it."""
    schema, file = ARTIFACTS[name], tmp_path / f"{name}.parquet"
    artifacts.write_table(table(schema), file, schema)
    data, draw, refused = file.read_bytes(), random.Random(0), 0
    for _ in range(200):
        bad = bytearray(data)
        bad[draw.randrange(len(bad))] ^= 1 << draw.randrange(8)
        file.write_bytes(bytes(bad))
        try:
            artifacts.read_table(file, schema)
        except ArtifactError as error:
            assert f"{name}.parquet: " in str(error)
            refused += 1
    assert refused > 20


@pytest.mark.parametrize("end", [0, 5, 20, 160, -1])
def test_truncated_vectors_are_refused_by_name(end: int, tmp_path: Path) -> None:
    artifacts.write_vectors(tmp_path, list("abcdefgh"), np.eye(8, dtype=np.float32))
    file = tmp_path / "vectors.safetensors"
    file.write_bytes(file.read_bytes()[:end])
    with pytest.raises(ArtifactError, match=r"vectors\.safetensors: cannot be read \(.*\); delete it and run its stage again"):
        artifacts.read_vectors(tmp_path)


@pytest.mark.parametrize("cut", [0, 100])
def test_a_torn_shard_is_made_again_to_the_same_bytes(cut: int, tmp_path: Path) -> None:
    """A loss of power can leave a file whose name was on the disk before its bytes were."""
    made: list[int] = []

    def make(shard: list[int]) -> pl.DataFrame:
        made.extend(shard)
        return pl.DataFrame({"id": list(map(str, shard))})

    schema = {"id": pl.String}
    how = {"make": make, "write": lambda frame, place: artifacts.write_table(frame, place, schema), "track": lambda it, total, label: it}

    def run() -> list[pl.DataFrame]:
        return shards.run([[1, 2], [3], [4]], tmp_path, "judged", read=lambda place: artifacts.read_table(place, schema), **how)

    first = run()
    files = {place: place.read_bytes() for place in sorted(tmp_path.iterdir())}
    torn = list(files)[1]
    torn.write_bytes(files[torn][:cut])
    made.clear()
    again = run()
    assert made == [3] and all(one.equals(other) for one, other in zip(first, again, strict=True))
    assert files == {place: place.read_bytes() for place in sorted(tmp_path.iterdir())}


# What DVC keeps


STAGES = """stages:
  make: {cmd: echo ran >> ran.log && cp in out, deps: [in], outs: [out]}
  next: {cmd: cp out last, deps: [out], outs: [last]}
"""


@pytest.fixture
def recorded(tmp_path: Path) -> Path:
    """A checkout of two stages that have run."""
    sh("dvc init -q --no-scm && dvc config core.analytics false", tmp_path)
    (tmp_path / "dvc.yaml").write_text(STAGES)
    (tmp_path / "in").write_text("first\n")
    for stage in ("make", "next"):
        stage_job(tmp_path, stage)
    return tmp_path


def stage_job(root: Path, stage: str, code: int = 0) -> str:
    return sh(f"timeout 60 {sys.executable} '{ROOT / 'workflow/repro.py'}' {stage}", root, code)


CONFLICT = "<<<<<<< HEAD\n{0}=======\n{0}>>>>>>> other\n"
LOCKS: dict[str, Callable[[str], bytes]] = {
    "empty": lambda good: b"",
    "cut in its head": lambda good: good[:20].encode(),
    "conflict marks": lambda good: CONFLICT.format(good).encode(),
    "conflict inside": lambda good: good.replace("  make:\n", "  make:\n" + CONFLICT.format("    cmd: x\n")).encode(),
    "UTF-16": lambda good: good.encode("utf-16"),
    "a list": lambda good: b"[1, 2]\n",
    "NULs": lambda good: b"\0" * len(good),
}


@pytest.mark.parametrize("what", LOCKS)
def test_a_damaged_dvc_lock_is_named_and_nothing_runs(what: str, recorded: Path) -> None:
    lock = recorded / "dvc.lock"
    good = lock.read_text()
    bad = LOCKS[what](good)
    lock.write_bytes(bad)
    assert "If dvc.lock is damaged: `git checkout dvc.lock`" in stage_job(recorded, "make", code=1)
    assert lock.read_bytes() == bad and (recorded / "ran.log").read_text() == "ran\n"
    lock.write_text(good)
    assert "didn't change, skipping" in stage_job(recorded, "make")


def test_a_dvc_lock_that_is_cut_between_its_stages_is_healed_from_the_cache(recorded: Path) -> None:
    lock = recorded / "dvc.lock"
    good = lock.read_text()
    lock.write_text(good[: good.index("  next:")])
    for stage in ("make", "next"):
        stage_job(recorded, stage)
    assert lock.read_text() == good and (recorded / "ran.log").read_text() == "ran\n"


def evil(file: Path) -> None:
    file.chmod(0o644)
    file.write_text("evil\n")


@pytest.mark.parametrize("what", ["a folder in a file's place", "a file in the folder's place"])
def test_a_cache_that_is_no_cache_is_named_with_the_remedy(what: str, recorded: Path) -> None:
    files = recorded / ".dvc/cache/files"
    if what.startswith("a folder"):
        for file in [file for file in files.rglob("*") if file.is_file()]:
            file.unlink()
            file.mkdir()
    else:
        shutil.rmtree(files)
        files.write_text("")
    (recorded / "out").unlink()
    said = stage_job(recorded, "make", code=1)
    assert "cache/files" in said and "remove it: what it held is made, or fetched, again" in said, said


CACHES: dict[str, tuple[str, Callable[[Path], None]]] = {
    "other bytes": ("files", evil),
    "empty": ("files", lambda file: (file.chmod(0o644), file.write_text(""))),
    "gone": ("files", Path.unlink),
    "a damaged record of a run": ("runs", evil),
}


@pytest.mark.parametrize("what", CACHES)
def test_a_damaged_cache_is_never_restored_from(what: str, recorded: Path) -> None:
    folder, damage = CACHES[what]
    good = (recorded / "dvc.lock").read_text()
    found = [file for file in (recorded / ".dvc/cache" / folder).rglob("*") if file.is_file()]
    assert found
    for file in found:
        damage(file)
    (recorded / "out").unlink()
    if folder == "runs":
        (recorded / "dvc.lock").unlink()
    for stage in ("make", "next"):
        stage_job(recorded, stage)
    assert (recorded / "out").read_text() == "first\n" and (recorded / "dvc.lock").read_text() == good
    assert json.dumps((recorded / "ran.log").read_text()) == '"ran\\nran\\n"', "made again, once"
    shutil.rmtree(recorded / ".dvc/tmp", ignore_errors=True)
    (recorded / "out").unlink()
    stage_job(recorded, "make")
    assert (recorded / "out").read_text() == "first\n", "and the cache is whole again"
