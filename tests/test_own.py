"""A user's own rows become the same tables as MMEB's, and whatever is wrong with one is said with file, line and reason."""

from __future__ import annotations

import json
from pathlib import Path

import polars as pl
import pytest
from published import LIMIT, MARK, job, png, task, train_set, zipped
from test_archives import tarred

from unime import artifacts, prompts
from unime.data import own, sets
from unime.data.archives import ArchiveError
from unime.data.items import Items
from unime.data.rows import DataError

ROWS = [
    {"query_text": "What is it?", "query_image": "images/0.png", "positive_text": "a cat"},
    {"query_text": "find: a dog", "positive_text": "", "positive_image": "images/1.png", "query_image": None},
    {"query_text": f"Is this {prompts.IMAGE_MARK} a cow?", "query_image": "images/2.png", "positive_text": "no", "candidates": []},
]


def write(root: Path, part: str, rows: list, name: str = "S", images: int = 3, file: str = "rows.jsonl") -> Path:
    folder = root / part / name
    folder.mkdir(parents=True, exist_ok=True)
    text = "".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows)
    (folder / file).write_text(text, encoding="utf-8")
    zipped(folder / "images.zip", {f"images/{i}.png": png(i) for i in range(images)})
    return folder


def train(root: Path, bad_rows: str = "skip", name: str = "S", cap: int = 1000):
    items, pairs, report, _ = sets.read_train(str(root), name, "original", cap, 0, LIMIT, bad_rows, job(root))
    artifacts.check(items, artifacts.ITEMS, "items")
    artifacts.check(pairs, artifacts.PAIRS, "pairs")
    report.pop("places")  # the files and rows that the tables' rows are from
    return items, pairs, report


def evaluation(root: Path, bad_rows: str = "skip", name: str = "S"):
    items, tasks, report = sets.read_eval(str(root), name, LIMIT, bad_rows, job(root))
    artifacts.check(items, artifacts.ITEMS, "items")
    artifacts.check(tasks, artifacts.TASKS, "tasks")
    report.pop("places")
    return items, tasks, report


def id_of(text: str, image: int | None = None) -> str:
    return artifacts.content_id(text, None if image is None else png(image))


IDS = [
    (id_of(prompts.IMAGE_MARK + "What is it?", 0), id_of("a cat")),
    (id_of("find: a dog"), id_of(prompts.IMAGE_MARK, 1)),
    (id_of(ROWS[2]["query_text"], 2), id_of("no")),
]


def test_rows_become_pairs_and_a_missing_image_mark_is_put_first(tmp_path: Path):
    write(tmp_path, "train", ROWS)
    items, pairs, report = train(tmp_path, "fail")
    assert list(pairs.select("query", "positive").iter_rows()) == IDS
    assert (report["rows"], report["pairs"], report["left_out"]["count"]) == (3, 3, 0)
    assert report["modalities"] == {"image+text -> text": 2, "text -> image": 1}
    opened = Items(items, LIMIT)
    image = opened[IDS[0][0]].image
    assert prompts.parts(opened.text(IDS[0][0]), image) == prompts.parts("What is it?", image), "the model sees what it would without"


def test_own_rows_and_the_same_rows_as_mmeb_publishes_them_give_equal_tables(tmp_path: Path):
    rows = [(MARK + "What is it?\n", "images/0.png", "a cat\n", ""), ("find: a dog\n", "", MARK + "it\n", "images/1.png")]
    write(tmp_path, "train", [dict(zip(own.SIDES, row, strict=True)) for row in rows])
    mine = train(tmp_path, "fail")
    (tmp_path / "train/S/rows.jsonl").unlink()
    train_set(tmp_path, "S", rows, {f"images/{i}.png": png(i) for i in range(3)})
    theirs = train(tmp_path, "fail")
    assert len(mine[1]) == 2 and mine[0].equals(theirs[0]) and mine[1].equals(theirs[1]) and mine[2] == theirs[2]


@pytest.mark.parametrize("where", ["images.zip", "images.tar", "images", "", "images.zip outside", "images.tar inside"])
def test_images_may_lie_in_an_archive_or_a_folder(where: str, tmp_path: Path):
    folder = write(tmp_path, "train", ROWS)
    (folder / "images.zip").unlink()
    prefix = "" if "inside" in where else "S/images/" if "outside" in where else "images/"
    members = {f"{prefix}{i}.png": png(i) for i in range(3)}
    if where.startswith("images.zip"):
        zipped(folder / "images.zip", members)
    elif where.startswith("images.tar"):
        tarred(folder / "images.tar", members)
    else:
        for member, data in members.items():
            (folder / member).parent.mkdir(exist_ok=True)
            (folder / member).write_bytes(data)
        if not where:  # beside the rows
            rows = [{**row, **{k: v.replace("images/", "") for k, v in row.items() if v and k.endswith("image")}} for row in ROWS]
            write(tmp_path, "train", rows)
            (folder / "images.zip").unlink()
            for member in members:
                (folder / member).rename(folder / Path(member).name)
            (folder / "images").rmdir()
    assert list(train(tmp_path, "fail")[1].select("query", "positive").iter_rows()) == IDS


def test_a_picture_of_the_same_name_in_another_folder_is_never_taken(tmp_path: Path):
    rows = [{"query_text": f"q{k}", "positive_image": path} for k, path in enumerate(["shoes/1.png", "bags/1.png", "1.png"])]
    folder = write(tmp_path, "train", rows)
    (folder / "images.zip").unlink()
    zipped(folder / "images.zip", {"1.png": png(1)})
    (folder / "shoes").mkdir()
    (folder / "shoes/1.png").write_bytes(png(2))
    items, pairs, report = train(tmp_path)
    assert pairs["positive"].to_list() == [id_of(prompts.IMAGE_MARK, 2), id_of(prompts.IMAGE_MARK, 1)]
    assert [(one["row"], one["reason"][:31]) for one in report["left_out"]["listed"]] == [(2, "the positive image 'bags/1.png'")]


def test_text_alone_needs_no_images(tmp_path: Path):
    folder = write(tmp_path, "train", [{"query_text": "q", "positive_text": "t"}])
    (folder / "images.zip").unlink()
    assert len(train(tmp_path, "fail")[1]) == 1


def test_parquet_rows_equal_jsonl_rows(tmp_path: Path):
    folder = write(tmp_path, "eval", EVAL)
    first = evaluation(tmp_path, "fail")
    (folder / "rows.jsonl").unlink()
    kind = pl.List(pl.Struct({"image": pl.String, "text": pl.String}))
    pl.DataFrame(EVAL, schema={**dict.fromkeys(own.SIDES, pl.String), "candidates": kind}).write_parquet(folder / "any name.parquet")
    second = evaluation(tmp_path, "fail")
    assert len(first[1]) == 3 and first[0].equals(second[0]) and first[1].equals(second[1]) and first[2] == second[2]


EVAL = [
    {
        "query_text": "q0",
        "query_image": "images/0.png",
        "positive_text": "right",
        "candidates": [{"text": "wrong"}, {"image": "images/1.png"}, {"text": "both", "image": "images/1.png"}, {"text": "right"}],
    },
    {"query_text": "q1", "positive_text": "right"},
    {"query_text": "q2", "positive_text": "other", "candidates": None},
]


def test_an_evaluation_row_has_its_candidates_or_all_distinct_positives_of_the_task(tmp_path: Path):
    write(tmp_path, "eval", EVAL)
    items, tasks, report = evaluation(tmp_path, "fail")
    right, other, mark = id_of("right"), id_of("other"), prompts.IMAGE_MARK
    assert tasks["candidates"].to_list() == [
        [right, id_of("wrong"), id_of(mark, 1), id_of(mark + "both", 1), right],
        [right, other],
        [other, right],
    ]
    assert tasks["right"].to_list() == [0, 0, 0] and tasks["query"][0] == id_of(mark + "q0", 0)
    assert set(items["id"]) == {*tasks["query"], *tasks["candidates"].explode()}
    assert report["candidates"] == {"fewest": 2, "most": 5, "distinct": 5} and report["duplicate_candidates"]["queries_where_right"] == 1


def test_another_right_answer_to_the_same_query_is_no_wrong_candidate(tmp_path: Path):
    rows = [{"query_text": q, "positive_text": p} for q, p in (("q", "a"), ("q", "b"), ("r", "c"))]
    write(tmp_path, "eval", rows)
    assert evaluation(tmp_path)[1]["candidates"].to_list() == [
        [id_of("a"), id_of("c")],
        [id_of("b"), id_of("c")],
        [id_of("c"), id_of("a"), id_of("b")],
    ]


def test_one_answer_alone_is_no_task_and_endless_lists_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    write(tmp_path, "eval", [{"query_text": q, "positive_text": "a"} for q in "qr"])
    with pytest.raises(DataError, match="no usable row of 2; row 1: no candidate is left beside the right one"):
        evaluation(tmp_path)
    write(tmp_path, "eval", [{"query_text": q, "positive_text": q} for q in "qrs"])
    monkeypatch.setattr(own.tables, "_MOST", 8)
    with pytest.raises(DataError, match="lists of 9 entries, more than 8; give each row its candidates"):
        evaluation(tmp_path)


GOOD = {"query_text": "q", "positive_text": "t"}
BAD = {
    "not JSON": ('{"query_text": "q",', r"not JSON \(.*\)"),
    "no object": (["q", "t"], "a list, needed an object with query_text, query_image"),
    "number": ({**GOOD, "query_text": 7}, "query_text is a number, needed a string"),
    "truth value": ({**GOOD, "positive_image": True}, "positive_image is a truth value, needed a string"),
    "unknown key": ({**GOOD, "query_imgae": "x.png"}, "unknown key 'query_imgae'; nearest: 'query_image'"),
    "missing image": ({**GOOD, "query_image": "images/9.png"}, "the query image 'images/9.png' is not in .*images.zip"),
    "outside": ({**GOOD, "query_image": "../../../secret.png"}, "the query image '../../../secret.png' is not in .*images.zip"),
    "damaged image": ({**GOOD, "positive_image": "images/cut.png"}, "the positive image .*cut.png: (does not decode|not an image)"),
    "nothing": ({"query_text": "q"}, "the positive has neither text nor image"),
    "mark without image": ({**GOOD, "query_text": MARK + "q"}, "the query its text has an image mark but there is no image"),
    "half a character": ('{"query_text": "\\ud83d", "positive_text": "t"}', "query_text holds half of a character"),
    "candidates no list": ({**GOOD, "candidates": {"text": "a"}}, "candidates is an object, needed a list"),
    "candidate no object": ({**GOOD, "candidates": ["a"]}, r"candidates\[0\] is a string, needed an object with text, image"),
    "candidate's key": ({**GOOD, "candidates": [{"txt": "a"}]}, r"candidates\[0\]: unknown key 'txt'; nearest: 'text'"),
    "candidate's type": ({**GOOD, "candidates": [{"text": "a"}, {"image": 3}]}, r"candidates\[1\].image is a number"),
}


@pytest.mark.parametrize("part", ["train", "eval"])
@pytest.mark.parametrize("what", BAD)
def test_a_bad_row_is_named_by_file_and_line_and_the_others_go_on(what: str, part: str, tmp_path: Path):
    row, reason = BAD[what]
    folder = write(tmp_path, part, [GOOD, row, "", {"query_text": "q2", "positive_text": "t2"}])
    zipped(folder / "images.zip", {"images/0.png": png(0), "images/cut.png": png(1)[:200]})
    (tmp_path / "secret.png").write_bytes(png(0))
    read = train if part == "train" else evaluation
    if part == "eval" and ("missing" in what or "damaged" in what or what == "nothing"):
        reason = reason.replace("the positive ", r"the right answer \(index 0\) is absent: it ")
    _, table, report = read(tmp_path)
    assert table["row"].to_list() == [0, 2]
    (listed,) = report["left_out"]["listed"]
    assert (listed["file"], listed["row"], report["left_out"]["count"]) == ((folder / "rows.jsonl").as_posix(), 2, 1)
    with pytest.raises(DataError, match=f"rows.jsonl: row 2: {reason}.*bad_rows"):
        read(tmp_path, "fail")


def test_a_bad_candidate_is_left_out_of_its_list(tmp_path: Path):
    write(tmp_path, "eval", [{**GOOD, "candidates": [{"text": "a"}, {"image": "images/9.png"}, {}]}])
    _, tasks, report = evaluation(tmp_path)
    assert tasks["candidates"][0].to_list() == [id_of("t"), id_of("a")]
    reasons = [one["reason"] for one in report["candidates_left_out"]["listed"]]
    assert reasons[0].startswith("candidate 2 image 'images/9.png'") and reasons[1] == "candidate 3 has neither text nor image"


def test_a_wrong_parquet_file_is_named(tmp_path: Path):
    folder = write(tmp_path, "train", [])
    (folder / "rows.jsonl").unlink()
    for frame, reason in (
        ({"query_text": ["q"], "positive_txt": ["t"]}, "unknown column 'positive_txt'; nearest: 'positive_text'"),
        ({"query_text": [3], "positive_text": ["t"]}, "column 'query_text' is Int64, needed String"),
        ({"query_text": ["q"], "candidates": [["t"]]}, r"column 'candidates' is List\(String\), needed List\(Struct"),
    ):
        pl.DataFrame(frame).write_parquet(folder / "a.parquet")
        with pytest.raises(DataError, match=f"a.parquet: {reason}"):
            train(tmp_path)
    data = (folder / "a.parquet").read_bytes()
    (folder / "a.parquet").write_bytes(data[: len(data) // 2])
    with pytest.raises(DataError, match="a.parquet: not a parquet file that can be read"):
        train(tmp_path)


def test_torn_image_archives_are_refused_whatever_bad_rows_says(tmp_path: Path):
    folder = write(tmp_path, "train", ROWS)
    data = (folder / "images.zip").read_bytes()
    (folder / "images.zip").write_bytes(data[:-30])
    with pytest.raises(ArchiveError, match="S/images.zip: not a whole zip archive"):
        train(tmp_path)
    (folder / "images.zip").rename(folder / "images.tar.gz")
    with pytest.raises(ArchiveError, match="images.tar.gz: a compressed tar .*: gunzip"):
        train(tmp_path)


def test_the_files_that_are_there_decide_and_two_formats_are_refused(tmp_path: Path):
    folder = write(tmp_path, "train", ROWS)
    pl.DataFrame({"id": ["x"]}).write_parquet(folder / "truth.parquet")  # the embedded suite's side table is no row
    (folder / "source.json").write_text("{}")
    assert len(train(tmp_path)[1]) == 3
    train_set(tmp_path, "S", [("q", "", "t", "")], {})
    with pytest.raises(DataError, match="train/S: rows in two formats, original-.* as MMEB publishes it and rows.jsonl of your own"):
        train(tmp_path)
    (folder / "rows.jsonl").unlink()
    assert len(train(tmp_path)[1]) == 1
    task(tmp_path, "S", [("q", "", ["a", "b"], ["", ""])])
    assert len(evaluation(tmp_path)[1]) == 1
    write(tmp_path, "eval", EVAL)
    with pytest.raises(DataError, match="eval/S: rows in two formats"):
        evaluation(tmp_path)
    write(tmp_path, "train", ROWS, name="Mine")
    with pytest.raises(DataError, match="unknown data set 'Mime'; nearest: 'Mine'"):
        train(tmp_path, name="Mime")


def test_several_files_are_one_set_and_the_cap_draws_from_all(tmp_path: Path):
    rows = [{"query_text": f"q{i}", "positive_text": f"t{i}"} for i in range(40)]
    folder = write(tmp_path, "train", rows[:20], file="a.jsonl")
    pl.DataFrame(rows[20:]).write_parquet(folder / "b.parquet")
    _, pairs, report = train(tmp_path)
    assert pairs["row"].to_list() == list(range(40))
    _, drawn, report = train(tmp_path, cap=10)
    assert (report["rows"], report["sampled"], len(drawn)) == (40, 10, 10) and 0 < sum(drawn["row"] < 20) < 10


def test_the_example_of_the_documentation_is_read(tmp_path: Path):
    text = (Path(__file__).parents[1] / "docs/data.md").read_text()
    blocks = [[line.strip() for line in block.splitlines() if line.startswith("    ")] for block in text.split("\n\n")]
    first, second = (block for block in blocks if block and block[0].startswith('{"query_text"'))
    zipped(write(tmp_path, "train", first, "Shop") / "images.zip", {f"{name}.jpg": png(1) for name in ("shoes/1", "shoes/2", "bags/7")})
    folder = write(tmp_path, "eval", second, "Shop")
    (folder / "images.zip").unlink()
    for name in ("shoes/9", "bags/8"):
        (folder / "images" / name).parent.mkdir(parents=True)
        (folder / "images" / f"{name}.jpg").write_bytes(png(2))
    assert len(train(tmp_path, "fail", "Shop")[1]) == 3
    assert evaluation(tmp_path, "fail", "Shop")[1]["candidates"].list.len().to_list() == [3, 2]
