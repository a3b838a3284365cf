"""The embedded suite's world: scenes of one to three coloured shapes on a 2 x 2 grid, drawn from a seed.

A scene is 56 x 56 pixels and each of its four places 28 x 28, which is one visual token of the nano MLLM (two by two patches of 14).
Binding size, colour and shape to a place is then a matter of reading one token, so that a model of a million parameters can learn
it in minutes.  (An earlier trial whose grid did not line up with the tokens left colour at chance; it differed in other ways too.)

Which scenes are trained on is a function of the scene alone: six of the 48 (colour, shape) pairs are never trained on (`held`), and
of the other scenes a fifth, chosen by hash, is kept for evaluation (`test`).
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

PLACES = ("top left", "top right", "bottom left", "bottom right")
SIZES = ("small", "large")
COLORS = ("red", "green", "blue", "yellow", "purple", "orange", "white", "cyan")
SHAPES = ("circle", "square", "triangle", "diamond", "cross", "ring")
ATTRIBUTES = {"place": PLACES, "size": SIZES, "color": COLORS, "shape": SHAPES}

RGB = {
    "red": (220, 30, 30),
    "green": (30, 170, 50),
    "blue": (40, 70, 230),
    "yellow": (235, 225, 40),
    "purple": (140, 40, 160),
    "orange": (245, 130, 20),
    "white": (245, 245, 245),
    "cyan": (60, 220, 225),
}
CELL = 28
"""Pixels of a place's side; also the side of a crop."""

HELD = frozenset((COLORS[(3 * i + 1) % len(COLORS)], shape) for i, shape in enumerate(SHAPES))
"""(colour, shape) pairs that no training scene shows and no training text names."""


class Thing(NamedTuple):
    """One object; a field is '' where a text leaves the attribute open."""

    place: str
    size: str
    color: str
    shape: str

    @property
    def label(self) -> str:
        return " ".join(word for word in (self.size, self.color, self.shape) if word)

    @property
    def held(self) -> bool:
        return (self.color, self.shape) in HELD


Scene = tuple[Thing, ...]
"""One to three things in the order of PLACES, each place at most once."""


def scene_of(things: Sequence[Thing]) -> Scene:
    return tuple(sorted(things, key=lambda thing: PLACES.index(thing.place)))


def describe(scene: Scene) -> str:
    """Canonical text of a scene; equal texts mean equal scenes."""
    return "; ".join(f"{thing.place}: {thing.label}" for thing in scene)


def read(description: str) -> Scene:
    """The scene that `describe` told of."""
    pairs = (part.split(": ") for part in description.split("; "))
    return tuple(Thing(place, *label.split()) for place, label in pairs)


def split_of(scene: Scene) -> str:
    """`held` (shows a held-out pair), `test` (a fifth of the others) or `train`."""
    if any(thing.held for thing in scene):
        return "held"
    return "test" if hashlib.sha256(describe(scene).encode()).digest()[0] % 5 == 0 else "train"


def draw_thing(rng: np.random.Generator, place: str, held: bool = False) -> Thing:
    while True:
        thing = Thing(place, *(words[rng.integers(len(words))] for words in (SIZES, COLORS, SHAPES)))
        if thing.held == held:
            return thing


def draw_scene(rng: np.random.Generator, split: str, count: int | None = None) -> Scene:
    """A scene of this split with `count` things (default: one to three)."""
    while True:
        n = count or int(rng.integers(1, 4))
        places = rng.choice(len(PLACES), size=n, replace=False)
        odd = int(rng.integers(n)) if split == "held" else -1
        scene = scene_of([draw_thing(rng, PLACES[p], held=i == odd) for i, p in enumerate(places)])
        if split_of(scene) == split:
            return scene


def change(rng: np.random.Generator, scene: Scene, attribute: str, index: int | None = None) -> Scene:
    """The scene with one attribute of one thing changed; a new place is a free one, so exactly one thing differs.

    A scene without a held-out pair does not get one: as near misses of training they would teach that held-out things are wrong.
    """
    i = int(rng.integers(len(scene))) if index is None else index
    taken = {thing.place for thing in scene} if attribute == "place" else {getattr(scene[i], attribute)}
    things = [scene[i]._replace(**{attribute: value}) for value in ATTRIBUTES[attribute] if value not in taken]
    if not any(thing.held for thing in scene):
        things = [thing for thing in things if not thing.held]
    return scene_of([*scene[:i], things[rng.integers(len(things))], *scene[i + 1 :]])


def shows(scene: Scene, caption: Sequence[Thing]) -> bool:
    """True where every thing that the caption names is in the scene, two named things being two things."""
    return _assign(scene, tuple(caption))


@functools.lru_cache(maxsize=1 << 18)
def _assign(scene: Scene, caption: tuple[Thing, ...]) -> bool:
    if not caption:
        return True
    wanted = caption[0]
    fits = [i for i, thing in enumerate(scene) if all(w in ("", t) for w, t in zip(wanted, thing, strict=True))]
    return any(_assign((*scene[:i], *scene[i + 1 :]), caption[1:]) for i in fits)


@functools.cache
def _mask(shape: str, size: str, dx: int, dy: int) -> np.ndarray:
    radius = 12.0 if size == "large" else 7.0
    y, x = np.mgrid[0:CELL, 0:CELL]
    x, y = x - (CELL - 1) / 2 - dx, y - (CELL - 1) / 2 - dy
    far = np.hypot(x, y)
    return {
        "circle": far <= radius,
        "square": np.maximum(abs(x), abs(y)) <= radius * 0.86,
        "triangle": (y <= radius * 0.8) & (abs(x) <= (y + radius) * 0.56),
        "diamond": abs(x) + abs(y) <= radius * 1.1,
        "cross": (np.minimum(abs(x), abs(y)) <= radius * 0.3) & (np.maximum(abs(x), abs(y)) <= radius),
        "ring": (far <= radius) & (far >= radius * 0.55),
    }[shape]


def paint(rng: np.random.Generator, scene: Scene) -> np.ndarray:
    """One picture of a scene, (56, 56, 3) uint8: positions, shades and the background jitter, so equal scenes look alike, not the same.

    A light frame runs around the picture and tells a patch in which corner it lies: with four visual tokens an image the rotary
    positions of rows and columns turn too little to.  Runs without it were slower to learn places, but their learning rate and mix of
    lessons differed as well, so how much the frame alone is worth was not measured.
    """
    picture = _draw(rng, scene)
    for edge in (picture[:2], picture[-2:], picture[:, :2], picture[:, -2:]):
        edge[:] = 160
    return picture


def paint_crop(rng: np.random.Generator, thing: Thing) -> np.ndarray:
    """What a crop around one thing shows, (28, 28, 3) uint8; without the frame, which would give its place away."""
    return _cell(_draw(rng, (thing,)), thing.place)


def _cell(picture: np.ndarray, place: str) -> np.ndarray:
    """The 28 x 28 pixels of one place; writing to them writes to the picture."""
    row, column = divmod(PLACES.index(place), 2)
    return picture[row * CELL : (row + 1) * CELL, column * CELL : (column + 1) * CELL]


def _draw(rng: np.random.Generator, scene: Scene) -> np.ndarray:
    picture = np.empty((2 * CELL, 2 * CELL, 3), np.int16)
    picture[:] = rng.integers(20, 70) + rng.integers(-6, 7, size=3)
    for thing in scene:
        dx, dy = (int(v) for v in rng.integers(-1, 2, size=2))
        _cell(picture, thing.place)[_mask(thing.shape, thing.size, dx, dy)] = np.array(RGB[thing.color]) + rng.integers(-10, 11, size=3)
    return picture.clip(0, 255).astype(np.uint8)
