"""The embedded suite's caption sets: what is called true is true of the picture, what is called false is false, by the scene's facts."""

from __future__ import annotations

import io
import json
import re
import zipfile
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from PIL import Image
from published import job

from unime.data.captions import read_captions
from unime.data.images import Decoding
from unime.nano import captions, makers, scenes
from unime.nano.scenes import Thing

WORD = {field: "|".join(values) for field, values in scenes.ATTRIBUTES.items()}
SAID = re.compile(
    f"(?:at the (?P<place>{WORD['place']}) )?a (?:(?P<size>{WORD['size']}) )?(?P<color>{WORD['color']}) (?P<shape>{WORD['shape']})"
)
OTHER = re.compile(
    f"the (?P<shape>{WORD['shape']})(?: in the (?P<place>{WORD['place']}) corner)? is "
    f"(?:(?P<size>{WORD['size']}) and )?(?P<color>{WORD['color']})"
)


def told(text: str) -> tuple[Thing, ...]:
    """What a caption says, read from its words alone."""
    form, between = (SAID, ", ") if SAID.match(text) else (OTHER, " and the ")
    pieces = text.split(between) if between == ", " else re.split(" and (?=the )", text)
    return tuple(Thing(**{field: match[field] or "" for field in Thing._fields}) for match in map(form.fullmatch, pieces) if match)


def seen(png: bytes) -> dict[str, str]:
    """The colour at each place of a picture that is not empty, by its pixels."""
    pixels, found = np.asarray(Image.open(io.BytesIO(png))).astype(int), {}
    for place in scenes.PLACES:
        cell = scenes._cell(pixels, place)[4:-4, 4:-4].reshape(-1, 3)
        far = np.stack([np.abs(cell - np.array(rgb)).sum(1) for rgb in scenes.RGB.values()])
        near = far.min(0) < 45
        if near.sum() > 10:
            found[place] = scenes.COLORS[np.bincount(far.argmin(0)[near]).argmax()]
    return found


def shown(scene: scenes.Scene) -> dict[str, str]:
    return {thing.place: thing.color for thing in scene}


def test_captions_of_scenes_are_five_and_true_of_their_own_image_only(suite: Path):
    table = pl.read_parquet(suite / "crossmodal/NanoScenes/test-00000-of-00001.parquet")
    assert table.schema == {"image": pl.Struct({"bytes": pl.Binary, "path": pl.String}), "text": pl.List(pl.String)}
    lists = table["text"].to_list()
    world = [scenes.scene_of(told(texts[0])) for texts in lists]
    assert len(world) == 12 and all(scenes.split_of(scene) == "test" and len(scene) in (2, 3) for scene in world)
    assert [seen(image["bytes"]) for image in table["image"]] == [shown(scene) for scene in world]
    for number, texts in enumerate(lists):
        assert len({*texts}) == 5
        for text in texts:
            true = [scenes.shows(scene, told(text)) for scene in world]
            assert told(text) and true[number] and sum(true) == 1, text


def test_false_captions_of_every_kind_are_false_and_true_ones_true(suite: Path):
    folder = suite / "crossmodal/NanoCrepe"
    tables = {name: json.loads((folder / f"{name}.json").read_text()) for name in captions.CLAIMS}
    assert {len(table) for table in tables.values()} == {12} and len(tables) == 7
    with zipfile.ZipFile(folder / "val2017.zip") as archive:
        pictures = {Path(name).name: archive.read(name) for name in archive.namelist()}
    world = {row["filename"]: scenes.scene_of(told(row["caption"])) for row in tables["swap_att"].values()}
    assert set(world) == set(pictures) and all(seen(pictures[name]) == shown(scene) for name, scene in world.items())
    for name, table in tables.items():
        for row in table.values():
            scene, true, false = world[row["filename"]], told(row["caption"]), told(row["negative_caption"])
            assert true and false and scenes.shows(scene, true) and not scenes.shows(scene, false), (name, row)
            _check_kind(name, true, false)


def _check_kind(name: str, true: tuple[Thing, ...], false: tuple[Thing, ...]) -> None:
    """The two captions differ by what the file's name says and by nothing else."""
    if name == "add_obj":
        assert len(false) == 3 and len(true) == 2 and set(true) < set(false)
        return
    if name == "replace_rel":
        gone, new = set(true) - set(false), set(false) - set(true)
        assert len(gone) == len(new) == 1 and gone.pop().label == new.pop().label
        return
    differ = [(a, b) for a, b in zip(true, false, strict=True) if a != b]
    fields = [{field for field in Thing._fields if getattr(a, field) != getattr(b, field)} for a, b in differ]
    if name in ("replace_att", "replace_obj", "add_att"):
        assert fields == [{{"replace_att": "color", "replace_obj": "shape", "add_att": "size"}[name]}]
        assert (differ[0][0].size == "") == (name == "add_att") and differ[0][1].size
    else:
        (a, b), (c, d) = differ
        assert (a.label, c.label) == (d.label, b.label) if name == "swap_obj" else (a.color, c.color) == (d.color, b.color)
        assert name == "swap_obj" or fields == [{"color"}, {"color"}]


def test_many_scenes_are_told_apart_and_nothing_held_is_named():
    rng = np.random.default_rng(0)
    found = captions._apart(rng, 150)
    assert len({scene for scene, _ in found}) == 150
    held = [f"{color} {shape}" for color, shape in scenes.HELD]
    texts = [text for _, five in found for _, text in five]
    assert len(set(texts)) == 5 * 150 and not any(label in text for label in held for text in texts)
    for _ in range(100):
        scene = scenes.draw_scene(rng, "test", 2)
        for true, false in (captions.claims_of(rng, scene) or {}).values():
            assert not any(label in makers.say(caption) for label in held for caption in (true, false))


@pytest.mark.parametrize("task", captions.TASKS)
def test_the_loader_reads_them_without_a_bad_row(task: str, suite: Path, config, tmp_path: Path):
    _, queries, pool, report = read_captions(str(suite), task, Decoding.of(config.data), "fail", job(tmp_path))
    counts = {"i2t": (12, 60), "t2i": (60, 12), "replace": (36, 0), "swap": (24, 0), "add": (24, 0)}
    assert (len(queries), len(pool)) == counts[task.rpartition("_")[2]] and report["left_out"]["count"] == 0


def test_captions_use_no_word_that_the_nano_mllm_was_not_taught(suite: Path):
    taught = [scenes.draw_scene(np.random.default_rng(i), "train") for i in range(300)]
    words = {word for scene in taught for text in (makers.say(scene), makers.say_other(scene)) for word in re.findall(r"\w+", text)}
    texts = pl.read_parquet(suite / "crossmodal/NanoScenes/test-00000-of-00001.parquet")["text"].explode().to_list()
    for name in captions.CLAIMS:
        for row in json.loads((suite / f"crossmodal/NanoCrepe/{name}.json").read_text()).values():
            texts += [row["caption"], row["negative_caption"]]
    assert len(texts) == 12 * (5 + 2 * 7) and {word for text in texts for word in re.findall(r"\w+", text)} <= words
