"""Sift the judged candidates of one training set into hard negatives."""

from __future__ import annotations

from pathlib import Path

from unime.config import View
from unime.door import Door
from unime.job import Job


def run(config: View, job: Job, inputs: list[Path], outputs: list[Path]) -> str:
    from unime import artifacts, caution
    from unime.mine import mine

    pairs = artifacts.read_table(inputs[0] / "pairs.parquet", artifacts.PAIRS)
    hits = artifacts.read_table(inputs[1] / "hits.parquet", artifacts.HITS)
    judgements = artifacts.read_table(inputs[2] / "judgements.parquet", artifacts.JUDGEMENTS)
    rule = config.mine
    mined, report = mine(
        pairs, hits, judgements, beta=rule.beta, negatives=rule.negatives, interval=rule.interval, order=rule.order, seed=config.seed
    )
    artifacts.write_table(mined, outputs[0] / "mined.parquet", artifacts.MINED)
    artifacts.write_json(report, outputs[0] / "report.json")
    summary = (
        f"{len(mined):,} pairs of {rule.negatives} negatives; {report['false']:,} of {report['candidates']:,} candidates dropped as false "
        f"negatives, {report['repeated']:,} pairs with repeated rows, {report['fallback']:,} by fallback"
    )
    return caution.said(summary, caution.of_mined(mined))


DOOR = Door(
    sections=("seed", "mine.judgements", "mine.beta", "mine.negatives", "mine.interval", "mine.order"),
    inputs=("results/data/train/{item}", "results/retrieve/{item}", "{mine.judgements}/{item}"),
    outputs=("results/mine/judge/{item}",),
    items="data.train_sets",
    run=run,
)
