"""The published scores become mined negatives: every row finds its set and its items, and what is wrong is named by file and row."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from published import LIMIT, MARK, job, png, train_set

from unime import artifacts
from unime.data import mmeb, rows
from unime.data.items import Items
from unime.data.rows import DataError, Shelf
from unime.mine import published
from unime.mine.lookup import config_of

ASK, FIND, SHOW = MARK + "What is it?\n", "Find it: thing {}\n", MARK + "Represent the given image.\n"


def path(name: str, number: int) -> str:
    return f"images/{name}/Train/{number}.png"


def text_row(number: int) -> tuple[str, str, str, str]:
    """Set A: an image and a question, a text for an answer."""
    return ASK, path("A", number), f"answer {number}\n", ""


def image_row(number: int) -> tuple[str, str, str, str]:
    """Set B: a text that asks for an image."""
    return FIND.format(number), "", SHOW, path("B", number)


MAKERS = {"A": text_row, "B": image_row}


def scored(name: str, number: int, negatives: list[int] | None = None, **changes: Any) -> dict[str, Any]:
    """The published row of a pair, with the positives of these other pairs as negatives."""
    make, wrong = MAKERS[name], negatives if negatives is not None else [(number + k) % 14 for k in range(1, 11)]
    query_text, query_image, pos_text, pos_image = make(number)
    return {
        "query_text": query_text,
        "query_image": query_image,
        "pos_text": pos_text,
        "pos_image": pos_image,
        "query_pos_scores": 0.9,
        "hard_negatives": [list(make(other)[2:]) for other in wrong],
        "hard_negatives_scores": [round(0.01 * other + 0.001 * number, 3) for other in wrong],
    } | changes


def written(folder: Path, *values: Any) -> Path:
    file = folder / "scores.json"
    file.write_text(json.dumps(list(values)), encoding="utf-8")
    return file


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Sets A and B of 14 pairs each, in the published layout."""
    folder = tmp_path_factory.mktemp("data")
    for shift, (name, make) in enumerate(MAKERS.items()):
        train_set(folder, name, [make(k) for k in range(14)], {path(name, k): png(100 * shift + k) for k in range(14)})
    return folder


def archive_of(root: Path, name: str) -> Path:
    (file,) = (file for file in root.rglob("*.zip") if name in (file.stem, file.parent.name))
    return file


def sets(root: Path, names: str = "AB", cap: int = 100) -> dict[str, tuple[pl.DataFrame, pl.DataFrame]]:
    return {name: mmeb.read_train(str(root), name, "original", cap, 42, LIMIT, "skip", job(root))[:2] for name in names}


def run(root: Path, file: Path, names: str = "AB", cap: int = 100, bad_rows: str = "skip", **settings: Any):
    shelves = {name: Shelf([archive_of(root, name)]) for name in names}
    found = published.import_scores(file, sets(root, names, cap), shelves, decoding=LIMIT, bad_rows=bad_rows, job=job(root), **settings)
    for name in names:
        artifacts.check(found[0][name], artifacts.MINED, name)
        artifacts.check(found[1][name], artifacts.ITEMS, name)
    return found


def item(name: str, number: int) -> str:
    """The content id of the positive of a pair."""
    return artifacts.content_id(f"answer {number}\n", None) if name == "A" else artifacts.content_id(SHOW, png(100 + number))


def test_rows_become_mined_pairs_of_their_sets_by_content(root: Path, tmp_path: Path):
    file = written(tmp_path, *(scored(name, number) for number in range(14) for name in "BA"))
    mined, items, report = run(root, file)
    known = sets(root)
    for name in "AB":
        assert (
            mined[name].select("pair", "dataset", "query", "positive").equals(known[name][1].select("pair", "dataset", "query", "positive"))
        )
        row = mined[name].row(5, named=True)
        assert row["negatives"] == [item(name, (5 + k) % 14) for k in range(1, 11)] and row["sigma"] == 0.9
        assert row["scores"] == scored(name, 5)["hard_negatives_scores"]
        assert row["ranks"] == list(range(10)) and row["reasons"] == ["kept"] * 10
        assert items[name].is_empty()
    assert (report["rows"], report["mined"], report["new_pairs"], report["texts_exact"]) == (28, 28, 0, 28 * 12)
    assert report["unmatched"]["count"] == report["left_out"]["count"] == report["negatives_left_out"]["count"] == 0


def test_what_the_caps_sample_lacks_is_read_hashed_and_added(root: Path, tmp_path: Path):
    file = written(tmp_path, *(scored(name, number) for number in range(14) for name in "AB"))
    whole, _, _ = run(root, file)
    few, items, report = run(root, file, cap=5)
    for name in "AB":
        assert few[name].sort("pair").equals(whole[name].sort("pair")), "the same content ids, wherever they come from"
        known = sets(root, name, 5)[name][0]
        everything = pl.concat([known, items[name]])
        assert everything["id"].is_unique().all() and len(items[name]) > 5
        assert set(few[name]["negatives"].explode()) | set(few[name]["query"]) <= set(everything["id"])
        Items(everything, LIMIT)[few[name]["query"][13]]  # can be opened
    assert (report["new_pairs"], report["mined"]) == (18, 28)
    only, _, report = run(root, file, cap=5, new_pairs=False)
    assert [len(only[name]) for name in "AB"] == [5, 5] and report["unmatched"]["count"] == 18
    assert only["A"]["pair"].to_list() == sets(root, "A", 5)["A"][1]["pair"].to_list()
    assert {one["reason"] for one in report["unmatched"]["listed"]} == {
        f"its pair is not among those of {name} (data.cap drew others)" for name in "AB"
    }


def test_an_image_under_another_name_is_the_same_item(tmp_path: Path):
    names = [path("B", k) for k in range(3)]
    train_set(tmp_path, "B", [(f"q{k}", "", SHOW, names[k]) for k in range(2)], {names[0]: png(0), names[1]: png(1), names[2]: png(1)})
    negatives = {"hard_negatives": [[SHOW, names[1]], [SHOW, names[2]]], "hard_negatives_scores": [0.25, 0.5]}
    mined, items, report = run(tmp_path, written(tmp_path, scored("B", 0, query_text="q0") | negatives), "B", negatives=2)
    (row,) = mined["B"].iter_rows(named=True)
    assert row["negatives"] == [artifacts.content_id(SHOW, png(1))] * 2 and row["reasons"] == ["kept", "repeated"]
    assert row["scores"] == [0.25, 0.5] and row["ranks"] == [0, 1] and items["B"].is_empty()
    assert (report["repeated"], report["references_outside_items"], report["new_items"]) == (1, 1, 0)


@pytest.mark.parametrize("member", ["A/Train/{}.png", "MMEB-train/images/A/Train/{}.png", "Train/{}.png", "{}.png"])
def test_images_of_archives_made_elsewhere_are_matched_without_opening_them(member: str, tmp_path: Path):
    train_set(tmp_path, "A", [text_row(k) for k in range(14)], {member.format(k): png(k) for k in range(14)})
    known = sets(tmp_path, "A")
    archive_of(tmp_path, "A").unlink()
    shelf = Shelf([tmp_path / "nowhere.zip"])
    file = written(tmp_path, scored("A", 3))
    mined, _, report = published.import_scores(file, known, {"A": shelf}, decoding=LIMIT, bad_rows="skip", job=job(tmp_path))
    assert mined["A"]["query"].to_list() == [artifacts.content_id(ASK, png(3))] and report["new_pairs"] == 0


def test_a_file_name_alone_matches_no_image_of_another_set(tmp_path: Path):
    for name, shift in (("A", 0), ("C", 50)):
        made = [(ASK, f"images/{name}/Train/{k}.png", f"answer {k}\n", "") for k in range(14)]
        train_set(tmp_path, name, made, {f"Train/{k}.png": png(shift + k) for k in range(14)})
    values = [scored("A", 3), scored("A", 3, query_image="images/C/Train/3.png")]
    mined, _, report = run(tmp_path, written(tmp_path, *values), "AC")
    assert [mined[name]["query"].to_list() for name in "AC"] == [[artifacts.content_id(ASK, png(s + 3))] for s in (0, 50)]
    assert report["rows_by_pair"] == 0


def test_white_space_around_a_text_is_no_other_text_unless_both_are_there(root: Path, tmp_path: Path):
    value = scored("A", 0)
    bare = value | {
        "query_text": value["query_text"].strip(),
        "hard_negatives": [[" " + t.strip(), ""] for t, _ in value["hard_negatives"]],
    }
    mined, _, report = run(root, written(tmp_path, value, bare))
    assert (report["texts_exact"], report["texts_stripped"], report["duplicate_pairs"]) == (12 + 1, 11, 1)
    assert mined["A"]["negatives"].to_list() == [[item("A", k) for k in range(1, 11)]]

    known = [(ASK, path("A", number), text, "") for number, text in enumerate(("dog", "cat", "cat\n"))]
    train_set(tmp_path, "A", known, {path("A", number): png(number) for number in range(3)})
    wanted = [["cat", ""], ["cat\n", ""], ["cat\n\n", ""]]
    value = scored("A", 0, pos_text="dog", hard_negatives=wanted, hard_negatives_scores=[0.1] * 3)
    mined, items, report = run(tmp_path, written(tmp_path, value), "A", negatives=3)
    assert mined["A"]["negatives"].to_list() == [[artifacts.content_id(text, None) for text, _ in wanted]]
    assert len(items["A"]) == 1 and report["texts_stripped"] == 0, "no guess between two"


def test_a_row_without_image_path_is_of_the_only_set_that_has_its_pair(tmp_path: Path):
    for name in "CDE":
        made = [(f"q{k}", "", f"t{k}" if name == "C" else f"u{k}", "") for k in range(12)]
        train_set(tmp_path, name, made, {})
    base = {"query_image": "", "pos_image": None, "query_pos_scores": 1, "hard_negatives": [["t1", ""], ["t2", None]]}
    base |= {"hard_negatives_scores": [0, 0.5]}
    values = [base | {"query_text": f"q{q}", "pos_text": p} for q, p in ((0, "t0"), (0, "u0"), (0, "t7"), (5, "t5"))]
    mined, _, report = run(tmp_path, written(tmp_path, *values), "CDE")
    assert [len(mined[name]) for name in "CDE"] == [2, 0, 0] and report["rows_by_pair"] == 2
    assert report["unmatched"]["kinds"] == {"the pair is in no set": 1, "the pair is in several sets": 1}
    assert [(one["row"], one["reason"]) for one in report["unmatched"]["listed"]] == [
        (1, "no image path names its set, and its pair is in several: D, E"),
        (2, "no image path names its set, and its pair is in no training set"),
    ]
    assert mined["C"]["ranks"].to_list()[0] == [0, 1] * 5, "a short row is filled up"


def test_a_row_whose_images_lie_in_another_sets_archive_goes_to_the_set_with_its_pair(tmp_path: Path):
    train_set(tmp_path, "A", [text_row(k) for k in range(14)], {path("A", k): png(k) for k in range(14)})
    train_set(tmp_path, "D", [(FIND.format(k), "", SHOW, path("A", k)) for k in range(14)], {})
    value = scored("B", 2)
    value |= {"pos_image": path("A", 2), "hard_negatives": [[SHOW, path("A", k)] for k in range(3, 13)]}
    mined, _, report = run(tmp_path, written(tmp_path, value, scored("A", 2)), "AD")
    assert (len(mined["A"]), len(mined["D"]), report["rows_by_pair"]) == (1, 1, 1)
    assert mined["D"]["positive"].to_list() == [artifacts.content_id(SHOW, png(2))]
    mined, _, report = run(tmp_path, written(tmp_path, value, scored("A", 2)), "D")
    assert len(mined["D"]) == 1 and report["rows_of_other_sets"] == {"A": 1}


def test_a_missing_image_costs_its_negative_and_a_missing_query_its_row(root: Path, tmp_path: Path):
    gone = [SHOW, path("B", 99)]
    half, none = scored("B", 0), scored("B", 1, hard_negatives=[gone] * 10)
    half["hard_negatives"][0] = half["hard_negatives"][4] = gone
    file = written(tmp_path, half, none, scored("A", 0, query_image=path("A", 77)), scored("B", 2, pos_image=path("B", 98)), scored("A", 1))
    mined, _, report = run(root, file)
    (row,) = mined["B"].iter_rows(named=True)
    there = [1, 2, 3, 5, 6, 7, 8, 9]
    assert row["ranks"] == [*there, 1, 2] and row["negatives"] == [item("B", k + 1) for k in (*there, 1, 2)]
    assert row["reasons"] == ["kept"] * 8 + ["repeated"] * 2 and row["scores"] == [half["hard_negatives_scores"][k] for k in row["ranks"]]
    lost = report["negatives_left_out"]
    assert lost["count"] == 2 and [one["row"] for one in lost["listed"]] == [0, 0]
    assert lost["listed"][1]["reason"].startswith("hard negative 4 image 'images/B/Train/99.png' is not in ")
    reasons = {one["row"]: one["reason"] for one in report["left_out"]["listed"]}
    assert reasons.keys() == {1, 2, 3} and report["left_out"]["kinds"] == {"negatives": 1, "positive": 1, "query": 1}
    assert "none of its negatives is usable; the first image" in reasons[1] and "the query image" in reasons[2] and len(mined["A"]) == 1
    with pytest.raises(DataError, match=r"scores.json: row 0: hard negative 0 image .*data.bad_rows"):
        run(root, file, bad_rows="fail")


BROKEN = {
    "none is missing": ("query_image", None, None),
    "a key": ("pos_text", ..., "pos_text is missing"),
    "a list": ("hard_negatives", ..., "hard_negatives is missing"),
    "a type": ("query_text", 3, "query_text is int, needed str"),
    "a list's type": ("hard_negatives_scores", 0.5, "hard_negatives_scores is float, needed list"),
    "true": ("query_pos_scores", True, "query_pos_scores is bool, needed float"),
    "lengths": ("hard_negatives_scores", [0.5] * 9, "10 hard_negatives for 9 hard_negatives_scores; one score each is needed"),
    "nan": ("query_pos_scores", float("nan"), r"query_pos_scores nan is not in \[0, 1\]"),
    "above": ("hard_negatives_scores", [0.5] * 9 + [1.01], r"the score 1.01 of hard negative 9 is not in \[0, 1\]"),
    "nan below": ("hard_negatives_scores", [float("nan")] * 10, r"the score nan of hard negative 0 is not in \[0, 1\]"),
    "a word": ("hard_negatives_scores", ["0.5"] * 10, r"the score '0.5' of hard negative 0 is not in \[0, 1\]"),
    "a negative": ("hard_negatives", [["a", ""]] * 9 + ["a"], r"hard negative 9 is not \[text, image path\]"),
    "empty": ("hard_negatives", [], "0 hard_negatives for 10"),
}


@pytest.mark.parametrize("what", BROKEN)
def test_a_malformed_row_is_named_and_costs_no_other(what: str, root: Path, tmp_path: Path):
    key, value, reason = BROKEN[what]
    bad = {name: old for name, old in (scored("B", 1) | {key: value}).items() if old is not ...}
    file = written(tmp_path, scored("A", 0), bad, scored("A", 1))
    mined, _, report = run(root, file)
    assert len(mined["A"]) == 2 and len(mined["B"]) == (reason is None)
    if reason is not None:
        (listed,) = report["left_out"]["listed"]
        assert (listed["file"], listed["row"]) == (str(file), 1) and report["left_out"]["kinds"] == {"malformed": 1}
        with pytest.raises(DataError, match=f"scores.json: row 1: .*{reason}"):
            run(root, file, bad_rows="fail")


def test_rows_that_are_no_objects_are_named(root: Path, tmp_path: Path):
    _, _, report = run(root, written(tmp_path, [1], scored("A", 0), None))
    assert [one["reason"][:6] for one in report["left_out"]["listed"]] == ["list, ", "NoneTy"]


def test_a_file_that_is_no_list_or_is_cut_is_refused(root: Path, tmp_path: Path):
    file = tmp_path / "scores.json"
    file.write_text(json.dumps({"rows": []}))
    with pytest.raises(DataError, match="scores.json: not a JSON list"):
        run(root, file)
    whole = json.dumps([scored("A", 0), scored("A", 1), scored("A", 2)])
    for end in (len(whole) - 1, len(whole) - 300):
        file.write_text(whole[:end])
        with pytest.raises(DataError, match="scores.json: .*row 2.* truncated"):
            run(root, file)


def test_a_file_without_one_usable_row_is_refused(root: Path, tmp_path: Path):
    with pytest.raises(DataError, match=r"no row for B \(row 0: of another set: A\)"):
        run(root, written(tmp_path, scored("A", 0)), "B")
    with pytest.raises(DataError, match=r"no row for A, B \(row 0: pos_text is missing\)"):
        run(root, written(tmp_path, {name: value for name, value in scored("A", 0).items() if name != "pos_text"}))
    with pytest.raises(DataError, match="no row for A, B"):
        run(root, written(tmp_path))


def test_the_first_of_equal_pairs_counts_and_scores_above_alpha_are_counted(root: Path, tmp_path: Path):
    scores = [0.895, 0.89, 0.1, 0.95, *[0.2] * 6]  # alpha = 0.89: above it are two
    first = scored("A", 4, hard_negatives_scores=scores)
    mined, _, report = run(root, written(tmp_path, first, scored("A", 4), scored("A", 2, negatives=[2, *range(3, 12)])))
    assert mined["A"]["scores"].to_list()[1] == scores and report["duplicate_pairs"] == 1
    a = report["sets"][0]
    assert (a["dataset"], a["rows"], a["mined"], a["negatives"], a["above_alpha"]) == ("A", 3, 2, 20, 2)
    assert a["above_alpha_share"] == report["above_alpha_share"] == 0.1 and a["pairs_without_scores"] == 12
    assert a["equal_to_positive"] == 1 and mined["A"]["pair"].to_list() == sets(root)["A"][1]["pair"].to_list()[2:5:2]


def test_no_positive_of_a_query_and_not_the_query_itself_is_imported_as_its_negative(tmp_path: Path):
    """Case 1 of a published file: of the pairs' table, of another row of the file, and a query among its own negatives."""
    rows_of_set = [("q", "", "p1", ""), ("q", "", "p2", ""), ("r", "", "s", ""), ("s", "", "t", "")]
    train_set(tmp_path, "A", [*rows_of_set, (ASK, path("A", 0), "u", "")], {path("A", 0): png(0)})

    def row(query: str, positive: str, *negatives: str) -> dict[str, Any]:
        texts = {"query_text": query, "query_image": "", "pos_text": positive, "pos_image": ""}
        scores = [0.1 * place for place in range(len(negatives))]
        return texts | {"query_pos_scores": 0.9, "hard_negatives": [[one, ""] for one in negatives], "hard_negatives_scores": scores}

    image = {"query_text": ASK, "query_image": path("A", 0)}
    file = [row("q", "p1", "p2", "s", "p1", "t"), row("r", "s", "p1", "t"), row("s", "t", "s", "u")]
    file += [row("", "u", "new", "t") | image, row("q", "p2", "p1"), row("", "new", "u", "s") | image]  # the last: a pair of the file alone
    found, _, report = run(tmp_path, written(tmp_path, *file), "A", negatives=4)
    name = {artifacts.content_id(text, None): text for text in ("q", "p1", "p2", "r", "s", "t", "u", "new")}
    table = found["A"].select("query", "positive", "negatives")
    by_pair = {(name.get(query), name[positive]): [name[one] for one in others] for query, positive, others in table.iter_rows()}
    assert by_pair == {
        ("q", "p1"): ["s", "t", "s", "t"],
        ("r", "s"): ["p1", "t", "p1", "t"],
        ("s", "t"): ["u"] * 4,
        (None, "u"): ["t"] * 4,
        (None, "new"): ["s"] * 4,
    }
    assert (report["equal_to_positive"], report["labelled"], report["itself"]) == (1, 3, 1)
    (left,) = report["left_out"]["listed"]
    assert left["row"] == 4 and left["reason"] == "all its negatives are labelled positives of its query, or the query itself"


def test_only_the_first_bad_rows_are_listed_and_all_counted(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(rows, "LISTED", 3)
    _, _, report = run(root, written(tmp_path, *[{}] * 8, scored("A", 0)))
    assert report["left_out"]["count"] == 8 and len(report["left_out"]["listed"]) == 3 and report["rows"] == 9


def test_random_rows_equal_a_plain_import(root: Path, tmp_path: Path):
    rng = np.random.default_rng(0)
    values, expected = [], {}
    for _ in range(300):
        name, number = "AB"[rng.integers(2)], int(rng.integers(14))
        wrong = rng.integers(0, 14, rng.integers(1, 11)).tolist()  # repeats are common
        value = scored(name, number, wrong, hard_negatives_scores=rng.random(len(wrong)).tolist())
        values.append(value)
        others = [k for k, place in enumerate(wrong[:10]) if place != number]  # the positive is no negative of itself
        if not others:
            continue
        places = [others[k % len(others)] for k in range(10)]
        ids = [item(name, wrong[k]) for k in places]
        reasons = ["repeated" if ids[k] in ids[:k] else "kept" for k in range(10)]
        expected.setdefault((name, item(name, number)), (ids, [value["hard_negatives_scores"][k] for k in places], places, reasons))
    mined, _, _ = run(root, written(tmp_path, *values), cap=7)
    found = {
        (row["dataset"], row["positive"]): (row["negatives"], row["scores"], row["ranks"], row["reasons"])
        for name in "AB"
        for row in mined[name].iter_rows(named=True)
    }
    assert len(expected) == 28 and found == expected


def test_an_image_path_names_its_set():
    assert config_of("images/A-OKVQA/Train/1.jpg") == config_of("./MMEB-train\\images\\A-OKVQA\\1.jpg") == "A-OKVQA"
    assert config_of("") is config_of("A/1.jpg") is config_of("images/1.jpg") is config_of("images") is None
