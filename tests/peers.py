"""torchmetrics as an independent judge of ranks and recalls, made to follow our tie rules.

torchmetrics sorts scores and leaves the order of equal ones to the sort.  To make it follow a tie rule it is given other scores than
our functions are: each score plus a bonus far below the smallest difference between two scores, so that only equals change places.

    content     a wrong candidate gets a bonus, a right one none: right ones come after all their equals
    vlm2vec_v1  the bonus falls with the position in the list
    vlm2vec_v2  the bonus falls with the place in the order of the public code's sort (`published_order`)
    unime_v2    so does this one

All scores are above 0, because torchmetrics takes a candidate with a score of 0 or less as not found.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
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
    if rule == "content":
        bonus = [not r for r in right]
    elif rule == "vlm2vec_v1":
        bonus = list(range(len(right), 0, -1))
    else:
        bonus = [0] * len(right)
        for place, position in enumerate(published_order(scores, rule)):
            bonus[position] = len(right) - place
    return [s + BONUS * b for s, b in zip(scores, bonus, strict=True)]


def published_order(scores: Sequence[float], rule: str) -> list[int]:
    """List positions, best first, as the public code of VLM2Vec's second version and of UniME-V2 sorts float32 scores.

    UniME-V2 keeps the ten best; behind them stand the others by score, equals in the list's order.
    """
    given = np.array(scores, dtype=np.float32)
    if rule == "vlm2vec_v2":
        return np.argsort(-given).tolist()
    count = min(10, len(given))
    best = np.argpartition(given, -count)[-count:]
    best = best[np.argsort(-given[best])].tolist()
    return best + sorted(set(range(len(given))) - set(best), key=lambda position: (-given[position], position))
