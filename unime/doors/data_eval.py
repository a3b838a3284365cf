"""Read one evaluation task in its published layout: items by content id, and queries with their candidates."""

from __future__ import annotations

from pathlib import Path

from unime.config import View
from unime.door import Door
from unime.doors._data import source
from unime.job import Job


def run(config: View, job: Job, inputs: list[Path], outputs: list[Path]) -> str:
    from unime import artifacts
    from unime.data import sets
    from unime.data.images import Decoding

    assert job.item is not None
    data = config.data
    items, queries, report = sets.read_eval(data.root, job.item, Decoding.of(data), data.bad_rows, job, data.image_marks, data.copies)
    artifacts.write_table(items, outputs[0] / "items.parquet", artifacts.ITEMS)
    artifacts.write_table(queries, outputs[0] / "queries.parquet", artifacts.TASKS)
    artifacts.write_json(report | source(inputs[0]), outputs[0] / "report.json")
    count = report["left_out"]["count"] + report["candidates_left_out"]["count"]
    left_out = f", {count:,} rows or candidates left out (report.json)" if count else ""
    return f"{len(queries):,} queries, {report['candidates']['distinct']:,} distinct candidates{left_out}"


DOOR = Door(
    sections=("data.root", "data.max_pixels", "data.pixels", "data.bad_rows", "data.image_marks", "data.copies"),
    inputs=("{data.root}/eval",),
    outputs=("results/rows/eval/{item}",),
    items="evaluate.tasks",
    run=run,
)
