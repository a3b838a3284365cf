"""What the nano MLLM is taught: groups of prompts that share a prefix, made from training scenes only.

A group is one query (or picture) with several branches: candidates to judge, questions to answer.  Branches of a group share their
longest common run of tokens, which is written once; see `packing`.  Lessons: judge (Yes / No on the paper's own prompt, most of the
misses one attribute away), answer (questions and descriptions), reply (what one query or candidate is about), list (the number of the
best candidate).  `plan` says which come when.

A single verdict at the end says little of what was wrong, so more is asked on the way: Yes or No after each word and each visual token
of a candidate, and in a list, after each candidate, the number of the right one if it has been read.  With Yes or No in its place 1,000
steps of nothing but lists brought a model that judged well to the right one of ten in .38 to .62 of them (three kinds); with the number to
.63 to .83.
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
    """A token for each candidate in the turn, asked at the candidate's last token instead of the token that follows it: in the judge's
    turn Yes or No; in a list the number of the right candidate where that has been read, else No."""
    so_far: tuple[tuple[int, str], ...] = ()
    """Yes or No inside the candidate: asked so many characters before the turn's end, of what has been read up to there."""
    cells: tuple[str, ...] = ()
    """The same at each visual token of the candidate, where that is a picture."""
    belief: float | None = None
    """Of a judge's turn whose candidate meets the query in part: the probability of Yes, asked for in place of one verdict."""
    item: bool = False
    """The turn is an embedder's input: raw text without the chat template, its positions counted in one dimension."""
    by_end: bool = False
    """The answer sees the turn's last token only, which must therefore hold what the turn says."""


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
    return _judged(rng, name, row, right, wrong)


def judge_full(rng: Rng, near: Sequence[str] = NEAR) -> Group:
    """A picture against its full caption and against that caption with an attribute of `near` changed."""
    kind = KINDS["Caption_i2t"]
    row = kind.make(rng, "train", kind.phrasings)
    wrong = [full_caption(scenes.change(rng, row.scene, name)) for name in near]
    return _judged(rng, "Caption_i2t", row, [full_caption(row.scene)] * 3, wrong)


def judge_shown(rng: Rng, most: int = 3, near: Sequence[str] = NEAR) -> Group:
    """The other way round: the full caption of up to `most` things against pictures of them and of the same with an attribute of `near`
    changed."""
    kind = KINDS["Caption_t2i"]
    scene = scenes.draw_scene(rng, "train", int(rng.integers(1, most + 1)))
    facts = makers.facts_of(scene)
    query = Side(f"{makers.one_of(rng, kind.phrasings)} {makers.say(scene)}\n", None, {"caption": facts})
    right, wrong = (
        [makers.picture(rng, one, {"is": scenes.describe(one)}) for one in shown]
        for shown in ([scene] * 3, [scenes.change(rng, scene, name) for name in near])
    )
    return _judged(rng, "Twin", Row(query, right[0], scene), right, wrong)


def _judged(rng: Rng, name: str, row: Row, right: Sequence[Side], wrong: Sequence[Side]) -> Group:
    """Every candidate with its verdict, in random order.  Half of the groups ask for a verdict at each word and visual token as well; in
    the others the words of right candidates are told from a picture, which those verdicts would stand in the way of."""
    sides = [(side, prompts.YES) for side in right] + [(side, prompts.NO) for side in wrong]
    dense = rng.random() < 0.5
    group = []
    for i in rng.permutation(len(sides)):
        side, verdict = sides[i]
        turn = prompts.judge_turn(side_parts(row.query), side_parts(side))
        told = side.picture is None and row.query.picture is not None and verdict == prompts.YES and not dense
        branch = Branch(turn, verdict, 1.0, 0.2 if told else 0.0, (verdict,))
        group.append(branch._replace(so_far=so_far(name, row.scene, side), cells=cells(name, row.scene, side)) if dense else branch)
    return group


def so_far(name: str, scene: scenes.Scene, side: Side) -> tuple[tuple[int, str], ...]:
    """Whether a candidate's words are true of the scene after each attribute: (characters from its end, Yes or No).

    A verdict at the end alone tells that one word in a dozen was wrong, not which; shape was then learned after 100,000 groups.
    """
    if name not in ("Object", "Caption_i2t", "Phrase"):
        return ()
    if name == "Phrase":
        things, order = scenes.read(side.facts["is"]), makers.SAID_OTHER
    elif name == "Object":
        things, order = (scenes.Thing("", *side.facts["is"].split()),), makers.SAID
    else:
        things, order = makers.things_of(side.facts["caption"]), makers.SAID
    return tuple((len(side.text) - at + 1, verdict_of(scenes.shows(scene, told))) for at, told in makers.said(side.text, things, order))


def cells(name: str, scene: scenes.Scene, side: Side) -> tuple[str, ...]:
    """Whether a candidate's picture is that of the scene up to each of its places; for a crop whether it is the scene's first thing."""
    if name in ("Crop", "Point"):
        return (verdict_of(side.facts["is"] == scene[0].label),)
    if name not in ("Edit", "Twin"):
        return ()
    wanted, shown = ({thing.place: thing for thing in things} for things in (scene, scenes.read(side.facts["is"])))
    alike = [wanted.get(place) == shown.get(place) for place in scenes.PLACES]
    return tuple(verdict_of(all(alike[: i + 1])) for i in range(len(alike)))


def verdict_of(good: bool) -> str:
    return prompts.YES if good else prompts.NO


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


def pick(rng: Rng, name: str) -> Group:
    """A list of two to ten candidates, one right, and its number."""
    kind = KINDS[name]
    row = kind.make(rng, "train", kind.phrasings)
    return [listed(rng, row, misses(rng, name, row, int(rng.integers(1, 10))))]


def listed(rng: Rng, row: Row, wrong: Sequence[Side]) -> Branch:
    """A row's positive at a place drawn among wrong candidates, and its number."""
    place = int(rng.integers(len(wrong) + 1))
    sides = [*wrong[:place], row.positive, *wrong[place:]]
    turn = prompts.list_turn(side_parts(row.query), [side_parts(side) for side in sides])
    found = str(place + 1) if place < 9 else prompts.YES  # ten is two tokens
    verdicts = tuple(found if i >= place else prompts.NO for i in range(len(sides)))
    return Branch(turn, prompts.list_answer(place + 1), 2.0, 0.0, verdicts)


def reply(rng: Rng) -> Group:
    """Queries and candidates as turns of their own, as an embedder shows them, and what each is about: a label, an answer, a caption."""
    group = []
    for name in rng.choice(list(KINDS), size=3):
        row = KINDS[name].make(rng, "train", KINDS[name].phrasings)
        group += [Branch(side_parts(side), about(side), 0.5, 0.0) for side in (row.query, row.positive)]
    return group


def about(side: Side) -> str:
    """An item's content in words: the caption of a scene, or the label or answer itself."""
    if (things := side.facts.get("scene") or side.facts.get("caption")) is not None:
        return makers.say(makers.things_of(things))
    said = side.facts["is"]
    return makers.say(scenes.read(said)) if ": " in said else said


def judge_shape(rng: Rng) -> Group:
    """A crop, a scene, or a question against candidates that a shape alone tells apart."""
    draw = rng.random()
    if draw > 0.7:
        return judge(rng, "AskShape")
    if draw > 0.4:
        return judge_full(rng, ["shape"] * 3)
    row = KINDS["Object"].make(rng, "train", KINDS["Object"].phrasings)
    row = row._replace(query=row.query._replace(picture=scenes.paint_crop(rng, row.scene[0])))
    wrong = [makers.answer(scenes.change(rng, row.scene, "shape")[0].label) for _ in range(3)]
    return _judged(rng, "Object", row, [row.positive] * 3, wrong)
