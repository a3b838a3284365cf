"""Read one training set in its published layout: items by content id, and pairs."""

from __future__ import annotations

from pathlib import Path

from unime.config import View
from unime.door import Door
from unime.doors._data import source
from unime.job import Job


def run(config: View, job: Job, inputs: list[Path], outputs: list[Path]) -> str:
    from unime import artifacts
    from unime.data import sets, tables
    from unime.data.images import Decoding

    assert job.item is not None
    data, folder = config.data, inputs[0] / job.item
    items, pairs, report, labels = sets.read_train(
        data.root, job.item, data.instructions, data.cap, config.seed, Decoding.of(data), data.bad_rows, job, data.image_marks, data.copies
    )
    tables.refuse_one_positive(pairs, folder)
    artifacts.write_table(items, outputs[0] / "items.parquet", artifacts.ITEMS)
    artifacts.write_table(pairs, outputs[0] / "pairs.parquet", artifacts.PAIRS)
    artifacts.write_table(labels, outputs[0] / "labels.parquet", artifacts.LABELS)
    artifacts.write_json(report | source(folder), outputs[0] / "report.json")
    truth = folder / "truth.parquet"  # the embedded suite's: what every item shows
    if truth.exists():
        artifacts.write_table(artifacts.read_table(truth, artifacts.TRUTH), outputs[0] / "truth.parquet", artifacts.TRUTH)
    left_out = f", {report['left_out']['count']:,} rows left out (report.json)" if report["left_out"]["count"] else ""
    return f"{len(pairs):,} pairs, {len(items):,} items{left_out}"


DOOR = Door(
    sections=(
        "seed",
        "data.root",
        "data.instructions",
        "data.cap",
        "data.max_pixels",
        "data.pixels",
        "data.bad_rows",
        "data.image_marks",
        "data.copies",
    ),
    inputs=("{data.root}/train",),
    outputs=("results/rows/train/{item}",),
    items="data.train_sets",
    run=run,
)
