"""Put all tasks into the table, the charts and the page."""

from __future__ import annotations

from pathlib import Path

from unime.config import View
from unime.door import Door
from unime.job import Job


def run(config: View, job: Job, inputs: list[Path], outputs: list[Path]) -> str:
    import polars as pl

    from unime import artifacts
    from unime.report import charts, page, table

    evaluated, mining, data_train, data_eval = inputs
    csv, markdown, metrics, drawings, html = outputs
    tasks = config.evaluate.tasks
    found = table.build(pl.concat([artifacts.read_table(evaluated / name / "scores.parquet", artifacts.SCORES) for name in tasks]), tasks)
    drawn = charts.charts(found)
    drawings.mkdir()
    for meta, svg in drawn.items():
        (drawings / f"{meta}.svg").write_text(svg, encoding="utf-8")
    text = (mining / "mining.md").read_text(encoding="utf-8")
    train = [artifacts.read_json(data_train / name / "report.json") for name in config.data.train_sets]
    evaluation = [artifacts.read_json(data_eval / name / "report.json") for name in tasks]
    html.write_text(page.page(found, drawn, text, train, evaluation), encoding="utf-8")
    csv.write_text(table.to_csv(found), encoding="utf-8")
    markdown.write_text(table.to_markdown(found), encoding="utf-8")
    artifacts.write_json(table.to_metrics(found), metrics)
    shown = [line.rstrip() for line in table.to_text(found).splitlines() if line.strip()]
    return "\n".join([f"{len(tasks)} tasks", *shown])


DOOR = Door(
    sections=("data.train_sets", "evaluate.tasks"),
    inputs=("results/evaluate", "results/mining_report", "results/data/train", "results/data/eval"),
    outputs=("results/mmeb_table.csv", "results/mmeb_table.md", "results/metrics.json", "results/charts", "results/report.html"),
    sweep={"results/evaluate": "evaluate.tasks", "results/data/train": "data.train_sets", "results/data/eval": "evaluate.tasks"},
    run=run,
)
