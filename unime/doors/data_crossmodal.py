"""Read one direction of a caption benchmark: images and captions by content id, queries, and the pool of candidates."""

from __future__ import annotations

from pathlib import Path

from unime.config import View
from unime.door import Door
from unime.doors._data import source
from unime.job import Job


def run(config: View, job: Job, inputs: list[Path], outputs: list[Path]) -> str:
    from unime import artifacts
    from unime.data import captions
    from unime.data.images import Decoding

    assert job.item is not None
    data = config.data
    items, queries, pool, report = captions.read_captions(
        data.root, job.item, Decoding.of(data), data.bad_rows, job, data.caption_line_end, data.copies
    )
    artifacts.write_table(items, outputs[0] / "items.parquet", artifacts.ITEMS)
    artifacts.write_table(queries, outputs[0] / "queries.parquet", artifacts.CAPTION_QUERIES)
    artifacts.write_table(pool, outputs[0] / "pool.parquet", artifacts.POOL)
    artifacts.write_json(report | source(inputs[0] / job.item.rsplit("_", 1)[0]), outputs[0] / "report.json")
    left_out = f", {report['left_out']['count']:,} rows left out (report.json)" if report["left_out"]["count"] else ""
    return f"{len(queries):,} queries, {len(items):,} items{left_out}"


DOOR = Door(
    sections=("data.root", "data.max_pixels", "data.pixels", "data.bad_rows", "data.caption_line_end", "data.copies"),
    inputs=("{data.root}/crossmodal",),
    outputs=("results/rows/eval/{item}",),
    items="evaluate.crossmodal",
    run=run,
)
