"""Caption sets in their published formats become queries and pools by content; every kind of damage is named by file, row and reason."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import polars as pl
import pytest
from published import LIMIT, job, png, zipped
from test_archives import tarred

from unime import artifacts, prompts
from unime.data import captions
from unime.data.archives import ArchiveError
from unime.data.items import Items
from unime.data.rows import DataError

IMAGE = pl.Struct({"bytes": pl.Binary, "path": pl.String})


def read(root: Path, task: str, bad_rows: str = "skip", line_end: str = "strip"):
    items, queries, pool, report = captions.read_captions(str(root), task, LIMIT, bad_rows, job(root), line_end)
    artifacts.check(items, artifacts.ITEMS, "items")
    artifacts.check(queries, artifacts.CAPTION_QUERIES, "queries")
    artifacts.check(pool, artifacts.POOL, "pool")
    assert queries["row"].n_unique() == len(queries) and pool["id"].n_unique() == len(pool) and set(queries["task"]) == {task}
    used = {*queries["query"], *pool["id"], *queries["candidates"].explode(), *queries["right"].explode()}
    assert set(items["id"]) == used and len(items) == len(used)
    return items, queries, pool, report


def seen(image: bytes) -> str:
    return artifacts.content_id(prompts.FIND_CAPTION, image)


def said(text: str) -> str:
    return artifacts.content_id(text, None)


# ---- each published format, as its source has it --------------------------------------------------------------------------------------


def flickr(
    root: Path, rows: list[tuple[bytes | None, list | None]], name: str = "Flickr30K", file: str = "data/test-00000-of-00001.parquet"
):
    path = root / "crossmodal" / name / file
    path.parent.mkdir(parents=True, exist_ok=True)
    images = [None if data is None else {"bytes": data, "path": f"{i}.jpg"} for i, (data, _) in enumerate(rows)]
    frame = {"image": images, "text": [texts for _, texts in rows], "filename": ["x"] * len(rows)}
    pl.DataFrame(frame, schema={"image": IMAGE, "text": pl.List(pl.String), "filename": pl.String}).write_parquet(path, row_group_size=2)
    return path


def urban(root: Path, images: dict[str, bytes], texts: dict[str, bytes], packed: bool = True) -> Path:
    folder = root / "crossmodal" / "Urban1K"
    members = {f"Urban1k/image/{name}": data for name, data in images.items()}
    members |= {f"Urban1k/caption/{name}": data for name, data in texts.items()}
    if packed:
        return zipped(folder / "Urban1k.zip", members | {"__MACOSX/Urban1k/image/._1.jpg": b"Mac", "Urban1k/caption/._1.txt": b"Mac"})
    for member, data in members.items():
        (folder / member).parent.mkdir(parents=True, exist_ok=True)
        (folder / member).write_bytes(data)
    return folder / "Urban1k"


def share(root: Path, rows: list, tail: str = "]") -> Path:
    path = root / "crossmodal" / "ShareGPT4V" / "share-captioner_coco_lcs_sam_1246k_1107.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("[" + ", ".join(row if isinstance(row, str) else json.dumps(row) for row in rows) + tail)
    return path


def shared(image: str, caption: str) -> dict:
    return {"id": 1, "image": image, "conversations": [{"from": "human", "value": "<image>\nWhat?"}, {"from": "gpt", "value": caption}]}


CREPE = ("add_att", "add_obj", "replace_att", "replace_obj", "replace_rel", "swap_att", "swap_obj")


def crepe(root: Path, rows: list[dict], images: dict[str, bytes], **others: object) -> Path:
    folder = root / "crossmodal" / "SugarCrepe"
    folder.mkdir(parents=True, exist_ok=True)
    for name in CREPE:
        value = others.get(name, {str(i): row for i, row in enumerate(rows)})
        (folder / f"{name}.json").write_text(value if isinstance(value, str) else json.dumps(value, indent=4))
    zipped(folder / "val2017.zip", {f"val2017/{name}": data for name, data in images.items()})
    return folder


# ---- what they become -----------------------------------------------------------------------------------------------------------------


def test_the_first_five_captions_are_right_and_all_distinct_ones_are_candidates(tmp_path: Path):
    flickr(tmp_path, [(png(0), [f"a{i}" for i in range(7)]), (png(1), ["b0"]), (png(2), ["c0", "c1"])])
    items, queries, pool, report = read(tmp_path, "Flickr30K_i2t", "fail")
    assert queries["query"].to_list() == [seen(png(i)) for i in range(3)] and queries["row"].to_list() == [0, 1, 2]
    texts = [[f"a{i}" for i in range(5)], ["b0"], ["c0", "c1"]]
    assert queries["right"].to_list() == [[said(text) for text in some] for some in texts]
    assert pool["id"].to_list() == [said(text) for some in texts for text in some]
    assert set(queries["candidates"].list.len()) == {0} and set(queries["part"]) == {""}
    expected = {"rows": 3, "queries": 3, "candidates": 8, "distinct": 8, "duplicates": 0, "right": {"fewest": 1, "most": 5}}
    assert {key: report[key] for key in expected} == expected and report["left_out"]["count"] == 0
    image = Items(items, LIMIT)[queries["query"][1]]
    assert image.text == "<|image_1|> Find an image caption describing the given image." and image.image.size == (28, 28)

    _, queries, pool, report = read(tmp_path, "Flickr30K_t2i", "fail")
    assert queries["query"].to_list() == [said(text) for some in texts for text in some]
    assert pool["id"].to_list() == [seen(png(i)) for i in range(3)]
    assert queries["right"].to_list() == [[seen(png(i))] for i, some in enumerate(texts) for _ in some]
    assert (report["rows"], report["queries"], report["candidates"], report["distinct"]) == (3, 8, 3, 3)


def test_equal_captions_are_one_item_that_is_right_for_every_image_and_so_are_equal_images(tmp_path: Path):
    flickr(tmp_path, [(png(0), ["a dog", "a dog", "x"]), (png(1), ["a dog"]), (png(0), ["y"])], "COCO")
    _, queries, pool, report = read(tmp_path, "COCO_i2t")
    dog, x, y = said("a dog"), said("x"), said("y")
    assert pool["id"].to_list() == [dog, x, y]
    assert queries["query"].to_list() == [seen(png(i)) for i in (0, 1, 0)]
    assert queries["right"].to_list() == [[dog, x, y], [dog], [dog, x, y]]
    assert (report["candidates"], report["distinct"], report["duplicates"], report["captions_of_several_images"]) == (5, 3, 2, 1)
    _, queries, pool, report = read(tmp_path, "COCO_t2i")
    both = [seen(png(0)), seen(png(1))]
    assert queries["query"].to_list() == [dog, dog, x, dog, y], "each of the source's captions asks"
    assert queries["right"].to_list() == [both, both, both[:1], both, both[:1]]
    assert pool["id"].to_list() == both and (report["duplicates"], report["distinct_queries"]) == (1, 3)


def test_several_parquet_files_are_one_benchmark_and_images_may_be_plain_bytes(tmp_path: Path):
    flickr(tmp_path, [(png(0), ["a"])], file="data/test-00000-of-00002.parquet")
    file = tmp_path / "crossmodal/Flickr30K/data/test-00001-of-00002.parquet"
    pl.DataFrame({"image": [png(1)], "text": [["b"]]}).write_parquet(file)
    items, queries, _, _ = read(tmp_path, "Flickr30K_i2t", "fail")
    assert queries["query"].to_list() == [seen(png(0)), seen(png(1))]
    assert items.filter(pl.col("archive") == file.as_posix())["member"].to_list() == ["image/0"]


def test_captions_of_a_fixed_number_are_a_list_like_any_other(tmp_path: Path):
    file = flickr(tmp_path, [(png(0), ["a", "b"]), (png(1), ["c", "d"])])
    _, listed, _, _ = read(tmp_path, "Flickr30K_i2t", "fail")
    pl.read_parquet(file).with_columns(pl.col("text").cast(pl.Array(pl.String, 2))).write_parquet(file)
    assert pl.read_parquet_schema(file)["text"] == pl.Array(pl.String, 2)
    assert read(tmp_path, "Flickr30K_i2t", "fail")[1].equals(listed) and len(listed) == 2


@pytest.mark.parametrize("packed", [True, False])
def test_urban1k_takes_the_first_line_and_counts_as_people_do(packed: bool, tmp_path: Path):
    images = {f"{i}.jpg": png(i) for i in (1, 2, 10)}
    texts = {"1.txt": b"\xef\xbb\xbfA street.\r\nMore.\n", "2.txt": b"A tram. It is red.", "10.txt": "A café\n".encode()}
    urban(tmp_path, images, texts, packed)
    _, queries, pool, report = read(tmp_path, "Urban1K_i2t", "fail")
    assert queries["query"].to_list() == [seen(png(i)) for i in (1, 2, 10)]
    assert pool["id"].to_list() == [said(text) for text in ("A street.", "A tram. It is red.", "A café")]
    assert read(tmp_path, "Urban1K_t2i")[1]["right"].to_list() == [[id] for id in queries["query"]]
    assert report["resource_forks"] == (2 if packed else 0)


def test_urban1ks_line_end_is_kept_on_request_as_the_public_code_keeps_it(tmp_path: Path):
    images = {f"{i}.jpg": png(i) for i in range(1, 6)}
    texts = {
        "1.txt": b"A street.\r\nMore.\n",
        "2.txt": b"A tram.",
        "3.txt": b" A park. \n",
        "4.txt": b"\nA canal.\n",
        "5.txt": b"A bus.\rIt",
    }
    urban(tmp_path, images, texts, True)
    found = {line_end: read(tmp_path, "Urban1K_t2i", "fail", line_end)[1] for line_end in ("keep", "strip")}
    kept, stripped = (found[line_end]["query"].to_list() for line_end in ("keep", "strip"))
    # as open(file).readlines()[0] gives it; a file that begins with an empty line is read as before, since a line end says nothing
    assert kept == [said(text) for text in ("A street.\n", "A tram.", " A park. \n", "A canal.", "A bus.\n")]
    assert stripped == [said(text) for text in ("A street.", "A tram.", "A park.", "A canal.", "A bus.")]
    for number in (1, 2, 3, 5):
        file = tmp_path / f"{number}.txt"
        file.write_bytes(texts[file.name])
        with open(file, encoding="utf-8") as lines:
            assert said(lines.readlines()[0]) == kept[number - 1]


def test_urban1k_unpacked_without_its_folder_is_read_too(tmp_path: Path):
    folder = urban(tmp_path, {"1.jpg": png(1)}, {"1.txt": b"A street."}, packed=False)
    for part in ("image", "caption"):
        shutil.move(folder / part, folder.parent / part)
    folder.rmdir()
    assert read(tmp_path, "Urban1K_i2t", "fail")[1]["query"].to_list() == [seen(png(1))]


@pytest.mark.parametrize("kind", ["folder", "zip", "tar"])
def test_sharegpt4v_is_its_first_rows_with_newlines_as_spaces(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(captions.benchmarks, "SHARE_ROWS", 3)
    path = share(tmp_path, [shared(f"sam/images/sa_{i}.jpg", f"The image\n\nshows {i}.") for i in range(3)], tail=', {"torn')
    members = {f"images/sa_{i}.jpg": png(i) for i in range(3)}
    if kind == "folder":
        for member, data in members.items():
            (path.parent / "sam" / member).parent.mkdir(parents=True, exist_ok=True)
            (path.parent / "sam" / member).write_bytes(data)
    else:
        zipped(path.parent / "sam.zip", members) if kind == "zip" else tarred(path.parent / "sam.tar", members)
    _, queries, pool, report = read(tmp_path, "ShareGPT4V_i2t", "fail")  # what lies behind the third row is not read
    assert queries["query"].to_list() == [seen(png(i)) for i in range(3)] and report["rows"] == 3
    assert pool["id"].to_list() == [said(f"The image  shows {i}.") for i in range(3)]


def test_only_the_start_of_a_large_sharegpt4v_file_is_read(tmp_path: Path):
    """A file of 1,000 rows and then of anything: not one byte far behind them is looked at."""
    path = share(tmp_path, [shared("0.jpg", f"caption {i}") for i in range(1100)], tail=",\n")
    start = path.stat().st_size
    with path.open("r+b") as file:
        file.truncate(40 << 30)  # 40 GB of holes: reading them would take minutes, keeping them is impossible
    (path.parent / "0.jpg").write_bytes(png(0))
    _, queries, _, report = read(tmp_path, "ShareGPT4V_t2i", "fail")
    assert len(queries) == report["rows"] == 1000 and path.stat().st_size > 1000 * start


ROW = {"filename": "0.jpg", "caption": "a red cup", "negative_caption": "a blue cup"}


@pytest.mark.parametrize(("task", "parts"), [("add", ["att", "obj"]), ("replace", ["att", "obj", "rel"]), ("swap", ["att", "obj"])])
def test_sugarcrepe_is_a_true_and_a_false_caption(task: str, parts: list[str], tmp_path: Path):
    rows = [ROW, {"filename": "1.jpg", "caption": "a dog on a mat", "negative_caption": "a mat on a dog"}]
    crepe(tmp_path, rows, {"0.jpg": png(0), "1.jpg": png(1)})
    _, queries, pool, report = read(tmp_path, f"SugarCrepe_{task}", "fail")
    assert queries["part"].to_list() == [f"{task}_{part}" for part in parts for _ in rows]
    assert queries["candidates"].to_list() == [[said(row["caption"]), said(row["negative_caption"])] for row in rows] * len(parts)
    assert queries["right"].to_list() == [[said(row["caption"])] for row in rows] * len(parts)
    assert queries["query"].to_list() == [seen(png(0)), seen(png(1))] * len(parts) and len(pool) == 0
    assert report["parts"] == {f"{task}_{part}": 2 for part in parts} and report["duplicates"] == 2 * (len(parts) - 1)


@pytest.mark.parametrize("place", ["val2017/{}", "images/{}", "images/val2017/{}"])
def test_sugarcrepe_images_may_be_unpacked(place: str, tmp_path: Path):
    folder = crepe(tmp_path, [ROW], {})
    (folder / "val2017.zip").unlink()
    file = folder / place.format("0.jpg")
    file.parent.mkdir(parents=True)
    file.write_bytes(png(0))
    assert read(tmp_path, "SugarCrepe_swap", "fail")[1]["query"].to_list() == [seen(png(0))] * 2


# ---- damage ---------------------------------------------------------------------------------------------------------------------------

GOOD = (png(0), ["good"])
BAD_FLICKR = {
    "no image": ((None, ["a"]), "image .*test-00000-of-00001.parquet: image/1: .*holds no bytes"),
    "damaged image": ((png(1)[:200], ["a"]), "image .*parquet: image/1: does not decode"),
    "bomb": ((png(1, (101, 100)), ["a"]), "image .*parquet: image/1: 101x100 = 10100 pixels"),
    "empty list": ((png(1), []), "it has no caption"),
    "no list": ((png(1), None), "it has no caption"),
    "blank captions": ((png(1), [" ", None]), "none of its captions can be used"),
    "mark": ((png(1), ["<|image_1|> a"]), "none of its captions can be used"),
}


@pytest.mark.parametrize("task", ["Flickr30K_i2t", "Flickr30K_t2i"])
@pytest.mark.parametrize("what", BAD_FLICKR)
def test_a_bad_row_of_captions_is_left_out_and_named(what: str, task: str, tmp_path: Path):
    row, reason = BAD_FLICKR[what]
    file = flickr(tmp_path, [GOOD, row, (png(2), ["last"])])
    _, queries, pool, report = read(tmp_path, task)
    assert len(queries) == len(pool) == 2
    (listed,) = report["left_out"]["listed"]
    assert (listed["file"], listed["row"], report["left_out"]["count"], report["rows"]) == (file.as_posix(), 1, 1, 3)
    with pytest.raises(DataError, match=f"test-00000-of-00001.parquet: row 1: {reason}.*bad_rows"):
        read(tmp_path, task, "fail")


def test_a_bad_caption_costs_itself_and_not_its_image(tmp_path: Path):
    flickr(tmp_path, [(png(0), ["a", "", "b"])])
    _, queries, _, report = read(tmp_path, "Flickr30K_i2t")
    assert queries["right"].to_list() == [[said("a"), said("b")]] and report["left_out"]["count"] == 0
    assert [(one["row"], one["reason"]) for one in report["captions_left_out"]["listed"]] == [(0, "caption 1 has neither text nor image")]
    assert read(tmp_path, "Flickr30K_t2i")[1]["row"].to_list() == [0, 2]
    with pytest.raises(DataError, match="row 0: caption 1 has neither text nor image"):
        read(tmp_path, "Flickr30K_i2t", "fail")


@pytest.mark.parametrize("share_", [0.0, 0.4, 0.99])
def test_a_torn_parquet_file_of_captions_is_named(share_: float, tmp_path: Path):
    file = flickr(tmp_path, [GOOD])
    data = file.read_bytes()
    file.write_bytes(data[: int(len(data) * share_)] or b"<html>")
    with pytest.raises(DataError, match="test-00000-of-00001.parquet: not a parquet file that can be read"):
        read(tmp_path, "Flickr30K_i2t")


def test_a_wrong_column_of_captions_is_named(tmp_path: Path):
    file = flickr(tmp_path, [GOOD])
    frame = pl.read_parquet(file)
    for damaged, reason in (
        (frame.rename({"text": "texts"}), "column 'text' is missing; nearest: 'texts'"),
        (frame.drop("image"), "column 'image' is missing"),
        (frame.with_columns(text=pl.lit("a")), r"column 'text' is String, needed List\(String\)"),
        (frame.with_columns(image=pl.lit("a.jpg")), "column 'image' is String, needed Binary or Struct"),
    ):
        damaged.write_parquet(file)
        with pytest.raises(DataError, match=f"test-00000-of-00001.parquet: {reason}"):
            read(tmp_path, "Flickr30K_i2t")


def test_bad_rows_of_urban1k_are_named(tmp_path: Path):
    images = {f"{i}.jpg": png(i) for i in (1, 2, 3, 5)} | {"6.jpg": b"no image"}
    texts = {"1.txt": b"good", "2.txt": b" \n", "3.txt": b"\xff\xfe", "4.txt": b"alone", "6.txt": b"fine"}
    path = urban(tmp_path, images, texts)
    _, queries, _, report = read(tmp_path, "Urban1K_i2t")
    assert queries["row"].to_list() == [0]
    assert {one["row"]: one["reason"].split(" (")[0] for one in report["left_out"]["listed"]} == {
        1: "it has no caption",
        2: "its caption is not UTF-8",
        3: "there is no image of 4",
        4: "there is no caption of 5",
        5: f"image {path.as_posix()}: Urban1k/image/6.jpg: not an image that can be read",
    }
    assert report["left_out"]["listed"][0]["file"].endswith("Urban1k.zip/Urban1k/caption/2.txt")


def test_a_torn_or_another_zip_of_urban1k_is_named(tmp_path: Path):
    path = urban(tmp_path / "torn", {"1.jpg": png(1)}, {"1.txt": b"good"})
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])
    with pytest.raises(ArchiveError, match="Urban1k.zip: not a whole zip archive"):
        read(tmp_path / "torn", "Urban1K_i2t")
    zipped(tmp_path / "crossmodal/Urban1K/Urban1k.zip", {"readme.txt": b"moved"})
    with pytest.raises(DataError, match="Urban1k.zip: no caption/<n>.txt"):
        read(tmp_path, "Urban1K_i2t")


BAD_SHARE = {
    "no object": ([1], "it has no image path; needed"),
    "no image": ({**shared("", "a")}, "it has no image path"),
    "one turn": ({"image": "0.jpg", "conversations": [{"value": "a"}]}, "it has no caption; needed"),
    "no text": (shared("0.jpg", " \n"), "it has no caption"),
    "wrong type": (shared("0.jpg", 7), "it has no caption"),
    "missing image": (shared("coco/9.jpg", "a"), "image 'coco/9.jpg' is not in .*ShareGPT4V"),
}


@pytest.mark.parametrize("what", BAD_SHARE)
def test_a_bad_row_of_sharegpt4v_is_named(what: str, tmp_path: Path):
    row, reason = BAD_SHARE[what]
    path = share(tmp_path, [shared("0.jpg", "good"), row])
    (path.parent / "0.jpg").write_bytes(png(0))
    _, queries, _, report = read(tmp_path, "ShareGPT4V_i2t")
    assert len(queries) == 1 and report["left_out"]["listed"][0]["row"] == 1
    with pytest.raises(DataError, match=f"share-captioner.*json: row 1: {reason}"):
        read(tmp_path, "ShareGPT4V_i2t", "fail")


def test_a_torn_sharegpt4v_file_is_named_by_row(tmp_path: Path):
    path = share(tmp_path, [shared("0.jpg", "good")], tail=', {"image": "0.j')
    (path.parent / "0.jpg").write_bytes(png(0))
    with pytest.raises(DataError, match="share-captioner.*json: the file ends in or after row 1"):
        read(tmp_path, "ShareGPT4V_i2t")
    path.write_text('{"error": "quota"}')
    with pytest.raises(DataError, match="share-captioner.*json: not a JSON list of rows"):
        read(tmp_path, "ShareGPT4V_i2t")


BAD_CREPE = {
    "no object": ("a", "it is no object"),
    "missing key": ({"filename": "0.jpg", "caption": "a"}, "'negative_caption' is missing, empty or no string .it has filename, caption"),
    "wrong type": ({**ROW, "caption": 3}, "'caption' is missing, empty or no string"),
    "blank": ({**ROW, "negative_caption": " "}, "'negative_caption' is missing, empty"),
    "missing image": ({**ROW, "filename": "9.jpg"}, "image 'val2017/9.jpg' is not in .*val2017.zip"),
    "damaged image": ({**ROW, "filename": "cut.jpg"}, "image .*val2017/cut.jpg: does not decode"),
    "mark": ({**ROW, "negative_caption": "<|image_1|>"}, "the false caption: its text has an image mark"),
}


@pytest.mark.parametrize("what", BAD_CREPE)
def test_a_bad_row_of_sugarcrepe_is_named_by_its_file(what: str, tmp_path: Path):
    row, reason = BAD_CREPE[what]
    crepe(tmp_path, [ROW], {"0.jpg": png(0), "cut.jpg": png(1)[:200]}, add_obj={"0": ROW, "1": row})
    _, queries, _, report = read(tmp_path, "SugarCrepe_add")
    assert queries["part"].to_list() == ["add_att", "add_obj"] and report["left_out"]["count"] == 1
    with pytest.raises(DataError, match=f"add_obj.json: row 1: {reason}"):
        read(tmp_path, "SugarCrepe_add", "fail")
    assert len(read(tmp_path, "SugarCrepe_swap", "fail")[1]) == 2, "another task's file"


def test_a_torn_or_missing_file_of_sugarcrepe_is_named(tmp_path: Path):
    folder = crepe(tmp_path, [ROW], {"0.jpg": png(0)}, add_att='{"0": {"filename"', add_obj="[1]")
    with pytest.raises(DataError, match="add_att.json: not a JSON file that can be read"):
        read(tmp_path, "SugarCrepe_add")
    (folder / "add_att.json").write_text("[]")
    with pytest.raises(DataError, match="add_att.json: not a JSON object of rows by id"):
        read(tmp_path, "SugarCrepe_add")
    (folder / "add_att.json").unlink()
    with pytest.raises(DataError, match="SugarCrepe: no add_att.json; download it"):
        read(tmp_path, "SugarCrepe_add")
    data = (folder / "val2017.zip").read_bytes()
    (folder / "val2017.zip").write_bytes(data[:-20])
    with pytest.raises(ArchiveError, match="val2017.zip: not a whole zip"):
        read(tmp_path, "SugarCrepe_swap")


def test_unknown_tasks_and_benchmarks_and_mixed_formats_are_refused(tmp_path: Path):
    with pytest.raises(DataError, match="crossmodal: no such folder; data.root must hold crossmodal/"):
        read(tmp_path, "Flickr30K_i2t")
    flickr(tmp_path, [GOOD])
    with pytest.raises(DataError, match="unknown benchmark 'Flickr'; nearest: 'Flickr30K'"):
        read(tmp_path, "Flickr_i2t")
    for name in ("Flickr30K", "Flickr30K_i2i", "_i2t"):
        with pytest.raises(DataError, match=f"unknown task '{name}': needed <benchmark>_ and one of i2t, t2i, replace, swap, add"):
            read(tmp_path, name)
    with pytest.raises(DataError, match=r"Flickr30K: no replace_att.json; download it \(found data\)"):
        read(tmp_path, "Flickr30K_replace")
    folder = crepe(tmp_path, [ROW], {"0.jpg": png(0)})
    with pytest.raises(DataError, match="SugarCrepe: no captions; needed .*found add_att.json, add_obj.json"):
        read(tmp_path, "SugarCrepe_i2t")
    flickr(tmp_path, [GOOD], "SugarCrepe")
    assert len(read(tmp_path, "SugarCrepe_i2t")[1]) == 1 and len(read(tmp_path, "SugarCrepe_add")[1]) == 2, "the files decide"
    zipped(folder / "Urban1k.zip", {})
    with pytest.raises(DataError, match="captions in 2 formats, test-00000-of-00001.parquet and Urban1k.zip"):
        read(tmp_path, "SugarCrepe_i2t")


def test_a_benchmark_without_one_good_row_is_refused(tmp_path: Path):
    flickr(tmp_path, [(None, ["a"])])
    with pytest.raises(DataError, match="Flickr30K: no usable row of 1; row 0: image"):
        read(tmp_path, "Flickr30K_i2t")
    crepe(tmp_path, [{}], {})
    with pytest.raises(DataError, match="SugarCrepe: no usable row of 2; row 0: 'filename' is missing"):
        read(tmp_path, "SugarCrepe_add")
