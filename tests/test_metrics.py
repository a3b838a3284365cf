"""Precision@1, recall@k and the order of candidates agree with a plain implementation and with closed forms, ties included."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import yaml
from peers import published_order

from unime import config
from unime.evaluate import tasks
from unime.evaluate.metrics import SORTED_AS_PUBLISHED, TIE_RULES, Pool, order, ranks, recall_at, search, similarities

ROOT = Path(__file__).resolve().parents[1]


def plain_rank(scores: list[float], ids: list[str], right: int, rule: str) -> int:
    """One query at a time, straight from the rules' words; independent of the library."""
    if rule in ("vlm2vec_v2", "unime_v2"):
        order = published_order(scores, rule)
        return order.index(right) if rule == "unime_v2" else [ids[k] for k in order].index(ids[right])
    seen: dict[str, float] = {}
    for i, s in zip(ids, scores, strict=True):
        seen.setdefault(i, s)
    if rule == "content":
        return sum(1 for i, s in seen.items() if i != ids[right] and s >= seen[ids[right]])
    ahead = list(seen).index(ids[right])
    return sum(
        1 for k, (i, s) in enumerate(seen.items()) if i != ids[right] and (s > seen[ids[right]] or (s == seen[ids[right]] and k < ahead))
    )


def ragged(seed: int, queries: int = 300, longest: int = 40, contents: int = 30, first: bool = False):
    """Lists with repeats and few distinct scores (ties are common), the right one anywhere or `first`."""
    rng = np.random.default_rng(seed)
    lists = [[f"id{rng.integers(contents)}" for _ in range(rng.integers(1, longest + 1))] for _ in range(queries)]
    right = [0 if first else int(rng.integers(len(row))) for row in lists]
    value = rng.integers(0, 4, size=(queries, contents)) / 4
    scores = [[float(value[k, int(i[2:])]) for i in row] for k, row in enumerate(lists)]
    return lists, right, scores


def padded(pool: Pool, scores: list[list[float]]) -> np.ndarray:
    found = np.full(pool.columns.shape, np.nan, dtype=np.float32)  # NaN: absent places must never be read
    for k, row in enumerate(scores):
        found[k, : len(row)] = row
    found[pool.columns < 0] = np.nan
    return found


@pytest.mark.parametrize("rule", TIE_RULES)
def test_ranks_equal_a_plain_loop_on_ragged_lists_with_ties_and_repeats(rule):
    lists, right, scores = ragged(1)
    pool = Pool.of(lists, right, rule)
    found = ranks(padded(pool, scores), pool, rule)
    plain = [plain_rank(s, ids, r, rule) for s, ids, r in zip(scores, lists, right, strict=True)]
    assert len(set(plain)) > 3, "the data must have easy and hard rows"
    assert found.tolist() == plain
    for k in (1, 2, 5):
        assert recall_at(found, k) == pytest.approx(sum(p < k for p in plain) / len(plain))


def public_answer_is_right(scores: list[float], ids: list[str], rule: str) -> bool:
    """Whether the public code counts the answer as right, the right one at index 0: its own steps, one query at a time.

    VLM2Vec, version 1: evaluation/eval_utils.py and eval.py; version 2: eval.py and src/eval_utils/metrics.py; UniME-V2: Embedding/eval.py
    and Embedding/evaluation/utils/utils.py.
    """
    given = np.array(scores, dtype=np.float32)
    if rule == "vlm2vec_v1":
        return np.argmax(given) == 0
    if rule == "vlm2vec_v2":
        prediction = [ids[place] for place in np.argsort(-given)]
        return bool(set(prediction[:1]) & {ids[0]})
    count = min(10, len(given))
    best = np.argpartition(given, -count)[-count:]
    return best[np.argsort(-given[best])][0] == 0


@pytest.mark.parametrize("rule", ["vlm2vec_v1", "vlm2vec_v2", "unime_v2"])
def test_a_published_rule_counts_right_what_the_public_code_does(rule):
    lists, right, scores = ragged(7, queries=400, longest=1000, contents=800, first=True)
    tied = sum(row.count(max(row)) > 1 and row[0] == max(row) for row in scores)
    assert tied > 80 and sum(len(row) > 400 for row in lists) > 200, "lists as long as MMEB's in which the right one has equals"
    pool = Pool.of(lists, right, rule)
    found = (ranks(padded(pool, scores), pool, rule) == 0).tolist()
    assert found == [public_answer_is_right(s, ids, rule) for s, ids in zip(scores, lists, strict=True)]
    assert 0 < sum(found) < 360


def test_the_second_version_of_vlm2vec_does_not_credit_any_tied_candidate():
    """What the rule `name` did: a query was right if any candidate with the best score had the right one's name."""
    lists, right, scores = ragged(7, queries=400, longest=1000, contents=800, first=True)
    pool = Pool.of(lists, right, "vlm2vec_v2")
    found = ranks(padded(pool, scores), pool, "vlm2vec_v2") == 0
    lenient = np.array([row[0] == max(row) for row in scores])
    assert (found <= lenient).all() and (lenient & ~found).sum() > 0


def test_a_repeat_of_the_right_one_is_right_by_name_and_wrong_by_place():
    """Twenty equal candidates: whichever place the sort puts first, its content is the right one's."""
    lists, alike = [["a"] * 20], [[0.5] * 20]
    for place in range(20):
        found = {rule: ranks(padded(Pool.of(lists, [place], rule), alike), Pool.of(lists, [place], rule), rule)[0] for rule in TIE_RULES}
        assert found["content"] == found["vlm2vec_v1"] == found["vlm2vec_v2"] == 0
        assert found["unime_v2"] == published_order(alike[0], "unime_v2").index(place)


def test_the_rules_differ_on_ties_and_agree_without():
    lists, right, scores = ragged(2, longest=1000, contents=800)
    found = set()
    for rule in TIE_RULES:
        pool = Pool.of(lists, right, rule)
        found.add(tuple(ranks(padded(pool, scores), pool, rule)))
    assert len(found) == 4
    rng = np.random.default_rng(0)
    lists, right = [[f"c{k}" for k in range(8)]] * 50, rng.integers(0, 8, 50).tolist()
    distinct = rng.permuted(np.tile(np.arange(8.0), (50, 1)), axis=1)
    results = [ranks(distinct, Pool.of(lists, right, rule), rule).tolist() for rule in TIE_RULES]
    assert results[0] == results[1] == results[2] == results[3]


@pytest.mark.parametrize("rule", TIE_RULES)
def test_the_first_of_the_order_is_wanted_exactly_when_the_answer_is_right(rule):
    lists, right, scores = ragged(3)
    pool = Pool.of(lists, right, rule)
    padded_scores = padded(pool, scores)
    places = order(padded_scores, pool, rule)
    found = ranks(padded_scores, pool, rule)
    first_wanted = [int(np.flatnonzero(pool.wanted[k, row[row >= 0]])[0]) for k, row in enumerate(places)]
    assert first_wanted == found.tolist()
    for k, row in enumerate(places):
        kept = row[row >= 0]
        listed = sorted(lists[k]) if rule in SORTED_AS_PUBLISHED else sorted(set(lists[k]))
        assert sorted(pool.ids[c] for c in pool.columns[k, kept]) == listed, "every candidate once"
        assert (np.diff(padded_scores[k, kept]) <= 0).all(), "best first"
        assert (row[len(kept) :] == -1).all()


def test_a_model_that_scores_all_alike_earns_nothing_unless_all_candidates_are_the_right_one():
    lists, right = [["a", "b", "c"], ["a", "a"], ["b"]], [0, 1, 0]
    pool = Pool.of(lists, right)
    alike = np.full(pool.columns.shape, 0.5)
    assert (ranks(alike, pool, "content") == 0).tolist() == [False, True, True]
    assert (ranks(alike, Pool.of(lists, right, "vlm2vec_v1"), "vlm2vec_v1") == 0).tolist() == [True, True, True]


def test_an_equal_candidate_counts_wherever_it_stands():
    lists = [["cat", "dog", "cat "]]
    assert ranks(np.array([[0.1, 0.2, 0.3]]), Pool.of(lists, [0]), "content")[0] == 2, "a blank makes another content"
    twice = Pool.of([["cat", "dog", "cat"]], [2])
    assert ranks(np.array([[0.3, 0.2, 0.3]]), twice, "content")[0] == 0


def test_a_right_score_in_the_wrong_row_is_caught_by_recall_over_all():
    n, c = 400, 10
    rng = np.random.default_rng(4)
    pool = Pool.of([[f"c{k}" for k in range(c)]] * n, [0] * n)
    found = ranks(rng.random((n, c)), pool, "content")
    for k in range(1, c + 1):  # the rank of the right one is uniform for a random model
        assert recall_at(found, k) == pytest.approx(k / c, abs=0.08)
    assert recall_at(found, c) == 1.0


def test_one_product_and_gathering_give_the_same_bits_and_equal_vectors_tie(monkeypatch):
    rng = np.random.default_rng(5)
    vectors = rng.standard_normal((40, 24)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    vectors[30:] = vectors[:10]  # other ids, the same vectors
    queries = vectors[rng.integers(0, 40, 33)]
    columns = rng.integers(-1, 40, (33, 17))
    from unime.evaluate import metrics

    product = similarities(queries, vectors, columns)
    monkeypatch.setattr(metrics, "_SHARED", 0)
    monkeypatch.setattr(metrics, "_BLOCK", 17 * 24 * 5)
    gathered = similarities(queries, vectors, columns)
    assert np.array_equal(product, gathered)
    plain = np.array(
        [[-np.inf if c < 0 else vectors[c].astype(float) @ q.astype(float) for c in row] for q, row in zip(queries, columns, strict=True)]
    )
    assert np.allclose(product, plain, atol=1e-6) and np.isinf(product).any()
    both = np.tile(np.arange(40), (33, 1))
    table = similarities(queries, vectors, both)
    assert np.array_equal(table[:, 30:], table[:, :10])


def test_bad_input_names_the_query_and_the_value():
    with pytest.raises(ValueError, match="query 1: the right answer is number 2 of 2 candidates"):
        Pool.of([["a"], ["a", "b"]], [0, 2])
    with pytest.raises(ValueError, match="query 0: the right answer is number 0 of 0"):
        Pool.of([[]], [0])
    pool = Pool.of([["a", "b"]], [0])
    with pytest.raises(ValueError, match="query 0: the score of candidate b is NaN"):
        ranks(np.array([[0.1, np.nan]]), pool, "content")
    for make in (lambda: ranks(np.array([[0.1, 0.2]]), pool, "best"), lambda: Pool.of([["a"]], [0], "best")):
        with pytest.raises(ValueError, match="'best' is not one of content, vlm2vec_v1, vlm2vec_v2, unime_v2"):
            make()
    with pytest.raises(ValueError, match=r"shape \(1, 3\)"):
        ranks(np.zeros((1, 3)), pool, "content")


def test_the_registry_holds_the_papers_36_tasks_and_the_suites_18():
    mmeb = [name for name, known in tasks.TASKS.items() if known.suite == "mmeb"]
    sizes = {mean: len(tasks.members(mean, mmeb)) for mean in tasks.MEANS}
    assert sizes == {"classification": 10, "vqa": 10, "retrieval": 12, "grounding": 4, "ind": 20, "ood": 16, "overall": 36}
    nano = [name for name in tasks.TASKS if name not in mmeb]
    assert len(nano) == 18
    for meta in tasks.META:
        splits = {tasks.task(name).split for name in tasks.members(meta, nano)}
        assert splits == {"ind", "ood"} and len(tasks.members(meta, nano)) >= 3
    assert tasks.task("pets") == ("retrieval", "ind", "own"), "any other name is a task of one's own"


def test_published_means_are_comparable_only_with_exactly_mmebs_own_tasks():
    mmeb = [name for name, known in tasks.TASKS.items() if known.suite == "mmeb"]
    assert all(tasks.is_mmeb(mean, mmeb) for mean in tasks.MEANS)
    assert not any(tasks.is_mmeb(mean, ["NanoCrop"]) for mean in tasks.MEANS)
    grounding = ["MSCOCO", "RefCOCO", "RefCOCO-Matching", "Visual7W-Pointing"]
    assert [m for m in tasks.MEANS if tasks.is_mmeb(m, grounding)] == ["grounding"]
    assert not tasks.is_mmeb("grounding", [*grounding, "NanoCrop"])


@pytest.mark.parametrize("rule", TIE_RULES)
@pytest.mark.parametrize("distinct", [3, 40, 10**6])
@pytest.mark.parametrize("shape", ["few", "shared", "own"])
def test_a_search_is_the_ranks_and_the_first_of_the_order_of_exact_scores(rule: str, distinct: int, shape: str):
    """Few distinct vectors: most scores are ties.  40: candidates that differ by less than float32 can tell."""
    rng = np.random.default_rng(distinct)
    pool_size, width = {"few": (30, 12), "shared": (300, 300), "own": (4000, 60)}[shape]
    base = rng.standard_normal((min(distinct, pool_size), 48))
    rows = base[rng.integers(0, len(base), pool_size)] if distinct < pool_size else base
    rows = rows + (3e-8 * rng.standard_normal(rows.shape) if distinct == 40 else 0)
    candidates, queries = (unit(table).astype(np.float32) for table in (rows, rng.standard_normal((200, 48))))
    lists = [[f"id{k:05d}" for k in rng.integers(0, pool_size, rng.integers(1, width + 1))] for _ in queries]
    pool = Pool.of(lists, [int(rng.integers(len(row))) for row in lists], rule)
    candidates = candidates[[int(name[2:]) for name in pool.ids]]
    scores = similarities(queries, candidates, pool.columns)
    for keep in (1, 5, 10**4):
        found, first = search(queries, candidates, pool, rule, keep)
        assert np.array_equal(found, ranks(scores, pool, rule)) and np.array_equal(first, order(scores, pool, rule)[:, :keep])
    assert len(np.unique(found)) > 2


def unit(rows: np.ndarray) -> np.ndarray:
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def test_a_former_name_of_a_tie_rule_is_refused_with_the_new_one():
    values = yaml.safe_load((ROOT / "config.yaml").read_text())
    assert config.parse(values).evaluate.tie_rule == "content"
    for old, new in (("first", "vlm2vec_v1"), ("name", "vlm2vec_v2")):
        values["evaluate"]["tie_rule"] = old
        with pytest.raises(config.ConfigError, match=f"evaluate.tie_rule: '{old}' .*{new}"):
            config.parse(values)
        values["evaluate"]["tie_rule"] = new
        assert config.parse(values).evaluate.tie_rule == new
    values["evaluate"]["tie_rule"] = "best"
    with pytest.raises(config.ConfigError, match="evaluate.tie_rule: 'best' is not one of 'content', 'vlm2vec_v1'"):
        config.parse(values)
