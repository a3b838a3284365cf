"""The cross-modal table says what the scores say, and the paper's figures stand only where they are the same quantity."""

from __future__ import annotations

import csv
import io

import numpy as np
import polars as pl
import pytest

from unime.artifacts import SCORES, ArtifactError
from unime.config import ConfigError
from unime.evaluate.tasks import CAPTIONS, CROSSMODAL, MODELS, columns_of
from unime.report import crossmodal as tables
from unime.report import html, page, published, table

PAPER = [name for name, known in CROSSMODAL.items() if known.suite == "paper"]
NANO = [name for name, known in CROSSMODAL.items() if known.suite == "nano"]
PARTS = {"replace": ("replace_att", "replace_obj", "replace_rel"), "swap": ("swap_att", "swap_obj"), "add": ("add_att", "add_obj")}


def scores(names: list[str], seed: int = 0) -> pl.DataFrame:
    rng = np.random.default_rng(seed)
    rows = []
    for name in names:
        for model in MODELS:
            low, middle, high = sorted(int(v) / 1000 for v in rng.integers(0, 1001, 3))
            if CROSSMODAL[name].metric == "recall@1":
                figures = {"recall@1": low, "recall@5": middle, "recall@10": high}
                rows += [(name, model, metric, value, 1000, "content") for metric, value in figures.items()]
                continue
            parts = PARTS[name.split("_")[1]]
            shares = rng.integers(0, 101, len(parts)) / 100
            rows.append((name, model, "accuracy", float(shares.mean()), 100 * len(parts), "strict"))
            rows += [(name, model, f"accuracy/{part}", float(share), 100, "strict") for part, share in zip(parts, shares, strict=True)]
    return pl.DataFrame(rows, schema=SCORES, orient="row")


def lines_of(found: tables.Table) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(tables.to_csv(found))))


def test_the_csv_has_a_row_a_model_with_every_columns_figure_and_the_groups_means():
    given = scores(NANO)
    rows = lines_of(tables.build(given, NANO))
    assert [row["model"] for row in rows] == list(MODELS.values()) and {row["source"] for row in rows} == {"this run"}
    assert list(rows[0]) == ["model", "source", "short", "long", "compositional", *NANO]
    value = {(r["model"], r["task"]): r["value"] for r in given.iter_rows(named=True) if r["metric"] in ("recall@1", "accuracy")}
    for key, row in zip(MODELS, rows, strict=True):
        assert all(row[name] == f"{100 * value[key, name]:.2f}" for name in NANO)
        for group in ("short", "compositional"):
            assert row[group] == f"{100 * np.mean([value[key, name] for name in columns_of(group, NANO)]):.2f}"
        assert row["long"] == ""
    assert list(tables.to_metrics(tables.build(given, NANO))["unime_v2"]) == ["short", "compositional"]


def test_published_rows_stand_where_this_run_has_the_papers_columns():
    whole = {row["model"]: row for row in lines_of(tables.build(scores(PAPER), PAPER)) if row["source"] == "published"}
    assert set(whole) == set(published.PUBLISHED_CROSSMODAL) and len(whole) == 9
    row = whole["UniME-V2 (Qwen2-VL 2B)"]
    assert [row[group] for group in CAPTIONS] == ["72.10", "93.40", "64.10"] and row["SugarCrepe_swap"] == "51.20"
    reranked = whole["UniME-V2 (Qwen2-VL 7B) + reranker"]
    assert [reranked[group] for group in CAPTIONS] == ["78.70", "97.50", "94.80"] and reranked["COCO_i2t"] == ""
    assert whole["UniME-V2 (LLaVA-OneVision 7B)"]["short"] == "", "the paper's means stand, none of ours"


def test_published_rows_are_hidden_where_the_columns_differ():
    assert {row["source"] for row in lines_of(tables.build(scores(NANO), NANO))} == {"this run"}
    mixed = [*PAPER, "NanoScenes_i2t"]
    for row in lines_of(tables.build(scores(mixed), mixed)):
        if row["source"] == "published":
            assert row["short"] == row["NanoScenes_i2t"] == "", "this run's mean is over another column more"
    part = lines_of(tables.build(scores(PAPER), ["COCO_i2t", "SugarCrepe_add"]))
    shown = [row for row in part if row["source"] == "published"]
    assert len(shown) == 3 and all(row[group] == "" for row in shown for group in CAPTIONS)
    assert [row["COCO_i2t"] for row in shown] == ["65.10", "70.30", "74.10"]
    alone = lines_of(tables.build(scores(PAPER), columns_of("long", PAPER)))
    assert {row["model"]: row["long"] for row in alone}["UniME-V2 (Qwen2-VL 2B) + reranker"] == "96.90"


def test_published_columns_agree_with_the_published_means_and_with_what_is_easier():
    checked = 0
    for name, figures in published.PUBLISHED_CROSSMODAL.items():
        for group in CAPTIONS:
            inside = columns_of(group, PAPER)
            if group in figures and inside[0] in figures:
                assert np.mean([figures[column] for column in inside]) == pytest.approx(figures[group], abs=0.0501), (name, group)
                checked += 1
        if "COCO_i2t" in figures:  # five right captions an image, one right image a caption
            assert figures["COCO_i2t"] > figures["COCO_t2i"] and figures["Flickr30K_i2t"] > figures["Flickr30K_t2i"]
    assert checked == 6


def test_markdown_has_every_cut_and_part_with_its_number_of_queries_and_says_the_rules():
    given = scores(PAPER)
    text = tables.to_markdown(tables.build(given, PAPER))
    assert text.startswith("# Cross-modal retrieval (%)\n") and "## Long captions" in text
    assert "Ties (`content`)" in text and "a tie is a miss" in text and "Rows marked published" in text and "`_t2i`" in text
    of = {(r["task"], r["metric"]): f"{100 * r['value']:.2f}" for r in given.iter_rows(named=True) if r["model"] == "zero_shot"}
    for metric, shown in (("recall@5", "Recall@5"), ("recall@10", "Recall@10")):
        assert f"| COCO_t2i | {shown} | 1,000 | {of['COCO_t2i', metric]} |" in text
    assert f"| SugarCrepe_swap | Accuracy, swap_obj | 100 | {of['SugarCrepe_swap', 'accuracy/swap_obj']} |" in text
    assert f"| SugarCrepe_swap | Accuracy | 200 | {of['SugarCrepe_swap', 'accuracy']} |" in text
    nano = tables.to_markdown(tables.build(scores(NANO), NANO))
    assert "No published row stands beside these" in nano and "`_t2i`: its" not in nano and "## Long captions" not in nano


def test_the_page_has_the_section_with_every_column_and_the_same_bytes():
    mmeb = [("NanoCrop", model, "precision@1", 0.5, 10, "content") for model in MODELS]
    results = table.build(pl.DataFrame(mmeb, schema=SCORES, orient="row"), ["NanoCrop"])
    found = tables.build(scores(NANO), NANO)
    text, again = (page.page(results, {}, "", [], [], crossmodal=tables.section(found)) for _ in range(2))
    assert text == again and '<a href="#cross-modal">Cross-modal</a>' in text
    assert all(f"<td>{name}</td>" in text and f">{name}</th>" in text for name in NANO)
    assert '<h3 id="short-captions">Short captions</h3>' in text
    assert html.render(tables.section(found), deeper=2) in text


def test_the_page_says_what_the_caption_sets_held_and_what_was_left_out():
    mmeb = [("NanoCrop", model, "precision@1", 0.5, 10, "content") for model in MODELS]
    results = table.build(pl.DataFrame(mmeb, schema=SCORES, orient="row"), ["NanoCrop"])
    lost = {"count": 1, "listed": [{"file": "Urban1k.zip", "row": 17, "reason": "it has no caption"}]}
    blank = {"count": 2, "listed": [{"file": "Urban1k.zip", "row": 4, "reason": "caption 3 is blank"}] * 2}
    one = {"name": "Urban1K_i2t", "rows": 1234, "queries": 1233, "candidates": 1233, "distinct": 1200, "duplicates": 33}
    text = page.page(results, {}, "", [], [], columns=[one | {"left_out": lost, "captions_left_out": blank}])
    row = text[text.index("Cross-modal columns") :]
    figures = [f'<td class="right">{figure}</td>' for figure in ("1,234", "1,233", "1,200", "33", "3")]
    assert all(figure in row for figure in figures) and "it has no caption" in row and row.count("caption 3 is blank") == 2


def test_scores_that_cannot_be_compared_are_refused_with_column_and_model():
    given = scores(NANO)
    of_one = (pl.col("task") == "NanoCrepe_add") & (pl.col("model") == "in_batch")
    with pytest.raises(ArtifactError, match="NanoCrepe_add has no accuracy of in_batch; run the stage"):
        tables.build(given.filter(~(of_one & (pl.col("metric") == "accuracy"))), NANO)
    with pytest.raises(ArtifactError, match="recall@1 of zero_shot on NanoScenes_i2t stands twice"):
        tables.build(pl.concat([given, given]), NANO)
    with pytest.raises(ArtifactError, match="accuracy of in_batch on NanoCrepe_add is 1.5"):
        tables.build(given.with_columns(pl.when(of_one).then(1.5).otherwise("value").alias("value")), NANO)
    with pytest.raises(ArtifactError, match="tie rules content, vlm2vec_v1"):
        first = pl.when(pl.col("task") == "NanoScenes_t2i").then(pl.lit("vlm2vec_v1")).otherwise("tie_rule").alias("tie_rule")
        tables.build(given.with_columns(first), NANO)
    with pytest.raises(ConfigError, match="nearest: 'NanoCrepe_add'"):
        tables.build(given, ["NanoCrepe_ad"])


def test_a_table_of_pairs_alone_has_no_tie_rule_of_retrieval():
    names = columns_of("compositional", PAPER)
    found = tables.build(scores(names), names)
    assert found.tie_rule == "" and "Ties (" not in tables.to_markdown(found) and found.groups() == ["compositional"]
