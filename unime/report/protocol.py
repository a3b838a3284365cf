"""Under which protocol the table was made: how long its embedders were trained, and how its reranker reads candidates."""

from __future__ import annotations

import csv
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from unime.evaluate.tasks import MODELS

TRAINED = ("in_batch", "hard_negatives", "unime_v2")
"""The table's embedders that are trained, by the name of their section in the configuration."""


class Training(NamedTuple):
    """How long one embedder was trained: optimizer steps, queries in a step, and items (a query's own text or image counts as one) that
    a query brings."""

    steps: int
    batch: int
    items: int

    @staticmethod
    def of(steps: int, batch: int, negatives: int) -> Training:
        """Of an embedder whose queries have one positive and so many mined negatives."""
        return Training(steps, batch, 2 + negatives)

    @staticmethod
    def read(log: Path, negatives: int) -> Training:
        """Of the log.csv of such an embedder: steps and batch may depend on the number of rows, which the configuration does not know."""
        with log.open(encoding="utf-8", newline="") as file:
            last = list(csv.DictReader(file))[-1]
        steps, items = int(last["step"]), int(last["items"])
        return Training.of(steps, items // (steps * (2 + negatives)), negatives)


READS = {
    "likelihood": "in one list, by the likelihood of each answer",
    "generate": "in one list, of which it names one",
    "pairwise": "each alone, by its P(Yes)",
}
"""Value of evaluate.rerank_mode -> how the reranker reads a query's best candidates."""


def note(trainings: Mapping[str, Training], rerank: int, mode: str) -> str:
    """Sentences for the table: whether the rows saw equally many queries, how many items each saw, and how the reranker reads.

    `trainings` has one entry for each of TRAINED.  The paper compares rows at an equal number of queries.  `rerank` and `mode` are
    evaluate.rerank and evaluate.rerank_mode.
    """
    return f"{_trained(trainings)} The reranker reads the {rerank} best candidates {READS[mode]}."


def _trained(trainings: Mapping[str, Training]) -> str:
    lengths = {(training.steps, training.batch) for training in trainings.values()}
    seen = [f"{MODELS[name]} {training.steps * training.batch * training.items:,}" for name, training in trainings.items()]
    items = f"Items seen, since a query brings its negatives along: {', '.join(seen)}."
    if len(lengths) == 1:
        ((steps, batch),) = lengths
        return f"Every trained embedder took {steps:,} steps of {batch:,} queries, as in the paper's comparison. {items}"
    each = [f"{MODELS[name]} {training.steps:,} steps of {training.batch:,} queries" for name, training in trainings.items()]
    return f"The trained embedders did not see equally many queries, so their rows compare more than the method: {'; '.join(each)}. {items}"
