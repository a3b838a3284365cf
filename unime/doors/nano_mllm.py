"""Put the nano MLLM into models/: the shipped weights, or trained here if nano.retrain."""

from __future__ import annotations

import shutil
from pathlib import Path

from unime.config import View
from unime.door import Door
from unime.job import Job


def run(config: View, job: Job, inputs: list[Path], outputs: list[Path]) -> str:
    if not config.nano.retrain:
        shutil.copytree(inputs[0], outputs[0])
        return f"the weights shipped in {inputs[0]}"
    from unime.nano import pretrain

    figures = pretrain.run(outputs[0], config.nano.pretrain, job)
    steps = config.nano.pretrain.steps + config.nano.pretrain.refining_steps
    return f"trained from scratch, {steps} steps, {figures['minutes']} minutes; scores in its README.md"


DOOR = Door(
    sections=("nano.retrain", "nano.pretrain"),
    inputs=("assets/nano-mllm",),
    outputs=("models/nano-mllm",),
    run=run,
    threads=2,
)
