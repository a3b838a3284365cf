"""Precision, recall and ranks agree with torchmetrics, which shares no line with this library, on data full of ties.

tests/peers.py says how ties reach it.  Which candidates are right is worked out here, from the rules' words, and where a rule drops a
candidate's repeats in its list, they are dropped here.
"""

from __future__ import annotations

import numpy as np
import pytest
from peers import STEP, peer, told
from torchmetrics.retrieval import RetrievalHitRate, RetrievalMAP, RetrievalMRR, RetrievalPrecision, RetrievalRecall

from unime.evaluate.metrics import TIE_RULES, Pool, order, ranks, recall_at


def tied(seed: int, queries: int = 400):
    """Lists of 1 to 40 candidates of 25 contents, with repeats, the right one anywhere, five distinct scores."""
    rng = np.random.default_rng(seed)
    lists = [[f"id{k}" for k in rng.integers(0, 25, rng.integers(1, 41))] for _ in range(queries)]
    right = [int(rng.integers(len(row))) for row in lists]
    scores = (rng.integers(1, 6, (queries, 25)) * STEP).tolist()
    return lists, right, scores


def both(rule: str, seed: int):
    """(our scores, our pool, what the peer is given)."""
    lists, right, scores = tied(seed)
    pool = Pool.of(lists, right, rule)
    ours, given, mixed = np.zeros(pool.columns.shape, dtype=np.float32), [], 0
    for row, (ids, place, score) in enumerate(zip(lists, right, scores, strict=True)):
        ours[row, : len(ids)] = [score[int(i[2:])] for i in ids]
        shown = ids if rule in ("vlm2vec_v2", "unime_v2") else list(dict.fromkeys(ids))
        marks = [k == place for k in range(len(ids))] if rule == "unime_v2" else [i == ids[place] for i in shown]
        own = [score[int(i[2:])] for i in shown]
        best = max(s for s, r in zip(own, marks, strict=True) if r)
        mixed += any(s == best and not r for s, r in zip(own, marks, strict=True))
        given.append((told(own, marks, rule), marks))
    assert mixed > len(lists) / 4, "in many rows a wrong candidate must have the best right one's score"
    return ours, pool, given


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("rule", TIE_RULES)
def test_precision_and_recall_equal_torchmetrics_under_every_tie_rule(rule: str, seed: int):
    scores, pool, given = both(rule, seed)
    found = ranks(scores, pool, rule)
    assert len(set(found.tolist())) > 5, "the data must have easy and hard rows"
    assert recall_at(found, 1) == pytest.approx(peer(RetrievalPrecision(top_k=1), given), abs=1e-6)
    for k in (1, 5, 10):
        hits = peer(RetrievalHitRate(top_k=k), given)
        assert 0 < hits and recall_at(found, k) == pytest.approx(hits, abs=1e-6)
        if rule != "vlm2vec_v2":  # one right candidate a query: its recall is whether it is hit
            assert recall_at(found, k) == pytest.approx(peer(RetrievalRecall(top_k=k), given), abs=1e-6)


@pytest.mark.parametrize("rule", TIE_RULES)
def test_every_rank_and_the_whole_order_equal_torchmetrics(rule: str):
    scores, pool, given = both(rule, 2)
    found, places = ranks(scores, pool, rule), order(scores, pool, rule)
    assert (1 / (found + 1)).mean() == pytest.approx(peer(RetrievalMRR(), given), abs=1e-6)
    for row in range(0, len(given), 7):
        assert 1 / (found[row] + 1) == pytest.approx(peer(RetrievalMRR(), [given[row]]), abs=1e-6)
    listed = [pool.wanted[k, row[row >= 0]] for k, row in enumerate(places)]
    ordered = [(np.arange(len(row), 0, -1.0).tolist(), row.tolist()) for row in listed]
    assert peer(RetrievalMAP(), ordered) == pytest.approx(peer(RetrievalMAP(), given), abs=1e-6)


def test_the_peer_tells_the_rules_apart():
    """The same tied scores give other figures, so agreement says something; numpy may sort short lists as `vlm2vec_v1` does."""
    figures = [peer(RetrievalHitRate(top_k=1), both(rule, 3)[2]) for rule in TIE_RULES]
    assert len({round(figure, 3) for figure in figures}) >= 3
    scores, pool, _ = both("content", 3)
    assert recall_at(ranks(scores, pool, "vlm2vec_v1"), 1) != pytest.approx(figures[0], abs=1e-3)
