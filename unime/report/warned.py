"""The warnings of a whole run, out of what its stages left."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import polars as pl

from unime import artifacts, caution
from unime.evaluate import chance
from unime.evaluate.tasks import MODELS, column
from unime.report import mining

Report = Mapping[str, Any]
"""The report.json of a training set, a task or a caption column."""


def of_mining(figures: Mapping[str, Any]) -> list[str]:
    """Of the mining report's figures; of published negatives, which nothing here has mined, what their import has found."""
    return mining.warnings(figures) if "all" in figures else list(figures.get("warnings", []))


def of_trainings(folders: Sequence[Path]) -> list[str]:
    """Of the logs of trainings, each in the folder of its adapter, which is named as the model."""
    found = []
    for folder in folders:
        with (folder / "log.csv").open(encoding="utf-8", newline="") as file:
            losses = [float(record["loss"]) for record in csv.DictReader(file)]
        found += caution.of_losses(losses, f"{MODELS.get(folder.name, folder.name)}: ")
    return found


def of_scores(scores: pl.DataFrame, data: Path, tasks: Sequence[str], columns: Sequence[str]) -> list[str]:
    """Of SCORES of all tasks and caption columns, whose queries are below `data`."""
    metrics = dict.fromkeys(tasks, "precision@1") | {name: column(name).metric for name in columns}
    by_task = {}
    for name, metric in metrics.items():
        guessed = chance.chance(queries_of(data / name), pool_of(data / name))
        by_task[name] = chance.trained(scores.filter(pl.col("task") == name), metric, guessed)
    found = caution.of_models(by_task)
    for name, models in by_task.items():
        found += caution.of_task(name, models)
    return found


def of_data(data: Path, names: Sequence[str], pairs: pl.DataFrame, trained: pl.DataFrame) -> list[str]:
    """Of tasks and columns below `data` whose answers the training PAIRS hold; `trained` are the ITEMS of training."""
    found = []
    for name in names:
        items = artifacts.read_table(data / name / "items.parquet", artifacts.ITEMS)
        queries = queries_of(data / name)
        found += caution.of_leaks(name, len(queries), *chance.leaks(queries, items, pairs, trained))
    return found


def of_left_out(train: Sequence[Report], tasks: Sequence[Report], columns: Sequence[Report]) -> list[str]:
    """Of the reports of training sets, tasks and caption columns, where much of their data is left out."""
    found = []
    for report in train:
        found += caution.of_left_out(report["name"], report["left_out"]["count"], report["sampled"])
    for report in [*tasks, *columns]:
        found += caution.of_left_out(report["name"], report["left_out"]["count"], report["rows"])
    for report in tasks:  # a candidate is lost once for every list that shows it; lists that are shorter make easier questions
        lost = report["candidates_left_out"]["count"]
        found += caution.of_left_out(report["name"], lost, lost + report["queries"] * report["candidates"]["most"], "list entries")
    for report in columns:
        lost = report["captions_left_out"]["count"]
        found += caution.of_left_out(report["name"], lost, lost + report["candidates"], "candidates")
    return found


def queries_of(folder: Path) -> pl.DataFrame:
    """The queries of a task or of a caption column."""
    captions = (folder / "pool.parquet").exists()
    return artifacts.read_table(folder / "queries.parquet", artifacts.CAPTION_QUERIES if captions else artifacts.TASKS)


def pool_of(folder: Path) -> pl.DataFrame:
    """POOL of a caption column; empty for a task, whose queries bring their candidates along."""
    file = folder / "pool.parquet"
    return artifacts.read_table(file, artifacts.POOL) if file.exists() else pl.DataFrame(schema=artifacts.POOL)
