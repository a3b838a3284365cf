"""What the nano MLLM is taught: groups of prompts that share a prefix, made from training scenes only.

A group is one query (or picture) with several branches: candidates to judge, questions to answer.  Branches of a group share their
longest common run of tokens, which is written once; see `packing`.  Three lessons: judge (Yes / No on the paper's own prompt, most
of the misses one attribute away), answer (questions and descriptions), list (the number of the best candidate).

In judge and list the verdict is also asked at each candidate's last token: a list alone teaches one number for ten candidates, and a
tenth of the lessons spent on that left the number at chance after 6,500 steps.  Lists want practice: taught nothing else, a model that
judged well found the right one of ten in a tenth of the cases after 2,500 lists and in half after 12,000; among other lessons, 10,000
lists brought it to a fifth.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from unime import prompts
from unime.nano import makers, scenes
from unime.nano.kinds import KINDS
from unime.nano.makers import Rng, Row, Side


class Branch(NamedTuple):
    turn: list[object]
    """The user's turn as parts: text and (H, W, 3) uint8 pictures."""
    answer: str
    weight: float
    """Of the answer's tokens in the loss."""
    words: float
    """Weight of the turn's own words behind the shared prefix; above 0 for right candidates, whose words the picture predicts."""
    verdicts: tuple[str, ...] = ()
    """Yes or No of each candidate in the turn, asked at the candidate's last token instead of the token that follows it."""


Group = list[Branch]

DESCRIBE = "Describe the image."
QUESTIONS = {
    "color": "What color is the {shape} at the {place}?",
    "shape": "What shape is at the {place}?",
    "size": "What size is the {shape} at the {place}?",
    "place": "Where is the {label}?",
    "count": "How many objects are there?",
}

LOOK = {"color": "What color is this?", "shape": "What shape is this?", "size": "What size is this?", "label": "What is this?"}
"""Questions on a crop, which is a single visual token: what is there, before where."""

BASIC = ("Object", "Color", "AskColor", "AskShape", "AskPlace", "Caption_i2t")
"""Kinds of the first lessons: one picture against a few words."""

ALL = (*KINDS, "Caption_t2i", "Caption_t2i", "Edit", "Twin", "Crop", "Point", "Phrase", "AskShape")
"""Every kind; those that are learned last, most of them with pictures as candidates, come more than once."""

NEAR = ("place", "size", "color", "shape", "shape", "shape")
"""Attributes changed in the near misses of a full caption; shape, which is learned last, three times."""

BRANCHES = 8

BROAD = 0.5
"""Share of training after which every kind and the lists join."""


def side_parts(side: Side) -> list[object]:
    return prompts.parts(side.text, side.picture)


def full_caption(scene: scenes.Scene) -> Side:
    return Side(f"{makers.say(scene)}\n", None, {"caption": makers.facts_of(scene)})


def again(rng: Rng, name: str, row: Row) -> Side:
    """Another right candidate for the same query: other words for a picture, another painting of a scene."""
    if name == "Caption_i2t":
        caption = makers.caption_of(rng, row.scene)
        return Side(f"{makers.say(caption)}\n", None, {"caption": makers.facts_of(caption)})
    if name in ("Caption_t2i", "Edit", "Twin"):
        return Side(row.positive.text, scenes.paint(rng, row.scene), row.positive.facts)
    if name in ("Crop", "Point"):
        return Side(row.positive.text, scenes.paint_crop(rng, row.scene[0]), row.positive.facts)
    return row.positive


def misses(rng: Rng, name: str, row: Row, count: int) -> list[Side]:
    """Wrong candidates: 70 % one attribute away, the others right answers to another query of the kind."""
    kind, found = KINDS[name], []
    while len(found) < count:
        if rng.random() < 0.7:
            side = kind.wrong(rng, row)
        else:
            side = kind.make(rng, "train", kind.phrasings).positive
        if not makers.meets(row.query.facts, side.facts):
            found.append(side)
    return found


def judge(rng: Rng, name: str) -> Group:
    kind = KINDS[name]
    row = kind.make(rng, "train", kind.phrasings)
    few = 2 if kind.labels else 3
    right = [row.positive, *(again(rng, name, row) for _ in range(few - 1))]
    wrong = misses(rng, name, row, BRANCHES - few - 1)
    return _judged(rng, row.query, right, wrong)


def judge_full(rng: Rng) -> Group:
    """A picture against its full caption and against that caption with one attribute changed."""
    kind = KINDS["Caption_i2t"]
    row = kind.make(rng, "train", kind.phrasings)
    wrong = [full_caption(scenes.change(rng, row.scene, name)) for name in NEAR]
    return _judged(rng, row.query, [full_caption(row.scene)] * 3, wrong)


def judge_shown(rng: Rng, most: int = 3) -> Group:
    """The other way round: the full caption of up to `most` things against pictures of them and of the same with one attribute changed."""
    kind = KINDS["Caption_t2i"]
    scene = scenes.draw_scene(rng, "train", int(rng.integers(1, most + 1)))
    facts = makers.facts_of(scene)
    query = Side(f"{makers.one_of(rng, kind.phrasings)} {makers.say(scene)}\n", None, {"caption": facts})
    shown = makers.picture(rng, scene, {"scene": facts})
    right = [shown, *(shown._replace(picture=scenes.paint(rng, scene)) for _ in range(2))]
    wrong = [shown._replace(picture=scenes.paint(rng, scenes.change(rng, scene, name))) for name in NEAR]
    return _judged(rng, query, right, wrong)


def _judged(rng: Rng, query: Side, right: Sequence[Side], wrong: Sequence[Side]) -> Group:
    sides = [(side, True) for side in right] + [(side, False) for side in wrong]
    group = []
    for i in rng.permutation(len(sides)):
        side, good = sides[i]
        turn = prompts.judge_turn(side_parts(query), side_parts(side))
        words = 0.2 if good and side.picture is None and query.picture is not None else 0.0
        verdict = prompts.YES if good else prompts.NO
        group.append(Branch(turn, verdict, 1.0, words, (verdict,)))
    return group


def answer(rng: Rng) -> Group:
    """One picture: its description and every question that has one answer."""
    scene = scenes.draw_scene(rng, "train")
    picture = scenes.paint(rng, scene)
    group = [Branch([picture, f"\n{DESCRIBE}"], makers.say(scene), 0.3, 0.0)]
    group += [Branch([picture, f"\n{question}"], value, 0.5, 0.0) for question, value in ask(rng, scene)]
    return group


def look(rng: Rng) -> Group:
    """One crop and what it shows."""
    thing = scenes.draw_thing(rng, scenes.PLACES[0])
    picture = scenes.paint_crop(rng, thing)
    return [Branch([picture, f"\n{question}"], getattr(thing, name), 0.5, 0.0) for name, question in LOOK.items()]


def ask(rng: Rng, scene: scenes.Scene) -> list[tuple[str, str]]:
    """Questions on a scene with one right answer each, one per attribute that singles a thing out, and the count."""
    thing = scene[rng.integers(len(scene))]
    asked = [(name, getattr(thing, name)) for name in ("color", "shape", "size")]
    if sum(other.label == thing.label for other in scene) == 1:
        asked.append(("place", thing.place))
    fields = {"shape": thing.shape, "place": thing.place, "label": thing.label}
    pairs = [(QUESTIONS[name].format(**fields), value) for name, value in asked]
    return [*pairs, (QUESTIONS["count"], makers.COUNTS[len(scene) - 1])]


def pick(rng: Rng, name: str, longest: int = 10) -> Group:
    """A list of two to `longest` candidates, one right, and its number."""
    kind = KINDS[name]
    row = kind.make(rng, "train", kind.phrasings)
    return [listed(rng, row, misses(rng, name, row, int(rng.integers(1, longest))))]


def listed(rng: Rng, row: Row, wrong: Sequence[Side]) -> Branch:
    """A row's positive at a place drawn among wrong candidates, and its number."""
    place = int(rng.integers(len(wrong) + 1))
    sides = [*wrong[:place], row.positive, *wrong[place:]]
    turn = prompts.list_turn(side_parts(row.query), [side_parts(side) for side in sides])
    verdicts = tuple(prompts.YES if i == place else prompts.NO for i in range(len(sides)))
    return Branch(turn, prompts.list_answer(place + 1), 2.0, 0.0, verdicts)


def lesson(rng: Rng, progress: float) -> Group:
    """One group; `progress` in [0, 1] is the share of training done.

    Comparing a word with a picture is learned first, on one picture and few words; only then come pictures as candidates and lists.  One
    run that had them all from a seventh of the way on knew place and colour after 8,500 steps, but neither size nor shape.
    """
    draw = rng.random()
    if progress < 0.05:
        return look(rng) if draw < 0.25 else answer(rng)
    if progress < 0.10:
        return answer(rng) if draw < 0.4 else judge(rng, makers.one_of(rng, BASIC))
    if progress < BROAD:
        return answer(rng) if draw < 0.15 else judge_full(rng) if draw < 0.40 else judge(rng, makers.one_of(rng, BASIC))
    late = (progress - BROAD) / (1 - BROAD)
    if draw < 0.06:
        return answer(rng)
    if draw < 0.16:
        return judge_full(rng)
    if draw < 0.34:
        return judge_shown(rng, 1 if late < 0.15 else 2 if late < 0.4 else 3)
    if draw < 0.60:
        return pick(rng, makers.one_of(rng, BASIC if late < 0.4 else ALL), 4 if late < 0.05 else 10)
    return judge(rng, makers.one_of(rng, BASIC if draw < 0.68 else ALL))
