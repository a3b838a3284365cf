"""`unime rows` loses nothing: a row for each caption, what cannot become a row is named and counted, no answer on both sides."""

from __future__ import annotations

import hashlib
import json
import re
import unicodedata
import zipfile
from pathlib import Path

import pytest
import yaml
from PIL import Image
from published import png

from unime.__main__ import main
from unime.tools.rows import split
from unime.tools.rows.model import Side
from unime.tools.rows.split import Entry

FIND = "Find me an everyday image that matches the given caption: "


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, config) -> Path:
    """An empty folder with a configuration whose data lie in it."""
    monkeypatch.chdir(tmp_path)
    values = config.model_dump(mode="json")
    values["data"]["root"] = "own"
    Path("config.yaml").write_text(yaml.safe_dump(values))
    return tmp_path


def pictures(names: list[str], folder: str = "pictures") -> None:
    """Pictures of these names, each another one."""
    for number, name in enumerate(names):
        file = Path(folder, name)
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(png(number))


def convert(*options: str, folder: str = "pictures", name: str = "S") -> int:
    return main(["rows", folder, name, *options])


def rows_of(room: str, name: str = "S") -> list[dict]:
    file = Path("own", room, name, "rows.jsonl")
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()] if file.exists() else []


def captions_of(name: str = "S") -> list[tuple[str, str]]:
    """(picture, caption) of all rows of both sides, sorted."""
    rows = rows_of("train", name) + rows_of("eval", name)
    return sorted((row["positive_image"], row["query_text"].removeprefix(FIND)) for row in rows)


def report(name: str = "S") -> dict:
    return json.loads(Path("own/train", name, "report.json").read_text(encoding="utf-8"))


def table(text: str, file: str = "captions.csv", encoding: str = "utf-8") -> None:
    Path("pictures", file).write_bytes(text.encode(encoding))


# A row for each caption


def test_five_lines_of_one_picture_are_five_rows_on_one_side(here: Path) -> None:
    pictures([f"{number}.png" for number in range(30)])
    said = [(f"{number}.png", f"caption {k} of {number}") for number in range(30) for k in range(5)]
    table("image,caption\n" + "".join(f"{image},{caption}\n" for image, caption in said))
    assert convert() == 0
    assert captions_of() == sorted(said)
    train, held = ({row["positive_image"] for row in rows_of(room)} for room in ("train", "eval"))
    assert held and not train & held
    found = report()
    assert found["train"]["captions"] + found["task"]["captions"] == 150 and found["task_answers_in_training"] == 0
    assert found["task"]["distinct_pictures"] == found["task_answers"] == len(held)


@pytest.mark.parametrize("delimiter", [",", "\t", ";", "|"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_delimiters_quotes_and_encodings_give_the_same_captions(here: Path, delimiter: str, encoding: str) -> None:
    pictures(["0.png", "1.png", "2.png", "caf\u00e9.png"])
    lines = [
        ("image", "caption"),
        ("0.png", f'"a dog{delimiter} running; in\tsnow | at dusk, ""quoted"""'),
        ("1.png", "ein B\u00e4r"),
        ("2.png", '"two\nlines"'),
        ("caf\u00e9.png", "\u5496\u5561 \U0001f600"),
    ]
    table("".join(delimiter.join(line) + "\r\n" for line in lines), encoding=encoding)
    assert convert() == 0
    assert captions_of() == [
        ("0.png", " ".join(f'a dog{delimiter} running; in snow | at dusk, "quoted"'.split())),
        ("1.png", "ein B\u00e4r"),
        ("2.png", "two lines"),
        ("caf\u00e9.png", "\u5496\u5561 \U0001f600"),
    ]


def test_a_tsv_and_a_table_of_another_name_are_read(here: Path) -> None:
    pictures(["0.png", "1.png"])
    table("image\tcaption\n0.png\ta, b; c\n1.png\td\n", "captions.tsv")
    assert convert() == 0 and captions_of() == [("0.png", "a, b; c"), ("1.png", "d")]
    Path("pictures/captions.tsv").unlink()
    table("sep=;\nFilename;Description;Price\n0.png;red shoe;3\n1.png;blue shoe;4\n", "products.csv")
    assert convert(name="T") == 0 and captions_of("T") == [("0.png", "red shoe"), ("1.png", "blue shoe")]
    table("number,photo,words\n1,0.png,x\n2,1.png,y\n", "list.txt")
    assert convert("--image-column", "photo", "--text-column", "words", folder="pictures/list.txt", name="U") == 0
    assert captions_of("U") == [("0.png", "x"), ("1.png", "y")]


def test_names_written_in_another_unicode_form_or_in_a_folder_beside_are_found(here: Path) -> None:
    name = "caf\u00e9.png"
    pictures([unicodedata.normalize("NFD", name), "images/0.png", "images/1.png"])
    table(f"image,caption\n{name},a caf\u00e9\n./images/0.png,zero\n1.png,one\n")
    assert convert() == 0
    assert [caption for _, caption in captions_of()] == ["a caf\u00e9", "zero", "one"]


def test_a_bare_name_that_two_folders_have_is_not_guessed(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pictures(["shoes/1.png", "bags/1.png"])
    table("image,caption\nshoes/1.png,a shoe\n1.png,a bag\n")
    assert convert() == 1
    said = capsys.readouterr().err
    assert "captions.csv: line 3: '1.png' is no image in pictures" in said and "bags/1.png has no caption" in said


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_text_files_may_be_in_utf16_and_a_caption_of_several_lines_is_one(here: Path, encoding: str) -> None:
    pictures(["0.png"])
    Path("pictures/0.txt").write_bytes("ein B\u00e4r\r\nim Schnee\r\n".encode(encoding))
    assert convert("--held", "0") == 0 and captions_of() == [("0.png", "ein B\u00e4r im Schnee")]


# What cannot become a row

DAMAGED = {
    "an unquoted comma": ("0.png,a dog, running, in snow\n1.png,x\n", 'line 2: 4 fields .* perhaps 0.png,"a dog, running, in snow"'),
    "a missing field": ("0.png\n1.png,x\n", "line 2: 1 fields where the first line names 2"),
    "a stray line": ("0.png,y\n1.png,x\nthe end\n", "line 4: 1 fields"),
    "an empty caption": ("0.png,y\n1.png,x\n1.png,\n", "line 4: caption is empty"),
    "no path": ("0.png,y\n1.png,x\n,z\n", "line 4: image is empty"),
    "an unknown picture": ("0.png,y\n1.png,x\n7.png,z\n", "line 4: '7.png' is no image in pictures"),
    "a picture outside": ("0.png,y\n1.png,x\n../secret.png,z\n", "line 4: '../secret.png' is no image in pictures"),
    "a picture without a caption": ("0.png,y\n", r"pictures: 1.png has no caption \(1 of 2 images\)"),
}


@pytest.mark.parametrize("what", DAMAGED)
def test_what_cannot_become_a_row_is_an_error_that_names_it_or_is_counted(
    here: Path, what: str, capsys: pytest.CaptureFixture[str]
) -> None:
    lines, reason = DAMAGED[what]
    pictures(["0.png", "1.png"])
    Path("secret.png").write_bytes(png(9))
    table("image,caption\n" + lines)
    assert convert("--held", "0") == 1
    said = capsys.readouterr().err
    assert re.search(reason, said) and "--skip-bad" in said and not Path("own").exists()
    assert convert("--held", "0", "--skip-bad") == 0
    good = {("0.png", "y"), ("1.png", "x")}
    assert set(captions_of()) <= good and len(captions_of()) == (1 if "0.png,y" not in lines or "1.png,x" not in lines else 2)
    counted = report()["left_out"]
    assert sum(kind["count"] for kind in counted.values()) >= 1 and "left out" in capsys.readouterr().out


def test_fields_beyond_the_last_column_that_are_empty_lose_nothing(here: Path) -> None:
    pictures(["0.png", "1.png"])
    table("image,caption\n0.png,x,,\n\n1.png,y,\n,,,\n")
    assert convert("--held", "0") == 0 and captions_of() == [("0.png", "x"), ("1.png", "y")]


@pytest.mark.parametrize(
    ("lines", "reason"),
    [
        ('0.png,"a dog\n1.png,x\n', r"captions.csv: not a table .*\(line 2: unexpected end of data\)"),
        ('0.png,x\n1.png,"a" dog\n', r"captions.csv: not a table .*\(line 3: "),
    ],
)
def test_a_quote_that_is_not_closed_is_an_error_with_its_line(here: Path, lines: str, reason: str, capsys) -> None:
    """Also with --skip-bad: what it would swallow is not known."""
    pictures(["0.png", "1.png"])
    table("image,caption\n" + lines)
    assert convert("--skip-bad") == 1 and re.search(reason, capsys.readouterr().err)


def test_pictures_that_cannot_be_read_are_counted_and_named_and_the_others_become_rows(here: Path, capsys) -> None:
    pictures([f"{number}.png" for number in range(10)])
    bad = {
        "a.heic": b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(99),
        "b.jpg": b"<html>404</html>",
        "c.png": png(3)[:300],
        "d.webp": b"",
        "e.HEIC": b"x",
        "f.svg": b"<svg/>",
    }
    for name, data in bad.items():
        Path("pictures", name).write_bytes(data)
    Image.new("RGB", (8, 8)).save("pictures/g.avif")
    for file in list(Path("pictures").iterdir()):
        file.with_suffix(".txt").write_text(f"caption of {file.stem}")
    assert convert("--held", "0") == 0
    said = capsys.readouterr().out
    assert len(captions_of()) == 10 and "7 pictures cannot be read and are left out, with 7 captions: a.heic (not an image" in said
    assert report()["left_out"]["pictures_unreadable"]["count"] == 7 == report()["captions_or_pairs_lost_with_their_picture"]
    assert set(zipfile.ZipFile("own/train/S/images.zip").namelist()) == {f"{number}.png" for number in range(10)}


def test_a_folder_of_pictures_none_of_which_can_be_read_is_an_error_that_says_so(here: Path, capsys) -> None:
    pictures(["0.heic"])
    Path("pictures/0.heic").write_bytes(b"no picture")
    Path("pictures/0.txt").write_text("a dog")
    assert convert() == 1
    assert "no row can be made" in (said := capsys.readouterr().err) and "1 picture cannot be read" in said and not Path("own").exists()


def test_hidden_files_are_ignored_and_counted(here: Path, capsys) -> None:
    pictures(["0.png", "1.png", "._0.png", ".hidden/2.png", "__MACOSX/0.png", ".DS_Store"])
    for name in ("0.txt", "1.txt", "._0.txt"):
        Path("pictures", name).write_text("a caption of " + name)
    assert convert() == 0 and len(captions_of()) == 2
    assert "hidden files ignored: 5" in capsys.readouterr().out and report()["notes"] == {"hidden files ignored": 5}


def test_a_text_file_without_a_picture_is_named(here: Path, capsys) -> None:
    pictures(["0.png"])
    for name in ("0", "1"):
        Path(f"pictures/{name}.txt").write_text("a caption")
    assert convert() == 1 and "1.txt: no picture 1.jpg" in capsys.readouterr().err
    assert convert("--skip-bad") == 0 and "left out, captions without their picture: 1 (1.txt" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("encoding", "reason"),
    [
        ("latin-1", "can't decode"),
        ("utf-16-le", "UTF-16 without a byte order mark"),
        ("utf-32", "it is UTF-32"),
        ("shift-jis", "can't decode"),
    ],
)
@pytest.mark.parametrize("file", ["captions.csv", "labels.csv"])
def test_a_table_in_another_encoding_is_refused_by_name(here: Path, encoding: str, reason: str, file: str, capsys) -> None:
    pictures(["0.png"])
    word = "\u732b" if encoding == "shift-jis" else "caf\u00e9"
    table(f"image,caption\n0.png,{word}\n", file, encoding)
    assert convert() == 1
    said = capsys.readouterr().err
    assert file in said and (re.search(reason, said) or f"if {file} has the captions, name that file" in said)
    assert convert(folder=f"pictures/{file}") == 1 and f"{file}: not a table of text in UTF-8" in capsys.readouterr().err


def test_a_table_with_columns_of_unknown_names_is_hinted_at_and_read_when_it_is_named(here: Path, capsys) -> None:
    pictures(["0.png", "1.png"])
    table("number,photo,words\n1,0.png,x\n2,1.png,y\n", "list.csv")
    assert convert() == 1 and "if list.csv has the captions, name that file in place of the folder" in capsys.readouterr().err
    assert convert(folder="pictures/list.csv") == 1
    assert "column 'image' is missing; its columns are 'number', 'photo', 'words'; name one with --image-column" in capsys.readouterr().err
    assert convert("--image-column", "photo", "--text-column", "wrods") == 1
    assert convert("--image-column", "photo", "--text-column", "words") == 0 and captions_of() == [("0.png", "x"), ("1.png", "y")]


# Instructions


def test_an_instruction_stands_before_every_query(here: Path, capsys) -> None:
    pictures(["0.png"])
    Path("pictures/0.txt").write_text("a red shoe")
    assert convert("--instruction", "Find the product:", "--held", "0", name="A") == 0
    assert rows_of("train", "A")[0]["query_text"] == "Find the product: a red shoe"
    assert convert("--instruction", "Name the product.", "--direction", "i2t", "--held", "0", name="B") == 0
    (row,) = rows_of("train", "B")
    assert row == {"query_text": "<|image_1|>\nName the product.\n", "query_image": "0.png", "positive_text": "a red shoe"}
    questions(4)
    Path("pictures/0.txt").unlink()
    assert convert("--instruction", "Answer:", "--split", "pictures", "--held", "0", name="Q") == 0
    assert {row["query_text"] for row in rows_of("train", "Q")} == {"<|image_1|>\nAnswer: Is it?"}
    assert report("Q")["train"]["pairs"] == 4
    assert convert("--direction", "both", name="D") == 1 and "pictures holds pairs (conversations)" in capsys.readouterr().err
    assert convert("--instruction", "x", "--direction", "both", name="C") == 1 and "for one direction" in capsys.readouterr().err


# The split


def copies(count: int) -> None:
    """Each picture under two names, as PNG and as BMP, so that its bytes differ, and each caption of two pictures in another form."""
    folder = Path("pictures")
    pictures([f"a{number}.png" for number in range(count)])
    for number in range(count):
        Image.open(folder / f"a{number}.png").save(folder / f"b{number}.bmp")
        (folder / f"a{number}.txt").write_text(f"of a {number}")
        (folder / f"b{number}.txt").write_text(f"of b {number}")


@pytest.mark.parametrize("direction", ["t2i", "i2t", "both"])
def test_copies_of_a_picture_stay_on_one_side(here: Path, direction: str) -> None:
    copies(40)
    assert convert("--held", "0.4", "--direction", direction) == 0
    used = [{name[1:].split(".")[0] for name in zipfile.ZipFile(f"own/{room}/S/images.zip").namelist()} for room in ("train", "eval")]
    assert len(used[0]) + len(used[1]) == 40 and used[1] and not used[0] & used[1]
    assert report()["task_answers_in_training"] == 0 and report()["groups"] == 40


def test_rows_that_share_a_caption_stay_on_one_side_and_links_go_through_others(here: Path) -> None:
    pictures([f"{number:02}.png" for number in range(60)])
    lines = []
    for number in range(0, 60, 3):  # 0 and 1 share a caption in two Unicode forms and other blanks; 1 and 2 another one
        shared = f"caf\u00e9 {number}"
        lines += [(number, shared), (number + 1, unicodedata.normalize("NFD", shared).replace(" ", "  ")), (number + 1, f"b {number}")]
        lines += [(number + 2, f" b {number}\t")]
    table("image,caption\n" + "".join(f'{number:02}.png,"{caption}"\n' for number, caption in lines))
    assert convert("--held", "0.3") == 0
    sides = [{int(row["positive_image"][:2]) // 3 for row in rows_of(room)} for room in ("train", "eval")]
    assert sides[1] and not sides[0] & sides[1] and len(sides[0] | sides[1]) == report()["groups"] == 20


def test_the_split_does_not_depend_on_the_order_of_lines_or_on_names_of_copies(here: Path) -> None:
    copies(30)
    assert convert("--held", "0.5", name="A") == 0
    held = {row["query_text"] for row in rows_of("eval", "A")}
    for number in range(30):  # the same pictures and captions under other names
        for letter, suffix in (("a", "png"), ("b", "bmp")):
            for ending in (suffix, "txt"):
                Path(f"pictures/{letter}{number}.{ending}").rename(f"pictures/x{number * 7 % 30}{letter}.{ending}")
    assert convert("--held", "0.5", name="B") == 0
    assert held and {row["query_text"] for row in rows_of("eval", "B")} == held


def test_a_folder_without_duplicates_is_split_by_names_as_it_always_was(here: Path) -> None:
    pictures([f"{number:04}.png" for number in range(50)])
    for number in range(50):
        Path(f"pictures/{number:04}.txt").write_text(f"caption {number}")
    assert convert() == 0
    names = [f"{number:04}.png" for number in range(50)]
    held = [name for name in names if int(hashlib.sha256(name.encode()).hexdigest()[:8], 16) / 2**32 < 0.2]
    assert held and [row["positive_image"] for row in rows_of("eval")] == held


def questions(count: int) -> None:
    """Questions about pictures, whose answers are yes and no."""
    pictures([f"{number}.png" for number in range(count)])
    rows = [
        {
            "image": f"{n}.png",
            "conversations": [{"from": "human", "value": "<image>\nIs it?"}, {"from": "gpt", "value": ("yes", "no")[n % 2]}],
        }
        for n in range(count)
    ]
    Path("pictures/chat.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_data_with_two_answers_are_refused_and_split_by_pictures_on_request_with_the_shared_answers_counted(here: Path, capsys) -> None:
    questions(40)
    for number in range(2):  # one link between the two answers
        Path(f"pictures/{number}.png").write_bytes(png(0))
    assert convert() == 1
    said = capsys.readouterr().err
    assert "40 of 40 captions or pairs are linked" in said and "'yes' alone is in 20" in said and "--split pictures" in said
    assert convert("--split", "pictures") == 0
    assert "answers of the task that occur in training: 2 of 2" in capsys.readouterr().out
    assert report()["task_answers_in_training"] == 2
    sides = [{row["query_image"] for row in rows_of(room)} for room in ("train", "eval")]
    assert sides[1] and not sides[0] & sides[1] and not {"0.png", "1.png"} - sides[0] or not {"0.png", "1.png"} - sides[1]


def entry(query: str, answer: str) -> Entry:
    sides = (Side(query), Side(answer))
    return Entry(({"query_text": query, "positive_text": answer},), sides, sides[1:])


def test_random_links_never_leave_an_answer_on_both_sides() -> None:
    """200 random graphs of texts, compared with components that networkx finds."""
    import networkx
    import numpy as np

    drawn = np.random.default_rng(0)
    checked = 0
    for _ in range(200):
        entries = [entry(f"q{drawn.integers(60)}", f"a{drawn.integers(60)}") for _ in range(30)]
        graph = networkx.Graph([(one.sides[0].text, one.sides[1].text) for one in entries])
        try:
            found = split.split(entries, {}, set(), 0.5, "answers")
        except ValueError:
            continue
        assert found.groups == networkx.number_connected_components(graph) and found.answers_in_training == 0
        texts = [{side.text for one in part.entries for side in one.sides} for part in (found.train, found.held)]
        assert not texts[0] & texts[1] and len(found.train.entries) + len(found.held.entries) == 30
        checked += bool(texts[0] and texts[1])
    assert checked > 100
