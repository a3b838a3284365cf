"""Turn a folder of images with captions into a training set and a task of your own: `python -m unime rows FOLDER NAME`.

A caption is the text file beside an image (`0001.jpg`, `0001.txt`), or a row of a `captions.csv` in the folder (columns image, caption).
The images go into one images.zip a set, as they are: DVC does not look through linked folders, and a million small files are slow.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import json
import re
import zipfile
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from unime.config.types import LONGEST_NAME
from unime.inputs import problems, told

NAME = r"[A-Za-z0-9][A-Za-z0-9_-]*"
SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff")
FIND = "Find me an everyday image that matches the given caption: "
DESCRIBE = "<|image_1|>\nFind an image caption describing the given image.\n"
SHOW = "<|image_1|>\nRepresent the given image.\n"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", type=Path, help="images, each with a caption beside it or in captions.csv")
    parser.add_argument("name", help="of the set and of the task")
    parser.add_argument(
        "--direction", choices=("t2i", "i2t", "both"), default="t2i", help="caption to image, image to caption (default: t2i)"
    )
    parser.add_argument("--held", type=float, default=0.2, help="share of the images that is kept for the task (default: 0.2)")


def run(given: argparse.Namespace, values: Any) -> str:
    """Write rows.jsonl of the training set and of the task below `data.root`.

    Which images are held out depends on their names alone.  Raises ValueError for images without a caption, an unknown row of
    captions.csv, a share outside [0, 1), or folders that are there already.
    """
    if not re.fullmatch(NAME, given.name):
        raise ValueError(f"{given.name!r} is no name of a set: letters, digits, - and _")
    if len(given.name) > LONGEST_NAME:
        raise ValueError(f"{given.name[:40]!r}... has {len(given.name)} characters; the name of a set has {LONGEST_NAME} at most")
    if not 0 <= given.held < 1:
        raise ValueError(f"--held {given.held}: a share from 0 to below 1 is needed")
    from unime import artifacts

    found = captions(given.folder)
    held = {name for name in found if int(hashlib.sha256(name.encode()).hexdigest()[:8], 16) / 2**32 < given.held}
    root, made = Path(values.data.root), []
    parts = {room: names for room, names in (("train", sorted(found.keys() - held)), ("eval", sorted(held))) if names}
    for place in (root / room / given.name for room in parts):
        if place.exists():
            raise ValueError(f"{place} is there already; remove it, or choose another name")
    with ExitStack() as both:  # the set and the task, or neither
        for room, names in parts.items():
            place = root / room / given.name
            rows = [row for name in names for row in pair(name, found[name], given.direction)]
            write(both.enter_context(artifacts.whole(place)), given.folder, names, rows)
            made.append(f"{place} ({len(rows):,} rows)")
    keys = {"train": "data.train_sets", "eval": "evaluate.tasks"}
    return f"made {', '.join(made)}; name {given.name} in {' and '.join(keys[room] for room in parts)}"


def write(place: Path, folder: Path, names: Sequence[str], rows: Sequence[dict[str, str]]) -> None:
    """Write images.zip, with these images of the folder as they are, and rows.jsonl."""
    place.mkdir()
    with zipfile.ZipFile(place / "images.zip", "w", zipfile.ZIP_STORED) as archive:
        for name in names:
            archive.writestr(zipfile.ZipInfo(name), (folder / name).read_bytes())
    lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in rows]
    (place / "rows.jsonl").write_text("".join(lines), encoding="utf-8")


def pair(image: str, caption: str, direction: str) -> list[dict[str, str]]:
    """The rows of one image and its caption."""
    there = {"query_text": FIND + caption, "positive_text": SHOW, "positive_image": image}
    back = {"query_text": DESCRIBE, "query_image": image, "positive_text": caption}
    return [row for name, row in (("t2i", there), ("i2t", back)) if direction in (name, "both")]


def captions(folder: Path) -> dict[str, str]:
    """Image (its path in the folder) -> caption on one line."""
    if not folder.is_dir():
        raise ValueError(f"{folder}: no such folder")
    wrong = problems(folder)
    if wrong:
        raise ValueError(told(wrong))
    images = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES)
    table = folder / "captions.csv"
    if table.exists():
        texts = _table(table)
        if unknown := sorted(texts.keys() - set(images)):
            raise ValueError(f"{table}: {unknown[0]!r} is no image in {folder} ({len(unknown)} such rows)")
    else:
        texts = {image: _read(file) for image in images if (file := (folder / image).with_suffix(".txt")).exists()}
    found = {image: " ".join(texts[image].split()) for image in images if texts.get(image, "").strip()}
    if lacking := [image for image in images if image not in found]:
        raise ValueError(
            f"{folder}: {lacking[0]} has no caption ({len(lacking)} of {len(images)} images); give it a .txt or a row of captions.csv"
        )
    if not found:
        raise ValueError(f"{folder}: no images ({', '.join(SUFFIXES)})")
    return found


def _table(table: Path) -> dict[str, str]:
    """Image -> caption of a captions.csv.  Raises ValueError naming the file."""
    try:
        with table.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file)
            if absent := {"image", "caption"} - set(reader.fieldnames or ()):
                raise ValueError(f"{table}: column {min(absent)!r} is missing; the first line names image and caption")
            texts = {row["image"] or "": row["caption"] or "" for row in reader}
    except (csv.Error, UnicodeDecodeError) as error:
        raise ValueError(f"{table}: not a table of text in UTF-8 ({error}); save it as CSV in UTF-8") from error
    zeros = sum("\0" in image + text for image, text in texts.items())
    if zeros:
        raise ValueError(f"{table}: not a table of text in UTF-8 ({zeros} rows hold NUL bytes); save it as CSV in UTF-8")
    return texts


def _read(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{file}: not UTF-8 ({error}); save it as UTF-8") from error
