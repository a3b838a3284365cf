"""The plan before a run: counts are what the stages process, tokens are what they compute, and what is not known is said."""

from __future__ import annotations

import dataclasses
import json
import logging
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch
import yaml
from checkouts import ROOT

from unime import artifacts, backbones
from unime import config as config_module
from unime.__main__ import main
from unime.data import captions, sets
from unime.data.excluded import Excluded
from unime.data.images import Decoding
from unime.data.items import Items
from unime.evaluate import crossmodal, rank, rerank
from unime.job import Job
from unime.judge import judge, shared_prefix, transformers_backend
from unime.mine import mine
from unime.plan import counts, lists, rates, table, tokens
from unime.plan.estimate import Estimate, Options
from unime.train.data import Shown, batch_at
from unime.train.loop import accelerator_for, fit

K = 6
SETS, TASKS, COLUMNS = ["NanoColor", "NanoCaption_t2i"], ["NanoColor", "NanoCrop"], ["NanoScenes_i2t", "NanoCrepe_swap"]
TRAINING = {"steps": 3, "batch": 8, "micro": 4, "warmup": 1}


@pytest.fixture(scope="module")
def values(config, suite: Path, nano: Path) -> dict:
    found = config.model_dump(mode="json")
    found["data"] |= {"root": str(suite), "train_sets": SETS}
    found["models"] |= {"base": str(nano), "judge": str(nano), "reranker": str(nano), "device": "cpu"}
    found["embed"]["model"], found["export"] = str(nano), {}
    found["retrieve"]["k"], found["mine"]["negatives"], found["judge"]["shard"] = K, 4, 10
    found["evaluate"] |= {"tasks": TASKS, "crossmodal": COLUMNS}
    for kind in ("in_batch", "hard_negatives", "unime_v2", "reranker"):
        found["train"][kind] |= TRAINING | ({"negatives": 3} if "negatives" in found["train"][kind] else {})
    found["train"]["in_batch"]["micro"], found["ablations"] = 16, {"embedders": {}}
    return found


@pytest.fixture(scope="module")
def asked(values: dict) -> config_module.Config:
    return config_module.parse(values)


def job(folder: Path) -> Job:
    return Job(None, 1, folder / "scratch", logging.getLogger("test"))


@pytest.fixture(scope="module")
def run(tmp_path_factory, values: dict, asked) -> Path:
    """A folder in which the data stages and retrieval have run."""
    folder, root = tmp_path_factory.mktemp("plan"), asked.data.root
    (folder / "config.yaml").write_text(yaml.safe_dump(values))
    data = folder / "results/data"
    for name in SETS:
        items, pairs, _, labels = sets.read_train(root, name, "original", 50, 1, Decoding(10**6), "fail", job(folder))
        artifacts.write_table(items, data / "train" / name / "items.parquet", artifacts.ITEMS)
        artifacts.write_table(pairs, data / "train" / name / "pairs.parquet", artifacts.PAIRS)
        artifacts.write_table(labels, data / "train" / name / "labels.parquet", artifacts.LABELS)
        artifacts.write_table(nearest(pairs, items), folder / "results/retrieve" / name / "hits.parquet", artifacts.HITS)
    for name in TASKS:
        items, queries, _ = sets.read_eval(root, name, Decoding(10**6), "fail", job(folder))
        artifacts.write_table(items, data / "eval" / name / "items.parquet", artifacts.ITEMS)
        artifacts.write_table(queries, data / "eval" / name / "queries.parquet", artifacts.TASKS)
    for name in COLUMNS:
        items, queries, pool, _ = captions.read_captions(root, name, Decoding(10**6), "fail", job(folder))
        artifacts.write_table(items, data / "eval" / name / "items.parquet", artifacts.ITEMS)
        artifacts.write_table(queries, data / "eval" / name / "queries.parquet", artifacts.CAPTION_QUERIES)
        artifacts.write_table(pool, data / "eval" / name / "pool.parquet", artifacts.POOL)
    return folder


def nearest(pairs: pl.DataFrame, items: pl.DataFrame) -> pl.DataFrame:
    """HITS as the search leaves them (faiss apart: it and torch bring an OpenMP runtime each)."""
    pool, queries, rows = pairs["positive"].unique().sort(), pairs["query"].unique().sort(), []
    query, positive = (ids.search_sorted(pairs[side]).to_numpy().astype(int) for ids, side in ((queries, "query"), (pool, "positive")))
    barred = Excluded.of(queries, pool, query, positive, items).barred(query, np.arange(len(pool))[None, :])
    for number, pair in enumerate(pairs["pair"]):
        left = pool.filter(pl.Series(~barred[number])).to_numpy()
        others = np.random.default_rng(int(pair[:8], 16)).permutation(left).tolist()[:K]
        rows += [(pair, one, place, 0.5) for place, one in enumerate(others)]
    return pl.DataFrame(rows, schema=artifacts.HITS, orient="row")


def of_set(run: Path, name: str) -> tuple[pl.DataFrame, pl.DataFrame]:
    pairs = artifacts.read_table(run / f"results/data/train/{name}/pairs.parquet", artifacts.PAIRS)
    return pairs, artifacts.read_table(run / f"results/retrieve/{name}/hits.parquet", artifacts.HITS)


def estimate(run: Path, config, **options) -> Estimate:
    return Estimate(config, Options(**options), run / counts.TRAIN, run / counts.EVAL)


class Undecided:
    """A judge that says Yes as often as No."""

    def answers(self, questions):
        return [np.zeros((len(question.candidates), 2), dtype=np.float32) for question in questions]


def test_counts_are_what_the_rooms_process(run: Path, asked, tmp_path: Path) -> None:
    work = {one.stage: one for one in counts.work(asked, run / counts.TRAIN, run / counts.EVAL)}
    assert all(one.counted for one in work.values())
    judged, hits, mined, products = 0, 0, 0, 0
    for name in SETS:
        pairs, found = of_set(run, name)
        rows = judge(pairs, found, Undecided(), mode="exact", shard=4, scratch=tmp_path / name, track=lambda it, total, label: it)
        mined += mine(pairs, found, rows, beta=0.01, negatives=4, interval=5, order="similarity", seed=1)[1]["candidates"]
        judged, hits = judged + len(rows), hits + len(found)
        products += pairs["query"].n_unique() * pairs["positive"].n_unique()
    assert hits > K * 24, "a pool is larger than k"
    assert work["judge"].count == judged and work["mine"].count == hits == mined and work["retrieve"].count == products
    folders = [run / "results/data/train" / name for name in SETS]
    assert work["embed_train"].count == sum(len(Items.open(folder, Decoding(10**6))) for folder in folders)
    tables = [artifacts.read_table(run / f"results/data/eval/{name}/queries.parquet", artifacts.TASKS) for name in TASKS]
    assert work["evaluate"].count == 4 * sum(len(rank.distinct(one)) for one in tables)
    assert work["evaluate_reranker"].count == sum(map(len, tables))
    seen = 0
    for name in COLUMNS:
        place = run / "results/data/eval" / name
        queries = artifacts.read_table(place / "queries.parquet", artifacts.CAPTION_QUERIES)
        pool = artifacts.read_table(place / "pool.parquet", artifacts.POOL)
        seen += len(crossmodal.kind_of(queries, pool, "content").ids())
    assert work["crossmodal"].count == 4 * seen and work["crossmodal"].jobs == len(COLUMNS)


def test_bounds_of_the_embedded_suite_hold(run: Path, values: dict, tmp_path: Path) -> None:
    """What the configuration alone says is at least what the data hold; a pool of few labels makes the bound loose."""
    small = values["nano"]["suite"] | {"train_rows": 24, "eval_rows": 12, "candidates": 20}
    unread = values | {"data": values["data"] | {"root": "data/nano"}, "nano": values["nano"] | {"suite": small}}
    bounds = counts.work(config_module.parse(unread), tmp_path, tmp_path)
    for bound, exact in zip(bounds, counts.work(config_module.parse(values), run / counts.TRAIN, run / counts.EVAL), strict=True):
        assert bound.count >= exact.count and bound[:2] == exact[:2]
        assert bound.counted == bound.stage.startswith("train_")


def with_judge(config, form: str, budget: int):
    """The configuration with another prompt format of the judge, and other tokens of a forward pass."""
    engine = config.judge.transformers.model_copy(update={"batch_tokens": budget})
    return config.model_copy(update={"judge": config.judge.model_copy(update={"transformers": engine, "prompt": form})})


def load_of(plan: Estimate, stage: str) -> tokens.Load:
    return plan._load(next(work for work in plan.work if work.stage == stage))


@pytest.mark.parametrize(("form", "budget"), [("unime", 8192), ("unime", 100), ("public", 8192)])
def test_tokens_of_the_judge_are_what_is_packed(run: Path, asked, nano: Path, monkeypatch, form: str, budget: int) -> None:
    load = load_of(estimate(run, with_judge(asked, form, budget)), "judge")
    if form != "unime":
        assert load.tokens != load_of(estimate(run, with_judge(asked, "unime", budget)), "judge").tokens
    packed, pack = [], shared_prefix.pack
    monkeypatch.setattr(shared_prefix, "pack", lambda *some: packed.append(pack(*some)) or packed[-1])
    monkeypatch.setattr(shared_prefix, "last_hidden", lambda some, backbone: torch.zeros(len(some.last), backbone.head.weight.shape[1]))
    backbone, plain, asking = backbones.load(nano, models=asked.models), 0, 0
    for name in SETS:
        items = Items.open(run / "results/data/train" / name, Decoding(10**6))
        engine = transformers_backend.TransformersJudge(backbone, items, budget, form)
        pairs, hits = of_set(run, name)
        shards = tokens.shards_of(tokens.asked(pairs, hits, K, 10**6), 10)
        asking += sum(map(len, shards))
        assert shards and len(pairs) <= tokens.ASKED // len(SETS), "nothing is left to a sample"
        for shard in shards:
            engine.answers(shard)
            plain += sum(len(sequence.ids) for question in shard for sequence in engine.sequences(question))
    assert load.tokens == sum(len(one.ids) for one in packed) and load.plain == plain > 1.5 * load.tokens
    assert (sum(len(one.spans) for one in packed) > asking) == (budget == 100), "a small budget cuts groups, a large one none"


def with_training(config, kind: str, **changes):
    """The configuration with other values in the section train.<kind>."""
    section = getattr(config.train, kind).model_copy(update=changes)
    return config.model_copy(update={"train": config.train.model_copy(update={kind: section})})


def trained(run: Path, config, nano: Path, folder: Path, kind: str) -> tuple[int, int]:
    """Tokens that all forward passes of a training are given, and the items that its log counts."""
    settings, rows = getattr(config.train, kind), estimate(run, config)._table(kind)
    backbone = backbones.load(nano, models=config.models, train=True)
    backbone.add_lora(settings.lora if kind == "reranker" else config.train.lora, 1)
    made, collate = [], backbone.collate

    def counted(items, answers=None, side="left"):
        batch = collate(items, answers, side)
        made.append(int(batch["attention_mask"].sum()))
        return batch

    backbone.collate = counted
    accelerator, items = accelerator_for(backbone), Items.of_sets(run / counts.TRAIN, SETS, Decoding(10**6))
    trainer = tokens.trainer(kind, rows, Shown(backbone, items), settings, config.seed, accelerator)
    log = fit(backbone, settings, len(rows), config.seed, dataclasses.replace(job(folder), scratch=folder), accelerator, trainer)
    assert batch_at(2, len(rows), settings.batch, 42).epoch == 0
    return sum(made), log[-1]["items"]


@pytest.mark.parametrize("kind", ["in_batch", "unime_v2", "reranker"])
def test_items_and_tokens_of_a_training_are_those_of_its_steps(run: Path, asked, nano: Path, tmp_path: Path, kind: str) -> None:
    plan = estimate(run, asked)
    work = next(one for one in plan.work if one.stage == f"train_{kind}")
    settings = getattr(asked.train, kind)
    assert kind != "in_batch" or 2 * settings.batch == settings.micro, "GradCache would pass each item twice"
    assert trained(run, asked, nano, tmp_path, kind) == (plan._load(work).tokens, work.count)


@pytest.mark.parametrize(
    ("kind", "changes"),
    [
        ("in_batch", {"batch": 16, "micro": 4, "steps": 1}),
        ("unime_v2", {"in_batch_negatives": True, "micro": 2, "steps": 1}),
    ],
)
def test_a_coupled_loss_embeds_the_distinct_items_of_each_micro_batch(
    run: Path, asked, nano: Path, tmp_path: Path, kind: str, changes: dict
) -> None:
    """Micro-batches of two queries, each of which GradCache passes twice."""
    cut, whole = with_training(asked, kind, **changes), with_training(asked, kind, **changes | {"micro": 32})
    loads = []
    for config in (cut, whole):
        plan = estimate(run, config)
        loads.append(plan._load(next(one for one in plan.work if one.stage == f"train_{kind}")))
    assert loads[0].tokens > loads[1].tokens, "no item is in two micro-batches of a batch"
    assert trained(run, cut, nano, tmp_path, kind)[0] == 2 * loads[0].tokens


def test_two_trainings_share_a_rate_only_where_both_or_neither_is_coupled(run: Path, asked) -> None:
    def keys(config) -> tuple:
        plan = estimate(run, config)
        return plan._key("train_hard_negatives"), plan._key("train_unime_v2")

    first, second = keys(asked)
    assert first == second
    first, second = keys(with_training(asked, "unime_v2", in_batch_negatives=True))
    assert first != second


@pytest.mark.parametrize("form", ["unime", "public"])
@pytest.mark.parametrize("mode", ["likelihood", "generate", "pairwise"])
def test_tokens_of_the_reranker_are_what_it_reads(run: Path, asked, nano: Path, monkeypatch, mode: str, form: str) -> None:
    """In each mode and prompt format: the prompts that are encoded, and behind a list all answers, or one."""
    sizes, backbone = estimate(run, asked).sizes("evaluate_reranker"), backbones.load(nano, models=asked.models)
    rows = lists.of_folder(run / "results/data/eval/NanoColor", 2, 5)
    counted = {
        (way, words): sum(lists.read(sizes, query, shown, way, words) for query, shown in rows)
        for way in ("likelihood", "generate", "pairwise")
        for words in ("unime", "public")
    }
    assert len(set(counted.values())) == len(counted), "each mode and format has its own tokens"
    read, encode, pack = [], backbone.encode, shared_prefix.pack
    if mode == "pairwise":  # packed: a query's common beginning once
        monkeypatch.setattr(shared_prefix, "pack", lambda groups, of: read.append(pack(groups, of)) or read[-1])
    else:
        monkeypatch.setattr(backbone, "encode", lambda prompt: read.append(encode(prompt)) or read[-1])
    given = rerank.Lists(backbone, sizes.items, [query for query, _ in rows], [shown for _, shown in rows], form)
    rerank.reader(mode)(given, range(len(rows)), 8192)
    answers = [[len(told) for told in rerank.answer_tokens(backbone, len(shown))] for _, shown in rows]
    behind = {"likelihood": sum(map(sum, answers)), "generate": sum(map(max, answers)), "pairwise": 0}
    sequences = sum(len(one.last) for one in read) if mode == "pairwise" else len(read)
    assert sequences == (sum(len(shown) for _, shown in rows) if mode == "pairwise" else len(rows))
    assert counted[mode, form] == sum(len(one.ids) for one in read) + behind[mode]


def with_reranker(config, listed: str, captions: str, form: str = "unime"):
    """The configuration with other modes of the reranker (of lists, and of an image's two captions) and another prompt format."""
    config = with_training(config, "reranker", prompt=form)
    evaluate = config.evaluate.model_copy(update={"rerank_mode": listed, "compositional_rerank": captions})
    return config.model_copy(update={"evaluate": evaluate})


@pytest.mark.parametrize(
    ("listed", "captions", "modes", "texts"),
    [
        ("likelihood", "pairwise", {"likelihood", "pairwise"}, ["queries, listwise", "queries, partly pairwise"]),
        ("likelihood", "listwise", {"likelihood"}, ["queries, listwise", "queries, listwise"]),
        ("generate", "listwise", {"generate"}, ["queries, listwise", "queries, listwise"]),
        ("pairwise", "listwise", {"likelihood", "pairwise"}, ["queries, pairwise", "queries, partly pairwise"]),
        ("pairwise", "pairwise", {"pairwise"}, ["queries, pairwise", "queries, pairwise"]),
    ],
)
def test_each_column_is_counted_in_its_own_mode(run: Path, asked, listed: str, captions: str, modes: set, texts: list) -> None:
    plan = estimate(run, with_reranker(asked, listed, captions))
    assert [work.what for work in plan.work if work.stage in ("evaluate_reranker", "crossmodal_reranker")] == texts
    load, sizes = load_of(plan, "crossmodal_reranker"), plan.sizes("crossmodal_reranker")
    assert set(load.by_mode) == modes and sum(load.by_mode.values()) == pytest.approx(load.tokens)
    whole = dict.fromkeys(modes, 0.0)
    for name in COLUMNS:
        mode = listed
        if name == "NanoCrepe_swap":
            mode = captions if captions == "pairwise" else listed.replace("pairwise", "likelihood")
        rows = lists.of_folder(run / "results/data/eval" / name, 10**6, asked.evaluate.rerank)
        assert len(rows) <= tokens.SAMPLE // (5 * len(COLUMNS)), "nothing is left to a sample"
        whole[mode] += sum(lists.read(sizes, query, shown, mode, "unime") for query, shown in rows)
    assert load.by_mode == pytest.approx(whole)


def test_the_reranker_has_a_rate_in_each_mode(run: Path, asked) -> None:
    plan = estimate(run, with_reranker(asked, "likelihood", "pairwise"))
    works = {work.stage: work for work in plan.work}
    loads = {stage: load_of(plan, stage) for stage in ("evaluate_reranker", "crossmodal_reranker")}
    keys = {stage: plan._keys(stage, load) for stage, load in loads.items()}
    assert keys["evaluate_reranker"] == [("reranker", "likelihood")]
    assert sorted(keys["crossmodal_reranker"]) == [("reranker", "likelihood"), ("reranker", "pairwise")]
    plan._rates[("reranker", "likelihood")] = rates.Rate(100.0, sample="lists")
    row = plan._row(works["crossmodal_reranker"], loads["crossmodal_reranker"])
    assert row.timed == "" and row.seconds is None, "one of its rates is not known"
    plan._rates[("reranker", "pairwise")] = rates.Rate(50.0, sample="pairs")
    row = plan._row(works["crossmodal_reranker"], loads["crossmodal_reranker"])
    parts = loads["crossmodal_reranker"].by_mode
    assert row.seconds == pytest.approx(parts["likelihood"] / 100 + parts["pairwise"] / 50)
    assert row.timed == "measured" and {"lists", "pairs"} == set(row.sample.split(", "))


def test_rates_are_measured_in_the_configured_mode_and_prompt_formats(run: Path, asked, monkeypatch) -> None:
    forms, modes, reader, given = {}, [], rerank.reader, rerank.Lists

    def listed(*arguments) -> rerank.Lists:
        made = given(*arguments)
        forms["reranker"] = made.form
        return made

    class Judge(transformers_backend.TransformersJudge):
        def __init__(self, backbone, items, batch_tokens, form) -> None:
            super().__init__(backbone, items, batch_tokens, form)
            forms["judge"] = form

    monkeypatch.setattr(rates.rerank, "Lists", listed)
    monkeypatch.setattr(rates.rerank, "reader", lambda mode: modes.append(mode) or reader(mode))
    monkeypatch.setattr(rates, "TransformersJudge", Judge)
    plan = estimate(run, with_judge(with_reranker(asked, "likelihood", "pairwise", "public"), "public", 8192))
    for mode in ("likelihood", "pairwise"):
        assert plan._rate("crossmodal_reranker", ("reranker", mode), 0.01).each > 0
    assert plan._rate("judge", "judge", 0.01).each > 0
    assert forms == {"reranker": "public", "judge": "public"} and modes == ["likelihood", "pairwise"]


def test_assumed_tokens_of_the_reranker_follow_its_modes(values: dict, tmp_path: Path) -> None:
    """An item of 600 tokens, 64 of instruction: neither is repeated, in a list or for pairs that share what stands before the candidate."""
    config, found, captions = config_module.parse(values), {}, {}
    for listed, pairs in (("likelihood", "listwise"), ("pairwise", "listwise"), ("likelihood", "pairwise")):
        changed = with_reranker(config, listed, pairs)
        plan = Estimate(changed, Options(item_tokens=600), tmp_path, tmp_path)
        works = {work.stage: work for work in plan.work}
        for stage in ("evaluate_reranker", "crossmodal_reranker"):
            load = plan._assumed(works[stage])
            found[stage, listed, pairs] = load.tokens
        captions[listed, pairs] = load
    column = counts.tasks(config, ["NanoCrepe_swap"], tmp_path)[0]
    queries, n = works["evaluate_reranker"].count, config.evaluate.rerank
    assert found["evaluate_reranker", "likelihood", "pairwise"] == queries * (64 + (1 + n) * 600)
    assert found["evaluate_reranker", "pairwise", "listwise"] == queries * (64 + (1 + n) * 600)
    by_mode = {mode: load.by_mode for mode, load in captions.items()}
    assert set(by_mode["likelihood", "listwise"]) == {"likelihood"}
    assert by_mode["pairwise", "listwise"]["likelihood"] == column.queries * (64 + 3 * 600)
    assert by_mode["likelihood", "pairwise"]["pairwise"] == column.queries * (64 + 3 * 600)


def test_tokens_of_items_are_their_prompts(run: Path, asked, nano: Path) -> None:
    plan, backbone = estimate(run, asked), backbones.load(nano, models=asked.models)
    loads = {one.stage: plan._load(one) for one in plan.work}
    found = [Items.open(run / "results/data/train" / name, Decoding(10**6)) for name in SETS]
    whole = sum(len(backbone.encode(backbone.item_prompt(items[id])).ids) for items in found for id in items.ids)
    assert loads["embed_train"].tokens == pytest.approx(whole) and loads["embed_train"].sample == sum(map(len, found))
    whole = 0
    for name in TASKS:
        items = Items.open(run / "results/data/eval" / name, Decoding(10**6))
        rows = artifacts.read_table(run / f"results/data/eval/{name}/queries.parquet", artifacts.TASKS)
        whole += 4 * sum(len(backbone.encode(backbone.item_prompt(items[id])).ids) for id in rank.distinct(rows))
    assert loads["evaluate"].tokens == pytest.approx(whole)


def test_a_preset_without_data_and_models_has_bounds_and_says_why(tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["plan", "--config", str(ROOT / "presets/qwen2vl-2b.yaml"), "--json", "plan.json"]) == 0
    shown, rows = capsys.readouterr().out, {row["stage"]: row for row in json.loads(Path("plan.json").read_text())["rows"]}
    pairs = 20 * 50_000
    assert {name: rows[name]["count"] for name in ("embed_train", "judge", "mine", "retrieve")} == {
        "embed_train": 2 * pairs,
        "judge": 51 * pairs,
        "mine": 50 * pairs,
        "retrieve": 20 * 50_000**2,
    }
    assert rows["judge"]["source"] == "at most" and rows["train_unime_v2"]["source"] == "counted"
    assert rows["evaluate_reranker"]["count"] == 36 * 1000 and rows["evaluate"]["count"] == 4 * 36 * (1000 + 1000**2)
    assert rows["train_in_batch"]["count"] == 2000 * 1024 * 2 and rows["train_unime_v2"]["count"] == 2000 * 1024 * 10
    assert not any(row["tokens"] or row["seconds"] for row in rows.values())
    assert "no training data yet" in shown and "snakemake --until filter_train" in shown
    assert "no model in models/Qwen2-VL-7B-Instruct, models/Qwen25-VL-7B-Instruct, models/Qwen2-VL-2B-Instruct yet" in shown


def test_a_given_rate_makes_a_time_and_is_marked(tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    preset = ["plan", "--config", str(ROOT / "presets/qwen2vl-2b.yaml"), "--item-tokens", "600"]
    assert main([*preset, "--rate", "judge=50000", "--rate", "retrieve=2.5e11", "--json", "plan.json"]) == 0
    rows = {row["stage"]: row for row in json.loads(Path("plan.json").read_text())["rows"]}
    judged = rows["judge"]
    assert judged["tokens"] == 10**6 * (64 + 600) + 51 * 10**6 * 600 and judged["plain"] == 51 * 10**6 * (64 + 1200)
    assert judged["seconds"] == judged["tokens"] / 50000 and judged["timed"] == "given"
    assert rows["retrieve"]["seconds"] == 0.2 and rows["embed_train"]["seconds"] is None and rows["embed_train"]["tokens"] == 1.2e9
    line = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("judge "))
    assert "at most" in line and line.endswith("given") and "173:41" in line


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["--rate", "judge"], "needed <stage>=<tokens a second>"),
        (["--rate", "judge=-1"], "a number above 0"),
        (["--rate", "juge=10"], "--rate juge: no such row in this plan; its rows: embed_train, "),
        (["--calibrate", "0"], "more than 0 seconds are needed"),
        (["--item-tokens", "0"], "an item has 1 token or more"),
    ],
)
def test_what_cannot_be_is_refused(tmp_path: Path, monkeypatch, capsys, arguments: list[str], reason: str) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["plan", "--config", str(ROOT / "config.yaml"), *arguments]) == 1 and reason in capsys.readouterr().err


def test_a_model_that_is_not_there_leaves_its_own_rows_alone(run: Path, values: dict) -> None:
    without = config_module.parse(values | {"models": values["models"] | {"judge": "models/none"}})
    plan = estimate(run, without)
    rows = {row.stage: row for row in plan.rows()}
    assert rows["judge"].tokens is None and rows["judge"].count and rows["embed_train"].tokens
    assert [note.partition(";")[0] for note in plan.notes] == [
        "no model in models/none yet: no tokens and times of the stages that open it"
    ]


def test_published_negatives_need_no_judge(asked, tmp_path: Path) -> None:
    given = asked.model_copy(update={"mine": asked.mine.model_copy(update={"source": "published"})})
    assert [one.stage for one in counts.work(given, tmp_path, tmp_path)][0] == "train_in_batch"


def test_other_judgements_than_the_runs_own_are_noted(run: Path, asked) -> None:
    given = asked.model_copy(update={"mine": asked.mine.model_copy(update={"judgements": "results/judges/nano-published"})})
    (note,) = estimate(run, given).notes
    assert note.startswith("mine.judgements is 'results/judges/nano-published'") and not estimate(run, asked).notes


def test_every_row_is_measured(run: Path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(run)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    assert main(["plan", "--calibrate", "0.1", "--json", "plan.json"]) == 0
    found = json.loads(Path("plan.json").read_text())
    assert found["notes"] == [] and {row["timed"] for row in found["rows"]} == {"measured"}
    assert all(row["seconds"] > 0 and row["rate"] > 0 and row["sample"] for row in found["rows"])
    assert found["seconds"] == pytest.approx(sum(row["seconds"] for row in found["rows"]))
    shared = {row["stage"]: row["rate"] for row in found["rows"]}
    assert shared["evaluate"] == pytest.approx(shared["crossmodal"]) and shared["train_unime_v2"] > 0
    assert "estimated" in capsys.readouterr().out


def test_a_search_that_cannot_run_is_named() -> None:
    with pytest.raises(ValueError, match="the search's process ended with 1: "):
        rates.searching(0, 10, 5, 0.1)


def test_a_measurement_grows_and_leaves_out_its_first_try(monkeypatch) -> None:
    clock, sizes = [0.0], []
    monkeypatch.setattr(rates.time, "monotonic", lambda: clock[0])

    def work(count: int) -> rates.Measured:
        took = 0.1 * count + (0 if count in sizes else 1)
        sizes.append(count)
        clock[0] += took
        return rates.Measured(10 * count, took)

    found, size, tries = rates.grown(work, 8, 20)
    assert sizes[:3] == [1, 4, 8] and set(sizes[3:]) == {8} and size == 8 and tries == len(sizes) - 3
    assert found.amount / found.seconds == pytest.approx(100)
    sizes.clear()
    assert rates.grown(work, 8, 0.001)[1:] == (1, 1), "one try at least"


def test_numbers_are_shown_short() -> None:
    assert [table.short(n) for n in (None, 7, 999, 1000, 12_345, 4.56e6, 999_600, 2e13)] == "- 7 999 1.0k 12.3k 4.6M 1.0M 20.0T".split()
    assert [table.clock(n) for n in (None, 42.4, 599, 600, 3600 * 120 + 90)] == ["-", "42 s", "599 s", "0:10", "120:02"]
