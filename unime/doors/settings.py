"""Write down what the run is: every setting, and which commit of what was fetched."""

from __future__ import annotations

from pathlib import Path

from unime.config import View
from unime.door import Door
from unime.doors._data import source
from unime.job import Job


def run(config: View, job: Job, inputs: list[Path], outputs: list[Path]) -> str:
    from unime import artifacts

    data, tasks = inputs[:2]
    sources = {}
    for folder, key in ((data, "train"), (tasks, "eval")):
        for report in sorted(folder.glob("*/report.json")):
            if (found := artifacts.read_json(report).get("source")) is not None:
                sources[f"{key}/{report.parent.name}"] = found
    # Other models and scores than the inputs are named where they are there: what the run used has been fetched before its mining report.
    named = [*(Path("models") / name for name in config.fetch.models), *(Path("data/scores") / name for name in config.fetch.scores)]
    sources |= {str(folder): found["source"] for folder in named if (found := source(folder))}
    artifacts.write_json({"config": config.dump(), "sources": sources}, outputs[0])
    return f"every setting, {len(sources)} fetched sources with their commits"


DOOR = Door(
    sections=(
        "seed",
        "nano",
        "fetch.train_sets",
        "fetch.eval",
        "fetch.crossmodal",
        "fetch.scores",
        "fetch.models",
        "fetch.revisions",
        "data",
        "models",
        "embed",
        "retrieve",
        "judge",
        "mine",
        "train",
        "evaluate",
        "export",
        "ablations",
    ),
    inputs=("results/data/train", "results/data/eval", "results/mining_report/{mine.source}", "{models.base}", "{models.reranker}"),
    outputs=("results/config.json",),
    sweep={"results/data/train": "data.train_sets", "results/data/eval": ("evaluate.tasks", "evaluate.crossmodal")},
    run=run,
)
