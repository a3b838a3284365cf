"""The reranker's shared computation equals plain scoring, and a task's evaluation is whole, resumable and what its rules say."""

from __future__ import annotations

import logging
import shutil

import numpy as np
import polars as pl
import pytest
import torch

from unime import artifacts, backbones, prompts
from unime.data import mmeb
from unime.data.images import Decoding
from unime.data.items import Items
from unime.evaluate import rank, rerank, run
from unime.evaluate.tasks import EMBEDDERS, MODELS, RERANKER
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
    "evaluate.tie_rule",
)


@pytest.fixture(scope="module")
def settings(config, nano):
    models = config.models.model_copy(update={key: str(nano) for key in ("base", "judge", "reranker")} | {"device": "cpu"})
    return config.model_copy(update={"models": models})


@pytest.fixture(scope="module")
def backbone(settings):
    return backbones.load(settings.models.reranker, models=settings.models)


def job_in(folder, item="NanoCrop") -> Job:
    folder.mkdir(parents=True, exist_ok=True)
    return Job(item, 1, folder, logging.getLogger("unime.test"))


@pytest.fixture(scope="module")
def opened(suite, config, tmp_path_factory):
    def read(name: str) -> tuple[pl.DataFrame, Items]:
        items, task, _ = mmeb.read_eval(str(suite), name, Decoding.of(config.data), "fail", job_in(tmp_path_factory.mktemp("data"), name))
        return task, Items(items, Decoding.of(config.data))

    return read


def lists_of(task: pl.DataFrame, most: int) -> list[list[str]]:
    """Distinct candidates of each query; every third list shorter than the others."""
    rows = [list(dict.fromkeys(row)) for row in task["candidates"]]
    return [row[: most if k % 3 else 4] for k, row in enumerate(rows)]


def plain(backbone, items, query: str, candidates: list[str]) -> np.ndarray:
    """Each answer in a sequence of its own, all tokens again."""
    shown = rerank.prompt(backbone, items[query], [items[i] for i in candidates])
    answers = [prompts.list_answer(number) for number in range(1, len(candidates) + 1)]
    with torch.no_grad():
        return np.array([backbone.log_likelihood(backbone.collate([shown], [answer])).item() for answer in answers])


@pytest.mark.parametrize("name", ["NanoCaption_t2i", "NanoCaption_i2t", "NanoTwin"])
def test_likelihoods_of_all_answers_together_equal_one_sequence_each(name, backbone, opened, tmp_path):
    task, items = opened(name)
    queries, lists = task["query"].to_list(), lists_of(task, 10)
    scores, unread = rerank.score(
        rerank.Lists(backbone, items, queries, lists), mode="likelihood", batch_tokens=2048, scratch=tmp_path, track=_track
    )
    assert not any(unread)
    for row in range(0, len(queries), 3):
        expected = plain(backbone, items, queries[row], lists[row])
        assert expected.std() > 0.05, "answers of equal likelihood would prove nothing"
        assert np.allclose(scores[row, : len(expected)], expected, atol=1e-4)
        assert (scores[row, len(expected) :] == -np.inf).all()


def test_answers_that_share_no_token_or_differ_in_length_are_scored_exactly(backbone, opened):
    task, items = opened("NanoAskColor")
    query, candidates = task["query"][0], lists_of(task, 4)[1]
    shown = rerank.prompt(backbone, items[query], [items[i] for i in candidates])
    texts = ["Yes", "Ans: (1)", "Ans: (12)", "(3) is the one", "Ans: (1) and"]
    told = [[*backbone.tokenizer.encode(text, add_special_tokens=False), backbone.end] for text in texts]
    assert len({tokens[0] for tokens in told}) > 1 and len({len(tokens) for tokens in told}) > 1
    found = rerank.branch_likelihoods(backbone, [backbone.encode(shown)], told)[0]
    with torch.no_grad():
        expected = torch.stack([backbone.log_likelihood(backbone.collate([shown], [text]))[0] for text in texts])
    assert torch.allclose(found, expected, atol=1e-4)
    one = rerank.branch_likelihoods(backbone, [backbone.encode(shown)], told[1:2])[0]
    assert torch.allclose(one, expected[1:2], atol=1e-4)


def test_answer_tokens_are_those_that_training_sees(backbone):
    told = rerank.answer_tokens(backbone, 10)
    for number, tokens in enumerate(told, start=1):
        assert tokens[-1] == backbone.end
        assert backbone.tokenizer.decode(tokens[:-1]) == prompts.list_answer(number)
    assert len({tuple(tokens) for tokens in told}) == 10


def test_batches_do_not_change_a_score(backbone, opened, tmp_path, monkeypatch):
    task, items = opened("NanoPhrase")
    queries, lists = task["query"].to_list(), lists_of(task, 6)
    few, _ = rerank.score(
        rerank.Lists(backbone, items, queries, lists), mode="likelihood", batch_tokens=1, scratch=tmp_path / "one", track=_track
    )
    monkeypatch.setattr(rerank, "SHARD", 5)
    many, _ = rerank.score(
        rerank.Lists(backbone, items, queries, lists), mode="likelihood", batch_tokens=1 << 20, scratch=tmp_path / "all", track=_track
    )
    assert len(list((tmp_path / "all").iterdir())) == 3
    assert np.allclose(few, many, atol=1e-4) and np.isfinite(few).any()


def test_generated_answers_are_the_models_own_greedy_text_and_unread_ones_are_wrong(backbone, opened, tmp_path):
    task, items = opened("NanoObject")
    queries, lists = task["query"].to_list()[:6], lists_of(task, 5)[:6]
    scores, unread = rerank.score(
        rerank.Lists(backbone, items, queries, lists), mode="generate", batch_tokens=1024, scratch=tmp_path, track=_track
    )
    kept = artifacts.read_table(next(tmp_path.iterdir()), rerank._SCORES)
    for row, text in kept.select("row", "text").iter_rows():
        ids = backbone.encode(rerank.prompt(backbone, items[queries[row]], [items[i] for i in lists[row]]))
        said: list[int] = []
        for _ in range(rerank.ANSWER_TOKENS):  # greedy, one whole forward pass a token
            longer = ids._replace(ids=np.concatenate([ids.ids, np.array(said, dtype=np.int64)]))
            with torch.no_grad():
                said.append(int(backbone.answer_logits(backbone.collate([longer]), list(range(len(backbone.tokenizer)))).argmax()))
            if said[-1] in (backbone.end, backbone.pad, backbone.image_token):
                break
        told = backbone.tokenizer.decode(said, skip_special_tokens=True)
        assert text.startswith(told) if said[-1] == backbone.image_token else text == told  # random weights may "say" an image
        number = prompts.read_list_answer(text, len(lists[row]))
        assert unread[row] == (number is None)
        assert scores[row, : len(lists[row])].tolist() == [float(k == number) for k in range(1, len(lists[row]) + 1)]


def test_the_named_candidate_moves_to_the_front_and_nothing_else_moves():
    pool = rank.Pool.of([list("abcdef"), list("abcdef"), list("abcdef")], [2, 5, 0])
    before = [list("fedcba")] * 3
    top = [list("dfe"), list("fed"), list("fed")]
    ranking = rank.with_top(pool, before, top, [False, False, True])
    assert ranking.lists[0] == list("dfecba") and ranking.lists[1] == list("fedcba")
    assert ranking.ranks.tolist() == [3, 0, 5]
    task = pl.DataFrame([("T", k, "q", list("abcdef"), right) for k, right in enumerate((2, 5, 0))], schema=artifacts.TASKS, orient="row")
    scores, predictions = rank.tables(task, "m", ranking, "content")
    assert dict(scores.select("metric", "value").iter_rows()) == pytest.approx(
        {"precision@1": 1 / 3, "recall@5": 2 / 3, "recall@10": 2 / 3, "unread": 1 / 3}
    )
    assert predictions["predicted"].to_list() == ["d", "f", ""] and predictions["correct"].to_list() == [False, True, False]


def test_an_unread_answer_is_wrong_even_where_retrieval_was_right():
    pool = rank.Pool.of([list("ab")], [0])
    ranking = rank.with_top(pool, [list("ab")], [list("ab")], [True])
    task = pl.DataFrame([("T", 0, "q", list("ab"), 0)], schema=artifacts.TASKS, orient="row")
    scores, _ = rank.tables(task, "m", ranking, "content")
    assert scores.filter(pl.col("metric") == "precision@1")["value"].item() == 0.0


def evaluated(opened, settings, folder, name="NanoMeme", **changes):
    task, items = opened(name)
    config = settings.model_copy(update={"evaluate": settings.evaluate.model_copy(update=changes)})
    return task, run.evaluate(task, items, dict.fromkeys(MODELS), config.view(SECTIONS), job_in(folder, name))


def test_a_task_gets_every_models_scores_and_predictions_that_agree(opened, settings, tmp_path):
    task, (scores, predictions) = evaluated(opened, settings, tmp_path, "NanoCrop")
    assert scores.schema == artifacts.SCORES and predictions.schema == artifacts.PREDICTIONS
    assert scores.filter(pl.col("metric") == "precision@1")["model"].to_list() == list(MODELS)
    assert len(predictions) == len(task) * len(MODELS) and set(scores["n"]) == {len(task)}
    for model in MODELS:
        own = predictions.filter(pl.col("model") == model)
        value = scores.filter((pl.col("model") == model) & (pl.col("metric") == "precision@1"))["value"].item()
        assert value == pytest.approx(own["correct"].mean())
        assert (own["correct"] == (own["predicted"] == own["right"])).all()
        assert own["top"].list.first().to_list() == own["predicted"].to_list()
        hits = [right in top[:5] for right, top in own.select("right", "top").iter_rows()]
        assert scores.filter((pl.col("model") == model) & (pl.col("metric") == "recall@5"))["value"].item() == pytest.approx(np.mean(hits))
    retrieved, reranked = (predictions.filter(pl.col("model") == model)["top"] for model in (EMBEDDERS[-1], RERANKER))
    assert [sorted(row) for row in retrieved] == [sorted(row) for row in reranked]
    assert retrieved.to_list() != reranked.to_list(), "the reranker must have moved something"


def test_the_embedders_prediction_is_the_candidate_of_the_best_cosine(opened, settings, backbone, tmp_path):
    task, (_, predictions) = evaluated(opened, settings, tmp_path, "NanoAskColor")
    _, items = opened("NanoAskColor")

    def vector(id: str) -> torch.Tensor:
        with torch.no_grad():
            return backbone.embed(backbone.collate([backbone.item_prompt(items[id])]))[0]

    own = predictions.filter(pl.col("model") == "zero_shot")
    for (query, candidates), top in zip(task.select("query", "candidates").head(2).iter_rows(), own["top"], strict=False):
        distinct = list(dict.fromkeys(candidates))
        cosine = {i: float(vector(query) @ vector(i)) for i in distinct}
        best = sorted(distinct, key=lambda i: -cosine[i])
        assert [cosine[i] for i in top] == pytest.approx([cosine[i] for i in best[: len(top)]], abs=1e-5)


@pytest.mark.parametrize("mode", ["likelihood", "generate", "pairwise"])
def test_an_evaluation_goes_on_from_any_finished_part_to_the_same_bytes(mode, opened, settings, tmp_path, monkeypatch):
    def written(tables, place):
        for name, table, schema in zip(("s", "p"), tables, (artifacts.SCORES, artifacts.PREDICTIONS), strict=True):
            artifacts.write_table(table, place / name, schema)
        return [(place / name).read_bytes() for name in ("s", "p")]

    whole = written(evaluated(opened, settings, tmp_path / "a", rerank_mode=mode)[1], tmp_path / "whole")
    for cut in ("unime_v2", f"{RERANKER}-lists", RERANKER):
        scratch = tmp_path / f"b-{cut}"
        shutil.copytree(tmp_path / "a", scratch)
        for later in list(MODELS)[list(MODELS).index(cut.removesuffix("-lists")) :]:
            shutil.rmtree(scratch / later)
            if not cut == later:
                for part in (f"{later}-vectors", f"{later}-lists"):
                    shutil.rmtree(scratch / part, ignore_errors=True)
        assert written(evaluated(opened, settings, scratch, rerank_mode=mode)[1], tmp_path / f"again-{cut}") == whole
    monkeypatch.setattr(run, "load", None)  # everything is there: no model may be opened
    assert written(evaluated(opened, settings, tmp_path / "a", rerank_mode=mode)[1], tmp_path / "kept") == whole


def test_a_model_that_embeds_all_alike_earns_nothing_with_or_without_reranker(opened, settings, tmp_path, monkeypatch):
    def alike(ids, *rest, **more):
        ids = sorted(ids)
        return ids, np.tile(np.float32([0.6, 0.8]), (len(ids), 1))

    monkeypatch.setattr(run, "embed", alike)
    _, (scores, predictions) = evaluated(opened, settings, tmp_path, "NanoCaption_i2t")
    first = scores.filter(pl.col("metric") == "precision@1")
    assert first["value"].to_list() == [0.0] * len(MODELS), "the reranker cannot see a right one that the tie rule put last"
    _, (scores, _) = evaluated(opened, settings, tmp_path / "first", "NanoCaption_i2t", tie_rule="vlm2vec_v1")
    assert scores.filter((pl.col("metric") == "precision@1") & (pl.col("model") == "zero_shot"))["value"].item() == 1.0


def test_the_reranker_sees_images_on_white_at_its_own_size_in_its_own_format(opened, settings, tmp_path, monkeypatch):
    opening, asking, embedded = [], [], []
    plain_load, plain_embed = run.load, run.embed

    def load(folder, **more):
        opening.append((more["image_size"], more["max_tokens"]))
        return plain_load(folder, **more)

    def embed(ids, items, *rest, **more):
        embedded.append(items.white)
        return plain_embed(ids, items, *rest, **more)

    def score(asked, **_):
        asking.append((asked.items.white, asked.form))
        return np.zeros((len(asked.queries), max(map(len, asked.lists)))), [False] * len(asked.queries)

    monkeypatch.setattr(run, "load", load)
    monkeypatch.setattr(run, "embed", embed)
    monkeypatch.setattr(rerank, "score", score)
    trained = settings.train.reranker.model_copy(update={"image_size": 112, "max_tokens": 9, "prompt": "public"})
    settings = settings.model_copy(update={"train": settings.train.model_copy(update={"reranker": trained})})
    for size, expected in ((None, 112), (56, 56)):
        evaluated(opened, settings, tmp_path / str(size), rerank_image_size=size)
        assert opening[-1] == (expected, 9) and set(opening[:-1]) <= {(0, None), (112, 9)}
    assert asking == [(True, "public")] * 2 and embedded == [False] * 2 * len(EMBEDDERS)


@pytest.mark.parametrize("form", ["unime", "public"])
def test_log_odds_are_those_of_each_pair_in_a_sequence_of_its_own(form, backbone, opened, tmp_path):
    task, items = opened("NanoCaption_t2i")
    queries, lists = task["query"].to_list()[:5], lists_of(task, 4)[:5]
    asked = rerank.Lists(backbone, items, queries, [row[: 2 + k % 3] for k, row in enumerate(lists)], form)
    scores, unread = rerank.score(asked, mode="pairwise", batch_tokens=300, scratch=tmp_path, track=_track)
    words = [backbone.token("Yes"), backbone.token("No")]
    for row, (query, shown) in enumerate(zip(queries, asked.lists, strict=True)):
        with torch.no_grad():
            turns = [prompts.judge_turn(items[query].parts, items[one].parts, form) for one in shown]
            prompted = [backbone.chat_prompt(turn) for turn in turns]
            logits = torch.cat([backbone.answer_logits(backbone.collate([one]), words) for one in prompted])
        assert np.allclose(scores[row, : len(shown)], (logits[:, 0] - logits[:, 1]).numpy(), atol=1e-4)
        assert (scores[row, len(shown) :] == -np.inf).all() and logits.std() > 0.05
    assert unread == [False] * len(queries)
    short = backbones.load(backbone.folder, models=backbone.models.model_copy(update={"max_length": 30}))
    with pytest.raises(ValueError, match=r"query [0-9a-f]{32} with candidate [0-9a-f]{32}: a prompt of \d+ tokens"):
        rerank.log_odds(rerank.Lists(short, items, queries, asked.lists), [0], 300)


@pytest.mark.parametrize("rule", ["vlm2vec_v2", "unime_v2"])
def test_a_list_in_which_candidates_repeat_is_reranked_under_the_published_rules(rule, opened, settings, tmp_path):
    """The public code shows the reranker such a candidate twice, and compares its choice by content."""
    task, items = opened("NanoObject")
    doubled = task.with_columns(candidates=pl.concat_list("candidates", "candidates"))
    _, (scores, predictions) = evaluated(lambda name: (doubled, items), settings, tmp_path, "NanoObject", tie_rule=rule)
    assert set(scores["tie_rule"]) == {rule}
    reranked = predictions.filter(pl.col("model") == "unime_v2_reranker")
    assert (reranked["top"].list.len() > reranked["top"].list.n_unique()).any()
    assert (reranked["correct"] == (reranked["predicted"] == reranked["right"])).all()


def test_a_task_without_queries_or_an_adapter_forgotten_is_named(opened, settings, tmp_path):
    task, items = opened("NanoMeme")
    view, job = settings.view(SECTIONS), job_in(tmp_path, "NanoMeme")
    with pytest.raises(artifacts.ArtifactError, match="NanoMeme has no queries"):
        run.evaluate(task.clear(), items, dict.fromkeys(MODELS), view, job)
    with pytest.raises(ValueError, match="no adapter named for unime_v2_reranker"):
        run.evaluate(task, items, dict.fromkeys(EMBEDDERS), view, job)
    with pytest.raises(artifacts.ArtifactError, match="NanoMeme: query 0: the right answer is number 7 of 2"):
        run.evaluate(task.with_columns(right=pl.lit(7, pl.Int64)), items, dict.fromkeys(MODELS), view, job)


def _track(iterable, total=None, label=""):
    return iterable


def test_a_list_that_is_too_long_is_named_by_its_query(opened, settings, tmp_path):
    task, items = opened("NanoObject")
    short = backbones.load(settings.models.reranker, models=settings.models.model_copy(update={"max_length": 30}))
    asked = rerank.Lists(short, items, task["query"].to_list(), lists_of(task, 5))
    with pytest.raises(
        ValueError, match=r"query [0-9a-f]{32} with \d+ candidates: a prompt of \d+ tokens is over models.max_length \(30\)"
    ):
        rerank.score(asked, mode="likelihood", batch_tokens=1024, scratch=tmp_path, track=_track)
