"""torchmetrics as an independent judge of ranks and recalls, made to follow our tie rules.

torchmetrics sorts scores and leaves the order of equal ones to the sort.  To make it follow a tie rule it is given other scores than
our functions are: each score plus a bonus far below the smallest difference between two scores, so that only equals change places.

    content  a wrong candidate gets a bonus, a right one none: right ones come after all their equals
    name     a right candidate gets a bonus, a wrong one none (right: of the right one's name)
    first    the bonus falls with the position in the list

All scores are above 0, because torchmetrics takes a candidate with a score of 0 or less as not found.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

STEP, BONUS = 0.25, 1e-3
"""Between two scores; of one place (lists are shorter than STEP / BONUS, and float32 near 1 is finer than a thousandth of BONUS)."""


def peer(metric, rows: list[tuple[Sequence[float], Sequence[bool]]]) -> float:
    """torchmetrics' mean over queries, each given as scores and marks of the right candidates."""
    for number, (scores, right) in enumerate(rows):
        metric.update(torch.tensor(scores), torch.tensor(right), indexes=torch.full((len(scores),), number))
    return float(metric.compute())


def told(scores: Sequence[float], right: Sequence[bool], rule: str) -> list[float]:
    """Scores without ties between right and wrong: what the peer is given."""
    assert min(scores) > 0 and len(scores) < STEP / BONUS
    bonus = {"content": [not r for r in right], "name": right, "first": range(len(right), 0, -1)}[rule]
    return [s + BONUS * b for s, b in zip(scores, bonus, strict=True)]
