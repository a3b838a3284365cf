"""COCO's captions: one JSON object with `images` (id, file_name) and `annotations` (image_id, caption)."""

from __future__ import annotations

import json
import mmap
from pathlib import Path

from unime.tools.rows import text
from unime.tools.rows.folder import Folder
from unime.tools.rows.model import Caption, Options, Source, where
from unime.tools.rows.tables import captions_of
from unime.tools.rows.text import Json

_KEYS = (b'"images"', b'"annotations"', b'"caption"')


def is_coco(file: Path, root: Path, options: Options) -> bool:
    """Whether a file is a JSON object with COCO's keys.  (Its files of boxes and key points have no `caption`.)"""
    if file.suffix != ".json" or file.stat().st_size == 0:
        return False
    with file.open("rb") as opened, mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ) as data:
        start = data[:4096].removeprefix(b"\xef\xbb\xbf").lstrip()
        return start.startswith(b"{") and all(data.find(key) >= 0 for key in _KEYS)


def read(folder: Folder, files: list[Path], options: Options) -> Source:
    """Every annotation's caption, with the picture file that its image names, wherever below the folder that lies."""
    source = Source("COCO captions")
    for file in files:
        shown = where(file, folder.root)
        images, annotations = _lists(file)
        names = _pictures(source, folder, images, shown)
        captioned = set()
        for number, annotation in enumerate(annotations):
            place = f"{shown}: annotation {number}"
            if not isinstance(annotation, dict) or not isinstance(annotation.get("image_id"), (int, str)):
                source.bad_rows.append(f"{place}: {text.shortened(annotation)}, needed an object with image_id and caption")
                continue
            image = annotation["image_id"]
            captioned.add(image)
            if image not in names:
                source.no_picture.append(f"{place}: its image_id {image!r} is not among the images")
                continue
            name, path = names[image]
            if name is None:
                source.no_picture.append(f"{place}: {path!r} is no image in {folder.root}")
                continue
            for words in captions_of(annotation.get("caption"), source, place, "caption"):
                source.captions.append(Caption(place, name, words))
        missing = sum(name is None and image not in captioned for image, (name, _) in names.items())
        source.note(f"images of {shown} with neither a file nor a caption", missing)
    for name in folder.pictures:
        source.pictures.setdefault(name, folder.place(name))
    return source


def _lists(file: Path) -> tuple[list[Json], list[Json]]:
    """The lists `images` and `annotations`.  Raises ValueError naming the file."""
    try:
        value = json.loads(text.decoded(file, "JSON"))
    except (json.JSONDecodeError, RecursionError) as error:
        raise ValueError(f"{file}: not JSON ({error}); download it again") from error
    images, annotations = value.get("images"), value.get("annotations")
    if not isinstance(images, list) or not isinstance(annotations, list):
        raise ValueError(f"{file}: images and annotations must be lists, as in COCO's captions_*.json")
    return images, annotations


def _pictures(source: Source, folder: Folder, images: list[Json], shown: str) -> dict[int | str, tuple[str | None, str]]:
    """Image id -> (name of its file or None, its path in the JSON)."""
    found: dict[int | str, tuple[str | None, str]] = {}
    for number, image in enumerate(images):
        usable = isinstance(image, dict) and isinstance(image.get("id"), (int, str)) and isinstance(image.get("file_name"), str)
        if not usable:
            source.bad_rows.append(f"{shown}: image {number}: {text.shortened(image)}, needed an object with id and file_name")
            continue
        name = folder.file(image["file_name"])
        found[image["id"]] = (name, image["file_name"])
        if name is not None:
            source.pictures[name] = folder.place(name)
    return found
