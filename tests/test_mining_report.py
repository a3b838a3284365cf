"""The mining report counts what happened, and its false-negative shares are those of the ground truth."""

from __future__ import annotations

import functools
import itertools

import numpy as np
import polars as pl
import pytest

from unime import artifacts
from unime.config import Rule
from unime.mine import mine
from unime.mine.rules import mine_by_rule
from unime.report import mining


class ByNumber:
    """A candidate answers a query where their numbers (the ids' last characters) are equal."""

    def matches_many(self, dataset: str, query: str, candidates: list[str]) -> np.ndarray:
        return np.array([candidate[-1] == query[-1] for candidate in candidates])


@pytest.fixture
def tables() -> dict[str, pl.DataFrame]:
    """Two sets of six pairs; A's candidates are six items of three numbers (true duplicates), B's are two items."""
    pairs, hits, judged = [], [], []
    for name, positives in (("A", ["t0", "u0", "t1", "u1", "t2", "u2"]), ("B", ["x0", "x1"] * 3)):
        for row, positive in enumerate(positives):
            pair, query = f"{name}{row}", f"q{name}{row}-{positive[-1]}"
            pairs.append((pair, name, row, query, positive))
            judged.append((pair, positive, True, 0.0, 0.0, 0.8))
            for rank, other in enumerate(sorted(set(positives) - {positive})):
                hits.append((pair, other, rank, 0.9))
                judged.append((pair, other, False, 0.0, 0.0, 0.95 if other[-1] == positive[-1] else 0.1))
    found = {
        "pairs": pl.DataFrame(pairs, schema=artifacts.PAIRS, orient="row"),
        "hits": pl.DataFrame(hits, schema=artifacts.HITS, orient="row"),
        "judgements": pl.DataFrame(judged, schema=artifacts.JUDGEMENTS, orient="row"),
    }
    counts = {"pool": 1, "labelled": 3, "itself": 4, "delta": 2}
    counted = {name: pl.lit(value, pl.Int64) for name, value in counts.items()}
    found["pools"] = found["pairs"].select("pair", **counted, positive_similarity=pl.lit(0.92, pl.Float32))
    artifacts.check(found["pools"], artifacts.POOLS, "pools")
    found["mined"], _ = mine(
        found["pairs"], found["hits"], found["judgements"], beta=0.01, negatives=5, interval=2, order="similarity", seed=0
    )
    return found


def test_counts_and_histograms(tables: dict[str, pl.DataFrame]):
    figures = mining.report(**tables, beta=0.01)
    a, b = figures["sets"]
    assert (a["pairs"], a["pool"], a["candidates"], a["alpha"], a["delta"]) == (6, 6, 30, 6, 12)  # one true duplicate a pair is dropped
    assert (a["labelled"], a["itself"], figures["all"]["labelled"], figures["all"]["itself"]) == (18, 24, 36, 48)
    assert (a["repeated"], b["repeated"], b["candidates"], figures["all"]["candidates"]) == (6, 24, 6, 36)  # 4 of 5, 1 of 5
    assert a["scores"][2] == 24 and a["scores"][19] == 6 and sum(a["scores"]) == 30
    assert a["sigmas"][16] == 6 and a["sigma"] == pytest.approx(0.8)
    assert "false" not in a


class ByTable(ByNumber):
    """As `ByNumber`, but some queries ask for another number than the one at their end."""

    def __init__(self, other: dict[str, str]):
        self.other = other

    def matches_many(self, dataset: str, query: str, candidates: list[str]) -> np.ndarray:
        return np.array([candidate[-1] == self.other.get(query, query[-1]) for candidate in candidates])


@pytest.mark.parametrize("wrong", [0, 2])
def test_false_negative_shares_equal_a_count_by_hand(tables: dict[str, pl.DataFrame], wrong: int):
    """Also where the labels of some pairs are wrong: the two first queries of A really ask for number 2."""
    queries = tables["pairs"]["query"].to_list()
    asks = {query: query[-1] for query in queries} | dict.fromkeys(queries[:wrong], "2")
    figures = mining.report(**tables, beta=0.01, truth=ByTable(asks))
    a, b = (one["false"] for one in figures["sets"])
    if not wrong:
        assert a["retrieved"] == pytest.approx(6 / 30) and a["dropped"] == 1.0 and a["mined"] == 0.0
    assert [one["wrong_labels"] for one in figures["sets"]] == pytest.approx([wrong / 6, 0.0])
    assert figures["all"]["wrong_labels"] == pytest.approx(wrong / 12)
    pairs = list(tables["pairs"].iter_rows(named=True))
    for name, found in (("A", a), ("B", b)):
        universe = {one["positive"] for one in pairs if one["dataset"] == name}
        for key, others in (("in_batch", pairs), ("in_batch_own_set", [one for one in pairs if one["dataset"] == name])):
            right = [
                other["positive"] in universe and other["positive"][-1] == asks[one["query"]]
                for one, other in itertools.product(pairs, others)
                if one["dataset"] == name and one["pair"] != other["pair"]
            ]
            assert 0 < sum(right) < len(right)
            assert found[key] == pytest.approx(np.mean(right))


def test_rules_without_a_judge_are_counted_beside_the_judges(tables: dict[str, pl.DataFrame], monkeypatch: pytest.MonkeyPatch):
    """All hits have similarity 0.9 and all positives 0.92, so one margin drops nothing and the other all; the truth is counted by hand."""
    rules = {
        "top": Rule(rule="top_k"),
        "wide": Rule(rule="margin", margin=0.01),
        "narrow": Rule(rule="margin", margin=0.05),
        "random": Rule(rule="random"),
    }
    ways = {"negatives": 5, "interval": 2, "seed": 0}
    miners = {name: functools.partial(mine_by_rule, rule=rule, **ways) for name, rule in rules.items()}
    figures = mining.report(**tables, beta=0.01, truth=ByNumber(), rules=miners)
    whole = figures["all"]["rules"]
    assert {name: (one["dropped"], one["rows"], one["repeated"], one["fallback"]) for name, one in whole.items()} == {
        "top": (0, 60, 24, 0),
        "wide": (0, 60, 24, 0),
        "narrow": (36, 60, 0, 60),
        "random": (0, 60, 24, 0),
    }
    for name, miner in miners.items():
        mined, _ = miner(tables["pairs"], tables["hits"], tables["pools"])
        for one in figures["sets"]:
            rows = mined.filter(pl.col("dataset") == one["name"]).select("query", "negatives").explode("negatives")
            right = [candidate[-1] == query[-1] for query, candidate in rows.iter_rows()]
            assert one["rules"][name]["false"] == pytest.approx(np.mean(right))
    assert whole["top"]["false"] > figures["all"]["false"]["mined"] == 0.0, "without a judge the true duplicate stays among five of five"
    text = mining.markdown(figures)
    assert "| judge | 6 | 60 | 30 | 0 | 0.00 |" in text and "| narrow | 36 | 60 | 0 | 60 |" in text
    assert "| A | 0.00 | 20.00 | 20.00 | 20.00 | 20.00 |" in text
    without = mining.markdown(mining.report(**tables, beta=0.01, rules=miners))
    assert "| top | 0 | 60 | 24 | 0 |\n" in without and "False negatives by set" not in without
    assert "Mining rules" not in mining.markdown(mining.report(**tables, beta=0.01))


def test_sampled_shares_are_close_to_the_exact_ones(monkeypatch: pytest.MonkeyPatch):
    rng = np.random.default_rng(0)
    rows = [(f"{name}{i}", name, i, f"q{name}{i}-{i % 10}", f"{name}{i % 40:02d}") for name in "AB" for i in rng.permutation(400).tolist()]
    pairs = pl.DataFrame(rows, schema=artifacts.PAIRS, orient="row")
    own = pairs.filter(pl.col("dataset") == "A")
    exact = mining._in_batch(pairs, own, ByNumber(), rng, 1.0)
    monkeypatch.setattr(mining, "LOOKS", 15_999)  # one fewer than 400 queries times 40 candidates
    sampled = mining._in_batch(pairs, own, ByNumber(), rng, 1.0)
    assert exact == pytest.approx((39 / 399, 39 / 799))
    assert sampled != exact and sampled == pytest.approx(exact, rel=0.1)


def test_markdown_shows_every_set_and_the_sum(tables: dict[str, pl.DataFrame]):
    text = mining.markdown(mining.report(**tables, beta=0.01, truth=ByNumber()))
    assert "| A | 6 | 6 | 18 | 24 | 30 | 12 | 6 | 6 | 0 | 0 |" in text
    assert "| all | 12 |" in text and "| A | 20.00 | 100.00 | 0.00 |" in text
    assert "False negatives" not in mining.markdown(mining.report(**tables, beta=0.01))
