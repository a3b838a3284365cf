"""Leave out the queries and candidates of every task and caption column that a model of the run could not read, before any training."""

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
    names = [*config.evaluate.tasks, *config.evaluate.crossmodal]
    outputs[0].mkdir()
    for name in job.track(names, len(names), "tasks"):
        report, count = filter_task(config, readers, inputs, name, outputs[0] / name)
        if count:
            lost[name] = count
        kept += report["queries"]
    summary = f"{kept:,} queries of {len(names)} tasks and columns fit the models"
    if not lost:
        return summary
    return f"{summary}, {sum(lost.values()):,} rows or candidates left out that one could not read ({named(lost)}; report.json)"


def filter_task(config: View, readers: Readers, inputs: list[Path], name: str, out: Path) -> tuple[dict[str, Any], int]:
    """Write one task's or column's tables without what does not fit; its report, and how many rows and candidates were left out."""
    import polars as pl

    from unime import artifacts
    from unime.data import rows, tables
    from unime.data.items import Items
    from unime.data.rows import DataError
    from unime.limits import tasks
    from unime.limits.places import Places

    folder, base, reranker = inputs[0] / name, inputs[1], inputs[2]
    captions = (folder / "pool.parquet").exists()
    items = artifacts.read_table(folder / "items.parquet", artifacts.ITEMS)
    schema = artifacts.CAPTION_QUERIES if captions else artifacts.TASKS
    before = artifacts.read_table(folder / "queries.parquet", schema)
    pool = artifacts.read_table(folder / "pool.parquet", artifacts.POOL) if captions else pl.DataFrame(schema=artifacts.POOL)
    report = artifacts.read_json(folder / "report.json")
    places = Places(report.pop("places"))
    pooled = len(pool) > 0
    read = readers.of_task(Items(items, config.data.max_pixels, str(folder)), base, reranker, captions and not pooled)
    if pooled:
        table, pool, bad = tasks.fitting_pool(before, pool, *read, places)
        dropped = bad.clear()
    else:
        table, bad, dropped = tasks.fitting_lists(before, *read, places)
    rows.refuse_if_asked(config.data.bad_rows, name, pl.concat([bad, dropped]))
    out.mkdir()
    if bad.is_empty() and dropped.is_empty():
        copied(folder, out, report)
        return report, 0

    if table.is_empty():
        file, row, reason = bad.row(0)
        raise DataError(f"{folder}: none of the {len(before):,} queries of {name} fits the models; {file}: row {row}: {reason}")
    artifacts.write_table(table, out / "queries.parquet", schema)
    if captions:
        artifacts.write_table(pool, out / "pool.parquet", artifacts.POOL)
        distinct = len(pool) or table["candidates"].explode().n_unique()
        report |= {"queries": len(table), "distinct_queries": table["query"].n_unique(), "distinct": distinct}
    else:
        report |= tables.counts(table)
    artifacts.write_table(used(items, table["query"], table["candidates"].explode(), pool["id"]), out / "items.parquet", artifacts.ITEMS)
    report = with_left_out(report, bad)
    if len(dropped):
        report = with_left_out(report, dropped, "candidates_left_out")
    artifacts.write_json(report, out / "report.json")
    return report, len(bad) + len(dropped)


DOOR = Door(
    sections=(
        "models.base",
        "models.reranker",
        "models.max_length",
        "data.bad_rows",
        "data.max_pixels",
        "train.reranker.image_size",
        "train.reranker.max_tokens",
        "train.reranker.prompt",
        "evaluate.tasks",
        "evaluate.crossmodal",
        "evaluate.image_size",
        "evaluate.rerank",
        "evaluate.rerank_mode",
        "evaluate.rerank_image_size",
        "evaluate.compositional_rerank",
    ),
    inputs=("results/rows/eval", "{models.base}", "{models.reranker}"),
    outputs=("results/data/eval",),
    sweep={"results/rows/eval": ("evaluate.tasks", "evaluate.crossmodal")},
    run=run,
)
