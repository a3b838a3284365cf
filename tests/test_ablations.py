"""The ablations' table: blocks by what was changed, the run itself in each, published rows only beside the paper's own tasks."""

from __future__ import annotations

import csv
import io
import logging
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from unime import artifacts
from unime.__main__ import open_door
from unime.artifacts import ArtifactError
from unime.config import ConfigError, Rule, Variant, at, load, parse, settings_of
from unime.data.images import Decoding
from unime.data.items import Items
from unime.evaluate import one, run
from unime.evaluate.tasks import CROSSMODAL, MODELS, TASKS
from unime.job import Job
from unime.report import ablations

NANO = [name for name, task in TASKS.items() if task.suite == "nano"]
MMEB = [name for name, task in TASKS.items() if task.suite == "mmeb"]
PAPER = [name for name, column in CROSSMODAL.items() if column.suite == "paper"]
CONFIG = Path(__file__).resolve().parents[1] / "config.yaml"
TRAIN = load(CONFIG).train
RULES = {
    "any": Rule(rule="random"),
    "all": Rule(rule="top_k", interval=1),
    "near": Rule(rule="margin", margin=0.05),
    "share": Rule(rule="percent", share=0.95),
}
BASE = ablations.Base(
    "judge",
    {
        "in_batch": TRAIN.in_batch.model_copy(update={"tau": 0.02, "batch": 16, "micro": 32}),
        "hard_negatives": TRAIN.hard_negatives.model_copy(update={"tau": 0.02, "negatives": 8}),
        "unime_v2": TRAIN.unime_v2.model_copy(update={"tau": 0.02, "negatives": 8}),
    },
    RULES,
)
VARIANTS = {
    "other": Variant(loss="unime_v2", source="other", negatives=8, tau=0.02),
    "k-4": Variant(loss="unime_v2", source="judge", negatives=4, tau=0.02),
    "tau": Variant(loss="unime_v2", source="judge", negatives=8, tau=0.01),
    "both": Variant(loss="unime_v2", source="judge", negatives=4, tau=0.03),
}


def scores(values: dict[str, float], tasks: list[str], captions: list[str]) -> pl.DataFrame:
    """SCORES in which a model has one value on every task, and half of it on every caption column."""
    rows = []
    for model, value in values.items():
        rows += [(name, model, "precision@1", value, 10, "content") for name in tasks]
        rows += [(name, model, CROSSMODAL[name].metric, value / 2, 10, "content") for name in captions]
        rows += [(name, model, "recall@5", 1.0, 10, "content") for name in tasks]
    return pl.DataFrame(rows, schema=artifacts.SCORES, orient="row")


def built(tasks: list[str], captions: list[str], variants: dict[str, Variant] = VARIANTS) -> list[ablations.Row]:
    main = scores({"in_batch": 0.5, "hard_negatives": 0.6, "unime_v2": 0.7}, tasks, captions)
    found = {name: scores({"unime_v2": 0.1 * place}, tasks, captions) for place, name in enumerate(variants, start=1)}
    return ablations.build(main, found, variants, BASE, tasks, captions)


def test_a_variant_stands_in_the_block_of_what_it_changed_below_the_run_itself() -> None:
    rows = built(NANO, ["NanoScenes_i2t"])
    assert [(row.block, row.name, round(row.means["overall"], 6)) for row in rows] == [
        *(("components", MODELS[model], value) for model, value in (("in_batch", 0.5), ("hard_negatives", 0.6), ("unime_v2", 0.7))),
        ("judge", "judged by the run's judge", 0.7),
        ("judge", "judged by other", 0.1),
        ("negatives", "k = 8", 0.7),
        ("negatives", "k = 4", 0.2),
        ("tau", "tau = 0.02", 0.7),
        ("tau", "tau = 0.01", 0.3),
        ("other", "as the run", 0.7),
        ("other", "k = 4, tau = 0.03", 0.4),
    ]
    assert all(row.means == pytest.approx({"overall": row.means["overall"], "short": row.means["overall"] / 2}) for row in rows)


def test_rules_and_losses_stand_beside_the_runs_own_row_of_their_loss() -> None:
    variants = {
        **{name: Variant(loss="hard_negatives", source=name) for name in RULES},
        "k-4": Variant(loss="hard_negatives", source="judge", negatives=4),
        "foreign": Variant(loss="hard_negatives", source="other"),
        "items": Variant(loss="in_batch", source="other", batch=80, micro=8),
        "same": Variant(loss="in_batch", source="judge"),
        "long": Variant(loss="unime_v2", source="judge", steps=700),
        "both": Variant(loss="hard_negatives", source="any", negatives=4),
    }
    rows = built(NANO, [], variants)
    assert [(row.block, row.name, round(row.means["overall"], 6)) for row in rows] == [
        *(("components", MODELS[model], value) for model, value in (("in_batch", 0.5), ("hard_negatives", 0.6), ("unime_v2", 0.7))),
        ("components", "hard negatives, k = 4", 0.5),
        ("components", "hard negatives, judged by other", 0.6),
        ("components", "in-batch (VLM2Vec), batch = 80", 0.7),
        ("components", "in-batch (VLM2Vec)", 0.8),
        ("components", "hard negatives, random candidates, k = 4", 1.0),
        ("mining", "judged by the run's judge", 0.6),
        ("mining", "random candidates", 0.1),
        ("mining", "the most similar, no filter, interval 1", 0.2),
        ("mining", "below the positive's similarity - 0.05", 0.3),
        ("mining", "below 0.95 x the positive's similarity", 0.4),
        ("other", "as the run", 0.7),
        ("other", "steps = 700", 0.9),
    ]


def test_a_setting_of_the_loss_itself_has_a_block_of_its_own() -> None:
    class Smoothed(type(TRAIN.unime_v2)):  # any setting that a section has, or will have, can be changed
        extra: float

    smoothed = Smoothed(**BASE.train["unime_v2"].model_dump(), extra=1e-8)
    base = BASE._replace(train={**BASE.train, "unime_v2": smoothed})
    variant = Variant(loss="unime_v2", source="judge", extra=0.0)
    assert settings_of(variant, smoothed) == smoothed.model_copy(update={"extra": 0.0})
    assert (ablations.block_of(variant, base), ablations.label(variant, base)) == ("loss", "extra = 0")
    assert ablations.own_label("loss", ["extra"], base) == "extra = 1e-08"


def test_what_a_variant_does_not_name_is_as_in_its_section() -> None:
    variants = load(CONFIG).ablations.embedders
    old = settings_of(Variant(loss="unime_v2", source="judge", negatives=4, tau=0.5), TRAIN.unime_v2)
    assert old == TRAIN.unime_v2.model_copy(update={"negatives": 4, "tau": 0.5})
    assert settings_of(variants["in-batch-equal-items"], TRAIN.in_batch) == TRAIN.in_batch.model_copy(update={"batch": 80, "micro": 160})
    items_of_a_step = 2 * settings_of(variants["in-batch-equal-items"], TRAIN.in_batch).batch
    assert items_of_a_step == TRAIN.unime_v2.batch * (2 + TRAIN.unime_v2.negatives)
    rules = load(CONFIG).mine.rules
    assert {rule.rule for rule in rules.values()} == {"random", "top_k", "margin", "percent"}
    assert {variant.source for variant in variants.values() if variant.loss == "hard_negatives"} == set(rules)


@pytest.mark.parametrize(
    ("variant", "message"),
    [
        (
            {"loss": "unime_v2", "source": "judge", "negative": 4},
            "x.negative: train.unime_v2 has no such setting; nearest: 'negatives'",
        ),
        ({"source": "judge", "loss": "in_batch", "negatives": 4}, "embedders.x.negatives: train.in_batch has no such setting"),
        ({"loss": "unime_v2", "source": "judge", "tau": 0.0}, "embedders.x.tau 0.0: Input should be greater than or equal to 0.0001"),
        ({"loss": "unime_v2", "source": "judge", "tau": "0.1"}, "embedders.x.tau '0.1': Input should be a valid number"),
        ({"loss": "unime_v2", "source": "judge", "steps": 30}, "embedders.x: warmup 40 must be below steps 30"),
        ({"loss": "unime_v2", "source": "judge", "negatives": 11}, "embedders.x.negatives 11 must be at most mine.negatives 10"),
        ({"loss": "unime_v2", "source": "percnt"}, "embedders.x.source 'percnt' is unknown; nearest: 'percent'"),
        ({"loss": "unime_v2", "source": "percent"}, "embedders.x.source 'percent' is one of mine.rules, which give no scores"),
        ({"loss": "unime_v2", "negatives": 4}, "embedders.x.source: missing"),
        ({"source": "judge"}, "embedders.x: loss is missing; write loss: unime_v2, loss: hard_negatives or loss: in_batch"),
        ({"source": "judge", "loss": "in-batch"}, "'in-batch' is not one of 'unime_v2', 'hard_negatives' or 'in_batch'; nearest"),
    ],
)
def test_a_variant_that_cannot_be_trained_is_refused_by_its_key(variant: dict[str, Any], message: str) -> None:
    raw = load(CONFIG).model_dump()
    raw["train"]["unime_v2"] |= {"warmup": 40, "steps": 400}
    raw["ablations"]["embedders"] = {"x": variant}
    with pytest.raises(ConfigError) as problem:
        parse(raw)
    assert message in str(problem.value)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("mine.rules", {"a": {"rule": "margin"}}, "mine.rules.a: the rule 'margin' needs 'margin'"),
        ("mine.rules", {"a": {"rule": "percent", "share": 0.9, "margin": 0.1}}, "the rule 'percent' does not read 'margin' (found 0.1)"),
        ("mine.rules", {"a": {"rule": "random", "interval": 2}}, "the rule 'random' does not read 'interval'"),
        ("mine.rules", {"a": {"rule": "topk"}}, "mine.rules.a.rule: 'topk' is not one of"),
        ("mine.rules", {"judge": {"rule": "random"}}, "mine.rules: 'judge' is the name of the run's own judge"),
        ("mine.rules", {"nano-published": {"rule": "random"}}, "'nano-published' is in judge.models and in mine.rules"),
    ],
)
def test_a_rule_that_cannot_be_mined_by_is_refused(key: str, value: dict[str, Any], message: str) -> None:
    raw = load(CONFIG).model_dump()
    section, _, name = key.rpartition(".")
    at(raw, section)[name] = value
    raw["ablations"]["embedders"] = {}
    with pytest.raises(ConfigError) as problem:
        parse(raw)
    assert message in str(problem.value)


def test_an_embedder_depends_on_its_own_losss_settings_alone() -> None:
    config, door = load(CONFIG), open_door("ablation_train")
    losses = set()
    for name, variant in config.ablations.embedders.items():
        found = door.view(config, name).dump()
        assert {key for key in found if key.removeprefix("train.") in ablations.COMPONENTS} == {f"train.{variant.loss}"}
        assert found[f"ablations.embedders.{name}"] == variant.model_dump()
        losses.add(variant.loss)
    assert losses == set(ablations.COMPONENTS)


def test_published_rows_stand_only_under_means_over_the_papers_own_tasks() -> None:
    assert {row.source for row in built(NANO, [])} == {"this run"}
    published = [row for row in built(MMEB, PAPER) if row.source == "published"]
    assert len(published) == 13 and all(len(row.means) == 4 for row in published)
    (four,) = [row for row in published if row.name == "k = 4 (Qwen2-VL 2B)"]
    assert [round(100 * value, 1) for value in four.means.values()] == [61.3, 69.2, 91.0, 62.4]
    some = [row for row in built(MMEB, PAPER[:4]) if row.source == "published"]
    assert all(row.means.keys() == {"overall", "short"} for row in some)
    only = {"k-4": VARIANTS["k-4"]}
    assert {row.block for row in built(MMEB, PAPER, only)} == {"components", "negatives"}, "no published block without one of this run's"


def test_csv_and_markdown_hold_every_row() -> None:
    rows = built(MMEB, PAPER)
    table = list(csv.DictReader(io.StringIO(ablations.to_csv(rows))))
    assert [row["row"] for row in table] == [row.name for row in rows]
    assert table[0] == {
        "block": "components",
        "row": "in-batch (VLM2Vec)",
        "source": "this run",
        "overall": "50.00",
        "short": "25.00",
        "long": "25.00",
        "compositional": "25.00",
    }
    text = ablations.to_markdown(rows)
    assert all(f"| {row.name} | {row.source} |" in text for row in rows) and text.count("\n## ") == 5


def test_a_task_without_a_figure_is_named() -> None:
    lacking = scores({"unime_v2": 0.1}, NANO[1:], [])
    main = scores({"in_batch": 0.5, "hard_negatives": 0.6, "unime_v2": 0.7}, NANO, [])
    with pytest.raises(ArtifactError, match=f"{NANO[0]} has no precision@1 of k-4"):
        ablations.build(main, {"k-4": lacking}, VARIANTS, BASE, NANO, [])


def test_an_embedder_alone_gets_the_figures_that_it_gets_among_all_models(suite, nano, config, tmp_path) -> None:
    from unime.data import mmeb

    models = config.models.model_copy(update={"base": str(nano), "reranker": str(nano), "device": "cpu"})
    view = config.model_copy(update={"models": models}).view(("models", "embed", "train.reranker", "evaluate"))

    def job(name: str) -> Job:
        (tmp_path / name).mkdir()
        return Job("NanoColor", 1, tmp_path / name, logging.getLogger("test"))

    items, task, _ = mmeb.read_eval(str(suite), "NanoColor", Decoding(10**6), "fail", job("read"))
    shown = Items(items, Decoding(10**6))
    among, _ = run.evaluate(task, shown, dict.fromkeys(MODELS), view, job("all"))
    alone = one.score_task(task, shown, None, view, job("one"))  # type: ignore[arg-type]
    assert len(alone) == 3 and alone.equals(among.filter(pl.col("model") == "unime_v2"))
