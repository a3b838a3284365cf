"""The loaders turn the published layout into items by content, pairs and tasks; the embedded suite comes through the same door."""

from __future__ import annotations

from pathlib import Path

import polars as pl
import pytest
from published import LIMIT, MARK, job, png, read_sets, task, train_set, zipped

from unime import artifacts
from unime.data import mmeb
from unime.data.images import Decoding
from unime.data.items import Items
from unime.data.rows import DataError


def train(root: Path, names: list[str], cap: int = 50_000, seed: int = 42, instructions: str = "original", bad_rows: str = "skip"):
    items, pairs, report = read_sets(root, names, instructions, cap, seed, LIMIT, bad_rows, job(root))
    artifacts.check(items, artifacts.ITEMS, "items")
    artifacts.check(pairs, artifacts.PAIRS, "pairs")
    return items, pairs, report


def evaluation(root: Path, name: str, bad_rows: str = "skip"):
    items, tasks, report = mmeb.read_eval(str(root), name, LIMIT, bad_rows, job(root))
    artifacts.check(items, artifacts.ITEMS, "items")
    artifacts.check(tasks, artifacts.TASKS, "tasks")
    return items, tasks, report


def paths(name: str, count: int) -> dict[str, bytes]:
    return {f"images/{name}/Train/{i}.png": png(i) for i in range(count)}


def test_training_rows_become_items_and_pairs_by_content(tmp_path: Path):
    image = "images/S/Train/{}.png"
    rows = [
        (MARK + "What is it?\n", image.format(0), "a cat\n", ""),
        (MARK + "What is it?\n", image.format(1), "a cat\n", ""),
        (MARK + "What is it?\n", image.format(0), "a cat\n", ""),  # an equal pair
        (MARK + "What is it?\n", image.format(3), "a cat\n", ""),  # equal bytes under another name: an equal pair too
        ("Find it: a cat\n", "", MARK + "Represent the given image.\n", image.format(2)),
    ]
    train_set(tmp_path, "S", rows, paths("S", 3) | {image.format(3): png(0)})
    items, pairs, report = train(tmp_path, ["S"])
    first = artifacts.content_id(MARK + "What is it?\n", png(0))
    cat = artifacts.content_id("a cat\n", None)
    assert pairs.row(0) == (artifacts.pair_id("S", first, cat), "S", 0, first, cat)
    assert pairs["row"].to_list() == [0, 1, 4] and pairs["positive"][1] == cat
    assert items["id"].to_list() == sorted(items["id"]) and len(items) == 5
    (one,) = report
    assert (one["rows"], one["pairs"], one["duplicate_pairs"], one["queries"], one["candidates"]) == (5, 3, 2, 3, 2)
    assert one["modalities"] == {"image+text -> text": 2, "text -> image+text": 1}

    opened = Items(items, LIMIT)
    assert opened.text(cat) == "a cat\n" and not opened.has_image(cat) and opened[cat].image is None
    assert opened[first].image.size == (28, 28) and opened[first].image.mode == "RGB" and opened.peek(first).image.size == (28, 28)


def test_equal_candidates_under_several_names_are_counted(tmp_path: Path):
    rows = [("q0\n", "", MARK + "it\n", "images/S/Train/0.png"), ("q1\n", "", MARK + "it\n", "images/S/Train/copy.png")]
    train_set(tmp_path, "S", rows, paths("S", 1) | {"images/S/Train/copy.png": png(0)})
    _, pairs, report = train(tmp_path, ["S"])
    assert pairs["positive"].n_unique() == 1 and report[0]["duplicate_candidates"] == 1


def test_the_cap_draws_the_same_rows_for_a_seed_whatever_other_sets_are_read(tmp_path: Path):
    for name in "AB":
        train_set(tmp_path, name, [(f"q{i}", "", f"t{i}", "") for i in range(100)], {})
    _, alone, report = train(tmp_path, ["B"], cap=10)
    _, both, _ = train(tmp_path, ["A", "B"], cap=10)
    _, other, _ = train(tmp_path, ["B"], cap=10, seed=1)
    drawn = alone["row"].to_list()
    assert drawn == both.filter(pl.col("dataset") == "B")["row"].to_list() != both.filter(pl.col("dataset") == "A")["row"].to_list()
    assert len(set(drawn)) == 10 and drawn == sorted(drawn) and drawn != list(range(10)) and other["row"].to_list() != drawn
    assert (report[0]["rows"], report[0]["sampled"]) == (100, 10)


def test_labels_of_rows_that_the_cap_left_out_are_kept_where_both_items_were_drawn(tmp_path: Path):
    """Every query is labelled with every positive; a query is a text or an image, a positive a text."""
    queries = [(f"q{i}", "") for i in range(4)] + [(MARK + "which?", f"images/S/Train/{i}.png") for i in range(4)]
    rows = [(*query, f"t{j}", "") for query in queries for j in range(8)]
    rows += rows[:3] + [("q0", "", "rare", ""), ("q0", "", "", "")]
    train_set(tmp_path, "S", rows, paths("S", 4))

    def read(cap: int):
        return mmeb.read_train(str(tmp_path), "S", "original", cap, 42, LIMIT, "skip", job(tmp_path))

    _, whole, report, labels = read(1000)
    assert len(whole) == 65 and labels.is_empty() and report["labels_not_drawn"] == 0
    for cap in (6, 12, 20):
        _, pairs, report, labels = read(cap)
        artifacts.check(labels, artifacts.LABELS, "labels")
        drawn = set(pairs.select("query", "positive").iter_rows())
        both_drawn = whole.filter(pl.col("query").is_in(pairs["query"].implode()) & pl.col("positive").is_in(pairs["positive"].implode()))
        wanted = set(both_drawn.select("query", "positive").iter_rows()) - drawn
        assert wanted and set(labels.iter_rows()) == wanted and len(labels) == len(wanted) == report["labels_not_drawn"]


def test_instructions_choose_the_file(tmp_path: Path):
    train_set(tmp_path, "S", [("q", "", "t", "")], {})
    train_set(tmp_path, "S", [("other words for q", "", "t", "")], {}, stem="diverse_instruction")
    items, _, _ = train(tmp_path, ["S"], instructions="diverse_instruction")
    assert "other words for q" in items["text"].to_list()


def test_null_counts_as_absent_and_further_columns_are_ignored(tmp_path: Path):
    file = train_set(tmp_path, "S", [("q", "", "t", "")], {})
    extra = {"qry": ["q"], "qry_image_path": [None], "pos_text": ["t"], "pos_image_path": [None], "neg_text": [7], "instruction": ["x"]}
    pl.DataFrame(extra).write_parquet(file)
    _, pairs, _ = train(tmp_path, ["S"])
    assert len(pairs) == 1


@pytest.mark.parametrize("member", ["images/S/Train/0.png", "S/Train/0.png", "MMEB-train/images/S/Train/0.png", "0.png"])
def test_archives_made_inside_or_outside_the_folder_are_read(member: str, tmp_path: Path):
    train_set(tmp_path, "S", [(MARK + "q", "images/S/Train/0.png", "t", "")], {member: png(0)})
    items, _, _ = train(tmp_path, ["S"])
    assert member in items["member"].to_list()


@pytest.mark.parametrize("place", ["images/S/Train/0.png", "images/Train/0.png", "S/Train/0.png", "Train/0.png"])
def test_an_unpacked_folder_serves_in_place_of_the_archive(place: str, tmp_path: Path):
    train_set(tmp_path, "S", [(MARK + "q", "images/S/Train/0.png", "t", "")], {})
    (tmp_path / "train/S/images.zip").unlink()
    file = tmp_path / "train/S" / place
    file.parent.mkdir(parents=True)
    file.write_bytes(png(0))
    items, pairs, _ = train(tmp_path, ["S"])
    assert Items(items, LIMIT)[pairs["query"][0]].image.size == (28, 28)


def test_an_image_of_another_set_is_found_in_that_sets_archive(tmp_path: Path):
    train_set(tmp_path, "S_i2t", [("q", "", "t", "")], paths("S_i2t", 1))
    train_set(tmp_path, "S_t2i", [("q", "", MARK, "images/S_i2t/Train/0.png")], {})
    items, _, _ = train(tmp_path, ["S_t2i"])
    assert items.filter(pl.col("member") != "")["archive"][0].endswith("S_i2t/images.zip")


def test_an_image_of_a_set_that_is_not_there_is_missing_even_where_a_file_has_its_name(tmp_path: Path):
    train_set(tmp_path, "A", [("q", "", MARK, "images/B/Train/0.png"), ("r", "", MARK, "images/A/Train/0.png")], {"Train/0.png": png(1)})
    _, pairs, reports = train(tmp_path, ["A"])
    assert pairs["row"].to_list() == [1] and "'images/B/Train/0.png' is not in" in reports[0]["left_out"]["listed"][0]["reason"]


def test_tasks_keep_the_order_of_candidates_and_their_duplicates(tmp_path: Path):
    rows = [
        (MARK + "q0", "S/0.png", ["right", "wrong", "right", "other"], ["", "", "", ""]),
        ("q1", "", [MARK, MARK], ["S/1.png", "S/0.png"]),
    ]
    task(tmp_path, "S", rows)
    zipped(tmp_path / "eval/images.zip", {f"images/S/{i}.png": png(i) for i in range(2)})
    items, tasks, report = evaluation(tmp_path, "S")
    right = artifacts.content_id("right", None)
    assert tasks["candidates"][0].to_list()[:3] == [right, artifacts.content_id("wrong", None), right]
    assert tasks["candidates"][1].to_list() == [artifacts.content_id(MARK, png(i)) for i in (1, 0)]
    assert tasks["right"].to_list() == [0, 0] and tasks["row"].to_list() == [0, 1]
    assert set(items["id"]) == {*tasks["query"], *tasks["candidates"].explode()}
    assert report["duplicate_candidates"] == {"candidates": 1, "queries": 1, "queries_where_right": 1}
    assert report["candidates"] == {"fewest": 2, "most": 4, "distinct": 5}
    assert report["modalities"] == {"query": {"image+text": 1, "text": 1}, "candidate": {"image": 2, "text": 4}}


@pytest.mark.parametrize("place", ["images.zip", "S/images.zip"])
def test_the_archive_of_a_task_may_lie_in_several_places(place: str, tmp_path: Path):
    task(tmp_path, "S", [(MARK + "q", "S/0.png", ["a", "b"], ["", ""])])
    zipped(tmp_path / "eval" / place, {"S/0.png": png(0)})
    assert len(evaluation(tmp_path, "S")[1]) == 1


def test_several_files_of_one_set_are_read_as_one(tmp_path: Path):
    file = train_set(tmp_path, "S", [("q0", "", "t0", ""), ("q1", "", "t1", "")], {})
    second = train_set(tmp_path, "S", [("q2", "", "t2", ""), ("", "", "t3", "")], {}).rename(
        file.with_name("original-00001-of-00002.parquet")
    )
    train_set(tmp_path, "S", [("q0", "", "t0", ""), ("q1", "", "t1", "")], {})
    _, pairs, report = train(tmp_path, ["S"])
    assert pairs["row"].to_list() == [0, 1, 2]
    assert report[0]["left_out"]["listed"] == [{"file": second.as_posix(), "row": 1, "reason": "the query has neither text nor image"}]


def test_the_embedded_suite_is_read_by_these_loaders_without_a_bad_row(suite: Path, config, tmp_path: Path):
    settings = config.data
    items, pairs, report = read_sets(
        suite, settings.train_sets, settings.instructions, settings.cap, 0, Decoding.of(settings), "fail", job(tmp_path)
    )
    assert [one["rows"] for one in report] == [24] * len(settings.train_sets) and not any(one["left_out"]["count"] for one in report)
    assert set(pairs["query"]) | set(pairs["positive"]) == set(items["id"])
    truth = artifacts.read_tables(suite / "train", settings.train_sets, "truth.parquet", artifacts.TRUTH)
    for side, column in (("query", "query"), ("candidate", "positive")):
        known = truth.filter(pl.col("side") == side).select("dataset", "id").unique()
        assert len(pairs.join(known, left_on=["dataset", column], right_on=["dataset", "id"], how="anti")) == 0
    for name in config.evaluate.tasks:
        _, tasks, found = mmeb.read_eval(str(suite), name, Decoding.of(settings), "fail", job(tmp_path))
        assert len(tasks) == found["queries"] == 12


def test_reading_twice_gives_equal_tables(suite: Path, config, tmp_path: Path):
    settings = config.data
    first, second = (
        read_sets(suite, settings.train_sets, settings.instructions, 10, 5, Decoding.of(settings), "skip", job(tmp_path)) for _ in range(2)
    )
    assert first[0].equals(second[0]) and first[1].equals(second[1]) and first[2] == second[2]


def test_an_id_that_is_there_twice_is_refused(tmp_path: Path):
    train_set(tmp_path, "S", [("q", "", "t", "")], {})
    items, _, _ = train(tmp_path, ["S"])
    with pytest.raises(artifacts.ArtifactError, match=f"item id {items['id'][1]} is there twice"):
        Items(pl.concat([items, items[1:]]), LIMIT)


def test_an_unknown_item_is_named(tmp_path: Path):
    train_set(tmp_path, "S", [("q", "", "t", "")], {})
    with pytest.raises(KeyError, match="no item abc"):
        Items(train(tmp_path, ["S"])[0], LIMIT)["abc"]


def test_an_empty_file_is_refused(tmp_path: Path):
    train_set(tmp_path, "S", [], {})
    with pytest.raises(DataError, match="no usable row of 0: the file is empty"):
        train(tmp_path, ["S"])


def test_a_path_that_names_another_set_is_never_answered_with_this_sets_picture(tmp_path):
    """Both archives were made inside their image folders, so both have a Train/0.png."""
    for name, seed in (("A", 1), ("B", 2)):
        train_set(tmp_path, name, [("q", "", "p", "images/A/Train/0.png")], {"Train/0.png": png(seed)})
    items, pairs, _, _ = mmeb.read_train(str(tmp_path), "B", "original", 10, 1, LIMIT, "fail", job(tmp_path))
    (archive,) = items.filter(pl.col("archive") != "")["archive"]
    assert len(pairs) == 1 and archive == (tmp_path / "train/A/images.zip").as_posix()
