"""Turn your own data into a training set and a task: `python -m unime rows FOLDER NAME`; docs/data.md lists the formats that are read.

The format is found from the files (`formats`), a reader for each collects pictures and captions or pairs (`model.Source`), every picture
is decoded once (`pictures`), and rows are held out in groups that share nothing with training (`split`).  The pictures that rows use go
into one images.zip a set, byte for byte as they are: DVC does not look through linked folders, and a million small files are slow.

Pictures, tar files, parquet and JSON are read with what the package needs anyway (Pillow, tarfile, polars).  `datasets` and `webdataset`
would bring a dozen packages for files that are simple; the tests write with them and compare.
"""

from __future__ import annotations

import argparse
import json
import re
import zipfile
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

from unime.config.types import LONGEST_NAME

if TYPE_CHECKING:  # they load polars, and threads are counted out before that
    from unime.config import Config
    from unime.tools.rows.model import Caption, Pair, Place, Source
    from unime.tools.rows.split import Entry, Row

NAME = r"[A-Za-z0-9][A-Za-z0-9_-]*"
MARK = "<|image_1|>\n"
FIND = "Find me an everyday image that matches the given caption:"
DESCRIBE = "Find an image caption describing the given image."
SHOW = MARK + "Represent the given image.\n"
REPORT = "report.json"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "folder", type=Path, help="pictures with captions, or rows, in one of the formats of docs/data.md; or one such file"
    )
    parser.add_argument("name", help="of the set and of the task")
    parser.add_argument(
        "--direction",
        choices=("t2i", "i2t", "both"),
        default="t2i",
        help="of captions: caption to image, image to caption, or both (default: t2i)",
    )
    parser.add_argument("--held", type=float, default=0.2, help="share that is held out for the task, in whole groups (default: 0.2)")
    parser.add_argument(
        "--split",
        choices=("answers", "pictures"),
        default="answers",
        help="what must not be on both sides: captions, answers and pictures, or pictures only (default: answers)",
    )
    parser.add_argument("--image-column", help="column, key or suffix of the pictures (default: image, file_name and the like)")
    parser.add_argument("--text-column", help="column, key or suffix of the captions (default: caption, text and the like)")
    parser.add_argument("--instruction", help="put before each query (default: one that suits the direction of captions; none for pairs)")
    parser.add_argument("--skip-bad", action="store_true", help="leave out and count what cannot become a row, instead of stopping")


def run(given: argparse.Namespace, values: Config) -> str:
    """Write rows.jsonl, images.zip and report.json of the training set and of the task below `data.root`; the text says what was made.

    Raises ValueError for what cannot become a row (left out and counted with --skip-bad), a format that is not known, a share outside
    [0, 1), or folders that are there already.
    """
    check(given)
    from unime import artifacts
    from unime.data.images import Decoding
    from unime.tools.rows import formats, model, pictures, split, told

    source = formats.read(given.folder, model.Options(given.image_column, given.text_column))
    if source.unit == "pairs" and given.direction != "t2i":
        raise ValueError(
            f"--direction {given.direction} is for captions; {given.folder} holds pairs ({source.form}), which have a direction"
        )
    digests, unreadable = pictures.digests(source.pictures, Decoding.of(values.data))
    source = pictures.without_unreadable(source, unreadable)
    told.refuse(source, given.folder, given.skip_bad)
    entries = made_of(source, given)
    files = {name for name, (archive, _) in source.pictures.items() if Path(archive).is_dir()}
    parts = split.split(entries, digests, files, given.held, given.split)

    root = Path(values.data.root)
    rooms = {room: part for room, part in (("train", parts.train), ("eval", parts.held)) if part.entries}
    for place in (root / room / given.name for room in rooms):
        if place.exists():
            raise ValueError(f"{place} is there already; remove it, or choose another name")
    report = told.report(source, parts)
    with ExitStack() as both:  # the set and the task, or neither
        for room, part in rooms.items():
            place = both.enter_context(artifacts.whole(root / room / given.name))
            rows = [row for entry in part.entries for row in entry.rows]
            write(place, source.pictures, rows, report)
    return told.made(source, parts, root, given)


def check(given: argparse.Namespace) -> None:
    """Raise ValueError for arguments that cannot be followed."""
    if not re.fullmatch(NAME, given.name):
        raise ValueError(f"{given.name!r} is no name of a set: letters, digits, - and _")
    if len(given.name) > LONGEST_NAME:
        raise ValueError(f"{given.name[:40]!r}... has {len(given.name)} characters; the name of a set has {LONGEST_NAME} at most")
    if not 0 <= given.held < 1:
        raise ValueError(f"--held {given.held}: a share from 0 to below 1 is needed")
    if given.instruction is not None and given.direction == "both":
        raise ValueError("--instruction is for one direction; make two sets, with --direction t2i and i2t")
    if given.instruction is not None and MARK.strip() in given.instruction:
        raise ValueError(f"--instruction holds the mark {MARK.strip()}, which is put before a picture's text anyway; leave it out")


def made_of(source: Source, given: argparse.Namespace) -> list[Entry]:
    """What the captions or the pairs of a source become.  Captions are in the order of their pictures' names, pairs as they came."""
    captions = sorted(source.captions, key=lambda caption: caption.image)
    made = [of_caption(caption, given.direction, given.instruction) for caption in captions]
    return made + [of_pair(pair, given.instruction) for pair in source.pairs]


def of_caption(caption: Caption, direction: str, instruction: str | None) -> Entry:
    """The rows of one caption and its picture, in one direction or in both."""
    from unime.tools.rows.model import Side, one_line
    from unime.tools.rows.split import Entry

    text = one_line(caption.text)
    find = FIND if instruction is None else instruction.rstrip()
    describe = DESCRIBE if instruction is None else instruction.strip()
    rows: list[Row] = []
    answers: list[Side] = []
    if direction in ("t2i", "both"):
        rows.append({"query_text": f"{find} {text}".lstrip(), "positive_text": SHOW, "positive_image": caption.image})
        answers.append(Side(image=caption.image))
    if direction in ("i2t", "both"):
        rows.append({"query_text": f"{MARK}{describe}\n", "query_image": caption.image, "positive_text": text})
        answers.append(Side(text=text))
    return Entry(tuple(rows), (Side(text=text), Side(image=caption.image)), tuple(answers))


def of_pair(pair: Pair, instruction: str | None) -> Entry:
    """The row of one pair; keys that are absent are left out."""
    from unime.tools.rows.split import Entry

    query = pair.query.text
    if instruction is not None:
        mark = MARK if query.startswith(MARK) else ""
        query = f"{mark}{instruction.strip()} {query.removeprefix(mark)}".rstrip()
    row: Row = {"query_text": query}
    if pair.query.image:
        row["query_image"] = pair.query.image
    if pair.positive.text:
        row["positive_text"] = pair.positive.text
    if pair.positive.image:
        row["positive_image"] = pair.positive.image
    if pair.negatives:
        row["candidates"] = [{"text": side.text, "image": side.image} for side in pair.negatives]
    return Entry((row,), (pair.query, pair.positive), (pair.positive,))


def write(place: Path, pictures: dict[str, Place], rows: Sequence[Row], report: dict[str, object]) -> None:
    """Write images.zip, with the pictures that the rows use as they are, rows.jsonl, and the report of the whole conversion."""
    from unime.data import archives

    place.mkdir()
    with zipfile.ZipFile(place / "images.zip", "w", zipfile.ZIP_STORED) as archive:
        for name in sorted(used(rows)):
            path, member = pictures[name]
            archive.writestr(zipfile.ZipInfo(name), archives.archive(path).read(member))
    lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in rows]
    (place / "rows.jsonl").write_text("".join(lines), encoding="utf-8")
    (place / REPORT).write_text(json.dumps(report, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")


def used(rows: Sequence[Row]) -> set[str]:
    """The names of all pictures of these rows."""
    names: set[str] = set()
    for row in rows:
        names |= {row.get("query_image", ""), row.get("positive_image", "")}
        names |= {candidate["image"] for candidate in row.get("candidates", ())}
    return names - {""}
