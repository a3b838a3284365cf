"""Retrieval equals a plain sort of all similarities, per data set, whatever blocks, threads or ties there are."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import polars as pl
import pytest

from unime import artifacts, prompts, retrieve
from unime.artifacts import ArtifactError
from unime.data.excluded import counts_of
from unime.retrieve import search


def unit(rows: np.ndarray) -> np.ndarray:
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def table(sets: dict[str, list[tuple[str, str]]]) -> pl.DataFrame:
    rows = [(f"{name}-{i}", name, i, query, positive) for name, pairs in sets.items() for i, (query, positive) in enumerate(pairs)]
    return pl.DataFrame(rows, schema=artifacts.PAIRS, orient="row")


def reference(
    pairs: pl.DataFrame, ids: list[str], vectors: np.ndarray, k: int, delta: float | None, pictures: dict[str, str] | None = None
) -> tuple[list[tuple], list[tuple]]:
    """Rows of HITS and of POOLS, pair by pair, by the words of `unime.retrieve`; `pictures` says which picture an item holds."""
    at = {id: vectors[i].astype(np.float64) for i, id in enumerate(ids)}
    pictures = pictures or {}
    hits, pools = [], []
    for pair, name, _, query, positive in pairs.iter_rows():
        own_set = pairs.filter(pl.col("dataset") == name)
        everything = set(own_set["positive"])
        labelled = set(own_set.filter(pl.col("query") == query)["positive"])
        itself = {query} & everything
        picture = pictures.get(query)
        if picture is not None and not any(pictures.get(one) == picture for one in labelled):
            itself |= {one for one in everything if pictures.get(one) == picture}
        itself -= labelled
        pool = sorted(everything - labelled - itself)
        scored = [(float(np.float32(at[query] @ at[candidate])), candidate) for candidate in pool]
        below = [one for one in scored if delta is None or one[0] < np.float32(delta)]
        below.sort(key=lambda one: (-one[0], one[1]))
        hits += [(pair, candidate, rank, similarity) for rank, (similarity, candidate) in enumerate(below[:k])]
        removed = len(scored) - len(below)
        pools.append((pair, len(pool), len(labelled) - 1, len(itself), removed, float(np.float32(at[query] @ at[positive]))))
    return hits, pools


def same_pools(found: pl.DataFrame, expected: list[tuple]) -> bool:
    similar = np.allclose(found["positive_similarity"], [row[-1] for row in expected], atol=1e-6)
    return similar and [row[:-1] for row in found.iter_rows()] == [row[:-1] for row in expected]


def random_case(seed: int, queries: int, candidates: int, width: int, ties: bool) -> tuple[pl.DataFrame, list[str], np.ndarray]:
    """Two sets that share items; with ties, candidates take one of few vectors, so nearly every similarity is there many times."""
    rng = np.random.default_rng(seed)
    sets = {
        name: [(f"q{rng.integers(queries)}", f"{name}c{rng.integers(candidates)}") for _ in range(2 * queries)] + [("q0", "both")]
        for name in "AB"
    }
    pairs = table(sets)
    ids = sorted({*pairs["query"], *pairs["positive"]})
    rows = rng.normal(size=(len(ids), width))
    if ties:
        rows = rows[:5][rng.integers(0, 5, len(ids))]
    return pairs, ids, unit(rows)


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("delta", [None, 0.2, -0.1, -1.0])
@pytest.mark.parametrize("k", [1, 7, 500])
def test_equal_to_a_plain_sort(ties: bool, delta: float | None, k: int, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(retrieve, "_BLOCK", 9)  # several blocks of queries, of candidates, of products
    monkeypatch.setattr(search, "_BYTES", 16 * 4 * 11)
    monkeypatch.setattr(search, "_CELLS", 60)
    for seed in range(2):
        pairs, ids, vectors = random_case(seed, 40, 60, 16, ties)
        hits, pools = retrieve.retrieve(pairs, ids, vectors, k=k, delta=delta)
        artifacts.check(hits, artifacts.HITS, "hits")
        artifacts.check(pools, artifacts.POOLS, "pools")
        expected_hits, expected_pools = reference(pairs, ids, vectors, k, delta)
        assert [row[:3] for row in hits.iter_rows()] == [row[:3] for row in expected_hits]
        assert hits["similarity"].to_list() == pytest.approx([row[3] for row in expected_hits], abs=1e-6)
        assert same_pools(pools, expected_pools)
        assert delta is None or delta > 0 or sum(row[4] for row in expected_pools) > 0


def test_a_pool_is_the_queries_own_set_and_lacks_the_positive():
    pairs, ids, vectors = random_case(0, 30, 50, 8, False)
    hits, pools = retrieve.retrieve(pairs, ids, vectors, k=1000, delta=None)
    joined = hits.join(pairs, on="pair")
    assert (joined["candidate"] != joined["positive"]).all()
    assert pairs.group_by("dataset", "query").len()["len"].max() > 1, "a query stands in several pairs"
    of_set = pairs.group_by("dataset").agg("positive")
    assert joined.join(of_set, on="dataset", suffix="_all").select(pl.col("candidate").is_in("positive_all").all()).item()
    counts = hits.group_by("pair").len().join(pools, on="pair")
    assert (counts["len"] == counts["pool"]).all()


def test_delta_is_strict():
    vectors = unit(np.array([[1, 0], [1, 0], [0.6, 0.8], [0, 1]]))
    pairs = table({"A": [("q", "p"), ("p", "c1"), ("p", "c2")]})  # the other queries' vectors do not matter
    ids = ["q", "p", "c1", "c2"]
    exactly = float(np.float32(0.6))
    hits, pools = retrieve.retrieve(pairs, ids, vectors, k=5, delta=exactly)
    first = hits.filter(pl.col("pair") == "A-0")
    assert first["candidate"].to_list() == ["c2"] and pools.row(0) == ("A-0", 2, 0, 0, 1, 1.0)  # 0.6 itself is removed
    hits, _ = retrieve.retrieve(pairs, ids, vectors, k=5, delta=float(np.nextafter(np.float32(0.6), np.float32(1))))
    assert hits.filter(pl.col("pair") == "A-0")["candidate"].to_list() == ["c1", "c2"]


def test_threads_and_order_of_rows_do_not_change_the_result():
    pairs, ids, vectors = random_case(1, 60, 80, 32, True)
    first, _ = retrieve.retrieve(pairs, ids, vectors, k=20, delta=None, threads=1)
    second, _ = retrieve.retrieve(pairs, ids[::-1], vectors[::-1].copy(), k=20, delta=None, threads=2)
    assert first.equals(second)


def test_a_set_with_one_candidate_has_no_hits_and_float16_vectors_do():
    pairs = table({"A": [("q", "p"), ("r", "p")], "B": [("q", "s"), ("r", "t")]})
    ids, vectors = ["p", "q", "r", "s", "t"], unit(np.random.default_rng(0).normal(size=(5, 8)))
    hits, pools = retrieve.retrieve(pairs, ids, vectors.astype(np.float16), k=3, delta=None)
    assert hits["pair"].to_list() == ["B-0", "B-1"] and pools["pool"].to_list() == [0, 0, 1, 1]
    assert pools["positive_similarity"].dtype == pl.Float32


def test_bad_vectors_are_named():
    pairs = table({"A": [("q", "p"), ("q", "r")]})
    good = unit(np.eye(3))
    with pytest.raises(ArtifactError, match="A: item p has no vector"):
        retrieve.retrieve(pairs, ["q", "r", "x"], good, k=1, delta=None)
    with pytest.raises(ArtifactError, match="1 ids are there twice"):
        retrieve.retrieve(pairs, ["q", "r", "r"], good, k=1, delta=None)
    for value in (np.nan, 2.0):
        bad = good.copy()
        bad[1] *= value
        with pytest.raises(ArtifactError, match="item r has length"):
            retrieve.retrieve(pairs, ["q", "r", "p"], bad, k=1, delta=None)


def test_no_torch_is_loaded():
    """faiss and torch bring an OpenMP runtime each; both in one process can crash or hang it."""
    code = "import sys, unime.retrieve, unime.mine, unime.report.mining; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


@pytest.mark.parametrize("kind", ["ivf", "hnsw"])
@pytest.mark.parametrize("delta", [None, 0.3])
def test_an_index_that_looks_everywhere_finds_what_the_exact_search_finds(kind: str, delta: float | None):
    pairs, ids, vectors = random_case(3, 40, 300, 16, False)  # no ties: whole clouds of equal vectors keep HNSW from walking on
    exact, pools = retrieve.retrieve(pairs, ids, vectors, k=10, delta=delta)
    found, counted = retrieve.retrieve(pairs, ids, vectors, k=10, delta=delta, index=kind, effort=10**4)
    assert found.join(exact, on=["pair", "candidate", "similarity"], how="semi").height >= 0.98 * len(exact) and len(exact) > 300
    assert len(found) <= len(exact) and counted["pool"].equals(pools["pool"])
    again, _ = retrieve.retrieve(pairs, ids, vectors, k=10, delta=delta, index=kind, effort=10**4, threads=2)
    assert again.equals(found)


def test_what_an_index_misses_is_measured():
    pairs, ids, vectors = random_case(4, 60, 2000, 16, False)
    shares = []
    for effort in (1, 4, 10**4):
        hits, _ = retrieve.retrieve(pairs, ids, vectors, k=10, delta=None, index="ivf", effort=effort)
        exact, _ = retrieve.retrieve(pairs, ids, vectors, k=10, delta=None)
        share = retrieve.recall(pairs, hits, ids, vectors, k=10, delta=None, sample=10**6)
        for name, value in share.items():
            of = exact.filter(pl.col("pair").str.starts_with(f"{name}-"))
            both = of.join(hits, on=["pair", "candidate"], how="semi")
            assert value == pytest.approx(len(both) / len(of))
        shares.append(share)
    for name in shares[0]:
        values = [share[name] for share in shares]
        assert values == sorted(values) and values[0] < 0.9 and values[-1] == 1.0
    few = retrieve.recall(pairs, hits, ids, vectors, k=10, delta=None, sample=5)
    assert set(few) == set(shares[0])


def test_an_unknown_index_is_named():
    pairs, ids, vectors = random_case(5, 5, 9, 8, False)
    with pytest.raises(ValueError, match="retrieve.index 'flat' is not known; known: exact, ivf, hnsw"):
        retrieve.retrieve(pairs, ids, vectors, k=1, delta=None, index="flat")


def shown(ids: list[str]) -> pl.DataFrame:
    """ITEMS whose modality their ids say: t text, i image, b both."""
    texts = {"t": "words", "i": prompts.IMAGE_MARK + "\n", "b": prompts.IMAGE_MARK + "\nwords"}
    kinds = [id.rstrip("0123456789")[-1] for id in ids]
    rows = [(id, texts[kind], "a.zip", id, id) if kind != "t" else (id, "words", "", "", "") for id, kind in zip(ids, kinds, strict=True)]
    return pl.DataFrame(rows, schema=artifacts.ITEMS, orient="row")


@pytest.mark.parametrize("index", ["exact", "ivf"])
def test_candidates_of_the_positives_modality_alone_are_those_of_a_search_in_them(index: str):
    rng = np.random.default_rng(3)
    sets = {name: [(f"qt{rng.integers(20)}", f"{name}{rng.choice(list('tib'))}{rng.integers(30)}") for _ in range(60)] for name in "AB"}
    pairs = table(sets)
    ids = sorted({*pairs["query"], *pairs["positive"]})
    vectors = unit(rng.normal(size=(len(ids), 8)))
    kind = pl.col("positive").str.slice(1, 1)
    items, how = shown(ids), {"k": 7, "delta": 0.9, "index": index, "effort": 64}
    hits, pools = retrieve.retrieve(pairs, ids, vectors, items=items, pool="same_modality", **how)
    apart = [retrieve.retrieve(pairs.filter(kind == one), ids, vectors, items=items, **how) for one in "tib"]
    order = pairs.select("pair").with_row_index("place")
    for found, parts in ((hits, [one for one, _ in apart]), (pools, [one for _, one in apart])):
        wanted = pl.concat(parts).join(order, on="pair").sort("place", *(["rank"] if "rank" in found.columns else []), maintain_order=True)
        assert found.equals(wanted.drop("place"))
    joined = hits.join(pairs, on="pair")
    assert (joined["candidate"].str.slice(1, 1) == joined["positive"].str.slice(1, 1)).all() and joined["positive"].n_unique() > 20
    everything, _ = retrieve.retrieve(pairs, ids, vectors, items=items, **how)
    mixed = everything.join(pairs, on="pair")
    assert (mixed["candidate"].str.slice(1, 1) != mixed["positive"].str.slice(1, 1)).any()
    shares = retrieve.recall(pairs, hits, ids, vectors, k=7, delta=0.9, sample=1000, items=items, pool="same_modality")
    assert set(shares) == {"A", "B"} and min(shares.values()) == 1.0 if index == "exact" else min(shares.values()) > 0.5
    barred = counts_of(pairs.filter(pl.col("dataset") == "A"), items, None, "same_modality")
    size = pairs.filter(pl.col("dataset") == "A")["positive"].n_unique()
    assert (size - barred).tolist() == pools.filter(pl.col("pair").str.starts_with("A"))["pool"].to_list(), "the plan counts them so too"
