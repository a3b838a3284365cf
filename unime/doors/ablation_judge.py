"""Let another judge read all training sets, for an ablation."""

from __future__ import annotations

from pathlib import Path

from unime.config import View
from unime.door import Door
from unime.doors._models import MODEL
from unime.job import Job


def run(config: View, job: Job, inputs: list[Path], outputs: list[Path]) -> str:
    from unime import artifacts
    from unime.data.items import Items
    from unime.judge import judge, open_backend

    data, retrieved, model = inputs
    settings, count = config.judge, 0
    for name in config.data.train_sets:
        items = Items.open(data / name, config.data.max_pixels)
        backend = open_backend(
            settings.backend, model, items, models=config.models, image_size=settings.image_size, batch_tokens=settings.batch_tokens
        )
        judged = judge(
            artifacts.read_table(data / name / "pairs.parquet", artifacts.PAIRS),
            artifacts.read_table(retrieved / name / "hits.parquet", artifacts.HITS),
            backend,
            mode=config.ablations.judges[job.item].mode,
            shard=settings.shard,
            scratch=job.scratch / name,
            track=job.track,
        )
        artifacts.write_table(judged, outputs[0] / name / "judgements.parquet", artifacts.JUDGEMENTS)
        count += len(judged)
    return f"{count:,} judgements"


DOOR = Door(
    sections=(*MODEL, "judge", "data.train_sets", "data.max_pixels", "ablations.judges.{key}"),
    inputs=("results/data/train", "results/retrieve", "{item.model}"),
    outputs=("results/ablations/judge/{key}",),
    items="ablations.judges",
    run=run,
)
