"""Several processes: any number of them is the same training, resumed with another number too, and none outlives the stage."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file
from training import ROOT, train, write_data

from unime import launch
from unime.job import StageError
from unime.train.data import Batch, dealt, micro_batches

SCRIPT = """
import json, sys
from pathlib import Path
import torch
torch.set_num_threads(1)
kind, folder, nano, out, scratch, changes = sys.argv[1:]
from training import train
train(kind, Path(folder), Path(nano), Path(out), Path(scratch), **json.loads(changes))
"""

WAYS = {
    "ddp": {},
    "fsdp": {"parallel": "fsdp"},
    "fsdp, lean layers, checkpointed": {"parallel": "fsdp", "gradient_checkpointing": True},
    "deepspeed": {"parallel": "deepspeed"},
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    place = tmp_path_factory.mktemp("training")
    write_data(place, 24)
    return place


def processes(count: int, kind: str, *places: Path, **changes) -> None:
    """A real run of so many processes, over gloo."""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests")])}
    script = places[2].with_suffix(".py")
    script.write_text(SCRIPT)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={count}", str(script), kind]
    done = subprocess.run(
        [*command, *map(str, places), json.dumps(changes)], capture_output=True, text=True, env=environment, cwd=ROOT, timeout=300
    )
    assert done.returncode == 0, done.stderr[-9000:]


def losses(out: Path) -> np.ndarray:
    with (out / "log.csv").open() as file:
        return np.array([float(row["loss"]) for row in csv.DictReader(file)])


def weights(out: Path) -> np.ndarray:
    return np.concatenate([value.ravel() for _, value in sorted(load_file(out / "adapter_model.safetensors").items())])


@pytest.mark.parametrize(("kind", "way"), [(kind, "ddp") for kind in ("in_batch", "reranker")] + [("unime_v2", way) for way in WAYS])
def test_two_processes_are_one_dropout_included(folder, nano, tmp_path, kind, way):
    changes = WAYS[way] | {"micro": 4 if kind == "in_batch" else 2, "lora__dropout": 0.1}
    train(kind, folder, nano, tmp_path / "one", tmp_path / "a", **changes)
    processes(2, kind, folder, nano, tmp_path / "two", tmp_path / "b", **changes)
    one, two = losses(tmp_path / "one"), losses(tmp_path / "two")
    assert len(one) == 6 and one.std() > 1e-3, "the same loss all along compares nothing"
    assert np.abs(one - two).max() < 1e-4 * np.abs(one).max()
    found, wanted = weights(tmp_path / "two"), weights(tmp_path / "one")
    assert np.abs(found - wanted).max() < 0.05 * 6 * 0.002, "AdamW's first steps have the size of the rate, whatever the gradient's"
