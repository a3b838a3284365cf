"""The lessons of the nano MLLM's second part of training: judging in degrees, lists as the reranker reads them, items in one token.

The first part (`plan.PLAN`) leaves a judge that is sure of everything.  Here it meets candidates that are right in part, and learns to say
Yes as often as a rater would (`degrees.belief`).  Two more lessons make it what an instruction-tuned MLLM is to those who train it on:

1. Lists of two to six, most of them of pictures and sentences, which the first part leaves near chance.
2. An item's content, told from its last token alone: its words, and a caption that sees nothing else of the item.  So the state that an
   embedder reads holds what the item shows.  It says nothing of instructions: what a query asks for is left to the embedder's training.
"""

from __future__ import annotations

from unime import prompts
from unime.nano import degrees, makers, scenes
from unime.nano.kinds import KINDS, Kind
from unime.nano.lessons import Branch, Group, about, again, answer, listed, misses, side_parts
from unime.nano.makers import Rng, Row, Side
from unime.nano.plan import Lesson, drawn

HARD = ("Caption_i2t", "Caption_t2i", "Edit", "Twin", "Phrase", "Crop", "Point")
"""Kinds whose candidates are pictures or sentences."""

WEAK = ("AskShape", "Caption_t2i", "Edit")
"""Kinds whose near misses the judge discriminates worst after a short second part."""

JUDGED = (*KINDS, *HARD, *WEAK, *WEAK, "AskCount", "AskPlace")
LISTED = (*KINDS, *HARD, *HARD)

NEAR, FARTHER, OTHER = 3, 2, 2
"""Candidates of a judge's group, beside two right ones: one attribute away, two away, and right answers to other queries."""

MOST = 6
"""Candidates of a list, at most; the reranker sees five."""

WORDS = 6
"""Words of an item's content that are asked for in a group."""

FILLERS = frozenset({"at", "the", "a", "and", "is", "in", "corner"})


def weigh(rng: Rng) -> Group:
    """One query against candidates that meet it fully, nearly, in part and hardly, each with the probability of Yes."""
    name = makers.one_of(rng, JUDGED)
    kind = KINDS[name]
    row = kind.make(rng, "train", kind.phrasings)
    sides = [row.positive, again(rng, name, row)]
    sides += [kind.wrong(rng, row) for _ in range(NEAR)]
    sides += [_farther(rng, kind, row) for _ in range(FARTHER)]
    sides += [kind.make(rng, "train", kind.phrasings).positive for _ in range(OTHER)]
    return [_weighed(row, sides[i]) for i in rng.permutation(len(sides))]


def _weighed(row: Row, side: Side) -> Branch:
    turn = prompts.judge_turn(side_parts(row.query), side_parts(side))
    belief = degrees.belief(degrees.degree(row.query.facts, side.facts))
    return Branch(turn, prompts.YES, 1.0, 0.0, (prompts.YES,), belief=belief)


def _farther(rng: Rng, kind: Kind, row: Row) -> Side:
    """A near miss of a near miss."""
    name = makers.one_of(rng, ("size", "color", "shape"))
    changed = scenes.change(rng, row.scene[:1], name)
    return kind.wrong(rng, row._replace(positive=kind.wrong(rng, row), scene=(*changed, *row.scene[1:])))


def read_list(rng: Rng) -> Group:
    """A list of two to six candidates, one right, and its number."""
    name = makers.one_of(rng, LISTED)
    kind = KINDS[name]
    row = kind.make(rng, "train", kind.phrasings)
    count = int(rng.integers(1, MOST))
    return [listed(rng, row, misses(rng, name, row, count))]


def tell(rng: Rng) -> Group:
    """One item as an embedder shows it: some words of its content, and the content told from its last token alone."""
    name = makers.one_of(rng, tuple(KINDS))
    row = KINDS[name].make(rng, "train", KINDS[name].phrasings)
    side, content = row.positive, about(row.positive)
    if rng.random() < 0.5 and name != "Edit":  # what is asked for in an edit is not what its picture shows
        side, content = row.query, _shown(row)
    turn = side_parts(side)
    words = [word for word in content.replace(",", "").split() if word not in FILLERS]
    chosen = [words[i] for i in rng.permutation(len(words))[:WORDS]]
    group = [Branch(turn, f" {word}", 0.4, 0.0, item=True) for word in chosen]
    return [*group, Branch(turn, content, 0.3, 0.0, item=True, by_end=True)]


def _shown(row: Row) -> str:
    """What a query holds, whatever it asks: the caption of its picture, or its own words where it has none."""
    if row.query.picture is None:
        return about(row.query)
    return makers.say(scenes.scene_of(row.scene))


PLAN: tuple[tuple[float, Lesson], ...] = ((0.36, weigh), (0.32, read_list), (0.26, tell), (0.06, answer))
"""Lessons and their shares, the same throughout."""


def lesson(rng: Rng) -> Group:
    """One group of the second part."""
    return drawn(rng, PLAN)
