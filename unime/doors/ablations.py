"""Put the ablations beside the run they start from, and beside the paper's."""

from __future__ import annotations

from pathlib import Path

from unime.config import View
from unime.door import Door
from unime.job import Job, StageError


def run(config: View, job: Job, inputs: list[Path], outputs: list[Path]) -> str:
    import polars as pl

    from unime import artifacts
    from unime.report import ablations

    main, others = inputs
    if not config.ablations.embedders:
        raise StageError("ablations.embedders is empty: there is nothing to compare")
    tasks, captions, settings = config.evaluate.tasks, config.evaluate.crossmodal, config.ablations.embedders
    scores = pl.concat([artifacts.read_table(main / name / "scores.parquet", artifacts.SCORES) for name in [*tasks, *captions]])
    variants = {name: artifacts.read_table(others / name / "scores.parquet", artifacts.SCORES) for name in settings}
    train = {loss: getattr(config.train, loss) for loss in ablations.COMPONENTS}
    base = ablations.Base(config.mine.source, train, config.mine.rules)
    rows = ablations.build(scores, variants, settings, base, tasks, captions)
    outputs[0].write_text(ablations.to_csv(rows), encoding="utf-8")
    outputs[1].write_text(ablations.to_markdown(rows), encoding="utf-8")
    return "\n".join([f"{len(variants)} embedders beside the run's own", *ablations.to_text(rows)])


DOOR = Door(
    sections=(
        "evaluate.tasks",
        "evaluate.crossmodal",
        "mine.source",
        "mine.rules",
        "train.in_batch",
        "train.hard_negatives",
        "train.unime_v2",
        "ablations.embedders",
    ),
    inputs=("results/evaluate", "results/ablations/evaluate"),
    outputs=("results/ablations.csv", "results/ablations.md"),
    sweep={"results/ablations/evaluate": "ablations.embedders"},
    run=run,
)
