"""Write the embedded suite: generated scenes in MMEB's own layout."""

from __future__ import annotations

from pathlib import Path

from unime.config import View
from unime.door import Door
from unime.job import Job


def run(config: View, job: Job, inputs: list[Path], outputs: list[Path]) -> str:
    from unime.nano import suite

    n = suite.write(outputs[0], config.nano.suite, job.track)
    return f"{n['sets']} training sets of {n['rows']:,} rows, {n['tasks']} tasks of {n['queries']:,} queries, {n['images']:,} images"


DOOR = Door(sections=("nano.suite",), inputs=(), outputs=("data/nano",), run=run)
