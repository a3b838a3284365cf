"""Score one ablation's embedder on all tasks."""

from __future__ import annotations

from pathlib import Path

from unime.config import View
from unime.door import Door
from unime.doors._models import MODEL
from unime.job import Job


def run(config: View, job: Job, inputs: list[Path], outputs: list[Path]) -> str:
    import polars as pl

    from unime import artifacts, caution
    from unime.data.images import Decoding
    from unime.data.items import Items
    from unime.evaluate import chance, one
    from unime.evaluate.tasks import column

    data, adapter, _ = inputs
    found, by_task = [], {}
    for name in [*config.evaluate.tasks, *config.evaluate.crossmodal]:
        items = Items.open(data / name, Decoding.of(config.data))
        if name in config.evaluate.crossmodal:
            queries = artifacts.read_table(data / name / "queries.parquet", artifacts.CAPTION_QUERIES)
            pool = artifacts.read_table(data / name / "pool.parquet", artifacts.POOL)
            metric = column(name).metric
            scored = one.score_captions(queries, pool, items, adapter, config, job)
        else:
            queries = artifacts.read_table(data / name / "queries.parquet", artifacts.TASKS)
            pool = pl.DataFrame(schema=artifacts.POOL)
            metric = "precision@1"
            scored = one.score_task(queries, items, adapter, config, job)
        (score,) = chance.trained(scored, metric, chance.chance(queries, pool)).values()
        by_task[name] = {str(job.item): score}
        found.append(scored)
    scores = pl.concat(found)
    artifacts.write_table(scores, outputs[0] / "scores.parquet", artifacts.SCORES)
    mean = scores.filter(pl.col("metric") == "precision@1")["value"].mean()
    summary = f"mean Precision@1 {100 * float(mean or 0):.1f}"  # type: ignore[arg-type]
    return caution.said(summary, caution.of_models(by_task))


DOOR = Door(
    sections=(
        "models.base",
        *MODEL,
        "embed.batch_tokens",
        "embed.shard",
        "data.max_pixels",
        "data.pixels",
        "evaluate.tasks",
        "evaluate.crossmodal",
        "evaluate.image_size",
        "evaluate.tie_rule",
    ),
    inputs=("results/data/eval", "results/ablations/train/{key}", "{models.base}"),
    outputs=("results/ablations/evaluate/{key}",),
    items="ablations.embedders",
    run=run,
)
