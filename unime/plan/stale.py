"""Which stages of a run would run now: those that DVC calls stale, and all below them, as far as the run's results need them."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Collection, Mapping
from pathlib import Path

from unime.config import Config
from unime.inputs import problems, told

PLANNED = ("embed_train", "retrieve", "judge", "mine", "evaluate", "crossmodal")
"""Stages with an item that have a row in the plan; so have the trainings of the configuration."""

TRAININGS = ("train_in_batch", "train_hard_negatives", "train_unime_v2", "train_reranker")

RESULTS = ("report", "settings", "export")
"""Stages that make what `snakemake` is asked for without a target.  dvc.yaml has others too, which a run does not need: the embedded suite
where data.root is another folder, the judge where published scores take its place."""

_EDGE = re.compile(r'"([^"]+)" -> "([^"]+)"')


def stages(root: str) -> set[str]:
    """Names of the stages that are stale or below a stale one, and that the RESULTS need, e.g. `judge@MSCOCO`; `root` is data.root.

    Raises ValueError where DVC cannot say, with its reason.
    """
    for part in ("train", "eval", "crossmodal"):  # DVC would wait for ever at a FIFO
        found = problems(Path(root) / part)
        if found:
            raise ValueError(told(found))
    changed = set(json.loads(_dvc("status", "--json", "dvc.yaml")))
    graph = _dvc("dag", "--dot", "dvc.yaml")
    below: dict[str, set[str]] = {}
    above: dict[str, set[str]] = {}
    for upper, lower in _EDGE.findall(graph):
        below.setdefault(upper, set()).add(lower)
        above.setdefault(lower, set()).add(upper)
    known = {*changed, *below, *above}
    results = {stage for stage in known if stage.partition("@")[0] in RESULTS}
    return _reached(changed, below) & _reached(results, above)


def _reached(starts: Collection[str], following: Mapping[str, Collection[str]]) -> set[str]:
    """The starts, and every stage that can be reached from one of them."""
    found: set[str] = set()
    waiting = sorted(starts)
    while waiting:
        stage = waiting.pop()
        if stage not in found:
            found.add(stage)
            waiting += following.get(stage, ())
    return found


def reduced(config: Config, stale: Collection[str]) -> Config:
    """The configuration with those tasks and caption columns alone that are stale."""
    tasks = [name for name in config.evaluate.tasks if f"evaluate@{name}" in stale]
    columns = [name for name in config.evaluate.crossmodal if f"crossmodal@{name}" in stale]
    evaluate = config.evaluate.model_copy(update={"tasks": tasks, "crossmodal": columns})
    return config.model_copy(update={"evaluate": evaluate})


def notes(stale: Collection[str]) -> list[str]:
    """What the plan's rows do not show of these stages."""
    found = []
    others = sorted(name for name in stale if name.partition("@")[0] not in (*PLANNED, *TRAININGS))
    read = [name for name in others if name.startswith(("data_", "fetch_", "suite"))]
    if others:
        shown = ", ".join(others[:8]) + (f" and {len(others) - 8} more" if len(others) > 8 else "")
        found.append(f"also stale, without a row here: {shown}")
    if read:
        found.append("the data themselves are stale: what is counted is of the tables that are there, before they are read again")
    return found


def _dvc(*arguments: str) -> str:
    done = subprocess.run([sys.executable, "-m", "dvc", *arguments], capture_output=True, encoding="utf-8", errors="replace")
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or ["no message"])[0].removeprefix("ERROR: ")
        raise ValueError(f"dvc {arguments[0]} cannot say what is stale: {reason}")
    return done.stdout
