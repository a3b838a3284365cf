"""Answers that are equal but for their form are counted, and are one item where that is asked for."""

from __future__ import annotations

import io
import json
import unicodedata
import zipfile
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from PIL import Image
from published import LIMIT, job

from unime.data import sets
from unime.data.copies import form

PIXELS = np.random.default_rng(0).integers(0, 256, (30, 40, 3), dtype=np.uint8)


def saved(kind: str, pixels: np.ndarray = PIXELS, **more: object) -> bytes:
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, kind, **more)
    return out.getvalue()


def own(root: Path, rows: list[dict], members: dict[str, bytes], part: str = "train") -> None:
    folder = root / part / "S"
    folder.mkdir(parents=True)
    (folder / "rows.jsonl").write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    with zipfile.ZipFile(folder / "images.zip", "w") as archive:
        for name, data in members.items():
            archive.writestr(name, data)


def train(root: Path, copies: str) -> tuple[pl.DataFrame, pl.DataFrame, dict]:
    items, pairs, report, _ = sets.read_train(str(root), "S", "original", 1000, 0, LIMIT, "fail", job(root), copies=copies)
    return items, pairs, report


CAFE = unicodedata.normalize("NFC", "a café")
FORMS = [CAFE, unicodedata.normalize("NFD", CAFE), f" {CAFE}", f"{CAFE}\n", f"{CAFE}\t ", f"{CAFE}\r\n"]


def test_texts_of_one_form_are_counted_and_stay_apart_unless_merging_is_asked_for(tmp_path: Path) -> None:
    texts = [*FORMS, "A CAFÉ", "a  café", "two\nlines", "two\r\nlines", "two\rlines", "twolines"]
    own(tmp_path, [{"query_text": f"question {number}", "positive_text": text} for number, text in enumerate(texts)], {})
    _, pairs, report = train(tmp_path, "keep")
    assert pairs["positive"].n_unique() == len(texts) and report["equal_but_for_form"] == len(FORMS) - 1 + 2
    items, pairs, report = train(tmp_path, "merge")
    one, lines = pairs["positive"][: len(FORMS)], pairs["positive"][len(FORMS) + 2 : len(FORMS) + 5]
    assert one.n_unique() == 1 and lines.n_unique() == 1 and pairs["positive"].n_unique() == len(texts) - (len(FORMS) - 1) - 2
    assert report["equal_but_for_form"] == 0 and report["duplicate_candidates"] == len(FORMS) - 1 + 2
    assert items.filter(pl.col("id") == one[0])["text"][0] == texts[0], "the first as it is written"


def test_a_picture_saved_anew_is_the_same_picture_and_a_lossy_or_another_one_is_not(tmp_path: Path) -> None:
    other = PIXELS.copy()
    other[3, 3, 0] ^= 1
    members = {
        "a.png": saved("PNG"),
        "b.bmp": saved("BMP"),
        "c.webp": saved("WEBP", lossless=True),
        "d.png": saved("PNG", compress_level=1),
    }
    members |= {"e.png": saved("PNG", other), "f.jpg": saved("JPEG"), "g.png": saved("PNG", PIXELS.reshape(40, 30, 3))}
    own(tmp_path, [{"query_text": f"show {name}", "positive_image": name} for name in members], members)
    _, pairs, _ = train(tmp_path, "keep")
    assert pairs["positive"].n_unique() == 7
    items, pairs, report = train(tmp_path, "merge")
    assert pairs["positive"][:4].n_unique() == 1 and pairs["positive"].n_unique() == 4 and report["duplicate_candidates"] == 3
    first = items.filter(pl.col("id") == pairs["positive"][0])
    assert first["member"][0] == "a.png" and set(items["member"]) == {"", "a.png", "e.png", "f.jpg", "g.png"}


def test_a_picture_with_other_words_is_another_item_in_any_case(tmp_path: Path) -> None:
    rows = [{"query_text": f"q {text}{name}", "positive_text": text, "positive_image": name} for text in ("a", "b", "b ") for name in "xy"]
    own(tmp_path, rows, {"x": saved("PNG"), "y": saved("BMP")})
    _, pairs, report = train(tmp_path, "merge")
    assert pairs["positive"].n_unique() == 2 and len(pairs) == 6 and report["pairs"] == 6
    _, pairs, report = train(tmp_path, "keep")
    assert pairs["positive"].n_unique() == 6 and report["equal_but_for_form"] == 2


def test_a_pair_that_is_there_in_two_forms_is_one_pair(tmp_path: Path) -> None:
    rows = [
        {"query_text": "q", "positive_text": "a"},
        {"query_text": "q ", "positive_text": "a\n"},
        {"query_text": "r", "positive_text": "b"},
    ]
    own(tmp_path, rows, {})
    assert len(train(tmp_path, "keep")[1]) == 3
    _, pairs, report = train(tmp_path, "merge")
    assert len(pairs) == 2 and report["duplicate_pairs"] == 1


@pytest.mark.parametrize(("copies", "count"), [("keep", 3), ("merge", 2)])
def test_a_task_merges_too_so_that_no_wrong_candidate_is_the_right_one(tmp_path: Path, copies: str, count: int) -> None:
    rows = [{"query_text": f"q{number}", "positive_text": text} for number, text in enumerate(["a", "a ", "b"])]
    own(tmp_path, rows, {}, "eval")
    _, tasks, report = sets.read_eval(str(tmp_path), "S", LIMIT, "fail", job(tmp_path), copies=copies)
    assert tasks["candidates"].list.n_unique().to_list() == [count] * 3
    assert report["equal_but_for_form"] == (copies == "keep")


def test_a_querys_own_picture_under_any_name_is_no_wrong_candidate_of_an_open_row(tmp_path: Path) -> None:
    """Picture to picture: the query is a picture with an instruction, the candidates are the pictures of all rows."""
    pictures = {f"{number}.png": saved("PNG", np.full((30, 40, 3), 10 * number, np.uint8)) for number in range(4)}
    pictures["copy of 0.png"] = pictures["0.png"]
    find = "Find a picture like this."
    rows = [
        {"query_text": find, "query_image": "0.png", "positive_image": "1.png"},
        {"query_text": find, "query_image": "1.png", "positive_image": "0.png"},
        {"query_text": find, "query_image": "2.png", "positive_image": "copy of 0.png"},
        {"query_text": find, "query_image": "3.png", "positive_image": "3.png"},
    ]
    own(tmp_path, rows, pictures, "eval")
    items, tasks, _ = sets.read_eval(str(tmp_path), "S", LIMIT, "fail", job(tmp_path))
    name = dict(items.select("id", "member").iter_rows())
    found = [[name[id] for id in row] for row in tasks["candidates"]]
    assert found == [["1.png", "3.png"], ["0.png", "3.png"], ["0.png", "1.png", "3.png"], ["3.png", "1.png", "0.png"]]


@pytest.mark.parametrize(
    ("text", "other"), [("é", "e\u0301"), ("Å", "\u212b"), ("a\r\nb", "a\nb"), ("\u00a0a", "a"), ("\ud55c", "\u1112\u1161\u11ab")]
)
def test_forms_that_are_one(text: str, other: str) -> None:
    assert form(text) == form(other)


@pytest.mark.parametrize(("text", "other"), [("a b", "a  b"), ("A", "a"), ("ﬁ", "fi"), ("a\nb", "a b"), ("x²", "x2"), ("é", "e")])
def test_forms_that_are_two(text: str, other: str) -> None:
    assert form(text) != form(other)
