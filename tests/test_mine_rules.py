"""Mining rules without a judge equal a plain loop over their definitions, and what they give trains one-hot losses alone."""

from __future__ import annotations

import hashlib

import numpy as np
import polars as pl
import pytest

from unime import artifacts
from unime.artifacts import ArtifactError
from unime.config import Rule
from unime.mine import mine
from unime.mine.rules import mine_by_rule

RULES = {
    "random": Rule(rule="random"),
    "top_k": Rule(rule="top_k"),
    "margin": Rule(rule="margin", margin=0.05),
    "percent": Rule(rule="percent", share=0.95),
    "first": Rule(rule="percent", share=0.9, interval=1),
}
WAYS = {"negatives": 10, "interval": 5, "seed": 42}


def tables(similarities: list[list[float]], positives: list[float]) -> tuple[pl.DataFrame, pl.DataFrame, pl.DataFrame]:
    """PAIRS, HITS, POOLS: pair i with candidates c<i>-0, ... of these similarities, best first, and its positive's."""
    names = [f"p{number:05d}" for number in range(len(similarities))]
    pairs = [(name, "A", row, f"q{name}", f"t{name}") for row, name in enumerate(names)]
    hits = []
    for name, row in zip(names, similarities, strict=True):
        hits += [(name, f"c{name}-{rank}", rank, value) for rank, value in enumerate(row)]
    pools = [(name, len(row), 0, 0, 0, value) for name, row, value in zip(names, similarities, positives, strict=True)]
    return (
        pl.DataFrame(pairs, schema=artifacts.PAIRS, orient="row"),
        pl.DataFrame(hits, schema=artifacts.HITS, orient="row"),
        pl.DataFrame(pools, schema=artifacts.POOLS, orient="row"),
    )


def mixed(number: int) -> int:
    """SplitMix64 of a state, in whole numbers."""
    number = (number ^ (number >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
    number = (number ^ (number >> 27)) * 0x94D049BB133111EB % 2**64
    return number ^ (number >> 31)


def reference(pair: str, similarities: list[float], positive: float, rule: Rule, *, negatives: int, interval: int, seed: int) -> list:
    """(rank, reason) of each negative of one pair."""
    everything = list(range(len(similarities)))
    if not everything:
        return []
    if rule.rule == "random":
        start = int.from_bytes(hashlib.sha256(f"{seed}\0{pair}".encode()).digest()[:8], "little")
        left = sorted(everything, key=lambda rank: mixed((start + (rank + 1) * 0x9E3779B97F4A7C15) % 2**64))
        interval = 1
    else:
        limit = {"top_k": np.inf, "margin": positive - (rule.margin or 0), "percent": positive * (rule.share or 0)}[rule.rule]
        left = [rank for rank in everything if similarities[rank] < limit]
        interval = rule.interval or interval
    if not left:
        drawn = sorted(everything, key=lambda rank: hashlib.sha256(f"{seed}\0{pair}\0c{pair}-{rank}".encode()).hexdigest())
        drawn = drawn[:negatives]
        return [(drawn[place % len(drawn)], "fallback") for place in range(negatives)]
    if len(left) < negatives:
        return [(left[place % len(left)], "kept" if place < len(left) else "repeated") for place in range(negatives)]
    chosen: list[int] = []
    for first in range(interval):
        chosen += left[first::interval]
    return [(rank, "kept") for rank in chosen[:negatives]]


def drawn(seed: int, pairs: int) -> tuple[list[list[float]], list[float]]:
    """Lists of 0 to 50 similarities with many ties, also with the positive's; float32 values."""
    rng = np.random.default_rng(seed)
    rows = []
    for _ in range(pairs):
        size = rng.integers(0, 51) if rng.random() < 0.8 else rng.integers(0, 4)
        rows.append(np.sort(np.round(rng.random(size), 2).astype(np.float32))[::-1].tolist())
    positives = np.round(rng.random(pairs) ** 0.5, 2).astype(np.float32).tolist()
    return rows, positives


@pytest.mark.parametrize("name", RULES)
@pytest.mark.parametrize("seed", [0, 1])
def test_a_rule_equals_its_definition_on_random_tables(name: str, seed: int) -> None:
    rows, positives = drawn(seed, 300)
    kinds = set()
    for negatives, interval in ((10, 5), (8, 1), (3, 7), (1, 50)):
        ways = WAYS | {"negatives": negatives, "interval": interval}
        mined, report = mine_by_rule(*tables(rows, positives), RULES[name], **ways)
        artifacts.check(mined, artifacts.MINED, "mined")
        found = {row["pair"]: row for row in mined.iter_rows(named=True)}
        for number, (row, positive) in enumerate(zip(rows, positives, strict=True)):
            pair = f"p{number:05d}"
            expected = reference(pair, row, positive, RULES[name], **ways)
            if not expected:
                assert pair not in found
                continue
            assert list(zip(found[pair]["ranks"], found[pair]["reasons"], strict=True)) == expected
            assert found[pair]["negatives"] == [f"c{pair}-{rank}" for rank, _ in expected]
            assert found[pair]["sigma"] is None and found[pair]["scores"] == [None] * negatives
            kinds |= {reason for _, reason in expected}
        assert report["without_candidates"] == sum(not row for row in rows) > 0
    assert kinds == ({"kept", "repeated"} if name in ("random", "top_k") else {"kept", "repeated", "fallback"})


def test_the_limits_are_strict_and_of_the_pairs_own_positive() -> None:
    similarities, positives = [[0.5, 0.475, 0.25], [0.5, 0.475, 0.25]], [0.5, 0.25]
    for rule in (Rule(rule="margin", margin=0.0), Rule(rule="percent", share=1.0)):
        mined, _ = mine_by_rule(*tables(similarities, positives), rule, **WAYS | {"negatives": 3})
        assert mined["ranks"].to_list()[0] == [1, 2, 1] and set(mined["reasons"].to_list()[1]) == {"fallback"}


def test_a_random_draw_depends_on_the_seed_and_the_pair_alone() -> None:
    similarities = [[0.9 - place / 100 for place in range(50)]] * 3
    pairs, hits, pools = tables(similarities, [0.9] * 3)
    whole, _ = mine_by_rule(pairs, hits, pools, RULES["random"], **WAYS)
    ranks = whole["ranks"].to_list()
    assert len({tuple(row) for row in ranks}) == 3 and all(len(set(row)) == 10 for row in ranks)
    only = pl.col("pair") == "p00002"
    alone, _ = mine_by_rule(pairs.filter(only), hits.filter(only), pools, RULES["random"], **WAYS)
    assert alone["ranks"].to_list() == ranks[2:]
    other, _ = mine_by_rule(pairs, hits, pools, RULES["random"], **WAYS | {"seed": 43})
    assert other["ranks"].to_list() != ranks
    many, _ = mine_by_rule(*tables(similarities[:1] * 2000, [0.9] * 2000), RULES["random"], **WAYS)
    counts = np.bincount(many["ranks"].explode().to_numpy(), minlength=50)
    assert abs(counts - 400).max() < 5 * (2000 * 0.2 * 0.8) ** 0.5, "every candidate is as likely as another"


def test_top_k_takes_what_a_judge_takes_who_drops_nothing_and_takes_by_similarity() -> None:
    rows, positives = drawn(3, 100)
    pairs, hits, pools = tables(rows, positives)
    judged = hits.select("pair", "candidate", positive=pl.lit(False), score=pl.col("rank").cast(pl.Float64) / 100)
    own = pairs.select("pair", candidate="positive", positive=pl.lit(True), score=pl.lit(1.0))
    judged = pl.concat([judged, own]).with_columns(yes=pl.lit(0.0, pl.Float32), no=pl.lit(0.0, pl.Float32))
    judged = judged.select(list(artifacts.JUDGEMENTS))
    by_judge, _ = mine(pairs, hits, judged, beta=0.01, order="similarity", **WAYS)
    by_rule, _ = mine_by_rule(pairs, hits, pools, RULES["top_k"], **WAYS)
    assert by_rule.drop("sigma", "scores").equals(by_judge.drop("sigma", "scores")) and len(by_rule) > 80
    by_score, _ = mine(pairs, hits, judged, beta=0.01, order="score", **WAYS)
    assert not by_rule.drop("sigma", "scores").equals(by_score.drop("sigma", "scores")), "a rule knows no scores to order by"


def test_a_table_without_hits_or_without_the_positives_similarity() -> None:
    for rule in RULES.values():
        mined, report = mine_by_rule(*tables([[], []], [0.5, 0.5]), rule, **WAYS)
        assert len(mined) == 0 and mined.schema == artifacts.MINED and report["without_candidates"] == 2
    pairs, hits, pools = tables([[0.5], [0.4]], [0.6, 0.6])
    with pytest.raises(ArtifactError, match="pools: pair p00001 has no similarity to its positive; run the retrieve stage again"):
        mine_by_rule(pairs, hits, pools[:1], RULES["margin"], **WAYS)
