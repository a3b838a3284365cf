"""Which lessons come when in the nano MLLM's training."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence

from unime.nano import makers
from unime.nano.lessons import ALL, BASIC, NEAR, Group, answer, judge, judge_full, judge_shape, judge_shown, look, pick, reply
from unime.nano.makers import Rng

Lesson = Callable[[Rng], Group]


def judge_one(*names: str) -> Lesson:
    """A judge's group of one of these kinds, drawn alike."""
    return lambda rng: judge(rng, makers.one_of(rng, names))


def shown(most: int, near: Sequence[str] = NEAR) -> Lesson:
    """`judge_shown` with these settings."""
    return lambda rng: judge_shown(rng, most, near)


def pick_one(*names: str) -> Lesson:
    """A list of one of these kinds, drawn alike."""
    return lambda rng: pick(rng, makers.one_of(rng, names))


# Attributes changed in the wrong pictures of `judge_shown`: those that a part of the plan has to bring on come more often.
EVEN = ("place", "size", "size", "color", "color", "shape")
MORE = ("place", "size", "color", "color", "shape", "shape")

PLAN: tuple[tuple[int, tuple[tuple[float, Lesson], ...]], ...] = (
    (500, ((0.25, look), (0.75, answer))),
    (500, ((0.40, answer), (0.60, judge_one(*BASIC)))),
    (1750, ((0.15, answer), (0.25, judge_full), (0.60, judge_one(*BASIC)))),
    (450, ((1.00, judge_shape),)),
    (800, ((0.10, answer), (0.40, judge_full), (0.50, judge_one(*BASIC)))),
    (300, ((0.85, shown(1)), (0.15, judge_one(*BASIC)))),
    (200, ((0.50, shown(2)), (0.35, judge_one("Twin", "Edit")), (0.15, judge_one(*BASIC)))),
    (300, ((0.85, shown(1, ["size", "color"] * 3)), (0.15, judge_one(*BASIC)))),
    (400, ((0.50, shown(2, EVEN)), (0.40, judge_one("Twin")), (0.10, judge_one(*BASIC)))),
    (50, ((0.30, shown(3, EVEN)), (0.60, judge_one("Twin", "Edit")), (0.10, judge_one(*BASIC)))),
    (300, ((0.60, shown(1, ["place", "place", "color", "shape", "shape", "shape"])), (0.40, judge_one("Twin", "Edit")))),
    (400, ((0.40, shown(3)), (0.50, judge_one("Twin", "Edit")), (0.10, judge_one(*BASIC)))),
    (400, ((0.85, judge_one("Phrase")), (0.15, judge_full))),
    (400, ((0.85, judge_one("Crop", "Point")), (0.15, shown(3, EVEN)))),
    (300, ((0.60, shown(1, MORE)), (0.30, shown(2, MORE)), (0.10, judge_one(*BASIC)))),
    (300, ((0.60, shown(2, MORE)), (0.30, shown(3, MORE)), (0.10, judge_one(*BASIC)))),
    (700, ((0.10, reply), (0.15, judge_full), (0.20, shown(3, MORE)), (0.55, judge_one("Phrase", "Phrase", *ALL)))),
    (1000, ((0.90, pick_one("Object", "Color", "AskColor", "AskShape")), (0.10, judge_one(*BASIC)))),
    (700, ((0.15, reply), (0.02, answer), (0.08, judge_full), (0.10, shown(3, MORE)), (0.35, pick_one(*ALL)), (0.30, judge_one(*ALL)))),
    (500, ((0.05, reply), (0.25, judge_full), (0.15, shown(3, MORE)), (0.55, judge_one(*ALL)))),
    (1000, ((0.60, pick_one("Object", "Color", "AskColor", "AskShape")), (0.30, pick_one(*ALL)), (0.10, judge_full))),
    (
        3000,
        (
            (0.10, answer),
            (0.06, reply),
            (0.14, judge_full),
            (0.06, shown(3, MORE)),
            (0.30, pick_one(*ALL)),
            (0.34, judge_one("Meme", "AskCount", "AskPlace", *ALL)),
        ),
    ),
)
"""The parts of training: how long each is, in steps of 14,250, and its lessons with their shares.

One skill at a time: comparing shapes, one lesson in six of a mix, was not learned after 2,700 steps of it, and after 200 steps of nothing
else.  A run that had every lesson from a seventh of the way on knew place and colour after 8,500 steps, but neither size nor shape.  The
plan was found by watching one run: a part was put in where the probe showed a skill missing, or lost again under others.
"""


def lesson(rng: Rng, progress: float) -> Group:
    """One group; `progress` in [0, 1] is the share of training done."""
    untils = itertools.accumulate(length for length, _ in PLAN)
    whole = sum(length for length, _ in PLAN)
    return drawn(rng, next(found for until, (_, found) in zip(untils, PLAN, strict=True) if progress < until / whole or until == whole))


def drawn(rng: Rng, lessons: Sequence[tuple[float, Lesson]]) -> Group:
    """One group of one of these lessons, drawn by their shares, which add up to 1."""
    draw = rng.random()
    for share, make in lessons[:-1]:
        if draw < share:
            return make(rng)
        draw -= share
    return lessons[-1][1](rng)
