"""Cross-modal recall and pair accuracy agree with torchmetrics on data full of ties (tests/peers.py says how ties reach it)."""

from __future__ import annotations

import numpy as np
import polars as pl
import pytest
from peers import STEP, peer, told
from torchmetrics.retrieval import RetrievalHitRate, RetrievalMRR, RetrievalPrecision

from unime import artifacts
from unime.evaluate import crossmodal, recall
from unime.evaluate.metrics import TIE_RULES
from unime.evaluate.recall import Shared


def directions(rng: np.random.Generator, count: int, size: int) -> np.ndarray:
    found = rng.standard_normal((count, size)).astype(np.float32)
    return found / np.linalg.norm(found, axis=1, keepdims=True)


@pytest.mark.parametrize("rule", TIE_RULES)
def test_a_hit_is_any_right_one_among_the_best_as_in_torchmetrics(rule: str):
    """150 queries, 60 candidates of 8 kinds (all of a kind score alike), one to five right ones; a kind's score is its place."""
    rng = np.random.default_rng(4)
    kinds, kind, queries = directions(rng, 8, 16), rng.integers(0, 8, 60), directions(rng, 150, 16)
    level = (np.argsort(np.argsort(queries.astype(float) @ kinds.astype(float).T, axis=1), axis=1) + 1) * STEP  # (150, 8)
    pool = [f"id{k:02}" for k in rng.permutation(60)]
    right = [set(rng.choice(pool, rng.integers(1, 6), replace=False).tolist()) for _ in queries]

    shared = Shared.of(pool, [sorted(answers) for answers in right], rule)
    vectors = np.concatenate([kinds[kind], queries])  # the candidates in the pool's order, then the queries
    place = {name: k for k, name in enumerate(pool)}
    candidates = np.array([place[name] for name in shared.ids])
    ranks, best = recall.search(vectors, np.arange(60, 210), candidates, shared, 10)

    given, tied = [], 0
    for row, answers in enumerate(right):
        marks = [name in answers for name in pool]
        scores = level[row, kind].tolist()
        top = max(s for s, mark in zip(scores, marks, strict=True) if mark)
        tied += any(s == top and not mark for s, mark in zip(scores, marks, strict=True))
        given.append((told(scores, marks, rule), marks))
    assert tied > 100 and len(set(ranks.tolist())) > 8
    for k in (1, 5, 10):
        hits = peer(RetrievalHitRate(top_k=k), given)
        assert 0 < hits < 1 and (ranks < k).mean() == pytest.approx(hits, abs=1e-6)
        listed = [any(shared.ids[c] in answers for c in places[:k]) for places, answers in zip(best, right, strict=True)]
        assert np.mean(listed) == pytest.approx(hits, abs=1e-6)
    assert (1 / (ranks + 1)).mean() == pytest.approx(peer(RetrievalMRR(), given), abs=1e-6)


def test_a_pair_is_a_hit_where_the_true_caption_is_strictly_better_as_in_torchmetrics():
    rng = np.random.default_rng(5)
    kinds, images = directions(rng, 3, 16), directions(rng, 90, 16)
    of, level = rng.integers(0, 3, (90, 2)), images.astype(float) @ kinds.astype(float).T
    columns = {
        "task": ["SugarCrepe"] * 90,
        "row": range(90),
        "query": [f"q{k}" for k in range(90)],
        "right": [[] for _ in range(90)],
        "candidates": [[f"true{k}", f"false{k}"] for k in range(90)],
        "part": ["one", "two", "two"] * 30,
    }
    pairs = crossmodal.Pairs.of(pl.DataFrame(columns, schema=artifacts.CAPTION_QUERIES))
    ids = [*columns["query"], *(name for both in columns["candidates"] for name in both)]
    ranking = pairs.judged(pairs.ranking(ids, np.concatenate([images, kinds[of.ravel()]]), 2))
    figures = {metric: value for metric, value, _ in pairs.figures(ranking)}

    assert 20 < (of[:, 0] == of[:, 1]).sum() < 60, "ties and strict orders"
    place = (np.argsort(np.argsort(level, axis=1), axis=1) + 1) * STEP
    given = [(told([place[k, a], place[k, b]], [True, False], "content"), [True, False]) for k, (a, b) in enumerate(of)]
    share = {
        part: peer(RetrievalPrecision(top_k=1), [one for one, name in zip(given, columns["part"], strict=True) if name == part])
        for part in ("one", "two")
    }
    assert share["one"] != share["two"] and figures["accuracy"] == pytest.approx(sum(share.values()) / 2, abs=1e-6)
    assert {f"accuracy/{part}": pytest.approx(value, abs=1e-6) for part, value in share.items()} == {
        metric: value for metric, value in figures.items() if "/" in metric
    }
