"""Which stages DVC would run now: those that it calls stale, and all below them."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Collection
from pathlib import Path

from unime.config import Config
from unime.inputs import problems, told

PLANNED = ("embed_train", "retrieve", "judge", "mine", "evaluate", "crossmodal")
"""Stages with an item that have a row in the plan; so have the trainings of the configuration."""

TRAININGS = ("train_in_batch", "train_hard_negatives", "train_unime_v2", "train_reranker")

_EDGE = re.compile(r'"([^"]+)" -> "([^"]+)"')


def stages(root: str) -> set[str]:
    """Names of the stages of dvc.yaml that are stale or below a stale one, e.g. `judge@MSCOCO`; `root` is data.root.

    Raises ValueError where DVC cannot say, with its reason.
    """
    for part in ("train", "eval", "crossmodal"):  # DVC would wait for ever at a FIFO
        found = problems(Path(root) / part)
        if found:
            raise ValueError(told(found))
    above = set(json.loads(_dvc("status", "--json", "dvc.yaml")))
    edges = _EDGE.findall(_dvc("dag", "--dot", "dvc.yaml"))
    below: dict[str, set[str]] = {}
    for upper, lower in edges:
        below.setdefault(upper, set()).add(lower)
    wanted: set[str] = set()
    waiting = sorted(above)
    while waiting:
        stage = waiting.pop()
        if stage not in wanted:
            wanted.add(stage)
            waiting += below.get(stage, set())
    return wanted


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
