"""Take hard negatives of all training sets by a rule that needs no judge."""

from __future__ import annotations

from pathlib import Path

from unime.config import View
from unime.door import Door
from unime.job import Job


def run(config: View, job: Job, inputs: list[Path], outputs: list[Path]) -> str:
    from unime import artifacts
    from unime.mine.rules import mine_by_rule

    data, retrieved = inputs
    rule = config.mine.rules[job.item]
    dropped, candidates, fallback = 0, 0, 0
    for name in config.data.train_sets:
        mined, report = mine_by_rule(
            artifacts.read_table(data / name / "pairs.parquet", artifacts.PAIRS),
            artifacts.read_table(retrieved / name / "hits.parquet", artifacts.HITS),
            artifacts.read_table(retrieved / name / "pools.parquet", artifacts.POOLS),
            rule,
            negatives=config.mine.negatives,
            interval=config.mine.interval,
            seed=config.seed,
        )
        artifacts.write_table(mined, outputs[0] / name / "mined.parquet", artifacts.MINED)
        artifacts.write_json(report, outputs[0] / name / "report.json")
        dropped += report["false"]
        candidates += report["candidates"]
        fallback += report["fallback"]
    return f"{rule.rule}: {dropped:,} of {candidates:,} candidates dropped, {fallback:,} pairs by fallback"


DOOR = Door(
    sections=("seed", "mine.negatives", "mine.interval", "data.train_sets", "mine.rules.{key}"),
    inputs=("results/data/train", "results/retrieve"),
    outputs=("results/mine/{key}",),
    items="mine.rules",
    run=run,
)
