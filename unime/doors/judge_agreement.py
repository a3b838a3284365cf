"""Compare a further judge's scores with those of the run's own."""

from __future__ import annotations

from pathlib import Path

from unime.config import View
from unime.door import Door
from unime.job import Job


def run(config: View, job: Job, inputs: list[Path], outputs: list[Path]) -> str:
    from unime import artifacts
    from unime.config import JUDGED
    from unime.report import agreement

    own, other = inputs
    sets = config.data.train_sets
    pairs = (
        (name, *(artifacts.read_table(folder / name / "judgements.parquet", artifacts.JUDGEMENTS) for folder in (other, own)))
        for name in sets  # one set at a time: two tables of all sets are many GB
    )
    figures = agreement.report(pairs, (str(job.item), JUDGED), beta=config.mine.beta)
    artifacts.write_json(figures, outputs[0] / "report.json")
    (outputs[0] / "report.md").write_text(agreement.markdown(figures), encoding="utf-8")
    return f"{agreement.line(figures)}; by set: report.md"


DOOR = Door(
    sections=("data.train_sets", "mine.beta"),
    inputs=("results/judge", "results/judges/{key}"),
    outputs=("results/judge_agreement/{key}",),
    items="judge.models",
    sweep={"results/judge": "data.train_sets"},
    run=run,
)
