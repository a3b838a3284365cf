"""Merge one trained adapter into its base model: a folder that plain transformers opens."""

from __future__ import annotations

import subprocess
from pathlib import Path
from types import SimpleNamespace

from unime.config import View
from unime.door import Door
from unime.job import Job


def run(config: View, job: Job, inputs: list[Path], outputs: list[Path]) -> str:
    from unime import artifacts
    from unime.backbones import export, usage
    from unime.train import card

    adapter, base, metrics, warnings = inputs
    own_card = (adapter / "README.md").read_text(encoding="utf-8")
    how = None if job.item == "reranker" else usage.embedding(base, config.data.pixels)
    warned = artifacts.read_json(warnings)["warnings"]
    text = card.exported(str(job.item), own_card, artifacts.read_json(metrics), commit(), how, warned)
    # Weights are added, nothing runs.
    models = SimpleNamespace(dtype=config.models.dtype, device="cpu", attention="sdpa", max_length=config.models.max_length)
    export.export(base, adapter, outputs[0], models=models, card=text)
    size = sum(file.stat().st_size for file in outputs[0].rglob("*") if file.is_file())
    return f"merged weights, {size / 1e6:,.1f} MB"


def commit() -> str:
    """The commit of this checkout's code, `unknown` without Git."""
    done = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True)
    return done.stdout.strip() if done.returncode == 0 else "unknown"


DOOR = Door(
    sections=("models.dtype", "models.max_length", "data.pixels", "export.{key}"),
    inputs=("results/train/{key}", "{item}", "results/metrics.json", "results/warnings.json"),
    outputs=("results/export/{key}",),
    items="export",
    run=run,
)
