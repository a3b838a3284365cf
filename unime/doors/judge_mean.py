"""Take the mean of several judges' scores, in all training sets, as one more judge's."""

from __future__ import annotations

from pathlib import Path

from unime.config import View
from unime.door import Door
from unime.job import Job


def run(config: View, job: Job, inputs: list[Path], outputs: list[Path]) -> str:
    from unime import artifacts, caution
    from unime.config import JUDGED
    from unime.mine import judges

    own, others = inputs
    names, count = config.judge.means[job.item], 0
    warnings: list[str] = []
    folders = {name: own if name == JUDGED else others / name for name in names}
    for one in config.data.train_sets:
        files = {name: folder / one / "judgements.parquet" for name, folder in folders.items()}
        mean = judges.mean({name: artifacts.read_table(file, artifacts.JUDGEMENTS) for name, file in files.items()})
        artifacts.write_table(mean, outputs[0] / one / "judgements.parquet", artifacts.JUDGEMENTS)
        count += len(mean)
        warnings += caution.of_judged(mean, f"{one}: ")
    return caution.said(f"{count:,} judgements, means of {', '.join(names)}", warnings)


DOOR = Door(
    sections=("data.train_sets", "judge.models", "judge.means.{key}"),
    inputs=("results/judge", "results/judges"),
    outputs=("results/judge_means/{key}",),
    items="judge.means",
    sweep={"results/judge": "data.train_sets", "results/judges": "judge.models"},
    run=run,
)
