"""The ablations' table: blocks by what was changed, the run itself in each, published rows only beside the paper's own tasks."""

from __future__ import annotations

import csv
import io
import logging

import polars as pl
import pytest

from unime import artifacts
from unime.artifacts import ArtifactError
from unime.config import Variant
from unime.data.items import Items
from unime.evaluate import one, run
from unime.evaluate.tasks import CROSSMODAL, MODELS, TASKS
from unime.job import Job
from unime.report import ablations

NANO = [name for name, task in TASKS.items() if task.suite == "nano"]
MMEB = [name for name, task in TASKS.items() if task.suite == "mmeb"]
PAPER = [name for name, column in CROSSMODAL.items() if column.suite == "paper"]
BASE = Variant(source="judge", negatives=8, tau=0.02)
VARIANTS = {
    "other": Variant(source="other", negatives=8, tau=0.02),
    "k-4": Variant(source="judge", negatives=4, tau=0.02),
    "tau": Variant(source="judge", negatives=8, tau=0.01),
    "both": Variant(source="judge", negatives=4, tau=0.03),
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
    view = config.model_copy(update={"models": models}).view(("models", "embed", "train.reranker.image_size", "evaluate"))

    def job(name: str) -> Job:
        (tmp_path / name).mkdir()
        return Job("NanoColor", 1, tmp_path / name, logging.getLogger("test"))

    items, task, _ = mmeb.read_eval(str(suite), "NanoColor", 10**6, "fail", job("read"))
    shown = Items(items, 10**6)
    among, _ = run.evaluate(task, shown, dict.fromkeys(MODELS), view, job("all"))
    alone = one.score_task(task, shown, None, view, job("one"))  # type: ignore[arg-type]
    assert len(alone) == 3 and alone.equals(among.filter(pl.col("model") == "unime_v2"))
