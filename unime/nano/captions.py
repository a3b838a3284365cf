"""The embedded suite's caption sets, in the formats of Flickr30K and SugarCrepe.

    <folder>/crossmodal/NanoScenes/test-00000-of-00001.parquet  image {bytes, path}, text (five captions)
    <folder>/crossmodal/NanoCrepe/<kind>.json                   id -> {filename, caption, negative_caption}; seven files
    <folder>/crossmodal/NanoCrepe/val2017.zip                   val2017/<filename>

Scenes are of the split `test`.  A caption of NanoScenes is true of its own image and of no other one, so that a miss is a mistake and
not another right answer; those of NanoCrepe are true and false of one image.  Both are in the words of `makers`, which the nano MLLM reads.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import polars as pl

from unime.nano import makers, scenes
from unime.nano.makers import Rng
from unime.nano.scenes import Scene, Thing

RETRIEVAL, COMPOSITIONAL = "NanoScenes", "NanoCrepe"
BENCHMARKS = (RETRIEVAL, COMPOSITIONAL)
TASKS = (f"{RETRIEVAL}_i2t", f"{RETRIEVAL}_t2i", *(f"{COMPOSITIONAL}_{kind}" for kind in ("replace", "swap", "add")))

Caption = tuple[Thing, ...]
Claim = tuple[Caption, Caption]
"""What a true and a false caption say."""


def write_scenes(folder: Path, rng: Rng, count: int, png_of: Callable[[np.ndarray], bytes]) -> int:
    """Write NanoScenes of `count` images into `folder`; gives the number of images."""
    images, texts = [], []
    for number, (scene, captions) in enumerate(_apart(rng, count)):
        images.append({"bytes": png_of(scenes.paint(rng, scene)), "path": f"{number:06d}.png"})
        texts.append([text for _, text in captions])
    kind = {"image": pl.Struct({"bytes": pl.Binary, "path": pl.String}), "text": pl.List(pl.String)}
    folder.mkdir(parents=True, exist_ok=True)
    pl.DataFrame({"image": images, "text": texts}, schema=kind).write_parquet(folder / "test-00000-of-00001.parquet", row_group_size=100)
    return count


def _apart(rng: Rng, count: int) -> list[tuple[Scene, list[tuple[Caption, str]]]]:
    """Scenes with captions, none of which is true of another of the scenes."""
    found: list[tuple[Scene, list[tuple[Caption, str]]]] = []
    while len(found) < count:
        scene = scenes.draw_scene(rng, "test", int(rng.integers(2, 4)))
        captions = captions_of(rng, scene)
        said = [caption for caption, _ in captions]
        if not any(
            any(scenes.shows(other, caption) for caption in said) or any(scenes.shows(scene, caption) for caption, _ in theirs)
            for other, theirs in found
        ):
            found.append((scene, captions))
    return found


def captions_of(rng: Rng, scene: Scene) -> list[tuple[Caption, str]]:
    """Five captions of a scene of two or three things, as what they say and in words: all of it, all of it in another order, without
    one thing's size, without one thing's place, and all of it in other words."""
    turned = scene[::-1]
    bare, loose = (_open(rng, scene, field) for field in ("size", "place"))
    return [*((caption, makers.say(caption)) for caption in (scene, turned, bare, loose)), (scene, makers.say_other(scene))]


def _open(rng: Rng, scene: Scene, field: str) -> Caption:
    i = int(rng.integers(len(scene)))
    return (*scene[:i], scene[i]._replace(**{field: ""}), *scene[i + 1 :])


# ---- true and false -----------------------------------------------------------------------------------------------------------------


def replace(field: str) -> Callable[[Rng, Scene], Claim]:
    """One thing has another value of this attribute."""
    return lambda rng, scene: (scene, scenes.change(rng, scene, field))


def swap_att(rng: Rng, scene: Scene) -> Claim:
    """Two things exchange their colours."""
    i, j = _two(rng, scene)
    things = list(scene)
    things[i], things[j] = scene[i]._replace(color=scene[j].color), scene[j]._replace(color=scene[i].color)
    return scene, tuple(things)


def swap_obj(rng: Rng, scene: Scene) -> Claim:
    """Two things exchange their places."""
    i, j = _two(rng, scene)
    things = list(scene)
    things[i], things[j] = scene[j]._replace(place=scene[i].place), scene[i]._replace(place=scene[j].place)
    return scene, tuple(things)


def add_att(rng: Rng, scene: Scene) -> Claim:
    """A size is named that the thing does not have; the true caption leaves it open."""
    i = int(rng.integers(len(scene)))
    bare = (*scene[:i], scene[i]._replace(size=""), *scene[i + 1 :])
    return bare, scenes.change(rng, scene, "size", i)


def add_obj(rng: Rng, scene: Scene) -> Claim:
    """A thing is named that is not there; the true caption names two, so that the false one is no longer than captions are elsewhere."""
    i, j = sorted(_two(rng, scene))
    said = (scene[i], scene[j])
    free = [place for place in scenes.PLACES if place not in {thing.place for thing in said}]
    return said, scenes.scene_of([*said, scenes.draw_thing(rng, makers.one_of(rng, free))])


def _two(rng: Rng, scene: Scene) -> tuple[int, int]:
    i, j = rng.permutation(len(scene))[:2]
    return int(i), int(j)


CLAIMS: dict[str, Callable[[Rng, Scene], Claim]] = {
    "add_att": add_att,
    "add_obj": add_obj,
    "replace_att": replace("color"),
    "replace_obj": replace("shape"),
    "replace_rel": replace("place"),
    "swap_att": swap_att,
    "swap_obj": swap_obj,
}
"""SugarCrepe's seven files; a place stands for a relation, and a shape for an object."""


def claims_of(rng: Rng, scene: Scene) -> dict[str, Claim] | None:
    """A true and a false caption of a scene for each file, or None where one of them cannot be had (two things of one colour, say)."""
    found = {name: make(rng, scene) for name, make in CLAIMS.items()}
    wrong = [false for _, false in found.values()]
    if any(scenes.shows(scene, false) or any(thing.held for thing in false) for false in wrong):
        return None
    return found


def write_crepe(folder: Path, rng: Rng, count: int, png_of: Callable[[np.ndarray], bytes], add: Callable[[str, bytes], None]) -> int:
    """Write NanoCrepe's seven files of `count` rows into `folder`, one of each on an image; `add(member, png)` keeps the images.

    Gives the number of images.
    """
    rows: dict[str, dict[str, dict[str, str]]] = {name: {} for name in CLAIMS}
    for number in range(count):
        claims = None
        while claims is None:
            scene = scenes.draw_scene(rng, "test", int(rng.integers(2, 4)))
            claims = claims_of(rng, scene)
        filename = f"{number:012d}.png"
        add(f"val2017/{filename}", png_of(scenes.paint(rng, scene)))
        for name, (true, false) in claims.items():
            rows[name][str(number)] = {"filename": filename, "caption": makers.say(true), "negative_caption": makers.say(false)}
    for name, table in rows.items():
        (folder / f"{name}.json").write_text(json.dumps(table, indent=4) + "\n", encoding="utf-8")
    return count
