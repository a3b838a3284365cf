"""Bad input is named with file, row and reason; what can be skipped is skipped, counted and listed, and the good rows go on."""

from __future__ import annotations

from pathlib import Path

import polars as pl
import pytest
from published import LIMIT, MARK, job, png, task, train_set, zipped

from unime.data import mmeb, rows
from unime.data.archives import ArchiveError
from unime.data.rows import DataError

IMAGE = "images/S/Train/{}.png"
GOOD = (MARK + "q\n", IMAGE.format("good"), "t\n", "")

BAD_ROWS = {
    "missing image": ((MARK + "q", IMAGE.format("none"), "t", ""), r"the query image '.*none.png' is not in .*S/images.zip"),
    "truncated image": ((MARK + "q", IMAGE.format("cut"), "t", ""), "the query image .*cut.png: (does not decode|not an image)"),
    "resource fork": ((MARK + "q", "images/S/Train/._x.png", "t", ""), r"the query image .*\._x.png: a macOS resource fork"),
    "image bomb": (("q", "", MARK + "t", IMAGE.format("huge")), r"the positive image .*101x100 = 10100 pixels, more than .* 10000"),
    "no image file": (("q", "", MARK + "t", IMAGE.format("text")), "the positive image .*text.png: not an image that can be read"),
    "neither, query": (("", "", "t", ""), "the query has neither text nor image"),
    "neither, positive": (("q", "", "", ""), "the positive has neither text nor image"),
    "a mark and nothing else": (("q", "", MARK, ""), "the positive has neither text nor image"),
    "two marks without image": ((MARK + MARK + "q", "", "t", ""), "the query its text has 2 image marks"),
    "two marks": ((MARK + MARK + "q", IMAGE.format("good"), "t", ""), "the query its text has 2 image marks"),
}


def write_train(root: Path, bad: list[tuple[str, str, str, str]]) -> Path:
    """Row 0 is good, then the bad rows, then another good one; an image that nobody names and a fork lie in the archive too."""
    members = {
        IMAGE.format("good"): png(0),
        IMAGE.format("cut"): png(1)[:200],
        IMAGE.format("huge"): png(2, (101, 100)),
        IMAGE.format("text"): b"not an image at all",
        "images/S/Train/._x.png": b"Mac OS X",
        "__MACOSX/images/S/Train/._good.png": b"Mac OS X",
    }
    return train_set(root, "S", [GOOD, *bad, ("last\n", "", "t2\n", "")], members)


def read_train(root: Path, bad_rows: str = "skip", name: str = "S"):
    return mmeb.read_train(str(root), name, "original", 50_000, 0, LIMIT, bad_rows, job(root))


@pytest.mark.parametrize("what", BAD_ROWS)
def test_a_bad_training_row_is_left_out_and_listed(what: str, tmp_path: Path):
    row, reason = BAD_ROWS[what]
    file = write_train(tmp_path, [row])
    _, pairs, report, _ = read_train(tmp_path)
    assert pairs["row"].to_list() == [0, 2]
    (listed,) = report["left_out"]["listed"]
    assert (listed["file"], listed["row"]) == (file.as_posix(), 1)
    assert report["left_out"]["count"] == 1
    with pytest.raises(DataError, match=f"original-00000-of-00001.parquet: row 1: {reason}.*bad_rows"):
        read_train(tmp_path, "fail")


def test_all_bad_rows_are_counted_and_the_good_ones_go_on(tmp_path: Path):
    write_train(tmp_path, [row for row, _ in BAD_ROWS.values()])
    items, pairs, report, _ = read_train(tmp_path)
    assert pairs["row"].to_list() == [0, len(BAD_ROWS) + 1]
    left_out = report["left_out"]
    assert left_out["count"] == len(left_out["listed"]) == len(BAD_ROWS)
    assert set(items["id"]) == {*pairs["query"], *pairs["positive"]}  # nothing of a bad row is kept
    assert report["resource_forks"] == 2


def test_a_long_list_is_cut_and_the_count_is_of_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(rows, "LISTED", 4)
    write_train(tmp_path, [("", "", "t", "")] * 7)
    left_out = read_train(tmp_path)[2]["left_out"]
    assert (left_out["count"], len(left_out["listed"])) == (7, 4)


def test_a_set_without_one_good_row_is_refused(tmp_path: Path):
    train_set(tmp_path, "S", [("", "", "t", "")], {})
    with pytest.raises(DataError, match="no usable row of 1; row 0: the query has neither"):
        read_train(tmp_path)


RIGHT, WRONG = "right", "wrong"
BAD_QUERIES = {
    "empty list": (("q", "", [], []), "the candidate list is empty"),
    "no list": (("q", "", None, None), "the candidate list is empty"),
    "unequal lists": (("q", "", ["a", "b"], [""]), "tgt_text has 2 entries, tgt_img_path 1"),
    "right answer absent": (("q", "", ["", "b"], ["", ""]), r"the right answer \(index 0\) is absent: it has neither text nor image"),
    "right image missing": (("q", "", [MARK, "b"], ["S/none.png", ""]), r"the right answer \(index 0\) is absent: it image '.*none.png'"),
    "query without anything": (("", "", ["a", "b"], ["", ""]), "the query has neither text nor image"),
    "query's image truncated": ((MARK, "S/cut.png", ["a", "b"], ["", ""]), "the query image .*cut.png: does not decode"),
    "only the right one left": (("q", "", ["a", ""], ["", ""]), "no candidate is left beside the right one"),
}


def write_eval(root: Path, bad: list) -> Path:
    zipped(root / "eval/images.zip", {"S/good.png": png(0), "S/cut.png": png(1)[:200]})
    good = (MARK + "q", "S/good.png", [RIGHT, WRONG], ["", ""])
    return task(root, "S", [good, *bad, good])


def read_eval(root: Path, bad_rows: str = "skip"):
    return mmeb.read_eval(str(root), "S", LIMIT, bad_rows, job(root))


@pytest.mark.parametrize("what", BAD_QUERIES)
def test_a_bad_query_is_left_out_and_listed(what: str, tmp_path: Path):
    row, reason = BAD_QUERIES[what]
    file = write_eval(tmp_path, [row])
    _, tasks, report = read_eval(tmp_path)
    assert tasks["row"].to_list() == [0, 2]
    (listed,) = report["left_out"]["listed"]
    assert (listed["file"], listed["row"]) == (file.as_posix(), 1)
    with pytest.raises(DataError, match=f"test-00000-of-00001.parquet: row 1: {reason}.*bad_rows"):
        read_eval(tmp_path, "fail")


def test_a_bad_wrong_candidate_costs_the_candidate_and_not_the_query(tmp_path: Path):
    write_eval(tmp_path, [("q", "", [RIGHT, MARK, WRONG, ""], ["", "S/cut.png", "", ""])])
    _, tasks, report = read_eval(tmp_path)
    assert tasks["candidates"][1].to_list() == tasks["candidates"][0].to_list()
    assert report["left_out"]["count"] == 0
    reasons = [(one["row"], one["reason"]) for one in report["candidates_left_out"]["listed"]]
    assert [row for row, _ in reasons] == [1, 1]
    assert reasons[0][1].startswith("candidate 1 image") and reasons[1][1] == "candidate 3 has neither text nor image"
    with pytest.raises(DataError, match="row 1: candidate 1 image"):
        read_eval(tmp_path, "fail")


def test_an_unknown_data_set_is_refused_with_the_nearest_one(tmp_path: Path):
    write_train(tmp_path, [])
    train_set(tmp_path, "MSCOCO_i2t", [("q", "", "t", "")], {})
    write_eval(tmp_path, [])
    with pytest.raises(DataError, match="unknown data set 'MSCOCO_it2'; nearest: 'MSCOCO_i2t'"):
        read_train(tmp_path, name="MSCOCO_it2")
    with pytest.raises(DataError, match="unknown data set 'T'"):
        mmeb.read_eval(str(tmp_path), "T", LIMIT, "skip", job(tmp_path))
    with pytest.raises(DataError, match="no diverse_instruction-.*parquet; found original-00000"):
        mmeb.read_train(str(tmp_path), "S", "diverse_instruction", 10, 0, LIMIT, "skip", job(tmp_path))
    with pytest.raises(DataError, match="no such folder; data.root must hold train/"):
        read_train(tmp_path / "elsewhere")


def test_a_wrong_column_is_named(tmp_path: Path):
    file = write_train(tmp_path, [])
    frame = pl.read_parquet(file)
    frame.rename({"pos_text": "pos_txt"}).write_parquet(file)
    with pytest.raises(DataError, match="original-.*: column 'pos_text' is missing; nearest: 'pos_txt'"):
        read_train(tmp_path)
    frame.with_columns(qry=pl.lit(3)).write_parquet(file)
    with pytest.raises(DataError, match="original-.*: column 'qry' is Int32, needed String; all 2 rows are lost by it"):
        read_train(tmp_path)
    file = write_eval(tmp_path, [])
    frame = pl.read_parquet(file)
    frame.with_columns(tgt_text=pl.lit("a")).write_parquet(file)
    with pytest.raises(DataError, match="no usable row of 2; row 0: tgt_text is one string, a, where tgt_img_path is a list"):
        read_eval(tmp_path)
    frame.with_columns(tgt_text=pl.lit("a"), tgt_img_path=pl.lit("")).write_parquet(file)
    with pytest.raises(DataError, match=r"test-.*: column 'tgt_text' is String, needed List\(String\); all 2 rows are lost by it"):
        read_eval(tmp_path)


@pytest.mark.parametrize("share", [0.0, 0.5])
def test_what_is_no_whole_parquet_file_is_named(share: float, tmp_path: Path):
    file = write_train(tmp_path, [])
    data = file.read_bytes()
    file.write_bytes(data[: int(len(data) * share)] or b"<html>Too many requests</html>")
    with pytest.raises(DataError, match="original-.*: not a parquet file that can be read"):
        read_train(tmp_path)


def test_a_truncated_or_missing_archive_is_refused_whatever_bad_rows_says(tmp_path: Path):
    write_train(tmp_path, [])
    archive = tmp_path / "train/S/images.zip"
    archive.write_bytes(archive.read_bytes()[:-40])
    with pytest.raises(ArchiveError, match="S/images.zip: not a whole zip archive"):
        read_train(tmp_path)
    archive.unlink()
    with pytest.raises(DataError, match="no image archive: none of .*S/images.zip"):
        read_train(tmp_path)
