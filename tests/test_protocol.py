"""The table says how long each row was trained and how the reranker reads."""

from __future__ import annotations

import pytest

from unime.evaluate.tasks import MODELS
from unime.report import protocol
from unime.report.protocol import TRAINED, Training


def trainings(**batches: int) -> dict[str, Training]:
    negatives = {"in_batch": 0, "hard_negatives": 8, "unime_v2": 8}
    return {name: Training.of(400, batches.get(name, 16), negatives[name]) for name in TRAINED}


def test_rows_at_equal_queries_are_said_to_be_so_with_the_items_that_each_saw():
    note = protocol.note(trainings(), 5, "pairwise")
    assert "Every trained embedder took 400 steps of 16 queries" in note
    assert f"{MODELS['in_batch']} 12,800" in note, "400 x 16 queries with one positive each"
    assert f"{MODELS['unime_v2']} 64,000" in note, "400 x 16 queries with one positive and eight negatives each"


def test_rows_at_unequal_queries_are_named_with_theirs():
    note = protocol.note(trainings(in_batch=80), 5, "likelihood")
    assert "did not see equally many queries" in note
    assert f"{MODELS['in_batch']} 400 steps of 80 queries" in note and f"{MODELS['unime_v2']} 400 steps of 16 queries" in note


@pytest.mark.parametrize(("mode", "said"), [("likelihood", "in one list"), ("generate", "names one"), ("pairwise", "each alone")])
def test_the_note_says_how_the_reranker_reads(mode, said):
    assert f"the 10 best candidates {protocol.READS[mode]}." in protocol.note(trainings(), 10, mode)
    assert said in protocol.READS[mode]
