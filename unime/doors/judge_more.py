"""Let a further judge read all training sets."""

from __future__ import annotations

from pathlib import Path

from unime.config import ConfigError, View
from unime.door import Door
from unime.doors._models import JUDGE, MODEL
from unime.job import Job


def run(config: View, job: Job, inputs: list[Path], outputs: list[Path]) -> str:
    from unime import artifacts, caution
    from unime.data.images import Decoding
    from unime.data.items import Items
    from unime.judge import judge
    from unime.judge.backends import open_backend

    data, retrieved, model = inputs
    settings, mode, count = config.judge, config.judge.models[job.item].mode, 0
    warnings: list[str] = []
    if settings.backend == "openai":
        raise ConfigError(
            f"judge.models.{job.item}: judge.backend 'openai' asks for one model, judge.openai.model; set the backend to "
            "'transformers' or 'vllm' for further judges"
        )
    sets = config.data.train_sets
    items = Items.of_sets(data, sets, Decoding.of(config.data))  # together: the model is opened once
    backend = open_backend(settings, model, items, models=config.models, log=job.log)
    for name in sets:
        judged = judge(
            artifacts.read_table(data / name / "pairs.parquet", artifacts.PAIRS),
            artifacts.read_table(retrieved / name / "hits.parquet", artifacts.HITS),
            backend,
            mode=mode,
            shard=settings.shard,
            scratch=job.scratch / name,
            track=job.track,
        )
        artifacts.write_table(judged, outputs[0] / name / "judgements.parquet", artifacts.JUDGEMENTS)
        count += len(judged)
        warnings += caution.of_judged(judged, f"{name}: ")
    return caution.said(f"{count:,} judgements", warnings)


DOOR = Door(
    sections=(*MODEL, *JUDGE, "data.train_sets", "data.max_pixels", "data.pixels", "judge.models.{key}"),
    inputs=("results/data/train", "results/retrieve", "{item.model}"),
    outputs=("results/judges/{key}",),
    items="judge.models",
    run=run,
)
