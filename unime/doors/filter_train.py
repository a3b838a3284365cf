"""Leave out the rows of every training set that a model of the run could not read, before anything is paid for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from unime.config import View
from unime.door import Door
from unime.doors._filter import Readers, copied, named, used, with_left_out
from unime.job import Job


def run(config: View, job: Job, inputs: list[Path], outputs: list[Path]) -> str:
    readers, kept = Readers(config), 0
    lost: dict[str, int] = {}
    for name in job.track(config.data.train_sets, len(config.data.train_sets), "training sets"):
        report = filter_set(config, readers, inputs, name, outputs[0] / name)
        if report["too_long"]:
            lost[name] = report["too_long"]
        kept += report["pairs"]
    summary = f"{kept:,} pairs of {len(config.data.train_sets)} sets fit the models"
    return f"{summary}, {sum(lost.values()):,} left out that one could not read ({named(lost)}; report.json)" if lost else summary


def filter_set(config: View, readers: Readers, inputs: list[Path], name: str, out: Path) -> dict[str, Any]:
    """Write one set's tables without the rows that do not fit; its report."""
    import shutil

    from unime import artifacts
    from unime.data import rows, tables
    from unime.data.items import Items
    from unime.data.rows import DataError
    from unime.limits.places import Places
    from unime.limits.sets import fitting

    folder, base, judge, reranker, embedder = inputs[0] / name, *inputs[1:]
    items = artifacts.read_table(folder / "items.parquet", artifacts.ITEMS)
    pairs = artifacts.read_table(folder / "pairs.parquet", artifacts.PAIRS)
    report = artifacts.read_json(folder / "report.json")
    places = Places(report.pop("places"))
    alone, shown = readers.of_set(Items(items, config.data.max_pixels, str(folder)), base, judge, reranker, embedder)
    table, bad = fitting(pairs, alone, shown, places)
    rows.refuse_if_asked(config.data.bad_rows, name, bad)
    out.mkdir(parents=True)
    if bad.is_empty():
        copied(folder, out, report)
        return report | {"too_long": 0}

    if table.is_empty():
        file, row, reason = bad.row(0)
        raise DataError(f"{folder}: none of the {len(pairs):,} pairs of {name} fits the models; {file}: row {row}: {reason}")
    tables.refuse_one_positive(table, folder)
    labels = artifacts.read_table(folder / "labels.parquet", artifacts.LABELS)
    labels = labels.join(table.select("query").unique(), on="query", how="semi", maintain_order="left")
    labels = labels.join(table.select("positive").unique(), on="positive", how="semi", maintain_order="left")
    artifacts.write_table(used(items, table["query"], table["positive"]), out / "items.parquet", artifacts.ITEMS)
    artifacts.write_table(table, out / "pairs.parquet", artifacts.PAIRS)
    artifacts.write_table(labels, out / "labels.parquet", artifacts.LABELS)
    if (folder / "truth.parquet").exists():
        shutil.copy(folder / "truth.parquet", out / "truth.parquet")
    counts = {"pairs": len(table), "queries": table["query"].n_unique(), "candidates": table["positive"].n_unique()}
    counts["labels_not_drawn"] = len(labels)
    counts["modalities"] = tables.modalities(table, items)
    report = with_left_out(report | counts, bad)
    artifacts.write_json(report, out / "report.json")
    return report | {"too_long": len(bad)}


DOOR = Door(
    sections=(
        "models.base",
        "models.judge",
        "models.reranker",
        "models.max_length",
        "data.train_sets",
        "data.bad_rows",
        "data.max_pixels",
        "embed.model",
        "embed.image_size",
        "judge.backend",
        "judge.image_size",
        "judge.prompt",
        "mine.source",
        "train.image_size",
        "train.reranker.image_size",
        "train.reranker.max_tokens",
        "train.reranker.prompt",
        "train.reranker.list_negatives",
    ),
    inputs=("results/rows/train", "{models.base}", "{models.judge}", "{models.reranker}", "{embed.model}"),
    outputs=("results/data/train",),
    sweep={"results/rows/train": "data.train_sets"},
    run=run,
)
