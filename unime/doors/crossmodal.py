"""Score one direction of a caption benchmark with every model, with and without the reranker."""

from __future__ import annotations

from pathlib import Path

from unime.config import View
from unime.door import Door
from unime.doors._evaluate import INPUTS, SECTIONS, adapters
from unime.job import Job


def run(config: View, job: Job, inputs: list[Path], outputs: list[Path]) -> str:
    import polars as pl

    from unime import artifacts, caution
    from unime.data.images import Decoding
    from unime.data.items import Items
    from unime.evaluate import chance
    from unime.evaluate import crossmodal as room
    from unime.evaluate.tasks import MODELS, column

    queries = artifacts.read_table(inputs[0] / "queries.parquet", artifacts.CAPTION_QUERIES)
    pool = artifacts.read_table(inputs[0] / "pool.parquet", artifacts.POOL)
    items = Items.open(inputs[0], Decoding.of(config.data))
    scores, predictions = room.evaluate_captions(queries, pool, items, adapters(inputs), config, job)
    artifacts.write_table(scores, outputs[0] / "scores.parquet", artifacts.SCORES)
    artifacts.write_table(predictions, outputs[0] / "predictions.parquet", artifacts.PREDICTIONS)
    metric = column(queries["task"][0]).metric
    first = scores.filter(pl.col("metric") == metric).iter_rows(named=True)
    shown = f"{metric} " + ", ".join(f"{MODELS[row['model']]} {100 * row['value']:.1f}" for row in first)
    return caution.said(shown, caution.of_task(str(job.item), chance.trained(scores, metric, chance.chance(queries, pool))))


DOOR = Door(
    sections=(*SECTIONS, "evaluate.compositional_rerank"),
    inputs=INPUTS,
    outputs=("results/evaluate/{item}",),
    items="evaluate.crossmodal",
    run=run,
)
