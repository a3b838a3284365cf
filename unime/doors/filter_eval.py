"""Leave out the queries and candidates of every task and caption column that a model of the run could not read, before any training."""

from __future__ import annotations

from pathlib import Path

from unime.config import View
from unime.door import Door
from unime.doors._filter import Readers, copied, each, lost, named, used, with_left_out
from unime.job import Job


def run(config: View, job: Job, inputs: list[Path], outputs: list[Path]) -> str:
    from unime import artifacts

    readers, names = Readers(config), [*config.evaluate.tasks, *config.evaluate.crossmodal]
    each(names, "tasks", job, outputs[0], lambda name, out: filter_task(config, readers, inputs, name, out))
    queries = sum(artifacts.read_json(outputs[0] / name / "report.json")["queries"] for name in names)
    gone = lost(names, inputs[0], outputs[0])
    summary = f"{queries:,} queries of {len(names)} tasks and columns fit the models"
    if not gone:
        return summary
    return f"{summary}, {sum(gone.values()):,} rows or candidates left out that one could not read ({named(gone)}; report.json)"


def filter_task(config: View, readers: Readers, inputs: list[Path], name: str, out: Path) -> None:
    """Write one task's or column's tables without what does not fit, and its report, to the folder `out`."""
    import polars as pl

    from unime import artifacts
    from unime.data import figures, rows
    from unime.data.images import Decoding
    from unime.data.items import Items
    from unime.data.rows import DataError
    from unime.limits import tasks
    from unime.limits.places import Places

    folder, base, reranker = inputs[0] / name, inputs[1], inputs[2]
    of_captions = (folder / "pool.parquet").exists()
    items = artifacts.read_table(folder / "items.parquet", artifacts.ITEMS)
    schema = artifacts.CAPTION_QUERIES if of_captions else artifacts.TASKS
    before = artifacts.read_table(folder / "queries.parquet", schema)
    pool = artifacts.read_table(folder / "pool.parquet", artifacts.POOL) if of_captions else pl.DataFrame(schema=artifacts.POOL)
    report = artifacts.read_json(folder / "report.json")
    places = Places(report.pop("places"))
    pooled = len(pool) > 0
    read = readers.of_task(Items(items, Decoding.of(config.data), str(folder)), base, reranker, of_captions and not pooled)
    if pooled:
        table, pool, bad, dropped = tasks.fitting_pool(before, pool, *read, places)
    else:
        table, bad, dropped = tasks.fitting_lists(before, *read, places)
    rows.refuse_if_asked(config.data.bad_rows, name, pl.concat([bad, dropped]))
    if bad.is_empty() and dropped.is_empty():
        copied(folder, out, report)
        return

    if table.is_empty():
        file, row, reason = bad.row(0)
        raise DataError(f"{folder}: none of the {len(before):,} queries of {name} fits the models; {file}: row {row}: {reason}")
    artifacts.write_table(table, out / "queries.parquet", schema)
    left = used(items, table["query"], table["candidates"].explode(), pool["id"])
    artifacts.write_table(left, out / "items.parquet", artifacts.ITEMS)
    if of_captions:
        artifacts.write_table(pool, out / "pool.parquet", artifacts.POOL)
        report |= figures.shared_pool_counts(table, pool, report["duplicates"]) if pooled else figures.caption_pair_counts(table)
    else:
        queries = figures.query_modalities(table, left)
        report |= figures.counts(table) | {"modalities": report["modalities"] | {"query": queries}}
    report = with_left_out(report, bad)
    if len(dropped):
        report = with_left_out(report, dropped, "captions_left_out" if of_captions else "candidates_left_out")
    artifacts.write_json(report, out / "report.json")


DOOR = Door(
    sections=(
        "models.base",
        "models.reranker",
        "models.max_length",
        "data.bad_rows",
        "data.max_pixels",
        "data.pixels",
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
