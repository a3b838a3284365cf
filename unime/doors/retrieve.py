"""Find the most similar candidates of every query in its own training set."""

from __future__ import annotations

from pathlib import Path

from unime.config import View
from unime.door import Door
from unime.job import Job


def run(config: View, job: Job, inputs: list[Path], outputs: list[Path]) -> str:
    from unime import artifacts
    from unime.retrieve import recall, retrieve

    pairs = artifacts.read_table(inputs[0] / "pairs.parquet", artifacts.PAIRS)
    items = artifacts.read_table(inputs[0] / "items.parquet", artifacts.ITEMS)
    labels = artifacts.read_table(inputs[0] / "labels.parquet", artifacts.LABELS)
    ids, vectors = artifacts.read_vectors(inputs[1])
    settings = config.retrieve
    ways = {"k": settings.k, "delta": settings.delta, "items": items, "labels": labels, "pool": settings.pool}
    hits, pools = retrieve(pairs, ids, vectors, **ways, index=settings.index, effort=settings.effort, threads=job.threads, track=job.track)
    report = {"pairs": len(pairs), "candidates": pairs["positive"].n_unique(), "index": settings.index, "hits": len(hits)}
    report |= {"labelled": int(pools["labelled"].sum()), "itself": int(pools["itself"].sum())}
    said = f"{len(hits):,} candidates of {len(pairs):,} pairs"
    if report["labelled"] + report["itself"]:
        said += f"; left out: {report['labelled']:,} further labelled positives, {report['itself']:,} times the query itself"
    if settings.index != "exact":
        shares = recall(pairs, hits, ids, vectors, **ways, sample=settings.sample)
        report |= {"effort": settings.effort, "sample": min(settings.sample, len(pairs)), "recall": shares}
        said += "; recall " + ", ".join(f"{share:.4f}" for share in shares.values())
    artifacts.write_table(hits, outputs[0] / "hits.parquet", artifacts.HITS)
    artifacts.write_table(pools, outputs[0] / "pools.parquet", artifacts.POOLS)
    artifacts.write_json(report, outputs[0] / "report.json")
    return said


DOOR = Door(
    sections=("retrieve",),
    inputs=("results/data/train/{item}", "results/embed/train/{item}"),
    outputs=("results/retrieve/{item}",),
    items="data.train_sets",
    run=run,
)
