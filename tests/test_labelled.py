"""No labelled positive of a query, and not the query itself, is retrieved, judged, mined or shown as a negative of any of its pairs."""

from __future__ import annotations

import hashlib
import logging
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
import polars as pl
import pytest
from test_retrieve import reference, same_pools, table, unit

from unime import artifacts, retrieve
from unime.__main__ import open_door
from unime.config import Rule
from unime.job import Job
from unime.judge import by_query, cut_by_query, judge
from unime.mine import mine, without_labelled
from unime.mine.rules import mine_by_rule
from unime.retrieve import search

WAYS: dict[str, Any] = {"negatives": 10, "interval": 5, "seed": 42}
RULES = [Rule(rule="random"), Rule(rule="top_k"), Rule(rule="margin", margin=0.01), Rule(rule="percent", share=0.95)]


class Hashed:
    """A backend of the judge whose logits depend on nothing but query and candidate; it remembers what it was asked."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, str]] = []

    def answers(self, questions: Any) -> list[np.ndarray]:
        self.asked += [(one.query, candidate) for one in questions for candidate in one.candidates]
        return [np.array([self._logits(one.query, candidate) for candidate in one.candidates], np.float32) for one in questions]

    def _logits(self, query: str, candidate: str) -> tuple[float, float]:
        return (hashlib.sha256(f"{query} {candidate}".encode()).digest()[0] - 128) / 40, 0.0


def labelled_of(pairs: pl.DataFrame) -> dict[tuple[str, str], set[str]]:
    grouped = pairs.group_by("dataset", "query").agg("positive")
    return {(name, query): set(positives) for name, query, positives in grouped.iter_rows()}


def generated(queries: int, seed: int = 0) -> tuple[pl.DataFrame, list[str], np.ndarray]:
    """Two sets; each query has 1 to 5 positives, close to it and to each other, out of few, and its pairs are scattered.

    Every seventh query is itself the positive of another one, as texts are in symmetric rows."""
    rng = np.random.default_rng(seed)
    centres = unit(rng.normal(size=(40, 16)))
    rows: dict[str, np.ndarray] = {}
    sets: dict[str, list[tuple[str, str]]] = {}
    for name in "AB":
        for number in range(600):
            rows[f"{name}c{number}"] = centres[number % 40] + 0.15 * rng.normal(size=16)
        pairs = []
        for number in range(queries // 2):
            centre, query = int(rng.integers(40)), f"{name}q{number}"
            rows[query] = centres[centre] + 0.15 * rng.normal(size=16)
            for place in rng.permutation(15)[: rng.integers(1, 6)]:
                pairs.append((query, f"{name}c{centre + 40 * place}"))
            if number % 7 == 1:
                pairs += [(query, f"{name}q{number - 1}"), (f"{name}q{number - 1}", query)]
        sets[name] = [pairs[place] for place in rng.permutation(len(pairs))]
    table_ = table(sets)
    pair_ids = [artifacts.pair_id(name, query, positive) for name, query, positive in table_.select("dataset", "query", "positive").rows()]
    return table_.with_columns(pair=pl.Series(pair_ids)), list(rows), unit(np.stack(list(rows.values())))


class Run(NamedTuple):
    """All tables of a run over generated queries, and what they must not hold."""

    pairs: pl.DataFrame
    hits: pl.DataFrame
    pools: pl.DataFrame
    judged: pl.DataFrame
    mined: pl.DataFrame
    report: dict[str, Any]
    labelled: dict[tuple[str, str], set[str]]
    of_pair: dict[str, tuple[str, str, str]]

    def may_be_negative(self, pair: str, candidate: str) -> bool:
        name, query, _ = self.of_pair[pair]
        return candidate not in self.labelled[name, query] and candidate != query


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    pairs, ids, vectors = generated(1000)
    labelled = labelled_of(pairs)
    of_pair = {pair: (name, query, positive) for pair, name, query, positive in pairs.select("pair", "dataset", "query", "positive").rows()}
    assert len(labelled) >= 1000 and {len(positives) for positives in labelled.values()} >= {1, 2, 3, 4, 5}

    at = {id: row for row, id in enumerate(ids)}
    name, query, _ = of_pair[pairs["pair"][0]]
    pool = pairs.filter(pl.col("dataset") == name)["positive"].unique()
    near = sorted(pool, key=lambda one: -float(vectors[at[one]] @ vectors[at[query]]))[:20]
    assert set(near) & labelled[name, query], "what is left out would be among the nearest"

    hits, pools = retrieve.retrieve(pairs, ids, vectors, k=20, delta=None)
    scratch = tmp_path_factory.mktemp("judge")
    judged = judge(pairs, hits, Hashed(), mode="exact", shard=64, scratch=scratch, track=lambda iterable, total, label: iterable)
    mined, report = mine(pairs, hits, judged, beta=0.01, order="similarity", **WAYS)
    return Run(pairs, hits, pools, judged, mined, report, labelled, of_pair)


def test_over_a_thousand_queries_no_labelled_positive_is_retrieved_or_judged(run: Run) -> None:
    assert len(run.hits) == 20 * len(run.pairs) and run.pools["labelled"].sum() > 1000 and run.pools["itself"].sum() > 50
    assert all(run.may_be_negative(pair, candidate) for pair, candidate in run.hits.select("pair", "candidate").iter_rows())
    for pair, candidate, positive in run.judged.select("pair", "candidate", "positive").iter_rows():
        assert candidate == run.of_pair[pair][2] if positive else run.may_be_negative(pair, candidate)


def judged_by(backend: Hashed, pairs: pl.DataFrame, hits: pl.DataFrame, shard: int, scratch: Path) -> pl.DataFrame:
    return judge(pairs, hits, backend, mode="exact", shard=shard, scratch=scratch, track=lambda iterable, total, label: iterable)


def test_a_querys_candidates_are_judged_once_however_its_pairs_are_scattered(run: Run, tmp_path: Path) -> None:
    pairs = run.pairs.filter(pl.col("dataset") == "A")
    hits = run.hits.join(pairs, on="pair", how="semi", maintain_order="left")
    assert (pairs["query"] == pairs["query"].shift(1)).mean() < 0.1, "pairs of a query are not side by side"
    expected = run.judged.join(pairs, on="pair", how="semi", maintain_order="left")
    once = expected.join(pairs, on="pair").select("query", "candidate").n_unique()
    assert len(expected) > 2.5 * once
    for shard in (7, 64):
        backend = Hashed()
        found = judged_by(backend, pairs, hits, shard, tmp_path / str(shard))
        assert found.equals(expected), "the table is in the order of the pairs, whatever the shards"
        assert len(backend.asked) == len(set(backend.asked)) == once
    backend = Hashed()
    assert judged_by(backend, pairs, hits, 2, tmp_path / "2").equals(expected), "a query with more pairs than a shard is cut"
    assert len(backend.asked) > once
    sizes = [len(some) for some in cut_by_query(by_query(pairs), 7)]
    assert sum(sizes) == len(pairs) and max(sizes) == 7 and min(sizes) > 0


def test_over_a_thousand_queries_no_labelled_positive_is_mined_by_any_rule(run: Run) -> None:
    tables = [run.mined, *(mine_by_rule(run.pairs, run.hits, run.pools, rule, **WAYS)[0] for rule in RULES)]
    assert run.report["labelled"] == 0 and run.report["false"] > 0 and all(len(one) == len(run.pairs) for one in tables)
    for one in tables:
        assert all(run.may_be_negative(pair, other) for pair, negatives in one.select("pair", "negatives").rows() for other in negatives)


def test_over_a_thousand_queries_no_labelled_positive_is_shown_in_a_rerankers_list_but_the_pairs_own(run: Run) -> None:
    from unime.train.reranker import hardest, sequences

    shown = 0
    for row in run.mined.iter_rows(named=True):
        negatives = hardest(row["negatives"], row["scores"], row["reasons"])
        for turn in sequences(row["query"], row["positive"], negatives[0], negatives, np.random.default_rng(0), 5, True):
            others = [one for one in turn.candidates if one != row["positive"]]
            assert all(run.may_be_negative(row["pair"], one) for one in others)
            shown += len(others)
    assert shown > 3 * len(run.pairs)


def test_a_positive_whose_row_the_cap_left_out_is_retrieved_for_no_pair_of_its_query(run: Run, tmp_path: Path) -> None:
    """Half of set A's pairs are drawn; the stage reads the other half's labels, and leaves out what it would leave out with all pairs."""
    whole = run.pairs.filter(pl.col("dataset") == "A")
    drawn, rest = whole[::2], whole[1::2]
    known = pl.col("query").is_in(drawn["query"].implode()) & pl.col("positive").is_in(drawn["positive"].implode())
    labels = rest.filter(known).select("query", "positive")
    _, ids, vectors = generated(1000)

    def retrieved(labels: pl.DataFrame) -> tuple[pl.DataFrame, pl.DataFrame]:
        data, embedded, out = (tmp_path / name for name in ("data", "embedded", "out"))
        for folder in (data, embedded, out):
            folder.mkdir(exist_ok=True)
        artifacts.write_table(drawn, data / "pairs.parquet", artifacts.PAIRS)
        artifacts.write_table(pictures(dict.fromkeys(ids, "")), data / "items.parquet", artifacts.ITEMS)
        artifacts.write_table(labels, data / "labels.parquet", artifacts.LABELS)
        artifacts.write_vectors(embedded, ids, vectors)
        config: Any = SimpleNamespace(retrieve=SimpleNamespace(k=20, delta=None, pool="all", index="exact", effort=0))
        open_door("retrieve").run(config, Job("A", 1, tmp_path, logging.getLogger("test")), [data, embedded], [out])
        hits = artifacts.read_table(out / "hits.parquet", artifacts.HITS)
        return hits.join(drawn, on="pair"), artifacts.read_table(out / "pools.parquet", artifacts.POOLS)

    barred = labels.rename({"positive": "candidate"})
    without, counts_without = retrieved(labels.clear())
    assert len(without.join(barred, on=["query", "candidate"], how="semi")) > 100, "labels of rows that were not drawn would be hits"
    found, counts = retrieved(labels)
    assert found.join(barred, on=["query", "candidate"], how="semi").is_empty()
    assert found.group_by("pair").len()["len"].unique().to_list() == [20]
    more = drawn.join(labels.group_by("query").len(), on="query", how="left", maintain_order="left")["len"].fill_null(0)
    assert (counts["labelled"] - counts_without["labelled"]).to_list() == more.to_list()


# Cases that are easily got wrong


def test_the_positives_of_a_querys_other_pairs_are_not_its_candidates() -> None:
    """Case 1: any vectors."""
    for seed in range(5):
        vectors = unit(np.random.default_rng(seed).normal(size=(5, 8)))
        pairs = table({"A": [("q", "p1"), ("q", "p2"), ("q2", "p3")]})
        hits, pools = retrieve.retrieve(pairs, ["q", "p1", "p2", "q2", "p3"], vectors, k=5, delta=None)
        lists = hits.group_by("pair", maintain_order=True).agg(pl.col("candidate").sort_by("rank"))
        assert dict(lists.iter_rows())["A-0"] == dict(lists.iter_rows())["A-1"] == ["p3"]
        assert pools["pool"].to_list() == [1, 1, 2] and pools["labelled"].to_list() == [1, 1, 0]


def test_of_symmetric_rows_the_query_itself_is_no_candidate() -> None:
    """Case 2, texts: rows a -> b and b -> a."""
    rng = np.random.default_rng(0)
    ids = [f"t{number}" for number in range(20)]
    pairs = table({"A": [(ids[number], ids[number ^ 1]) for number in range(20)]})
    hits, pools = retrieve.retrieve(pairs, ids, unit(rng.normal(size=(20, 8))), k=50, delta=None)
    assert pools["itself"].to_list() == [1] * 20 and pools["pool"].to_list() == [18] * 20 and len(hits) == 18 * 20
    joined = hits.join(pairs, on="pair")
    assert (joined["candidate"] != joined["query"]).all() and (joined["candidate"] != joined["positive"]).all()


def pictures(places: dict[str, str]) -> pl.DataFrame:
    """ITEMS: the member that each item holds, '' for none."""
    rows = [(id, "", "a.zip" if member else "", member, member.rpartition("/")[2]) for id, member in places.items()]
    return pl.DataFrame(rows, schema=artifacts.ITEMS, orient="row")


def test_a_candidate_that_holds_the_querys_picture_is_the_query_itself() -> None:
    """Case 2, pictures: the query is an instruction and a picture, the candidates are pictures alone, so their ids differ."""
    places = {f"q{number}": f"{number}.png" for number in range(20)} | {f"p{number}": f"{number}.png" for number in range(20)}
    places["text"] = ""
    pairs = table({"A": [(f"q{number}", f"p{number ^ 1}") for number in range(20)] + [("text", "p3")]})
    ids = list(places)
    vectors = unit(np.concatenate([np.eye(20), np.eye(20), np.ones((1, 20))]))  # a picture's vector is the same with and without words
    blind, _ = retrieve.retrieve(pairs, ids, vectors, k=50, delta=None)
    first = blind.filter(pl.col("rank") == 0)["candidate"].to_list()
    assert first[:20] == [f"p{number}" for number in range(20)], "without the table of items each query's own picture is its best candidate"
    hits, pools = retrieve.retrieve(pairs, ids, vectors, k=50, delta=None, items=pictures(places))
    for number in range(20):
        found = hits.filter(pl.col("pair") == f"A-{number}")["candidate"]
        assert sorted(found) == sorted({f"p{other}" for other in range(20)} - {f"p{number}", f"p{number ^ 1}"})
    assert pools["itself"].to_list() == [1] * 20 + [0] and pools["pool"].to_list() == [18] * 20 + [19]
    of_queries = pl.when(pl.col("id").str.starts_with("q"))
    renamed = pictures(places).with_columns(archive=of_queries.then(pl.lit("b.zip")).otherwise("archive"))
    copied, _ = retrieve.retrieve(pairs, ids, vectors, k=50, delta=None, items=renamed.with_columns(member=pl.col("id") + ".png"))
    assert copied.equals(hits), "a copy under another name, in another archive, is the same picture"
    others = pictures(places).with_columns(image=of_queries.then(pl.col("id")).otherwise("image"))
    elsewhere, _ = retrieve.retrieve(pairs, ids, vectors, k=50, delta=None, items=others)
    assert elsewhere.equals(blind), "other bytes under the same name are another picture"


def test_where_a_positive_holds_the_querys_picture_too_other_texts_to_it_are_candidates() -> None:
    """A picture and a question whose candidates are texts to the same picture: leaving those out would leave nothing hard."""
    places = dict.fromkeys(("q", "right", "wrong", "third"), "x.png") | {"r": "y.png", "far": "y.png"}
    pairs = table({"A": [("q", "right"), ("r", "wrong"), ("r", "third"), ("r", "far")]})
    vectors = unit(np.random.default_rng(0).normal(size=(6, 8)))
    hits, pools = retrieve.retrieve(pairs, list(places), vectors, k=5, delta=None, items=pictures(places))
    assert set(hits.filter(pl.col("pair") == "A-0")["candidate"]) == {"wrong", "third", "far"} and pools["itself"].sum() == 0


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("delta", [None, 0.1])
def test_equal_to_a_plain_sort_with_pictures_and_many_positives(ties: bool, delta: float | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retrieve, "_BLOCK", 7)
    monkeypatch.setattr(search, "_BYTES", 16 * 4 * 11)
    monkeypatch.setattr(search, "_CELLS", 60)
    rng = np.random.default_rng(5)
    names = [f"i{number:02}" for number in range(90)]
    sets = {name: [(names[rng.integers(30)], names[rng.integers(20, 90)]) for _ in range(120)] for name in "AB"}
    sets["A"] += [("i00", one) for one in names[20:80]]  # a query with 60 positives
    pairs = table({name: list(dict.fromkeys(rows)) for name, rows in sets.items()})
    vectors = rng.normal(size=(90, 16))
    vectors = unit(vectors[:5][rng.integers(0, 5, 90)] if ties else vectors)
    places = {id: f"{rng.integers(12)}.png" if rng.random() < 0.5 else "" for id in names}
    hits, pools = retrieve.retrieve(pairs, names, vectors, k=9, delta=delta, items=pictures(places))
    held = {id: place for id, place in places.items() if place}
    expected_hits, expected_pools = reference(pairs, names, vectors, 9, delta, held)
    assert [row[:3] for row in hits.iter_rows()] == [row[:3] for row in expected_hits]
    assert same_pools(pools, expected_pools)
    assert pools["itself"].sum() > 20 and pools["labelled"].max() >= 59


def test_the_positives_similarity_compares_to_the_bit_with_those_of_the_hits() -> None:
    rng = np.random.default_rng(0)
    kinds = unit(rng.normal(size=(7, 37)))
    pairs = table({"A": [(f"q{number}", f"c{number}") for number in range(400)]})
    ids = [f"q{number}" for number in range(400)] + [f"c{number}" for number in range(400)]
    vectors = np.concatenate([unit(rng.normal(size=(400, 37))), kinds[np.arange(400) % 7]])
    hits, pools = retrieve.retrieve(pairs, ids, vectors, k=399, delta=None)
    joined = hits.join(pools, on="pair").join(pairs, on="pair")
    kind = {f"c{number}": number % 7 for number in range(400)}
    alike = joined.filter(pl.col("candidate").replace_strict(kind) == pl.col("positive").replace_strict(kind))
    assert len(alike) > 400 * 56 and (alike["similarity"] == alike["positive_similarity"]).all()
    assert joined["similarity"].n_unique() > 2000


# Indexes that look at a part


@pytest.mark.parametrize("kind", ["exact", "ivf", "hnsw"])
def test_a_query_with_thousands_of_positives_still_gets_k_candidates(kind: str) -> None:
    """A label and 3,000 pictures of it, all nearer than any other candidate."""
    rng = np.random.default_rng(0)
    near = np.concatenate([np.ones((3001, 1)), 0.3 * rng.normal(size=(3001, 15))], axis=1)
    far = np.concatenate([-np.ones((2001, 1)), rng.normal(size=(2001, 15))], axis=1)
    ids = ["label", *(f"n{number:04}" for number in range(3000)), "other", *(f"f{number:04}" for number in range(2000))]
    pairs = table({"A": [("label", id) for id in ids[1:3001]] + [("other", id) for id in ids[3002:]]})
    vectors = unit(np.concatenate([near, far]))
    hits, pools = retrieve.retrieve(pairs, ids, vectors, k=50, delta=None, index=kind, effort=4)
    counts = hits.group_by("pair").len()
    assert len(counts) == 5000 and counts["len"].min() == 50
    joined = hits.join(pairs, on="pair")
    assert (joined["candidate"].str.head(1) != joined["positive"].str.head(1)).all()
    assert pools["labelled"].max() == 2999 and pools["pool"].min() == 2000
    share = retrieve.recall(pairs, hits, ids, vectors, k=50, delta=None, sample=20)["A"]
    assert share > 0.9


@pytest.mark.parametrize("kind", ["ivf", "hnsw"])
def test_recall_and_an_index_leave_out_what_the_exact_search_leaves_out(kind: str) -> None:
    pairs, ids, vectors = generated(200)
    items = pictures({id: f"{number % 50}.png" for number, id in enumerate(ids)})
    exact, pools = retrieve.retrieve(pairs, ids, vectors, k=20, delta=None, items=items)
    found, counted = retrieve.retrieve(pairs, ids, vectors, k=20, delta=None, items=items, index=kind, effort=10**4)
    assert counted.equals(pools) and pools["itself"].sum() > 0
    share = len(found.join(exact, on=["pair", "candidate"], how="semi")) / len(exact)
    assert share > 0.98 and len(found) == len(exact)
    measured = retrieve.recall(pairs, found, ids, vectors, k=20, delta=None, sample=10**6, items=items)
    assert np.mean(list(measured.values())) == pytest.approx(share, abs=0.01)


# Tables of an older retrieve stage


def test_a_rule_and_a_further_judge_report_what_they_dropped_beside_each_mined_table(tmp_path: Path) -> None:
    pairs = table({"A": [("q", "p1"), ("q", "p2"), ("r", "p3")]})
    old = {"A-0": ["p2", "p3"], "A-1": ["p3", "q", "p1"], "A-2": ["p1", "p2"]}  # three of these are positives of q, or q itself
    rows = [(pair, candidate, rank, 0.5) for pair, row in old.items() for rank, candidate in enumerate(row)]
    hits = pl.DataFrame(rows, schema=artifacts.HITS, orient="row")
    pools = pl.DataFrame([(pair, 2, 0, 0, 0, 0.6) for pair in old], schema=artifacts.POOLS, orient="row")
    judged = [(pair, candidate, False, 0.0, 0.0, 0.1) for pair, candidate, _, _ in rows]
    judged += [(pair, positive, True, 0.0, 0.0, 0.9) for pair, positive in pairs.select("pair", "positive").rows()]
    artifacts.write_table(pairs, tmp_path / "data/A/pairs.parquet", artifacts.PAIRS)
    artifacts.write_table(hits, tmp_path / "retrieved/A/hits.parquet", artifacts.HITS)
    artifacts.write_table(pools, tmp_path / "retrieved/A/pools.parquet", artifacts.POOLS)
    judgements = pl.DataFrame(judged, schema=artifacts.JUDGEMENTS, orient="row")
    artifacts.write_table(judgements, tmp_path / "judged/A/judgements.parquet", artifacts.JUDGEMENTS)

    rules = {"near": Rule(rule="margin", margin=0.2)}
    mining = SimpleNamespace(rules=rules, beta=0.01, negatives=2, interval=5, order="similarity")
    config: Any = SimpleNamespace(seed=42, data=SimpleNamespace(train_sets=["A"]), mine=mining)
    inputs = [tmp_path / name for name in ("data", "retrieved", "judged")]
    for stage, item, places, false in (("mine_rule", "near", inputs[:2], 4), ("mine_more", "other", inputs, 0)):
        out = tmp_path / stage
        open_door(stage).run(config, Job(item, 1, tmp_path, logging.getLogger("test")), places, [out])
        report = artifacts.read_json(out / "A/report.json")
        assert (out / "A/mined.parquet").exists()
        assert (report["labelled"], report["candidates"], report["false"], report["mined"]) == (3, 4, false, 3), stage


def test_mining_drops_labelled_positives_of_an_older_retrieve_stage_and_counts_them() -> None:
    pairs = table({"A": [("q", "p1"), ("q", "p2"), ("r", "p3")], "B": [("q", "p4"), ("s", "p1")]})
    old = {"A-0": ["p2", "p3"], "A-1": ["p3", "q", "p1"], "A-2": ["p1", "p2"], "B-0": ["p1"], "B-1": ["p4"]}
    hits = [(pair, candidate, rank, 0.5) for pair, row in old.items() for rank, candidate in enumerate(row)]
    table_ = pl.DataFrame(hits, schema=artifacts.HITS, orient="row")
    judged = [(pair, candidate, False, 0.0, 0.0, 0.1) for pair, candidate, _, _ in hits]
    judged += [(pair, positive, True, 0.0, 0.0, 0.9) for pair, positive in pairs.select("pair", "positive").rows()]
    judged_ = pl.DataFrame(judged, schema=artifacts.JUDGEMENTS, orient="row")
    mined, report = mine(pairs, table_, judged_, beta=0.01, order="similarity", **WAYS | {"negatives": 2})
    lists = {pair: list(dict.fromkeys(negatives)) for pair, negatives in mined.select("pair", "negatives").iter_rows()}
    assert lists == {"A-0": ["p3"], "A-1": ["p3"], "A-2": ["p1", "p2"], "B-0": ["p1"], "B-1": ["p4"]}, "in set B p1 is none of q's"
    assert (report["labelled"], report["candidates"]) == (3, 6)
    kept, none = without_labelled(pairs, table_.filter(pl.col("pair").is_in(["A-2", "B-0", "B-1"])))
    assert none == 0 and len(kept) == 4
