"""How the embedded suite makes a query, a candidate that meets it and one that misses it by a single attribute.

Each item carries its facts, the attributes that decide whether a candidate meets a query (`meets`); they go into the suite's side
table and are never shown to a model.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from unime.nano import scenes
from unime.nano.scenes import Scene, Thing
from unime.prompts import IMAGE_MARK

Rng = np.random.Generator


class Side(NamedTuple):
    """One item before it is written: text, (H, W, 3) uint8 picture or None, and its facts."""

    text: str
    picture: np.ndarray | None
    facts: dict[str, Any]


class Row(NamedTuple):
    query: Side
    positive: Side
    scene: Scene
    """What the wrong candidates are derived from."""


def meets(query: dict[str, Any], candidate: dict[str, Any]) -> bool:
    """Whether a candidate with these facts is a right answer to a query with those: the suite's ground truth."""
    if "is" in query:
        return query["is"] == candidate.get("is")
    if "scene" in query:
        return scenes.shows(things_of(query["scene"]), things_of(candidate["caption"]))
    return scenes.shows(things_of(candidate["scene"]), things_of(query["caption"]))


def things_of(rows: list[list[str]]) -> tuple[Thing, ...]:
    return tuple(Thing(*row) for row in rows)


def facts_of(things: tuple[Thing, ...]) -> list[list[str]]:
    return [list(thing) for thing in things]


# ---- captions -----------------------------------------------------------------------------------------------------------------


def caption_of(rng: Rng, scene: Scene) -> tuple[Thing, ...]:
    """What a caption says of a scene: some of its things, with place or size left open at times."""
    keep = rng.permutation(len(scene))[: int(rng.integers(1, len(scene) + 1))]
    said = []
    for i in sorted(keep):
        thing = scene[i]
        open_fields = {"place": ""} if rng.random() < 0.4 else {}
        if rng.random() < 0.25:
            open_fields["size"] = ""
        said.append(thing._replace(**open_fields))
    return tuple(said)


def say(caption: tuple[Thing, ...]) -> str:
    """`at the top left a large red circle, a blue ring`: the place first, since a reader can check the words after it at once."""
    return ", ".join((f"at the {t.place} " if t.place else "") + f"a {t.label}" for t in caption)


SAID, SAID_OTHER = Thing._fields, ("shape", "place", "size", "color")
"""The order of a thing's attributes in `say` and in `say_other`."""


def say_other(caption: tuple[Thing, ...]) -> str:
    """The same facts in other words: `the circle in the top left corner is large and red`."""
    return " and ".join(
        f"the {t.shape}" + (f" in the {t.place} corner" if t.place else "") + f" is {t.size + ' and ' if t.size else ''}{t.color}"
        for t in caption
    )


def said(text: str, things: tuple[Thing, ...], order: Sequence[str]) -> Iterator[tuple[int, tuple[Thing, ...]]]:
    """Each attribute word of `text`, which tells of `things` one after the other in this order of fields: where it ends, and what
    has been said up to there."""
    at = 0
    for i, thing in enumerate(things):
        told = Thing("", "", "", "")
        for field in order:
            if word := getattr(thing, field):
                at = text.index(word, at) + len(word)
                told = told._replace(**{field: word})
                yield at, (*things[:i], told)


# ---- sides --------------------------------------------------------------------------------------------------------------------


def _image(text: str) -> str:
    return f"{IMAGE_MARK}\n{text}\n"


def answer(text: str) -> Side:
    return Side(f"{text}\n", None, {"is": text})


def picture(rng: Rng, scene: Scene, facts: dict[str, Any]) -> Side:
    return Side(_image("Represent the given image."), scenes.paint(rng, scene), facts)


def _crop_side(rng: Rng, thing: Thing) -> Side:
    return Side(_image("Represent the given cropped image of the object"), scenes.paint_crop(rng, thing), {"is": thing.label})


def _ask(rng: Rng, scene: Scene, text: str, value: str) -> Side:
    return Side(_image(text), scenes.paint(rng, scene), {"is": value})


def _other(rng: Rng, words: tuple[str, ...], right: str) -> str:
    rest = [word for word in words if word != right]
    return rest[rng.integers(len(rest))]


def _any_attribute(rng: Rng, names: tuple[str, ...] = ("place", "size", "color", "shape")) -> str:
    return names[rng.integers(len(names))]


def unique(rng: Rng, split: str, *fields: str, least: int = 1) -> tuple[Scene, Thing]:
    """A scene and one of its things that these fields single out."""
    while True:
        scene = scenes.draw_scene(rng, split, int(rng.integers(least, 4)))
        odd = [t for t in scene if t.held] if split == "held" else list(scene)
        thing = odd[rng.integers(len(odd))]
        if sum(all(getattr(t, f) == getattr(thing, f) for f in fields) for t in scene) == 1:
            return scene, thing


# ---- rows ---------------------------------------------------------------------------------------------------------------------


def one_of(rng: Rng, words: Sequence[str]) -> str:
    return words[rng.integers(len(words))]


def make_object(rng: Rng, split: str, phrasings: tuple[str, ...]) -> Row:
    scene = scenes.draw_scene(rng, split, 1)
    return Row(_ask(rng, scene, one_of(rng, phrasings), scene[0].label), answer(scene[0].label), scene)


def object_wrong(rng: Rng, row: Row) -> Side:
    return answer(scenes.change(rng, row.scene, _any_attribute(rng, ("size", "color", "shape")))[0].label)


def make_color(rng: Rng, split: str, phrasings: tuple[str, ...]) -> Row:
    scene = scenes.draw_scene(rng, split, 1)
    return Row(_ask(rng, scene, one_of(rng, phrasings), scene[0].color), answer(scene[0].color), scene)


def make_meme(rng: Rng, split: str, phrasings: tuple[str, ...]) -> Row:
    scene = scenes.draw_scene(rng, split)
    value = "yes" if any(t.size == "large" for t in scene) else "no"
    return Row(_ask(rng, scene, one_of(rng, phrasings), value), answer(value), scene)


def make_ask_color(rng: Rng, split: str, phrasings: tuple[str, ...]) -> Row:
    scene, thing = unique(rng, split, "place")
    text = one_of(rng, phrasings).format(shape=thing.shape, place=thing.place)
    return Row(_ask(rng, scene, text, thing.color), answer(thing.color), scene)


def make_ask_shape(rng: Rng, split: str, phrasings: tuple[str, ...]) -> Row:
    scene, thing = unique(rng, split, "place")
    return Row(_ask(rng, scene, one_of(rng, phrasings).format(place=thing.place), thing.shape), answer(thing.shape), scene)


def make_ask_place(rng: Rng, split: str, phrasings: tuple[str, ...]) -> Row:
    scene, thing = unique(rng, split, "size", "color", "shape")
    return Row(_ask(rng, scene, one_of(rng, phrasings).format(label=thing.label), thing.place), answer(thing.place), scene)


COUNTS = ("one", "two", "three")


def make_ask_count(rng: Rng, split: str, phrasings: tuple[str, ...]) -> Row:
    scene = scenes.draw_scene(rng, split)
    return Row(_ask(rng, scene, one_of(rng, phrasings), COUNTS[len(scene) - 1]), answer(COUNTS[len(scene) - 1]), scene)


def label_wrong(*words: str) -> Callable[[Rng, Row], Side]:
    return lambda rng, row: answer(_other(rng, words, row.positive.facts["is"]))


def make_i2t(rng: Rng, split: str, phrasings: tuple[str, ...]) -> Row:
    scene = scenes.draw_scene(rng, split)
    caption = caption_of(rng, scene)
    query = Side(_image(one_of(rng, phrasings)), scenes.paint(rng, scene), {"scene": facts_of(scene)})
    return Row(query, Side(f"{say(caption)}\n", None, {"caption": facts_of(caption)}), scene)


def i2t_wrong(rng: Rng, row: Row) -> Side:
    while True:
        caption = list(things_of(row.positive.facts["caption"]))
        i = int(rng.integers(len(caption)))
        name = _any_attribute(rng, tuple(f for f in Thing._fields if getattr(caption[i], f)))
        caption[i] = caption[i]._replace(**{name: _other(rng, scenes.ATTRIBUTES[name], getattr(caption[i], name))})
        if caption[i].held and not any(thing.held for thing in row.scene):
            continue
        side = Side(f"{say(tuple(caption))}\n", None, {"caption": facts_of(tuple(caption))})
        if not meets(row.query.facts, side.facts):
            return side


def make_t2i(rng: Rng, split: str, phrasings: tuple[str, ...]) -> Row:
    scene = scenes.draw_scene(rng, split)
    caption = caption_of(rng, scene)
    text = f"{one_of(rng, phrasings)} {say(caption)}\n"
    return Row(Side(text, None, {"caption": facts_of(caption)}), picture(rng, scene, {"scene": facts_of(scene)}), scene)


def t2i_wrong(rng: Rng, row: Row) -> Side:
    """A scene one attribute away; of two red rings one may change and the other still answer, so after a few tries it is two away."""
    scene, tries = row.scene, 0
    while True:
        scene, tries = scenes.change(rng, scene if tries >= 8 else row.scene, _any_attribute(rng)), tries + 1
        if not meets(row.query.facts, {"scene": facts_of(scene)}):
            return picture(rng, scene, {"scene": facts_of(scene)})


def make_edit(rng: Rng, split: str, phrasings: tuple[str, ...]) -> Row:
    while True:
        before = scenes.draw_scene(rng, split)
        i = int(rng.integers(len(before)))
        name = _any_attribute(rng, ("color", "shape", "size"))
        after = scenes.change(rng, before, name, i)
        if scenes.split_of(after) == split:
            break
    text = f"{one_of(rng, phrasings)} the {before[i].shape} at the {before[i].place} becomes {getattr(after[i], name)}"
    query = Side(_image(text), scenes.paint(rng, before), {"is": scenes.describe(after)})
    return Row(query, picture(rng, after, {"is": scenes.describe(after)}), after)


def twin_query(rng: Rng, scene: Scene, phrasing: str) -> Side:
    """A new picture of a scene that asks for a look-alike."""
    return Side(_image(phrasing), scenes.paint(rng, scene), {"is": scenes.describe(scene)})


def make_twin(rng: Rng, split: str, phrasings: tuple[str, ...]) -> Row:
    scene = scenes.draw_scene(rng, split)
    query = twin_query(rng, scene, one_of(rng, phrasings))
    return Row(query, picture(rng, scene, {"is": scenes.describe(scene)}), scene)


def scene_wrong(rng: Rng, row: Row) -> Side:
    scene = scenes.change(rng, row.scene, _any_attribute(rng))
    return picture(rng, scene, {"is": scenes.describe(scene)})


def make_phrase(rng: Rng, split: str, phrasings: tuple[str, ...]) -> Row:
    scene = scenes.draw_scene(rng, split, int(rng.integers(1, 3)))
    query = Side(f"{one_of(rng, phrasings)} {say(scene)}\n", None, {"is": scenes.describe(scene)})
    return Row(query, Side(f"{say_other(scene)}\n", None, {"is": scenes.describe(scene)}), scene)


def phrase_wrong(rng: Rng, row: Row) -> Side:
    scene = scenes.change(rng, row.scene, _any_attribute(rng))
    return Side(f"{say_other(scene)}\n", None, {"is": scenes.describe(scene)})


def make_crop(rng: Rng, split: str, phrasings: tuple[str, ...]) -> Row:
    scene, thing = unique(rng, split, "color", "shape", least=2)
    query = _ask(rng, scene, one_of(rng, phrasings).format(label=f"{thing.color} {thing.shape}"), thing.label)
    return Row(query, _crop_side(rng, thing), (thing, *(t for t in scene if t != thing)))


def make_point(rng: Rng, split: str, phrasings: tuple[str, ...]) -> Row:
    scene, thing = unique(rng, split, "place", least=2)
    query = _ask(rng, scene, one_of(rng, phrasings).format(place=thing.place), thing.label)
    return Row(query, _crop_side(rng, thing), (thing, *(t for t in scene if t != thing)))


def crop_wrong(rng: Rng, row: Row) -> Side:
    """Another thing of the same scene, or the right one with one attribute changed."""
    others = [t for t in row.scene[1:] if t.label != row.scene[0].label]
    if others and rng.random() < 0.4:
        return _crop_side(rng, others[rng.integers(len(others))])
    return _crop_side(rng, scenes.change(rng, row.scene[:1], _any_attribute(rng, ("size", "color", "shape")))[0])
