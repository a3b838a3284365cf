"""How far a candidate meets a query, between not at all (0) and fully (1): the suite's ground truth in degrees.

A caption that is wrong in one of eight claims meets a picture better than one that is wrong in all of them.  The degree is the share of
what is claimed that holds, and `belief` says how likely a rater is to answer Yes, which is what the nano MLLM is taught to judge:

1. A candidate makes claims: each attribute that a caption names, each attribute of each thing of a picture, each word of a label.
2. Things of the two sides are paired so that as many claims hold as can (two named things are two things).
3. A hasty rater checks two claims drawn at random and answers Yes if both hold; now and then he slips.

Where words themselves are near each other (red and orange, the top left and the top right) half of the claim holds.
"""

from __future__ import annotations

import itertools
from typing import Any

from unime.nano import scenes
from unime.nano.makers import things_of
from unime.nano.scenes import Scene, Thing

CHECKS = 2
"""Claims that a rater checks."""

SLIP = 0.04
"""Chance that a rater answers the opposite of what he has found."""

LIKE = frozenset(
    {
        frozenset({"red", "orange"}),
        frozenset({"orange", "yellow"}),
        frozenset({"yellow", "white"}),
        frozenset({"blue", "purple"}),
        frozenset({"blue", "cyan"}),
        frozenset({"cyan", "green"}),
        frozenset({"circle", "ring"}),
        frozenset({"square", "diamond"}),
        frozenset({"one", "two"}),
        frozenset({"two", "three"}),
    }
)
"""Pairs of words that mean neighbouring things."""

LIKENESS = 0.5
"""How far one of two neighbouring words meets the other."""


def degree(query: dict[str, Any], candidate: dict[str, Any]) -> float:
    """How far a candidate with these facts meets a query with those, in [0, 1]; 1 exactly where `makers.meets` is true."""
    if "is" in query:
        return _likeness(query["is"], candidate.get("is", ""))
    if "scene" in query:
        return _claims_that_hold(things_of(candidate["caption"]), things_of(query["scene"]))
    return _claims_that_hold(things_of(query["caption"]), things_of(candidate["scene"]))


def belief(degree: float) -> float:
    """Probability that a rater answers Yes to a pair of this degree."""
    found = degree**CHECKS
    return found * (1 - SLIP) + (1 - found) * SLIP


def _likeness(wanted: str, offered: str) -> float:
    """Two labels, answers, or descriptions of scenes."""
    if wanted == offered:
        return 1.0
    if ": " in wanted and ": " in offered:
        return _alike(scenes.read(wanted), scenes.read(offered))
    asked, given = wanted.split(), offered.split()
    if len(asked) != len(given):
        return 0.0
    return sum(map(_word, asked, given)) / len(asked)


def _word(wanted: str, offered: str) -> float:
    if wanted == offered:
        return 1.0
    return LIKENESS if frozenset({wanted, offered}) in LIKE else 0.0


def _field(name: str, wanted: str, offered: str) -> float:
    if name != "place":
        return _word(wanted, offered)
    return sum(map(_word, wanted.split(), offered.split())) / 2


def _claims_that_hold(caption: Scene, scene: Scene) -> float:
    """Share of a caption's claims that hold in a scene."""
    claims = sum(1 for thing in caption for word in thing if word)
    return _held(caption, scene) / claims


def _alike(wanted: Scene, offered: Scene) -> float:
    """Share of attributes in which two scenes agree, thing by thing; a thing that one of them lacks agrees in none."""
    claims = len(Thing._fields) * max(len(wanted), len(offered))
    return _held(wanted, offered) / claims


def _held(claimed: Scene, shown: Scene) -> float:
    """How many attributes that the claimed things name the shown ones have, things paired so that these are most."""
    shorter, longer = sorted((claimed, shown), key=len)
    best = 0.0
    for chosen in itertools.permutations(longer, len(shorter)):
        pairs = zip(shorter, chosen, strict=True) if shorter is claimed else zip(chosen, shorter, strict=True)
        best = max(best, sum(_agreement(one, other) for one, other in pairs))
    return best


def _agreement(claimed: Thing, shown: Thing) -> float:
    """How many of the attributes that one thing names the other has."""
    named = [(name, a, b) for name, a, b in zip(Thing._fields, claimed, shown, strict=True) if a]
    return sum(_field(*one) for one in named)
