"""Formats that people have: written by the libraries that define them, converted by `unime rows`, and nothing is lost or changed.

Every folder shows the same pictures with the same captions, so one expectation serves all formats.
"""

from __future__ import annotations

import io
import json
import tarfile
import zipfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import polars as pl
import pytest
import yaml
from PIL import Image
from published import LIMIT, job, png

from unime import artifacts, prompts
from unime.__main__ import main
from unime.data import archives, sets
from unime.data.archives import ArchiveError
from unime.data.items import Items
from unime.data.rows import DataError

FIND = "Find me an everyday image that matches the given caption: "
COUNT = 40
SAID = [[f'picture {n}, "so to say"', f"caf\u00e9 {n}; again"][: 1 + n % 2] for n in range(COUNT)]
"""The captions of each picture: one, or two."""

EXPECTED = Counter((png(n), caption) for n in range(COUNT) for caption in SAID[n])


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, config) -> Path:
    """An empty folder with a configuration whose data lie in it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hub"))
    values = config.model_dump(mode="json")
    values["data"]["root"] = "own"
    Path("config.yaml").write_text(yaml.safe_dump(values))
    return tmp_path


def convert(*options: str, folder: str = "source", name: str = "S") -> int:
    return main(["rows", folder, name, *options])


def made(name: str = "S") -> dict[str, list[dict]]:
    """The rows of both sides, with pictures' bytes in place of their names."""
    found = {}
    for room in ("train", "eval"):
        folder = Path("own", room, name)
        lines = (folder / "rows.jsonl").read_text(encoding="utf-8").splitlines() if folder.exists() else []
        rows = [json.loads(line) for line in lines]
        if folder.exists():
            with zipfile.ZipFile(folder / "images.zip") as archive:
                for row in rows:
                    for side in ("query_image", "positive_image"):
                        if side in row:
                            row[side] = archive.read(row[side])
        found[room] = rows
    return found


def said(name: str = "S") -> Counter[tuple[bytes, str]]:
    """(picture's bytes, caption) of all rows, and a check that no picture is on both sides and that the report counts what is there."""
    rows = made(name)
    sides = [{(row["positive_image"]) for row in rows[room]} for room in ("train", "eval")]
    captions = [{row["query_text"] for row in rows[room]} for room in ("train", "eval")]
    assert sides[0] and sides[1] and not sides[0] & sides[1] and not captions[0] & captions[1]
    report = json.loads(Path("own/train", name, "report.json").read_text(encoding="utf-8"))
    for room, key, pictures in zip(("train", "eval"), ("train", "task"), sides, strict=True):
        assert report[key].pop("pictures") >= len(pictures)
        assert report[key] == {"rows": len(rows[room]), "captions": len(rows[room]), "distinct_pictures": len(pictures)}
    assert report["task_answers_in_training"] == 0 and report["task_answers"] == len(sides[1])
    assert all(kind == {"count": 0, "listed": []} for kind in report["left_out"].values())
    return Counter((row["positive_image"], row["query_text"].removeprefix(FIND)) for row in rows["train"] + rows["eval"])


def files(folder: str, names: Callable[[int], str] = lambda n: f"{n:04}.png") -> None:
    for number in range(COUNT):
        file = Path(folder, names(number))
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(png(number))


def pairs_of_captions() -> list[tuple[int, str]]:
    return [(number, caption) for number in range(COUNT) for caption in SAID[number]]


# ImageFolder


@pytest.mark.parametrize("table", ["csv", "jsonl", "jsonl with lists", "parquet"])
def test_an_imagefolder_as_datasets_reads_it(here: Path, table: str) -> None:
    datasets = pytest.importorskip("datasets")
    lines = pairs_of_captions()
    for split, share in (("train", [line for line in lines if line[0] < 30]), ("test", [line for line in lines if line[0] >= 30])):
        for number in {number for number, _ in share}:
            file = Path("source", split, "photos", f"{number}.png")
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(png(number))
        frame = pl.DataFrame({"file_name": [f"photos/{number}.png" for number, _ in share], "text": [caption for _, caption in share]})
        if table == "csv":
            frame.write_csv(f"source/{split}/metadata.csv")
        elif table == "jsonl":
            frame.write_ndjson(f"source/{split}/metadata.jsonl")
        elif table == "parquet":
            frame.write_parquet(f"source/{split}/metadata.parquet")
        else:
            grouped = frame.group_by("file_name", maintain_order=True).agg("text")
            grouped.write_ndjson(f"source/{split}/metadata.jsonl")
    theirs = Counter()
    loaded = datasets.load_dataset("imagefolder", data_dir="source", cache_dir="cache")
    for split in loaded.values():
        for row in split.cast_column("image", datasets.Image(decode=False)):
            data = row["image"]["bytes"] or Path(row["image"]["path"]).read_bytes()
            texts = row["text"] if isinstance(row["text"], list) else [row["text"]]
            theirs.update((data, text) for text in texts)
    assert theirs == EXPECTED
    assert convert("--held", "0.4") == 0 and said() == EXPECTED


# Parquet with images


def dataset(datasets, columns: dict[str, list]):
    """A Dataset with `image` columns as images."""
    features = {
        name: datasets.Image()
        if isinstance(values[0], (bytes, dict))
        else datasets.List(datasets.Value("string"))
        if isinstance(values[0], list)
        else datasets.Value("string")
        for name, values in columns.items()
    }
    return datasets.Dataset.from_dict(
        {
            name: [{"bytes": value, "path": None} if isinstance(value, bytes) else value for value in values]
            for name, values in columns.items()
        },
        features=datasets.Features(features),
    )


@pytest.mark.parametrize("listed", [True, False])
@pytest.mark.parametrize("paths", [True, False])
def test_parquet_with_images_as_datasets_writes_it(here: Path, listed: bool, paths: bool) -> None:
    datasets = pytest.importorskip("datasets")
    Path("source/data").mkdir(parents=True)
    if listed:
        columns = {"image": [png(n) for n in range(COUNT)], "text": SAID}
    else:
        lines = pairs_of_captions()
        columns = {"image": [png(n) for n, _ in lines], "text": [caption for _, caption in lines]}
    if paths:
        columns["image"] = [{"bytes": data, "path": f"photo {n}.png"} for n, data in enumerate(columns["image"])]
    whole = dataset(datasets, columns)
    for shard in range(3):
        whole.shard(3, shard, contiguous=True).to_parquet(f"source/data/train-{shard:05}-of-00003.parquet", batch_size=7)
    loaded = datasets.load_dataset("parquet", data_dir="source/data", cache_dir="cache")["train"]
    loaded = loaded.cast_column("image", datasets.Image(decode=False))
    theirs = Counter()
    for row in loaded:
        texts = row["text"] if listed else [row["text"]]
        theirs.update((row["image"]["bytes"], text) for text in texts)
    assert theirs == EXPECTED
    assert convert("--held", "0.4") == 0 and said() == EXPECTED


def test_an_answer_of_parquet_does_not_depend_on_the_order_of_its_rows(here: Path) -> None:
    """Its rows have no names of their own: the same pictures and captions, shuffled and in other shards, are held out."""
    kind = pl.Struct({"bytes": pl.Binary, "path": pl.String})
    frame = pl.DataFrame(
        {"image": [{"bytes": png(n), "path": None} for n in range(COUNT)], "caption": SAID}, schema_overrides={"image": kind}
    )
    Path("source").mkdir()
    frame.write_parquet("source/a.parquet")
    assert convert("--held", "0.4", name="A") == 0
    Path("source/a.parquet").unlink()
    shuffled = frame.sample(fraction=1, shuffle=True, seed=3)
    shuffled[:9].write_parquet("source/x.parquet")
    shuffled[9:].write_parquet("source/y.parquet")
    assert convert("--held", "0.4", name="B") == 0
    held = [sorted(row["query_text"] for row in made(name)["eval"]) for name in "AB"]
    assert held[0] and held[0] == held[1] and said("A") == said("B") == EXPECTED


def test_parquet_columns_that_may_both_be_meant_are_named(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("source").mkdir()
    columns = {"front": [png(0), png(1)], "back": [png(2), png(3)], "title": ["a", "b"], "description": ["c", "d"]}
    pl.DataFrame(columns).write_parquet("source/a.parquet")
    assert convert() == 1 and "columns 'front' and 'back' hold pictures; name one with --image-column" in capsys.readouterr().err
    assert convert("--image-column", "back") == 1
    assert "columns 'description' and 'title' may both be meant; name one with --text-column" in capsys.readouterr().err
    assert convert("--image-column", "back", "--text-column", "title", "--held", "0") == 0
    assert [(row["positive_image"], row["query_text"]) for row in made()["train"]] == [(png(2), FIND + "a"), (png(3), FIND + "b")]
    pl.DataFrame({"image": [None, png(1)], "text": ["a", "b"]}).write_parquet("source/a.parquet")
    assert convert(name="T") == 1 and "a.parquet: row 0: image holds no bytes" in capsys.readouterr().err


# COCO


def coco(images: str, annotations: str) -> dict:
    """COCO's captions for the pictures in a folder; ids as there, no order."""
    files(images, lambda n: f"COCO_val_{n:012}.png")
    listed = [{"id": 900 - n, "file_name": f"COCO_val_{n:012}.png", "height": 28, "width": 28, "license": 3} for n in range(COUNT)]
    said = [{"image_id": 900 - n, "id": 5000 + at, "caption": caption} for at, (n, caption) in enumerate(pairs_of_captions())]
    value = {"info": {"year": 2014}, "licenses": [], "images": listed, "annotations": said[::-1]}
    Path(annotations).parent.mkdir(parents=True, exist_ok=True)
    Path(annotations).write_text(json.dumps(value))
    return value


@pytest.mark.parametrize("given", ["source", "source/annotations/captions_val2017.json"])
def test_coco_captions_with_the_images_beside(here: Path, given: str) -> None:
    coco("source/val2017", "source/annotations/captions_val2017.json")
    boxes = {"images": [], "annotations": [{"image_id": 1, "bbox": [0, 0, 1, 1]}]}
    Path("source/annotations/instances_val2017.json").write_text(json.dumps(boxes))
    assert convert("--held", "0.4", folder=given) == 0 and said() == EXPECTED


def test_what_coco_lacks_is_named_and_counted(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    value = coco("source/val2017", "source/captions.json")
    Path("source/val2017/COCO_val_000000000003.png").unlink()
    value["annotations"] = [one for one in value["annotations"] if one["image_id"] != 900]
    value["annotations"].append({"image_id": 7, "caption": "of nothing"})
    Path("source/captions.json").write_text(json.dumps(value))
    assert convert() == 1
    errors = capsys.readouterr().err
    assert "'COCO_val_000000000003.png' is no image in source" in errors
    assert "COCO_val_000000000000.png has no caption (1 of 39 images)" in errors
    assert convert("--held", "0.4", "--skip-bad") == 0
    report = json.loads(Path("own/train/S/report.json").read_text())
    counts = {kind: found["count"] for kind, found in report["left_out"].items()}
    lost = {"bad_rows": 0, "captions_without_picture": 1 + len(SAID[3]), "pictures_without_caption": 1, "pictures_unreadable": 0}
    assert counts == lost
    assert report["train"]["captions"] + report["task"]["captions"] == len(pairs_of_captions()) - len(SAID[0]) - len(SAID[3])


# WebDataset


@pytest.mark.parametrize("ending", ["txt", "json"])
def test_shards_as_webdataset_writes_and_reads_them(here: Path, ending: str) -> None:
    webdataset = pytest.importorskip("webdataset")
    Path("source").mkdir()
    with webdataset.ShardWriter("source/shard-%06d.tar", maxcount=15, verbose=0) as writer:
        for at, (number, caption) in enumerate(pairs_of_captions()):
            value = {"caption": caption, "url": "x"} if ending == "json" else caption
            writer.write({"__key__": f"{at:06}", "png": png(number), ending: value})
    theirs = Counter()
    urls = sorted(str(path) for path in Path("source").glob("*.tar"))
    for sample in webdataset.WebDataset(urls, shardshuffle=False):
        text = sample[ending].decode()
        theirs[sample["png"], json.loads(text)["caption"] if ending == "json" else text] += 1
    assert theirs == EXPECTED and len(urls) > 3
    assert convert("--held", "0.4") == 0 and said() == EXPECTED


def test_a_folder_as_img2dataset_writes_it(here: Path) -> None:
    """Shards with a text and a .json in each sample, and beside each shard a parquet of its texts and a .json of its counts."""
    members: dict[str, bytes] = {}
    for at, (number, caption) in enumerate(pairs_of_captions()):
        told = {"caption": caption, "url": f"https://example.org/{number}.png", "key": f"{at:09}", "status": "success"}
        members |= {f"{at:09}.png": png(number), f"{at:09}.txt": caption.encode(), f"{at:09}.json": json.dumps(told).encode()}
    tar("source/00000.tar", members)
    pl.DataFrame({"url": ["u"], "caption": ["c"], "key": ["0"]}).write_parquet("source/00000.parquet")
    Path("source/00000_stats.json").write_text(json.dumps({"count": 60, "successes": 60}, indent=4))
    assert convert("--held", "0.4", name="A") == 0 and said("A") == EXPECTED
    assert convert("--held", "0.4", "--text-column", "caption", name="B") == 0 and said("B") == EXPECTED
    assert convert("--held", "0", "--text-column", "url", name="C") == 0 and len(made("C")["train"]) == len(pairs_of_captions())


def tar(path: str, members: dict[str, bytes]) -> None:
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as archive:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))


def test_samples_of_a_shard_that_lack_something_are_named(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    members = {"a/0.png": png(0), "a/0.txt": b"zero", "b/0.png": png(1), "b/0.TXT": b"one", "1.txt": b"alone", "2.png": png(2)}
    members |= {"._3.png": b"x", "3.json": b"{", "3.png": png(3), "4.png": png(4), "4.jpg": png(5), "4.txt": b"two pictures", "5.cls": b"1"}
    tar("source/s.tar", members)
    assert convert() == 1
    errors = capsys.readouterr().err
    assert "s.tar: 1: a caption and no picture" in errors and "s.tar: 3: its text cannot be read" in errors
    assert "s.tar: 4: pictures jpg and png in one sample" in errors and "s/2.png, s/3.png have no caption (2 of 4 images)" in errors
    assert convert("--skip-bad", "--held", "0") == 0 and "hidden files ignored: 1" in capsys.readouterr().out
    assert [(row["positive_image"], row["query_text"]) for row in made()["train"]] == [(png(0), FIND + "zero"), (png(1), FIND + "one")]


def test_compressed_and_torn_shards_are_refused_by_name(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tar("source/s.tar", {"0.png": png(0), "0.txt": b"zero"})
    data = Path("source/s.tar").read_bytes()
    Path("source/s.tar").write_bytes(data[:700])
    assert convert() == 1 and "s.tar: not a whole tar archive" in capsys.readouterr().err
    Path("source/s.tar").rename("source/s.tar.gz")
    assert convert() == 1 and "s.tar.gz: a compressed tar archive cannot be read in places" in capsys.readouterr().err
    assert issubclass(ArchiveError, ValueError)


# sentence-transformers


def test_anchors_and_positives_as_datasets_writes_them(here: Path) -> None:
    datasets = pytest.importorskip("datasets")
    Path("source").mkdir()
    rows = [{"anchor": f"query {n}", "positive": f"answer {n}, caf\u00e9", "negative": f"wrong {n}"} for n in range(COUNT)]
    datasets.Dataset.from_list(rows).to_json("source/train.jsonl")
    assert convert("--held", "0.4") == 0
    found = made()
    assert found["train"] and found["eval"]
    back = [(row["query_text"], row["positive_text"], row["candidates"]) for row in found["train"] + found["eval"]]
    assert sorted(back) == sorted((row["anchor"], row["positive"], [{"text": row["negative"], "image": ""}]) for row in rows)


def test_anchors_may_be_pictures_and_what_is_missing_is_named(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files("source/photos")
    rows = [{"anchor": f"a shoe {n}", "positive": f"photos/{n:04}.png", "negative": [f"photos/{(n + 1) % 20:04}.png"]} for n in range(20)]
    rows += [{"anchor": {"text": f"which {n}?", "image": f"photos/{n:04}.png"}, "positive": f"number {n}"} for n in range(20, COUNT)]
    file = Path("source/pairs.jsonl")
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert convert("--held", "0.4") == 0
    found = [row for part in made().values() for row in part]
    texts = {(row["query_text"], row.get("query_image"), row.get("positive_image"), row.get("positive_text")) for row in found}
    wanted = {(f"a shoe {n}", None, png(n), None) for n in range(20)} | {
        (f"which {n}?", png(n), None, f"number {n}") for n in range(20, 40)
    }
    assert texts == wanted and len(found) == COUNT
    _, pairs, report, _ = sets.read_train(str(here / "own"), "S", "original", 1000, 1, LIMIT, "fail", job(here))
    _, tasks, _ = sets.read_eval(str(here / "own"), "S", LIMIT, "fail", job(here))
    assert len(pairs) + len(tasks) == COUNT and report["left_out"]["count"] == 0
    bad = [
        {"anchor": "x", "positive": "gone.jpg"},
        {"anchor": "x"},
        {"anchor": "", "positive": "y"},
        {"anchor": "x", "positive": 3},
        {"anchor": "x", "positive": "y", "label": 1},
    ]
    file.write_text(file.read_text() + "".join(json.dumps(row) + "\n" for row in bad) + "{\n")
    capsys.readouterr()
    assert convert(name="T") == 1
    assert (
        "line 41: positive: 'gone.jpg' is no image in source" in (errors := capsys.readouterr().err) and "5 rows that cannot be" in errors
    )
    assert convert("--skip-bad", "--held", "0", name="T") == 0 and len(made("T")["train"]) == COUNT


def test_texts_that_no_row_can_have_are_named_before_anything_is_written(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files("source/photos")
    rows = [{"anchor": f"q {n}", "positive": f"a {n}"} for n in range(9)]
    bad = ['{"anchor": "\\ud83d", "positive": "b"}', json.dumps({"anchor": "<|image_1|>x", "positive": "b"})]
    bad.append(json.dumps({"anchor": "x", "positive": {"text": "<|image_1|> or <|image_1|>", "image": "photos/0000.png"}}))
    Path("source/pairs.jsonl").write_text("\n".join([*map(json.dumps, rows), *bad]))
    assert convert() == 1 and not Path("own").exists()
    errors = capsys.readouterr().err
    assert "line 10: a text holds half of a character" in errors and "line 12: a text holds the mark" in errors
    assert convert("--skip-bad", "--held", "0") == 0 and len(made()["train"]) == 9


def test_pictures_of_parquet_and_tar_have_names_that_the_loader_finds(here: Path) -> None:
    kind = pl.Struct({"bytes": pl.Binary, "path": pl.String})
    paths = ["C:\\photos\\0.png", "/abs/1.png", "../2.png", None, "._4.png", "\u732b.png"]
    cells = [{"bytes": png(n), "path": path} for n, path in enumerate(paths)]
    Path("source").mkdir()
    frame = pl.DataFrame({"image": pl.Series(cells, dtype=kind), "text": [f"t {n}" for n in range(len(paths))]})
    frame.write_parquet("source/a b.parquet")
    tar("shards/0.tar", {"./x\\0.png": png(0), "./x\\0.txt": b"t 0", "../1.png": png(1), "../1.txt": b"t 1"})
    assert convert("--held", "0") == 0 and convert("--held", "0", folder="shards", name="T") == 0
    for name, count in (("S", len(paths)), ("T", 2)):
        items, pairs, _, _ = sets.read_train(str(here / "own"), name, "original", 1000, 1, LIMIT, "fail", job(here))
        shown = [archives.archive(place[0]).read(place[1]) for place in (Items(items, LIMIT).image_place(i) for i in pairs["positive"])]
        assert sorted(shown) == sorted(png(n) for n in range(count))


# Conversations


def llava(n: int) -> dict:
    turns = [("human", f"<image>\nWhat is shown in {n}?"), ("gpt", f"a cat {n}"), ("human", f"And behind {n}?"), ("gpt", f"a wall {n}")]
    return {"id": str(n), "image": f"photos/{n:04}.png", "conversations": [{"from": who, "value": text} for who, text in turns]}


def messages(n: int) -> dict:
    asked = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": f"<image>\nWhat is shown in {n}?"}]
    turns = [*asked, {"role": "assistant", "content": f"a cat {n}"}, {"role": "user", "content": f"And behind {n}?"}]
    return {"messages": [*turns, {"role": "assistant", "content": f"a wall {n}"}], "images": [f"photos/{n:04}.png"]}


def parts(n: int) -> dict:
    image = {"type": "image", "image": f"file://{Path('source/photos').resolve()}/{n:04}.png"}
    asked = [image, {"type": "text", "text": f"\nWhat is shown in {n}?"}]
    turns = [("user", asked), ("assistant", [{"type": "text", "text": f"a cat {n}"}])]
    turns += [("user", f"And behind {n}?"), ("assistant", f"a wall {n}")]
    return {"messages": [{"role": role, "content": content} for role, content in turns]}


@pytest.mark.parametrize("form", [llava, messages, parts])
@pytest.mark.parametrize("file", ["chat.jsonl", "chat.json"])
def test_conversations_become_a_pair_for_each_answer(here: Path, form, file: str) -> None:
    files("source/photos")
    rows = [form(n) for n in range(COUNT)]
    text = json.dumps(rows) if file.endswith("json") else "".join(json.dumps(row) + "\n" for row in rows)
    Path("source", file).write_text(text)
    assert convert("--held", "0.4") == 0
    found = made()
    sides = [{row["query_image"] for row in found[room]} for room in ("train", "eval")]
    assert sides[0] and sides[1] and not sides[0] & sides[1]
    back = {(row["query_image"], row["query_text"], row["positive_text"]) for row in found["train"] + found["eval"]}
    first = {(png(n), f"{prompts.IMAGE_MARK}\nWhat is shown in {n}?".replace("\n\n", "\n"), f"a cat {n}") for n in range(COUNT)}
    assert len(found["train"] + found["eval"]) == 2 * COUNT
    assert back == first | {(png(n), f"And behind {n}?", f"a wall {n}") for n in range(COUNT)}
    _, pairs, _, _ = sets.read_train(str(here / "own"), "S", "original", 1000, 1, LIMIT, "fail", job(here))
    assert len(pairs) == len(found["train"])


BAD_CHATS = {
    "two images": ({**messages(0), "images": ["photos/0000.png", "photos/0001.png"]}, "2 images; an item holds one"),
    "no image": ({"conversations": llava(0)["conversations"]}, "has the mark <image> and there is no image"),
    "an address": ({**llava(0), "image": "https://example.org/0.png"}, "not a file; save it as one"),
    "no answer": ({**llava(0), "conversations": llava(0)["conversations"][:3]}, "3 turns; each user's turn needs an answer"),
    "order": ({**llava(0), "conversations": llava(0)["conversations"][1:3]}, "turns 0 and 1 are of assistant and user"),
    "a role": ({"messages": [{"role": "tool", "content": "x"}]}, "a turn is of 'tool'"),
    "a missing picture": ({**llava(0), "image": "gone.png"}, "'gone.png' is no image in source"),
}


@pytest.mark.parametrize("what", BAD_CHATS)
def test_a_conversation_that_cannot_be_used_is_named(here: Path, what: str, capsys: pytest.CaptureFixture[str]) -> None:
    row, reason = BAD_CHATS[what]
    files("source/photos")
    rows = [llava(n) for n in range(1, COUNT)] + [row]
    Path("source/chat.jsonl").write_text("".join(json.dumps(one) + "\n" for one in rows))
    assert convert() == 1
    assert f"chat.jsonl: line {COUNT}" in (errors := capsys.readouterr().err) and reason in errors
    assert convert("--skip-bad", "--held", "0") == 0 and len(made()["train"]) == 2 * (COUNT - 1)


# Detection


def test_files_in_two_formats_are_refused_and_one_may_be_named(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files("source")
    Path("source/captions.csv").write_text("image,caption\n" + "".join(f'{n:04}.png,"caption {n}"\n' for n in range(COUNT)))
    Path("source/pairs.jsonl").write_text('{"anchor": "a", "positive": "b"}\n{"anchor": "c", "positive": "d"}\n')
    assert convert() == 1
    assert "files in several formats (a table of captions: captions.csv; sentence-transformers: pairs.jsonl)" in capsys.readouterr().err
    assert convert("--held", "0", folder="source/pairs.jsonl") == 0 and len(made()["train"]) == 2
    assert convert("--held", "0", folder="source/captions.csv", name="T") == 0 and len(made("T")["train"]) == COUNT


def test_a_folder_in_no_known_format_is_told_by_what_it_holds(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("source").mkdir()
    assert convert() == 1 and "no images and no rows in a known format (it is empty); read are: pictures" in capsys.readouterr().err
    Path("source/film.mp4").write_bytes(b"x")
    Path("source/notes.jsonl").write_text('{"a": 1}\n')
    assert convert() == 1 and "(found film.mp4, notes.jsonl); read are:" in capsys.readouterr().err
    assert convert(folder="source/film.mp4") == 1 and "film.mp4: in no known format" in capsys.readouterr().err
    Path("source/rows.jsonl").write_text('{"query_text": "a", "positive_text": "b"}\n')
    assert convert() == 1 and "rows in this project's format already; put its folder at" in capsys.readouterr().err
    assert convert(folder="gone") == 1 and "gone: no such folder or file" in capsys.readouterr().err


@pytest.mark.parametrize("given", ["source", "source/pairs.jsonl"])
@pytest.mark.parametrize(
    ("data", "reason"),
    [
        ('{"anchor": "a", "positive": "b"}\n'.encode("utf-16"), "pairs.jsonl: not JSON in UTF-8 (it is UTF-16); save it as UTF-8"),
        ('{"anchor": "a", "positive": "b"}\n'.encode("utf-32"), "pairs.jsonl: not JSON in UTF-8 (it is UTF-32)"),
        (b'[{"anchor": "a", "pos', "pairs.jsonl: the file ends in or after row 0"),
    ],
)
def test_json_in_another_encoding_or_cut_off_is_named_as_such(here: Path, given: str, data: bytes, reason: str, capsys) -> None:
    Path("source").mkdir()
    Path("source/pairs.jsonl").write_bytes(data)
    assert convert(folder=given) == 1 and reason in capsys.readouterr().err


@pytest.mark.parametrize("part", ["train", "eval"])
def test_a_folder_of_data_root_without_rows_is_told_by_its_files_and_the_formats_that_are_read(here: Path, part: str) -> None:
    folder = Path("own", part, "S")
    folder.mkdir(parents=True)

    def read() -> None:
        if part == "train":
            sets.read_train(str(here / "own"), "S", "original", 1000, 1, LIMIT, "skip", job(here))
        else:
            sets.read_eval(str(here / "own"), "S", LIMIT, "skip", job(here))

    with pytest.raises(DataError, match=rf"own/{part}/S: no rows in a format that is read here \(it is empty\)"):
        read()
    for name in ("rows.json", "rows.csv", "rows.ndjson"):
        (folder / name).write_text("{}")
    (folder / "images").mkdir()
    with pytest.raises(
        DataError, match=r"\(found images/, rows.csv, rows.json, rows.ndjson\); needed are .*query_text.*`python -m unime rows"
    ):
        read()
    pl.DataFrame({"image": [png(0)], "text": ["a"]}).write_parquet(folder / "data.parquet")
    with pytest.raises(
        DataError, match=r"data.parquet: images in column 'image', and none of .*`python -m unime rows .*data.parquet NAME`"
    ):
        read()


# Rows with their images, read where they lie


@pytest.mark.parametrize("name", ["rows", "test-00000-of-00001", "train-00000-of-00001"])
def test_own_rows_in_parquet_may_hold_their_images(here: Path, name: str) -> None:
    datasets = pytest.importorskip("datasets")
    columns = {
        "query_text": [f"which {n}?" for n in range(COUNT)],
        "query_image": [png(n) for n in range(COUNT - 1)] + [None],
        "positive_text": [f"text {n}" for n in range(COUNT)],
        "positive_image": [png(100 + n) for n in range(COUNT)],
    }
    for part in ("train", "eval"):
        Path("own", part, "S").mkdir(parents=True)
        dataset(datasets, columns).to_parquet(f"own/{part}/S/{name}.parquet", batch_size=9)
    mark = prompts.IMAGE_MARK
    queries = [artifacts.content_id(f"{mark}which {n}?", png(n)) for n in range(COUNT - 1)]
    queries.append(artifacts.content_id(f"which {COUNT - 1}?", None))
    positives = [artifacts.content_id(f"{mark}text {n}", png(100 + n)) for n in range(COUNT)]
    items, pairs, report, _ = sets.read_train(str(here / "own"), "S", "original", 1000, 1, LIMIT, "fail", job(here))
    assert list(pairs.select("query", "positive").iter_rows()) == list(zip(queries, positives, strict=True))
    assert report["modalities"] == {"image+text -> image+text": COUNT - 1, "text -> image+text": 1}
    shown = Items(items, LIMIT)[queries[7]].image
    assert shown.tobytes() == Image.open(io.BytesIO(png(7))).convert("RGB").tobytes()
    items, tasks, _ = sets.read_eval(str(here / "own"), "S", LIMIT, "fail", job(here))
    assert tasks["query"].to_list() == queries and set(items["id"]) == {*queries, *positives}


def test_own_rows_with_images_in_several_files_keep_their_own_and_bad_ones_are_listed(here: Path) -> None:
    kind = pl.Struct({"bytes": pl.Binary, "path": pl.String})
    folder = Path("own/train/S")
    folder.mkdir(parents=True)
    for number, file in enumerate(("a.parquet", "b.parquet")):
        cells = [{"bytes": png(10 * number + n), "path": "x.png"} for n in range(3)]
        cells += [{"bytes": png(1)[:100], "path": None}, {"bytes": None, "path": "beside.png"}, {"bytes": None, "path": "gone.png"}, None]
        frame = pl.DataFrame({"query_text": [f"q{number}{n}" for n in range(7)], "positive_image": pl.Series(cells, dtype=kind)})
        frame.write_parquet(folder / file)
    plain = pl.DataFrame({"query_text": ["plain bytes"], "positive_image": [png(20)]}, schema_overrides={"positive_image": pl.Binary})
    plain.write_parquet(folder / "c.parquet")
    (folder / "beside.png").write_bytes(png(99))
    (folder / "more.jsonl").write_text('{"query_text": "by name", "positive_image": "a.parquet/positive_image/1"}\n')
    items, pairs, report, _ = sets.read_train(str(here / "own"), "S", "original", 1000, 1, LIMIT, "skip", job(here))
    images = [archives.archive(place[0]).read(place[1]) for place in (Items(items, LIMIT).image_place(i) for i in pairs["positive"])]
    wanted = [png(0), png(1), png(2), png(99), png(10), png(11), png(12), png(99), png(20), png(1)]
    assert images == wanted
    listed = [(one["file"][-9:], one["row"], one["reason"]) for one in report["left_out"]["listed"]]
    assert [place[:2] for place in listed] == [(file, row) for file in ("a.parquet", "b.parquet") for row in (3, 5, 6)]
    reasons = [reason for _, _, reason in listed[:3]]
    assert "does not decode" in reasons[0] and "'gone.png' is not in" in reasons[1] and "has neither text nor image" in reasons[2]
