"""Put all tasks into the tables, the charts and the page."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from unime.config import View
from unime.door import Door
from unime.job import Job


def run(config: View, job: Job, inputs: list[Path], outputs: list[Path]) -> str:
    import polars as pl

    from unime import artifacts, caution
    from unime.report import charts, choice, crossmodal, page, protocol, table, warned
    from unime.report.protocol import Training

    evaluated, mining, data_train, data_eval, *trained = inputs
    csv, markdown, captions_csv, captions_markdown, metrics, drawings, html, warnings_file = outputs
    tasks, columns = config.evaluate.tasks, config.evaluate.crossmodal

    def scores(names: list[str]) -> pl.DataFrame:
        return artifacts.read_tables(evaluated, names, "scores.parquet", artifacts.SCORES)

    def of_training(file: str, schema: dict[str, Any]) -> pl.DataFrame:
        return artifacts.read_tables(data_train, config.data.train_sets, file, schema)

    trainings = {}
    for name, folder in zip(protocol.TRAINED, trained, strict=False):  # the reranker is the last one, and no row of its own
        negatives = 0 if name == "in_batch" else config.train[name].negatives
        trainings[name] = Training.read(folder / "log.csv", negatives)
    note = protocol.note(trainings, config.evaluate.rerank, config.evaluate.rerank_mode)
    found = table.build(scores(tasks), tasks, config.evaluate.compare, note)
    captions = crossmodal.build(scores(columns), columns)
    drawn = charts.charts(found)
    drawings.mkdir()
    for meta, svg in drawn.items():
        (drawings / f"{meta}.svg").write_text(svg, encoding="utf-8")
    text = (mining / "mining.md").read_text(encoding="utf-8")
    train = [artifacts.read_json(data_train / name / "report.json") for name in config.data.train_sets]
    evaluation, shown = ([artifacts.read_json(data_eval / name / "report.json") for name in names] for names in (tasks, columns))
    section = crossmodal.section(captions) if columns else ""
    figures = artifacts.read_json(mining / "mining.json")
    pairs = of_training("pairs.parquet", artifacts.PAIRS)
    items = of_training("items.parquet", artifacts.ITEMS)
    warnings = [
        *warned.of_left_out(train, evaluation, shown),
        *warned.of_mining(figures),
        *warned.of_trainings(trained),
        *warned.of_scores(scores([*tasks, *columns]), data_eval, tasks, columns),
        *warned.of_data(data_eval, [*tasks, *columns], pairs, items),
    ]
    artifacts.write_json({"warnings": warnings}, warnings_file)
    own: dict[str, choice.Answers] = {}
    for name in choice.own_tasks(tasks):
        predictions = artifacts.read_table(evaluated / name / "predictions.parquet", artifacts.PREDICTIONS)
        own[name] = choice.answers(predictions, name)
    whole = page.page(
        found, drawn, text, train, evaluation, crossmodal=section, columns=shown, warnings=warnings, choice=choice.section(own)
    )
    html.write_text(whole, encoding="utf-8")
    csv.write_text(table.to_csv(found), encoding="utf-8")
    markdown.write_text(table.to_markdown(found), encoding="utf-8")
    captions_csv.write_text(crossmodal.to_csv(captions), encoding="utf-8")
    captions_markdown.write_text(crossmodal.to_markdown(captions), encoding="utf-8")
    more = crossmodal.to_metrics(captions)
    artifacts.write_json({model: means | more[model] for model, means in table.to_metrics(found).items()}, metrics)
    lines = [line.rstrip() for line in table.to_text(found).splitlines() if line.strip()]
    counted = f"{len(tasks)} tasks, {len(columns)} cross-modal columns"
    return caution.said("\n".join([counted, *lines, *choice.lines(own)]), warnings)


DOOR = Door(
    sections=(
        "data.train_sets",
        "evaluate.tasks",
        "evaluate.crossmodal",
        "evaluate.compare",
        "evaluate.rerank",
        "evaluate.rerank_mode",
        "mine.source",
        "train.hard_negatives.negatives",
        "train.unime_v2.negatives",
    ),
    inputs=(
        "results/evaluate",
        "results/mining_report/{mine.source}",
        "results/data/train",
        "results/data/eval",
        "results/train/in_batch",
        "results/train/hard_negatives",
        "results/train/unime_v2",
        "results/train/reranker",
    ),
    outputs=(
        "results/mmeb_table.csv",
        "results/mmeb_table.md",
        "results/crossmodal_table.csv",
        "results/crossmodal_table.md",
        "results/metrics.json",
        "results/charts",
        "results/report.html",
        "results/warnings.json",
    ),
    sweep={
        "results/evaluate": ("evaluate.tasks", "evaluate.crossmodal"),
        "results/data/train": "data.train_sets",
        "results/data/eval": ("evaluate.tasks", "evaluate.crossmodal"),
    },
    run=run,
)
