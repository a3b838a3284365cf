"""What the doors share that mine all training sets from the judgements of another judge than the run's."""

from __future__ import annotations

from pathlib import Path

from unime.config import View
from unime.door import Door
from unime.job import Job


def run(config: View, job: Job, inputs: list[Path], outputs: list[Path]) -> str:
    from unime import artifacts
    from unime.mine import mine

    data, retrieved, judged = inputs
    rule, false, candidates = config.mine, 0, 0
    for name in config.data.train_sets:
        mined, report = mine(
            artifacts.read_table(data / name / "pairs.parquet", artifacts.PAIRS),
            artifacts.read_table(retrieved / name / "hits.parquet", artifacts.HITS),
            artifacts.read_table(judged / name / "judgements.parquet", artifacts.JUDGEMENTS),
            beta=rule.beta,
            negatives=rule.negatives,
            interval=rule.interval,
            order=rule.order,
            seed=config.seed,
        )
        artifacts.write_table(mined, outputs[0] / name / "mined.parquet", artifacts.MINED)
        artifacts.write_json(report, outputs[0] / name / "report.json")
        false, candidates = false + report["false"], candidates + report["candidates"]
    return f"{false:,} of {candidates:,} candidates dropped as false negatives"


def all_sets(judges: str, judged: str) -> Door:
    """The door of the names of `judges`, a mapping of the configuration, whose judgements are in the folder `judged`."""
    return Door(
        sections=("seed", "mine.beta", "mine.negatives", "mine.interval", "mine.order", "data.train_sets"),
        inputs=("results/data/train", "results/retrieve", f"{judged}/{{key}}"),
        outputs=("results/mine/{key}",),
        items=judges,
        run=run,
    )
