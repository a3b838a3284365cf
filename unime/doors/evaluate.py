"""Score one task with every model, with and without the reranker."""

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
    from unime.evaluate import run as room
    from unime.evaluate.tasks import MODELS

    task = artifacts.read_table(inputs[0] / "queries.parquet", artifacts.TASKS)
    scores, predictions = room.evaluate(task, Items.open(inputs[0], Decoding.of(config.data)), adapters(inputs), config, job)
    artifacts.write_table(scores, outputs[0] / "scores.parquet", artifacts.SCORES)
    artifacts.write_table(predictions, outputs[0] / "predictions.parquet", artifacts.PREDICTIONS)
    first = scores.filter(pl.col("metric") == "precision@1").iter_rows(named=True)
    shown = "Precision@1 " + ", ".join(f"{MODELS[row['model']]} {100 * row['value']:.1f}" for row in first)
    guessed = chance.chance(task, pl.DataFrame(schema=artifacts.POOL))
    return caution.said(shown, caution.of_task(str(job.item), chance.trained(scores, "precision@1", guessed)))


DOOR = Door(sections=SECTIONS, inputs=INPUTS, outputs=("results/evaluate/{item}",), items="evaluate.tasks", run=run)
