"""Mining equals a plain loop over the paper's four steps, on worked examples and on random tables."""

from __future__ import annotations

import hashlib

import numpy as np
import polars as pl
import pytest

from unime import artifacts
from unime.artifacts import ArtifactError
from unime.mine import mine

SETTINGS = {"beta": 0.01, "negatives": 10, "interval": 5, "order": "similarity", "seed": 42}


def tables(scores: list[list[float]], sigmas: list[float], dataset: str = "A") -> tuple[pl.DataFrame, pl.DataFrame, pl.DataFrame]:
    """Pair i with candidates c<i>-0, c<i>-1, ... in retrieval order and these scores."""
    names = [f"p{i:05d}" for i in range(len(scores))]
    pairs = pl.DataFrame(
        {
            "pair": names,
            "dataset": dataset,
            "row": range(len(names)),
            "query": [f"q{n}" for n in names],
            "positive": [f"t{n}" for n in names],
        },
        schema=artifacts.PAIRS,
    )
    hits = [(n, f"c{n}-{j}", j, 0.9 - j / 100) for n, row in zip(names, scores, strict=True) for j in range(len(row))]
    judged = [(n, f"t{n}", True, 0.0, 0.0, s) for n, s in zip(names, sigmas, strict=True)]
    judged += [(n, f"c{n}-{j}", False, 0.0, 0.0, s) for n, row in zip(names, scores, strict=True) for j, s in enumerate(row)]
    return (
        pairs,
        pl.DataFrame(hits, schema=artifacts.HITS, orient="row"),
        pl.DataFrame(judged, schema=artifacts.JUDGEMENTS, orient="row"),
    )


def reference(pair: str, scores: list[float], sigma: float, *, beta: float, negatives: int, interval: int, order: str, seed: int) -> list:
    """(rank, score, reason) of each negative, by the words of the paper."""
    left = [rank for rank, score in enumerate(scores) if not score > sigma - beta]
    if order == "score":
        left.sort(key=lambda rank: (-scores[rank], rank))
    if not left:
        drawn = sorted(range(len(scores)), key=lambda rank: hashlib.sha256(f"{seed}\0{pair}\0c{pair}-{rank}".encode()).hexdigest())
        drawn = drawn[:negatives]
        return [(drawn[i % len(drawn)], 1.0, "fallback") for i in range(negatives)] if drawn else []
    if len(left) < negatives:
        return [(left[i % len(left)], scores[left[i % len(left)]], "kept" if i < len(left) else "repeated") for i in range(negatives)]
    chosen: list[int] = []
    for start in range(interval):
        chosen += left[start::interval]
    return [(rank, scores[rank], "kept") for rank in chosen[:negatives]]


def rows_of(mined: pl.DataFrame) -> dict[str, list]:
    return {row["pair"]: list(zip(row["ranks"], row["scores"], row["reasons"], strict=True)) for row in mined.iter_rows(named=True)}


def test_fifty_candidates_give_every_fifth_from_the_first():
    mined, _ = mine(*tables([[0.1] * 50], [0.9]), **SETTINGS)
    assert mined["ranks"].to_list() == [list(range(0, 50, 5))]
    assert mined["negatives"][0].to_list() == [f"cp00000-{j}" for j in range(0, 50, 5)]
    assert mined["sigma"].to_list() == [0.9]


def test_twelve_left_cycle_through_the_residue_classes():
    mined, _ = mine(*tables([[0.1] * 12], [0.9]), **SETTINGS)
    assert mined["ranks"].to_list() == [[0, 5, 10, 1, 6, 11, 2, 7, 3, 8]]


def test_seven_left_are_repeated_in_order():
    scores = [0.95, 0.1, 0.2, 0.3, 0.95, 0.4, 0.5, 0.6, 0.7]  # two false negatives
    mined, report = mine(*tables([scores], [0.9]), **SETTINGS)
    assert mined["ranks"].to_list() == [[1, 2, 3, 5, 6, 7, 8, 1, 2, 3]]
    assert mined["reasons"][0].to_list() == ["kept"] * 7 + ["repeated"] * 3
    assert (report["false"], report["candidates"], report["repeated"], report["repeated_rows"]) == (2, 9, 1, 3)


def test_a_candidate_is_dropped_above_alpha_and_kept_at_alpha():
    alpha = 0.9 - 0.01
    mined, _ = mine(*tables([[alpha, np.nextafter(alpha, 1), 0.5]], [0.9]), **SETTINGS)
    assert set(mined["ranks"][0]) == {0, 2}


def test_none_left_draws_from_all_with_score_one():
    mined, report = mine(*tables([[0.9] * 50, [0.9] * 50], [0.5, 0.5]), **SETTINGS)
    for ranks, scores, reasons in mined.select("ranks", "scores", "reasons").iter_rows():
        assert len(set(ranks)) == 10 and set(scores) == {1.0} and set(reasons) == {"fallback"}
    assert mined["ranks"][0].to_list() != mined["ranks"][1].to_list()
    assert (report["fallback"], report["fallback_rows"]) == (2, 20)
    other, _ = mine(*tables([[0.9] * 50], [0.5]), **SETTINGS | {"seed": 43})
    assert other["ranks"][0].to_list() != mined["ranks"][0].to_list()


def test_fallback_of_a_pair_does_not_depend_on_other_pairs():
    both, _ = mine(*tables([[0.1] * 50, [0.9] * 50], [0.5, 0.5]), **SETTINGS)
    pairs, hits, judged = tables([[0.1] * 50, [0.9] * 50], [0.5, 0.5])
    only = pl.col("pair") == "p00001"
    alone, _ = mine(pairs.filter(only), hits.filter(only), judged.filter(only), **SETTINGS)
    assert alone["negatives"][0].to_list() == both["negatives"][1].to_list()


@pytest.mark.parametrize("order", ["similarity", "score"])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_equal_to_the_plain_loop_on_random_tables(order: str, seed: int):
    rng = np.random.default_rng(seed)
    scores = [np.round(rng.random(rng.integers(0, 51)), 2).tolist() for _ in range(300)]  # rounded: many ties
    sigmas = np.round(rng.random(300) ** 0.5, 2).tolist()
    for negatives, interval in ((10, 5), (8, 1), (3, 7), (1, 50)):
        settings = SETTINGS | {"order": order, "negatives": negatives, "interval": interval}
        mined, report = mine(*tables(scores, sigmas), **settings)
        found = rows_of(mined)
        kinds = set()
        for number, (row, sigma) in enumerate(zip(scores, sigmas, strict=True)):
            name = f"p{number:05d}"
            expected = reference(name, row, sigma, **settings)
            assert found.get(name, []) == expected
            kinds.update(reason for _, _, reason in expected)
        assert kinds == {"kept", "repeated", "fallback"} or negatives == 1
        assert report["without_candidates"] == sum(not row for row in scores)


def test_the_order_of_rows_in_the_tables_does_not_matter():
    rng = np.random.default_rng(3)
    pairs, hits, judged = tables([rng.random(50).tolist() for _ in range(40)], rng.random(40).tolist())
    first, _ = mine(pairs, hits, judged, **SETTINGS)
    again, _ = mine(pairs, hits.sample(fraction=1, shuffle=True, seed=1), judged.sample(fraction=1, shuffle=True, seed=2), **SETTINGS)
    assert first.equals(again)


def test_counts_are_per_data_set():
    a, b = tables([[0.95] + [0.1] * 9], [0.9], "A"), tables([[0.9] * 5], [0.1], "B")
    b = [table.with_columns(pl.col("pair") + "b") for table in b]
    _, report = mine(*(pl.concat(two) for two in zip(a, b, strict=True)), **SETTINGS)
    sets = {one["dataset"]: one for one in report["sets"]}
    assert (sets["A"]["false"], sets["A"]["repeated_rows"], sets["B"]["false"], sets["B"]["fallback"]) == (1, 1, 5, 1)


@pytest.mark.parametrize("score", [float("nan"), -0.1, 1.5, None])
def test_a_score_that_is_no_share_is_named(score: float | None):
    pairs, hits, judged = tables([[0.1, 0.2]], [0.9])
    judged = judged.with_columns(score=pl.when(pl.col("candidate") == "cp00000-1").then(pl.lit(score)).otherwise("score"))
    with pytest.raises(ArtifactError, match=r"pair p00000, candidate cp00000-1: score .* not in \[0, 1\]"):
        mine(pairs, hits, judged, **SETTINGS)


def test_a_hit_or_a_positive_without_judgement_is_named():
    pairs, hits, judged = tables([[0.1, 0.2]], [0.9])
    with pytest.raises(ArtifactError, match="pair p00000, candidate cp00000-1: a hit without judgement"):
        mine(pairs, hits, judged.filter(pl.col("candidate") != "cp00000-1"), **SETTINGS)
    with pytest.raises(ArtifactError, match="pair p00000: its positive has no judgement"):
        mine(pairs, hits, judged.filter(~pl.col("positive")), **SETTINGS)


def test_a_row_that_is_there_twice_is_named():
    pairs, hits, judged = tables([[0.1, 0.2]], [0.9])
    twice = judged.filter(pl.col("candidate") == "cp00000-1")
    with pytest.raises(ArtifactError, match="judgements: pair p00000, candidate cp00000-1 is there twice"):
        mine(pairs, hits, pl.concat([judged, twice]), **SETTINGS)
    with pytest.raises(ArtifactError, match="hits: pair p00000, candidate cp00000-1 is there twice"):
        mine(pairs, pl.concat([hits, hits.filter(pl.col("rank") == 1)]), pl.concat([judged, twice]), **SETTINGS)
