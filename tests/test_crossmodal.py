"""Recall over a shared pool equals a plain loop, ties included; a column's evaluation is whole, resumable and what its rules say."""

from __future__ import annotations

import logging
import shutil
import subprocess
import sys

import numpy as np
import polars as pl
import pytest
import torch
from peers import published_order

from unime import artifacts, prompts
from unime.backbones import load
from unime.config import ConfigError
from unime.data import mmeb
from unime.data.images import Decoding
from unime.data.items import Items
from unime.evaluate import crossmodal, rank, recall, rerank, run, tasks
from unime.evaluate.metrics import TIE_RULES, Pool
from unime.evaluate.recall import Shared
from unime.evaluate.tasks import EMBEDDERS, MODELS, RERANKED, RERANKER
from unime.job import Job

SECTIONS = (
    "models",
    "embed",
    "train.reranker.image_size",
    "train.reranker.max_tokens",
    "train.reranker.prompt",
    "evaluate.image_size",
    "evaluate.rerank",
    "evaluate.rerank_mode",
    "evaluate.rerank_image_size",
    "evaluate.compositional_rerank",
    "evaluate.tie_rule",
)


def unit(rows: np.ndarray) -> np.ndarray:
    rows = np.asarray(rows, dtype=np.float32)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def plain(scores: dict[str, float], right: list[str], rule: str, pool: list[str]) -> tuple[int, list[str]]:
    """One query, straight from the rules' words: candidates before the best right one, and all candidates in order."""
    if rule in ("vlm2vec_v2", "unime_v2"):
        order = [pool[k] for k in published_order([scores[i] for i in pool], rule)]
    elif rule == "vlm2vec_v1":
        order = sorted(pool, key=lambda i: (-scores[i], pool.index(i)))
    else:
        order = sorted(pool, key=lambda i: (-scores[i], i in right, i))
    return next(k for k, i in enumerate(order) if i in right), order


def tied(seed: int, queries: int = 120, candidates: int = 60):
    """Few distinct vectors, so that most scores are shared; one to four right answers a query."""
    rng = np.random.default_rng(seed)
    kinds = unit(rng.standard_normal((9, 24)))
    vectors = np.concatenate([kinds[rng.integers(0, 9, candidates)], unit(rng.standard_normal((queries, 24)))])
    pool = [f"id{k:02d}" for k in rng.permutation(candidates)]
    right = [[pool[k] for k in rng.choice(candidates, rng.integers(1, 5), replace=False)] for _ in range(queries)]
    return vectors, pool, right


def searched(vectors, pool, right, rule, keep=10):
    shared = Shared.of(pool, right, rule)
    row = {i: k for k, i in enumerate(pool)}
    queries = np.arange(len(pool), len(vectors))
    ranks, best = recall.search(vectors, queries, np.array([row[i] for i in shared.ids]), shared, keep)
    return ranks.tolist(), [[shared.ids[k] for k in places] for places in best]


@pytest.mark.parametrize("rule", TIE_RULES)
def test_ranks_and_best_equal_a_plain_loop_on_data_full_of_ties(rule):
    vectors, pool, right = tied(1)
    scores = (vectors[len(pool) :].astype(np.float64) @ vectors[: len(pool)].astype(np.float64).T).astype(np.float32)
    told = [dict(zip(pool, row.tolist(), strict=True)) for row in scores]
    expected = [plain(one, answers, rule, pool) for one, answers in zip(told, right, strict=True)]
    best_right = [max(one[i] for i in answers) for one, answers in zip(told, right, strict=True)]
    shared_best = [list(one.values()).count(best) for one, best in zip(told, best_right, strict=True)]
    assert min(shared_best) >= 2 and np.mean(shared_best) > 4, "the best right one must have equals"
    ranks, best = searched(vectors, pool, right, rule)
    assert len(set(ranks)) > 8, "the data must have easy and hard rows"
    assert ranks == [place for place, _ in expected]
    assert best == [order[:10] for _, order in expected]


def test_the_rules_differ_on_ties_and_agree_without():
    vectors, pool, right = tied(2)
    found = {rule: np.array(searched(vectors, pool, right, rule)[0]) for rule in TIE_RULES}
    assert len({tuple(ranks) for ranks in found.values()}) == 4
    assert all((ranks <= found["content"]).all() for ranks in found.values()), "the default credits no tie"
    vectors = unit(np.random.default_rng(0).standard_normal(vectors.shape))
    found = [searched(vectors, pool, right, rule) for rule in TIE_RULES]
    assert found[0] == found[1] == found[2] == found[3] and len(set(found[0][0])) > 10


@pytest.mark.parametrize("rule", TIE_RULES)
def test_blocks_of_any_size_give_the_same(rule, monkeypatch):
    vectors, pool, right = tied(3)
    whole = searched(vectors, pool, right, rule)
    shapes = []
    plain_scores = recall._scores

    def seen(*arguments):
        found = plain_scores(*arguments)
        shapes.append(found.shape)
        return found

    monkeypatch.setattr(recall, "_scores", seen)
    for scores, rows in ((1, 1), (60 * 7, 13), (1 << 23, 50)):
        monkeypatch.setattr(recall, "SCORES", scores)
        monkeypatch.setattr(recall, "ROWS", rows)
        assert searched(vectors, pool, right, rule) == whole
    assert {shape[0] for shape in shapes} == {1, 7, 50, 120 % 7, 120 % 50} - {0}, "blocks must have been cut, the last one shorter"


def test_equal_vectors_score_equal_in_whatever_block_they_stand(monkeypatch):
    rng = np.random.default_rng(4)
    vectors = unit(rng.standard_normal((300, 200)))
    vectors[150:] = vectors[:150]  # other candidates, the same vectors
    monkeypatch.setattr(recall, "ROWS", 41)
    scores = recall._scores(vectors, rng.integers(0, 300, 60), np.arange(300))
    assert np.array_equal(scores[:, 150:], scores[:, :150]) and len(np.unique(scores)) > 5000


def test_vectors_that_name_their_pair_recall_all_and_equal_ones_nothing():
    pool = [f"id{k}" for k in range(40)]
    right = [[i] for i in pool]
    for rule in TIE_RULES:
        own, _ = searched(np.concatenate([np.eye(40)] * 2), pool, right, rule)
        assert own == [0] * 40
    alike = np.tile(unit([[0.6, 0.8, 0.1]]), (80, 1))
    assert searched(alike, pool, right, "content")[0] == [39] * 40
    assert searched(alike, pool, right, "vlm2vec_v1")[0] == list(range(40))
    assert not any(right[k][0] in top for k, top in enumerate(searched(alike, pool, right, "content")[1])), "the reranker sees none"


def test_a_random_model_is_at_chance_also_with_five_right_answers():
    rng = np.random.default_rng(5)
    n, c = 2000, 50
    vectors = unit(rng.standard_normal((c + n, 16)))
    pool = [f"id{k:02d}" for k in range(c)]
    one = np.array(searched(vectors, pool, [[pool[k]] for k in rng.integers(0, c, n)], "content")[0])
    five = np.array(searched(vectors, pool, [[pool[k] for k in rng.choice(c, 5, replace=False)] for _ in range(n)], "content")[0])
    for k in (1, 5, 10):
        assert (one < k).mean() == pytest.approx(k / c, abs=0.03)
        miss = np.prod([(c - 5 - j) / (c - j) for j in range(k)])
        assert (five < k).mean() == pytest.approx(1 - miss, abs=0.035)


def test_any_right_answer_is_a_hit_and_a_repeated_candidate_counts_once():
    vectors = unit([[1, 0.0], [0.9, 0.1], [0.5, 0.5], [0, 1], [1, 0]])
    pool = ["a", "b", "c", "d"]
    assert searched(vectors, pool, [["d", "b"]], "content", keep=3) == ([1], [["a", "b", "c"]])
    assert searched(vectors, pool, [["d", "a"]], "content", keep=9) == ([0], [["a", "b", "c", "d"]])
    assert Shared.of(["b", "a", "b"], [["b", "b"]], "vlm2vec_v1").ids == ["b", "a"]
    assert Shared.of(["b", "a", "b"], [["b", "b"]], "content").wanted[0].tolist() == [1]


def test_bad_input_names_the_query_and_the_value():
    with pytest.raises(ValueError, match="query 1 has no right answer"):
        Shared.of(["a"], [["a"], []], "content")
    with pytest.raises(ValueError, match="query 0: the right answer z is not in the pool of 2"):
        Shared.of(["a", "b"], [["a", "z"]], "content")
    with pytest.raises(ValueError, match="'best' is not one of content, vlm2vec_v1, vlm2vec_v2, unime_v2"):
        Shared.of(["a"], [["a"]], "best")
    vectors = np.float32([[1, 0], [np.nan, 0], [1, 0], [0, 1]])
    with pytest.raises(ValueError, match="query 0: the score of candidate b is NaN"):
        searched(vectors, ["a", "b"], [["a"], ["b"]], "content")


def test_the_registry_holds_the_papers_11_columns_and_the_suites_5():
    paper = [name for name, known in tasks.CROSSMODAL.items() if known.suite == "paper"]
    nano = [name for name in tasks.CROSSMODAL if name not in paper]
    assert {group: len(tasks.columns_of(group, paper)) for group in tasks.CAPTIONS} == {"short": 4, "long": 4, "compositional": 3}
    assert {group: len(tasks.columns_of(group, nano)) for group in tasks.CAPTIONS} == {"short": 2, "long": 0, "compositional": 3}
    assert all((known.metric == "accuracy") == (known.group == "compositional") for known in tasks.CROSSMODAL.values())
    assert [group for group in tasks.CAPTIONS if tasks.is_papers(group, paper)] == list(tasks.CAPTIONS)
    assert not any(tasks.is_papers(group, [*nano, *paper[:3]]) for group in tasks.CAPTIONS)
    assert not tasks.is_papers("short", [*paper, "NanoScenes_i2t"]) and tasks.is_papers("long", [*paper, "NanoScenes_i2t"])
    with pytest.raises(ConfigError, match="'COCO_t2' is no known cross-modal task; nearest: 'COCO_t2i'"):
        tasks.column("COCO_t2")


def test_counting_recall_loads_no_torch():
    code = "import sys, unime.evaluate.recall; print([m for m in ('torch', 'transformers') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"


# With models: the suite's captions, made into columns.


@pytest.fixture(scope="module")
def settings(config, nano):
    models = config.models.model_copy(update={key: str(nano) for key in ("base", "judge", "reranker")} | {"device": "cpu"})
    return config.model_copy(update={"models": models})


def job_in(folder, item: str) -> Job:
    folder.mkdir(parents=True, exist_ok=True)
    return Job(item, 1, folder, logging.getLogger("unime.test"))


SOURCES = {"NanoScenes_i2t": "NanoCaption_i2t", "NanoScenes_t2i": "NanoCaption_t2i", "NanoCrepe_swap": "NanoCaption_i2t"}


@pytest.fixture(scope="module")
def columns(suite, config, tmp_path_factory):
    """name -> (queries, pool, items).  Every third query has another of its candidates as a second right answer."""
    found = {}
    for name, source in SOURCES.items():
        job = job_in(tmp_path_factory.mktemp("data"), source)
        items, task, _ = mmeb.read_eval(str(suite), source, Decoding.of(config.data), "fail", job)
        pool = list(dict.fromkeys(i for row in task["candidates"] for i in row))
        rows = []
        for row, query, candidates, at in task.select("row", "query", "candidates", "right").iter_rows():
            right = [candidates[at]] + ([candidates[at - 1]] if row % 3 == 0 and candidates[at - 1] != candidates[at] else [])
            pair = [right[0], next(i for i in candidates if i != right[0])]
            compositional = name.startswith("NanoCrepe")
            part = ("swap_att" if row < 3 else "swap_obj") if compositional else ""
            rows.append((name, row, query, right[:1] if compositional else right, pair if compositional else [], part))
        queries = pl.DataFrame(rows, schema=artifacts.CAPTION_QUERIES, orient="row")
        given = [] if name.startswith("NanoCrepe") else pool
        found[name] = queries, pl.DataFrame({"id": given}, schema=artifacts.POOL), Items(items, Decoding.of(config.data))
    return found


def evaluated(columns, settings, folder, name: str, queries: pl.DataFrame | None = None, **changes):
    own, pool, items = columns[name]
    config = settings.model_copy(update={"evaluate": settings.evaluate.model_copy(update=changes)})
    given = own if queries is None else queries
    return given, crossmodal.evaluate_captions(given, pool, items, dict.fromkeys(MODELS), config.view(SECTIONS), job_in(folder, name))


def figure(scores: pl.DataFrame, model: str, metric: str) -> float:
    return scores.filter((pl.col("model") == model) & (pl.col("metric") == metric))["value"].item()


@pytest.mark.parametrize("name", ["NanoScenes_i2t", "NanoScenes_t2i"])
def test_a_retrieval_column_gets_every_models_scores_and_predictions_that_agree(name, columns, settings, tmp_path):
    queries, (scores, predictions) = evaluated(columns, settings, tmp_path, name)
    assert scores.schema == artifacts.SCORES and predictions.schema == artifacts.PREDICTIONS
    assert scores.filter(pl.col("metric") == "recall@1")["model"].to_list() == list(MODELS)
    assert set(scores["metric"]) == {"recall@1", "recall@5", "recall@10"} and set(scores["tie_rule"]) == {"content"}
    assert len(predictions) == len(queries) * len(MODELS) and set(scores["n"]) == {len(queries)}
    assert max(len(right) for right in queries["right"]) == 2
    for model in MODELS:
        own = predictions.filter(pl.col("model") == model)
        for k in (1, 5, 10):
            hits = [bool(set(right) & set(top[:k])) for right, top in zip(queries["right"], own["top"], strict=True)]
            assert figure(scores, model, f"recall@{k}") == pytest.approx(np.mean(hits))
        assert own["correct"].to_list() == [top[0] in right for right, top in zip(queries["right"], own["top"], strict=True)]
        assert (own["correct"] == (own["predicted"] == own["right"])).all()
        assert all(one in right for one, right in zip(own["right"], queries["right"], strict=True))
    retrieved, reranked = (predictions.filter(pl.col("model") == model)["top"] for model in (RERANKED, RERANKER))
    assert [sorted(row) for row in retrieved] == [sorted(row) for row in reranked]
    assert retrieved.to_list() != reranked.to_list(), "the reranker must have moved something"


def test_the_reranker_accepts_only_the_images_own_captions(columns, settings, tmp_path, monkeypatch):
    """It prefers, of the shown captions, the first that belongs to the next image: right for the public code, wrong here."""
    queries, pool, _ = columns["NanoScenes_i2t"]
    told = queries["right"].to_list()
    neighbour = {q: set(after) - set(own) for q, own, after in zip(queries["query"], told, [*told[1:], told[0]], strict=True)}
    assert all(neighbour.values())

    def score(asked, **_):
        found = np.full((len(asked.queries), max(map(len, asked.lists))), -1.0)
        for row, (query, shown) in enumerate(zip(asked.queries, asked.lists, strict=True)):
            found[row, : len(shown)] = [float(name in neighbour[query]) - 0.01 * k for k, name in enumerate(shown)]
        return found, [False] * len(asked.queries)

    monkeypatch.setattr(rerank, "score", score)
    _, (scores, predictions) = evaluated(columns, settings, tmp_path, "NanoScenes_i2t", rerank=len(pool))
    own = predictions.filter(pl.col("model") == RERANKER)
    assert [name in neighbour[query] for query, name in own.select("query", "predicted").iter_rows()] == [True] * len(queries)
    assert figure(scores, RERANKER, "recall@1") == 0.0 and figure(scores, RERANKER, "recall@10") > 0


def test_what_the_reranker_does_not_see_keeps_its_place(columns, settings, tmp_path):
    _, (_, predictions) = evaluated(columns, settings, tmp_path, "NanoScenes_i2t", rerank=3)
    before, after = (predictions.filter(pl.col("model") == model)["top"].to_list() for model in (RERANKED, RERANKER))
    assert [row[3:] for row in before] == [row[3:] for row in after] and min(map(len, after)) == 10
    assert [sorted(row[:3]) for row in before] == [sorted(row[:3]) for row in after] and before != after


def test_an_unread_answer_is_wrong_wherever_the_right_one_stands(columns, settings, tmp_path, monkeypatch):
    def score(asked, **_):  # every other answer cannot be read
        unread = [row % 2 == 0 for row in range(len(asked.queries))]
        return np.array([[0.0 if bad else float(k == 0) for k in range(len(asked.lists[0]))] for bad in unread]), unread

    monkeypatch.setattr(rerank, "score", score)
    for name, metric in (("NanoScenes_i2t", "recall@1"), ("NanoCrepe_swap", "accuracy")):
        changes = {"rerank_mode": "generate", "compositional_rerank": "listwise"}
        queries, (_, first) = evaluated(columns, settings, tmp_path / f"{name}-first", name, **changes)
        best = first.filter(pl.col("model") == RERANKED)["top"]
        queries = queries.with_columns(right=best.list.head(1))  # what the embedder finds is called right, so that it is right everywhere
        if metric == "accuracy":
            queries = queries.with_columns(candidates=best)
        _, (scores, predictions) = evaluated(columns, settings, tmp_path / name, name, queries, **changes)
        own, before = (predictions.filter(pl.col("model") == model) for model in (RERANKER, RERANKED))
        assert before["correct"].all()
        assert own["correct"].to_list() == [row % 2 == 1 for row in range(len(own))]
        assert own["predicted"].to_list()[::2] == [""] * len(own["predicted"][::2])
        assert figure(scores, RERANKER, "unread") == 0.5 and figure(scores, RERANKER, metric) < figure(scores, RERANKED, metric)


def test_a_pairwise_hit_is_a_true_caption_of_higher_p_yes(columns, settings, tmp_path):
    """P(Yes) is computed here one sequence at a time, with the softmax of the public code."""
    queries, _, items = columns["NanoCrepe_swap"]
    odd = pl.col("row") % 2 == 1  # here the false caption is called true, so that there are hits and misses
    captions = pl.when(odd).then(pl.col("candidates").list.reverse()).otherwise(pl.col("candidates"))
    queries = queries.with_columns(candidates=captions, right=captions.list.head(1))
    column = "NanoCrepe_swap", queries
    _, (scores, predictions) = evaluated(columns, settings, tmp_path / "pair", *column, compositional_rerank="pairwise")
    reranker = load(settings.models.reranker, models=settings.models)
    words = [reranker.token("Yes"), reranker.token("No")]
    sure = []
    for query, captions in queries.select("query", "candidates").iter_rows():
        for caption in captions:
            turn = prompts.judge_turn(items[query].parts, items[caption].parts)
            with torch.no_grad():
                logits = reranker.answer_logits(reranker.collate([reranker.chat_prompt(turn)]), words)
            sure.append(logits.double().softmax(dim=1)[0, 0].item())
    hits = [true > false for true, false in zip(sure[::2], sure[1::2], strict=True)]
    assert predictions.filter(pl.col("model") == RERANKER)["correct"].to_list() == hits
    assert any(hits) and not all(hits), "figures of 0 and 1 would prove little"
    _, (listed, other) = evaluated(columns, settings, tmp_path / "list", *column, compositional_rerank="listwise", rerank_mode="likelihood")
    assert other.filter(pl.col("model") == RERANKER)["correct"].to_list() != hits, "the two questions must differ"
    assert figure(scores, RERANKED, "accuracy") == figure(listed, RERANKED, "accuracy")


def test_a_pairwise_tie_is_a_miss_and_lists_stay_lists(columns, settings, tmp_path, monkeypatch):
    asked_for = []

    def score(asked, *, mode, **_):
        asked_for.append(mode)
        return np.zeros((len(asked.queries), len(asked.lists[0]))), [False] * len(asked.queries)

    monkeypatch.setattr(rerank, "score", score)
    _, (scores, _) = evaluated(columns, settings, tmp_path / "a", "NanoCrepe_swap", rerank_mode="generate")
    assert figure(scores, RERANKER, "accuracy") == 0.0
    evaluated(columns, settings, tmp_path / "b", "NanoScenes_i2t", rerank_mode="likelihood")
    assert asked_for == ["pairwise", "likelihood"]


def test_a_compositional_figure_is_the_mean_over_the_parts(columns, settings, tmp_path):
    queries, (scores, predictions) = evaluated(columns, settings, tmp_path, "NanoCrepe_swap")
    assert set(scores["tie_rule"]) == {crossmodal.TIE}
    sizes = dict(queries.group_by("part").len().iter_rows())
    assert len(set(sizes.values())) == 2, "parts of one size would not tell the mean over parts from the mean over pairs"
    for model in MODELS:
        own = predictions.filter(pl.col("model") == model).with_columns(queries["part"])
        assert own["right"].to_list() == queries["candidates"].list.first().to_list()
        assert [sorted(top) for top in own["top"]] == [sorted(pair) for pair in queries["candidates"]]
        shares = [own.filter(pl.col("part") == part)["correct"].mean() for part in sizes]
        assert [figure(scores, model, f"accuracy/{part}") for part in sizes] == pytest.approx(shares)
        assert figure(scores, model, "accuracy") == pytest.approx(np.mean(shares))
        by_part = scores.filter((pl.col("model") == model) & pl.col("metric").str.contains("/"))
        assert {metric.split("/")[1]: n for metric, n in by_part.select("metric", "n").iter_rows()} == sizes


@pytest.mark.parametrize("rule", TIE_RULES)
def test_a_tie_is_a_miss_for_a_pair_under_every_rule(rule, columns, settings, tmp_path, monkeypatch):
    def alike(ids, *rest, **more):
        return sorted(ids), np.tile(unit([[0.6, 0.8]]), (len(ids), 1))

    def undecided(asked, **_):
        return np.zeros((len(asked.queries), 2)), [False] * len(asked.queries)

    monkeypatch.setattr(run, "embed", alike)
    monkeypatch.setattr(rerank, "score", undecided)
    _, (scores, predictions) = evaluated(columns, settings, tmp_path, "NanoCrepe_swap", tie_rule=rule)
    assert set(scores["value"]) == {0.0} and not predictions["correct"].any()


def test_a_pair_of_the_same_caption_twice_is_a_miss_for_every_model(columns, settings, tmp_path):
    queries, _, _ = columns["NanoCrepe_swap"]
    first = pl.col("candidates").list.first()
    same = queries.with_columns(pl.when(pl.col("row") < 3).then(pl.concat_list(first, first)).otherwise("candidates").alias("candidates"))
    _, (scores, _) = evaluated(columns, settings, tmp_path, "NanoCrepe_swap", same)
    assert scores.filter(pl.col("metric") == "accuracy/swap_att")["value"].to_list() == [0.0] * len(MODELS)
    assert scores.filter(pl.col("metric") == "accuracy/swap_obj")["value"].max() > 0


def test_a_model_that_embeds_all_alike_recalls_nothing_with_or_without_reranker(columns, settings, tmp_path, monkeypatch):
    def alike(ids, *rest, **more):
        return sorted(ids), np.tile(unit([[0.6, 0.8]]), (len(ids), 1))

    monkeypatch.setattr(run, "embed", alike)
    _, (scores, _) = evaluated(columns, settings, tmp_path, "NanoScenes_t2i")
    assert set(scores["value"]) == {0.0}


@pytest.mark.parametrize("name", ["NanoScenes_i2t", "NanoCrepe_swap"])
def test_an_evaluation_goes_on_from_any_finished_part_to_the_same_bytes(name, columns, settings, tmp_path, monkeypatch):
    def written(tables, place):
        for file, table, schema in zip(("s", "p"), tables, (artifacts.SCORES, artifacts.PREDICTIONS), strict=True):
            artifacts.write_table(table, place / file, schema)
        return [(place / file).read_bytes() for file in ("s", "p")]

    whole = written(evaluated(columns, settings, tmp_path / "a", name)[1], tmp_path / "whole")
    for cut in (EMBEDDERS[1], RERANKED, RERANKER):
        scratch = tmp_path / f"b-{cut}"
        shutil.copytree(tmp_path / "a", scratch)
        for later in list(MODELS)[list(MODELS).index(cut) :]:
            for part in (later, *([f"{later}-vectors", f"{later}-lists"] if later != cut else [])):
                shutil.rmtree(scratch / part, ignore_errors=True)
        assert written(evaluated(columns, settings, scratch, name)[1], tmp_path / f"again-{cut}") == whole
    monkeypatch.setattr(run, "load", None)  # everything is there: no model may be opened
    assert written(evaluated(columns, settings, tmp_path / "a", name)[1], tmp_path / "kept") == whole


def test_a_damaged_table_is_named_with_its_column(columns, settings, tmp_path):
    queries, pool, _ = columns["NanoScenes_i2t"]
    with pytest.raises(artifacts.ArtifactError, match="NanoScenes_i2t has no queries"):
        evaluated(columns, settings, tmp_path, "NanoScenes_i2t", queries.clear())
    absent = queries.with_columns(right=pl.when(pl.col("row") == 1).then(pl.lit(["gone"])).otherwise("right"))
    with pytest.raises(artifacts.ArtifactError, match=r"NanoScenes_i2t: query \d+: the right answer gone is not in the pool"):
        evaluated(columns, settings, tmp_path, "NanoScenes_i2t", absent)
    with pytest.raises(artifacts.ArtifactError, match="NanoCrepe_swap: query 0 has 0 captions; the true and the false one are needed"):
        evaluated(columns, settings, tmp_path, "NanoCrepe_swap", queries.with_columns(task=pl.lit("NanoCrepe_swap")))
    with pytest.raises(ConfigError, match="'NanoScenes_i2i' is no known cross-modal task; nearest: 'NanoScenes_"):
        evaluated(columns, settings, tmp_path, "NanoScenes_i2t", queries.with_columns(task=pl.lit("NanoScenes_i2i")))
    assert len(pool) > 10 and not any(tmp_path.glob("*/*")), "no model may have run"


def test_a_list_of_best_candidates_without_a_right_one_is_a_miss_at_every_cut():
    found = Pool(["a", "b"], np.array([[0, 1]] * 2), np.array([[False, False], [False, True]]))
    ranking = rank.with_top(found, [["a", "b"]] * 2, [["b", "a"]] * 2, [False, False])
    assert ranking.ranks.tolist() == [2, 0]
