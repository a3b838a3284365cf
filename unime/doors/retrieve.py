"""Find the most similar candidates of every query in its own training set."""

from __future__ import annotations

from pathlib import Path

from unime.config import View
from unime.door import Door
from unime.job import Job


def run(config: View, job: Job, inputs: list[Path], outputs: list[Path]) -> str:
    from unime import artifacts
    from unime.retrieve import retrieve

    pairs = artifacts.read_table(inputs[0] / "pairs.parquet", artifacts.PAIRS)
    ids, vectors = artifacts.read_vectors(inputs[1])
    settings = config.retrieve
    hits, pools = retrieve(pairs, ids, vectors, k=settings.k, delta=settings.delta, threads=job.threads, track=job.track)
    artifacts.write_table(hits, outputs[0] / "hits.parquet", artifacts.HITS)
    artifacts.write_table(pools, outputs[0] / "pools.parquet", artifacts.POOLS)
    return f"{len(hits):,} candidates of {len(pairs):,} pairs"


DOOR = Door(
    sections=("retrieve",),
    inputs=("results/data/train/{item}", "results/embed/train/{item}"),
    outputs=("results/retrieve/{item}",),
    items="data.train_sets",
    run=run,
)
