"""Let an MLLM judge each pair's positive and candidates in one training set: Yes or No, as a score."""

from __future__ import annotations

from pathlib import Path

from unime.config import View
from unime.door import Door
from unime.doors._models import JUDGE, MODEL
from unime.job import Job


def run(config: View, job: Job, inputs: list[Path], outputs: list[Path]) -> str:
    from unime import artifacts, caution
    from unime.data.images import Decoding
    from unime.data.items import Items
    from unime.judge import Later, judge
    from unime.judge.backends import open_backend

    pairs = artifacts.read_table(inputs[0] / "pairs.parquet", artifacts.PAIRS)
    hits = artifacts.read_table(inputs[1] / "hits.parquet", artifacts.HITS)
    items = Items.open(inputs[0], Decoding.of(config.data))
    settings = config.judge
    backend = Later(lambda: open_backend(settings, inputs[2], items, models=config.models, log=job.log))
    job.log.info("%d pairs to judge, %d judgements", len(pairs), len(pairs) + len(hits))
    judged = judge(pairs, hits, backend, mode=settings.mode, shard=settings.shard, scratch=job.scratch, track=job.track, part=job.part)
    artifacts.write_table(judged, outputs[0] / "judgements.parquet", artifacts.JUDGEMENTS)
    positive = judged["positive"]
    means = judged["score"].filter(positive).mean(), judged["score"].filter(~positive).mean()
    shown = ", ".join("none" if mean is None else f"{mean:.3f}" for mean in means)
    return caution.said(f"{len(judged):,} judgements; mean score of positives, of candidates: {shown}", caution.of_judged(judged))


DOOR = Door(
    sections=("models.judge", *MODEL, *JUDGE, "judge.mode", "data.max_pixels", "data.pixels"),
    inputs=("results/data/train/{item}", "results/retrieve/{item}", "{models.judge}"),
    outputs=("results/judge/{item}",),
    items="data.train_sets",
    parts=True,
    run=run,
)
