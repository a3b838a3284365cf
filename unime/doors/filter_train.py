"""Leave out the rows of every training set that a model of the run could not read, before anything is paid for."""

from __future__ import annotations

from pathlib import Path

from unime.config import View
from unime.door import Door
from unime.doors._filter import Readers, copied, each, lost, named, used, with_left_out
from unime.job import Job


def run(config: View, job: Job, inputs: list[Path], outputs: list[Path]) -> str:
    from unime import artifacts

    readers, names = Readers(config), config.data.train_sets
    each(names, "training sets", job, outputs[0], lambda name, out: filter_set(config, readers, inputs, name, out))
    pairs = sum(artifacts.read_json(outputs[0] / name / "report.json")["pairs"] for name in names)
    gone = lost(names, inputs[0], outputs[0])
    summary = f"{pairs:,} pairs of {len(names)} sets fit the models"
    return f"{summary}, {sum(gone.values()):,} left out that one could not read ({named(gone)}; report.json)" if gone else summary


def filter_set(config: View, readers: Readers, inputs: list[Path], name: str, out: Path) -> None:
    """Write one set's tables without the rows that do not fit, and its report, to the folder `out`."""
    import shutil

    from unime import artifacts
    from unime.data import figures, rows, tables
    from unime.data.images import Decoding
    from unime.data.items import Items
    from unime.data.rows import DataError
    from unime.limits.places import Places
    from unime.limits.sets import fitting

    folder, base, judge, reranker, embedder = inputs[0] / name, *inputs[1:]
    items = artifacts.read_table(folder / "items.parquet", artifacts.ITEMS)
    pairs = artifacts.read_table(folder / "pairs.parquet", artifacts.PAIRS)
    report = artifacts.read_json(folder / "report.json")
    places = Places(report.pop("places"))
    alone, shown = readers.of_set(Items(items, Decoding.of(config.data), str(folder)), base, judge, reranker, embedder)
    table, bad = fitting(pairs, alone, shown, places)
    rows.refuse_if_asked(config.data.bad_rows, name, bad)
    if bad.is_empty():
        copied(folder, out, report)
        return

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
    counts["modalities"] = figures.modalities(table, items)
    artifacts.write_json(with_left_out(report | counts, bad), out / "report.json")


DOOR = Door(
    sections=(
        "models.base",
        "models.judge",
        "models.reranker",
        "models.max_length",
        "data.train_sets",
        "data.bad_rows",
        "data.max_pixels",
        "data.pixels",
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
