"""The table, charts and page say what the scores say, in the promised form, and are the same bytes every time."""

from __future__ import annotations

import csv
import io
import subprocess
import sys
from xml.etree import ElementTree

import numpy as np
import polars as pl
import pytest

from unime.artifacts import SCORES, ArtifactError
from unime.config import ConfigError
from unime.evaluate.tasks import MEANS, META, MODELS, TASKS, members
from unime.report import charts, html, page, published, seeds
from unime.report import table as tables

NANO = [name for name, known in TASKS.items() if known.suite == "nano"]
MMEB = [name for name, known in TASKS.items() if known.suite == "mmeb"]


def scores(names: list[str], seed: int = 0) -> pl.DataFrame:
    rng = np.random.default_rng(seed)
    rows = []
    for name in names:
        for model in MODELS:
            value = int(rng.integers(0, 1001)) / 1000
            rows += [(name, model, "precision@1", value, 1000, "content"), (name, model, "recall@5", 1.0, 1000, "content")]
    return pl.DataFrame(rows, schema=SCORES, orient="row")


def lines_of(table: tables.Table) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(tables.to_csv(table))))


def test_the_csv_has_the_promised_rows_and_columns_and_means_over_exactly_the_groups_tasks():
    given = scores(NANO)
    rows = lines_of(tables.build(given, NANO))
    assert [row["model"] for row in rows] == ["base zero-shot", "in-batch (VLM2Vec)", "hard negatives", "UniME-V2", "UniME-V2 + reranker"]
    assert list(rows[0]) == [
        "model",
        "source",
        "classification",
        "vqa",
        "retrieval",
        "grounding",
        "ind",
        "ood",
        "overall",
        "difference",
        *NANO,
    ]
    assert {row["source"] for row in rows} == {"this run"}
    values = {(r["model"], r["task"]): r["value"] for r in given.iter_rows(named=True) if r["metric"] == "precision@1"}
    for key, row in zip(MODELS, rows, strict=True):
        assert all(row[name] == f"{100 * values[key, name]:.2f}" for name in NANO)
        for mean in MEANS:
            assert row[mean] == f"{100 * np.mean([values[key, name] for name in members(mean, NANO)]):.2f}"


def test_a_group_without_tasks_is_empty_and_the_order_is_the_configs():
    names = ["NanoCrop", "NanoColor"]
    rows = lines_of(tables.build(scores(NANO), names))
    assert list(rows[0])[-2:] == names
    assert rows[0]["vqa"] == rows[0]["ood"] == "" and rows[0]["grounding"] == rows[0]["NanoCrop"]
    assert "vqa" not in tables.to_metrics(tables.build(scores(NANO), names))["zero_shot"]


def test_published_rows_stand_only_under_means_over_exactly_mmebs_tasks():
    assert all(row.source == "this run" for row in tables.build(scores(NANO), NANO).rows)
    whole = tables.build(scores(MMEB), MMEB)
    shown = {row.model: row for row in whole.rows if row.source == "published"}
    assert set(shown) == set(published.PUBLISHED)
    assert shown["UniME-V2 (Qwen2-VL 2B)"].means["overall"] == pytest.approx(0.636)
    row = next(r for r in lines_of(whole) if r["model"] == "UniME-V2 (Qwen2-VL 7B) + reranker")
    assert row["overall"] == "69.60" and row["classification"] == row["VisDial"] == ""
    part = tables.build(scores(MMEB), members("grounding", MMEB))
    assert {mean for row in part.rows if row.source == "published" for mean in row.means} == {"grounding"}
    assert not [
        row for row in tables.build(scores(TASKS), [*MMEB, "NanoCrop"]).rows if "overall" in row.means and row.source == "published"
    ]


def test_published_means_agree_with_one_another():
    for name, means in published.PUBLISHED.items():
        if len(means) == len(MEANS):
            metas = (10 * means["classification"] + 10 * means["vqa"] + 12 * means["retrieval"] + 4 * means["grounding"]) / 36
            splits = (20 * means["ind"] + 16 * means["ood"]) / 36
            assert metas == pytest.approx(means["overall"], abs=0.25), name
            assert splits == pytest.approx(means["overall"], abs=0.25), name


def test_scores_that_cannot_be_compared_are_refused_with_task_and_model():
    given = scores(["NanoCrop", "NanoPoint"])
    with pytest.raises(ArtifactError, match="NanoPoint has no precision@1 of in_batch; run the stage evaluate@NanoPoint"):
        tables.build(given.filter(~((pl.col("task") == "NanoPoint") & (pl.col("model") == "in_batch"))), ["NanoCrop", "NanoPoint"])
    with pytest.raises(ArtifactError, match="tie rules content, vlm2vec_v1"):
        first = pl.when(pl.col("task") == "NanoCrop").then(pl.lit("vlm2vec_v1")).otherwise("tie_rule").alias("tie_rule")
        tables.build(given.with_columns(first), ["NanoCrop", "NanoPoint"])
    with pytest.raises(ArtifactError, match="zero_shot on NanoCrop is nan"):
        tables.build(given.with_columns(pl.lit(float("nan")).alias("value")), ["NanoCrop"])
    with pytest.raises(ArtifactError, match="stands twice"):
        tables.build(pl.concat([given, given]), ["NanoCrop"])
    with pytest.raises(ArtifactError, match="NanoCorp has no precision@1 of zero_shot"):
        tables.build(given, ["NanoCorp"])


def test_markdown_says_tie_rule_n_and_why_no_published_row_is_there():
    text = tables.to_markdown(tables.build(scores(NANO), NANO))
    assert "Ties (`content`)" in text and "1,000 queries a task" in text and "18 tasks" in text
    assert "No published row stands beside these" in text
    assert "Rows marked published" in tables.to_markdown(tables.build(scores(MMEB), MMEB))
    for name in NANO:
        assert f"| {name} | {TASKS[name].split.upper()} | 1,000 |" in text


def test_the_screen_table_fits_80_columns():
    for names in (NANO, MMEB):
        table = tables.build(scores(names), names)
        shown = tables.to_text(table)
        assert "\x1b" not in shown and "\x1b" in tables.to_text(table, color=True)
        assert max(map(len, shown.splitlines())) <= 80
        own = table.rows[-1 if names is NANO else 4]
        line = next(line for line in shown.splitlines() if "UniME-V2 + reranker" in line)
        assert line.split()[-7:] == [tables.percent(own.means[mean]) for mean in MEANS]


COMPARE = {"unime_v2": "UniME-V2 (Qwen2-VL 2B)", "unime_v2_reranker": "UniME-V2 (Qwen2-VL 2B) + reranker"}


def test_a_difference_is_this_runs_overall_minus_the_papers_in_points():
    table = tables.build(scores(MMEB), MMEB, COMPARE)
    rows = {row["model"]: row for row in lines_of(table) if row["source"] == "this run"}
    for key, shown in MODELS.items():
        if key in COMPARE:
            own = next(row for row in table.rows if row.model == shown).means["overall"]
            points = 100 * own - published.PUBLISHED[COMPARE[key]]["overall"]
            assert abs(points) > 1 and rows[shown]["difference"] == f"{points:+.2f}"
        else:
            assert rows[shown]["difference"] == ""
    assert {row["difference"] for row in lines_of(table) if row["source"] == "published"} == {""}
    assert [tables.points(value) for value in (1.2, -0.351, -0.001, 0.0, None)] == ["+1.20", "-0.35", "+0.00", "+0.00", ""]
    text, shown = tables.to_markdown(table), tables.to_text(table)
    assert "| Difference |" in text and f"{rows['UniME-V2']['difference']} |" in text
    assert "UniME-V2 against the paper's UniME-V2 (Qwen2-VL 2B); UniME-V2 + reranker against" in text
    assert "Diff" in shown and rows["UniME-V2"]["difference"] in shown and max(map(len, shown.splitlines())) <= 80
    assert f">{rows['UniME-V2']['difference']}<" in page.page(table, {}, "", [], [])


def test_no_difference_is_shown_where_nothing_is_comparable():
    for names in (NANO, members("grounding", MMEB), [*MMEB, "NanoCrop"]):
        table = tables.build(scores(TASKS), names, COMPARE)
        assert {row["difference"] for row in lines_of(table)} == {""}
        assert "Diff" not in tables.to_text(table) and "Difference" not in tables.to_markdown(table)
    without = tables.build(scores(MMEB), MMEB)
    assert "Diff" not in tables.to_text(without) and {row["difference"] for row in lines_of(without)} == {""}


def test_an_unknown_model_or_published_row_is_named_with_the_nearest():
    with pytest.raises(ConfigError, match=r"evaluate.compare.unime_v2: 'UniME-V2 \(Qwen2-VL-2B\)' .*nearest: 'UniME-V2 \(Qwen2-VL 2B\)'"):
        tables.build(scores(NANO), NANO, {"unime_v2": "UniME-V2 (Qwen2-VL-2B)"})
    with pytest.raises(ConfigError, match="evaluate.compare: 'unime_v' is no model of the table; nearest: 'unime_v2'"):
        tables.build(scores(NANO), NANO, {"unime_v": "UniME-V2 (Qwen2-VL 2B)"})


def test_charts_are_well_formed_show_every_task_and_stay_the_same_bytes():
    table = tables.build(scores(NANO), NANO)
    first, again = charts.charts(table), charts.charts(table)
    assert first == again and list(first) == list(META)
    for meta, svg in first.items():
        root = ElementTree.fromstring(svg)
        assert "date" not in svg.lower().replace("candidate", "")
        bars = [e for e in root.iter() if any(c in e.get("style", "") for c in charts.COLOURS.values())]
        expected = len(MODELS) * (len(members(meta, NANO)) + 2)  # tasks, the mean, the legend
        assert len(bars) == expected
    changed = tables.build(scores(NANO, seed=1), NANO)
    assert charts.chart(changed, "vqa") != first["vqa"]


TRAIN = {
    "name": "NanoMeme",
    "rows": 1240,
    "sampled": 1000,
    "pairs": 990,
    "duplicate_pairs": 9,
    "queries": 990,
    "candidates": 2,
    "modalities": {"image -> text": 990},
    "left_out": {"count": 61, "listed": [{"file": "a<b>.parquet", "row": 7, "reason": "the query's image a|b is truncated"}] * 60},
}
EVAL = {
    "name": "NanoCrop",
    "rows": 100,
    "queries": 100,
    "candidates": {"fewest": 20, "most": 100, "distinct": 1100},
    "duplicate_candidates": {"candidates": 0, "queries": 0, "queries_where_right": 0},
    "modalities": {"query": {"image+text": 100}, "candidate": {"image": 900, "text": 1100}},
    "left_out": {"count": 0, "listed": []},
    "candidates_left_out": {"count": 0, "listed": []},
}


def test_the_page_is_one_file_with_everything_escaped_and_the_same_bytes():
    table = tables.build(scores(NANO), NANO)
    drawn = charts.charts(table)
    mining = "# Mining\n\n## NanoMeme\n\n| a | b |\n| --- | ---: |\n| <x> | 1 |\n\n![scores](scores.svg)\n"
    text, again = (page.page(table, drawn, mining, [TRAIN], [EVAL], {"scores.svg": drawn["vqa"]}) for _ in range(2))
    assert text == again
    assert text.count("data:image/svg+xml;base64,") == 5
    assert 'src="http' not in text and "<x>" not in text and "a<b>" not in text and "<script" not in text
    assert "&lt;x&gt;" in text and "a&lt;b&gt;.parquet" in text and "a|b is truncated" in text
    assert "NanoMeme: 11 more" in text and "1,240" in text and "20 to 100" in text
    for name in NANO:
        assert f"<td>{name}</td>" in text
    assert "Ties (<code>content</code>)" in text
    clean = [TRAIN | {"left_out": {"count": 0, "listed": []}}]
    without = page.page(table, drawn, mining, clean, [EVAL])
    assert "No row and no candidate was left out" in without and "Cross-modal" not in without


def test_markdown_becomes_html_block_by_block():
    text = "# A *b*\ntext **bold** `x < **y**`\nmore [there](#a)\n- one\n- two\n\n```\n<raw> | x\n```\n"
    text += "| a | b |\n| --- | ---: |\n| `1` | 2 \\| 3 |\n"
    found = html.render(text, deeper=1)
    assert '<h2 id="a-b">A *b*</h2>' in found
    assert '<p>text <strong>bold</strong> <code>x &lt; **y**</code> more <a href="#a">there</a></p>' in found
    assert "<ul><li>one</li><li>two</li></ul>" in found and "<pre>&lt;raw&gt; | x</pre>" in found
    assert '<td><code>1</code></td><td class="right">2 | 3</td>' in found
    assert html.render("![a](absent.svg)") == "<p>![a](absent.svg)</p>"


def test_spread_over_runs_is_the_sample_deviation_and_steps_are_paired(tmp_path):
    paths = []
    for seed in range(3):
        paths.append(tmp_path / f"{seed}.csv")
        paths[-1].write_text(tables.to_csv(tables.build(scores(NANO, seed), NANO)), encoding="utf-8")
    runs = seeds.read(paths)
    found = seeds.over_seeds(runs)["UniME-V2"]["overall"]
    own = [float(csv_row["overall"]) for run in paths for csv_row in csv.DictReader(run.open()) if csv_row["model"] == "UniME-V2"]
    assert found.mean == pytest.approx(np.mean(own)) and found.std == pytest.approx(np.std(own, ddof=1)) and found.n == 3
    before = [float(r["overall"]) for run in paths for r in csv.DictReader(run.open()) if r["model"] == "hard negatives"]
    step = seeds.steps(runs)["UniME-V2 - hard negatives"]["overall"]
    assert step.mean == pytest.approx(np.mean(np.subtract(own, before))) and step.std == pytest.approx(
        np.std(np.subtract(own, before), ddof=1)
    )
    assert f"| UniME-V2 | {seeds.over_seeds(runs)['UniME-V2']['classification']} |" in seeds.to_markdown(runs)
    assert str(seeds.spread([5.0])) == "5.00"


def test_spread_over_runs_leaves_the_difference_out(tmp_path):
    paths = []
    for seed in range(2):
        paths.append(tmp_path / f"{seed}.csv")
        paths[-1].write_text(tables.to_csv(tables.build(scores(MMEB, seed), MMEB, COMPARE)), encoding="utf-8")
    runs = seeds.read(paths)
    assert runs[0]["difference"].null_count() == len(MODELS) - len(COMPARE)
    for found in (*seeds.over_seeds(runs).values(), *seeds.steps(runs).values()):
        assert list(found) == [*MEANS, *MMEB]


def test_runs_with_other_tasks_or_rows_are_refused(tmp_path):
    (tmp_path / "a.csv").write_text(tables.to_csv(tables.build(scores(NANO), NANO)), encoding="utf-8")
    (tmp_path / "b.csv").write_text(tables.to_csv(tables.build(scores(NANO), NANO[:3])), encoding="utf-8")
    (tmp_path / "c.csv").write_text("x,y\n1,2\n", encoding="utf-8")
    with pytest.raises(ArtifactError, match="b.csv: other tasks than .*a.csv"):
        seeds.read([tmp_path / "a.csv", tmp_path / "b.csv"])
    with pytest.raises(ArtifactError, match="c.csv: column 'model' is missing"):
        seeds.read([tmp_path / "c.csv"])
    with pytest.raises(ArtifactError, match="none.csv: cannot be read"):
        seeds.read([tmp_path / "none.csv"])


def test_report_and_metrics_load_no_torch():
    code = (
        "import sys, unime.evaluate.metrics, unime.evaluate.tasks\n"
        "from unime.report import charts, crossmodal, html, page, published, seeds, table\n"
        "print([m for m in ('torch', 'transformers', 'faiss', 'matplotlib') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
