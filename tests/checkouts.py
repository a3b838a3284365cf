"""What the tests share that run the whole pipeline in a checkout of their own."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from unime import config as config_module

ROOT = Path(__file__).resolve().parent.parent
ENVIRONMENT = {**os.environ, "PATH": os.pathsep.join([os.path.dirname(sys.executable), os.environ["PATH"]])}

SLOW = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not (ROOT / "assets" / "nano-mllm" / "model.safetensors").exists(), reason="assets/nano-mllm has no weights in this checkout"
    ),
]


def small(suite: dict[str, int], training: dict[str, int], sets: list[str], tasks: list[str]) -> dict:
    """The repository's configuration with these values of the suite and of every training, these training sets and tasks."""
    values = yaml.safe_load((ROOT / "config.yaml").read_text())
    values["nano"]["suite"] |= suite
    values["data"]["train_sets"], values["evaluate"]["tasks"] = sets, tasks
    for name in ("in_batch", "hard_negatives", "unime_v2", "reranker"):
        values["train"][name] |= training
    config_module.parse(values)
    return values


def working_tree(folder: Path, values: dict) -> Path:
    """This working tree's tracked and new files in `folder`, with another configuration."""
    listed = subprocess.run(["git", "ls-files", "-co", "--exclude-standard", "-z"], cwd=ROOT, capture_output=True, check=True)
    for name in listed.stdout.decode().split("\0"):
        if name and (ROOT / name).exists() and name != "dvc.lock":
            target = folder / name
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, target, follow_symlinks=False)
    (folder / "config.yaml").write_text(yaml.safe_dump(values, sort_keys=False))
    return folder
