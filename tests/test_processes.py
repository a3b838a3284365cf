"""Several processes: any number of them is the same training, resumed with another number too, and none outlives the stage."""

from __future__ import annotations

import contextlib
import csv
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import polars as pl
import psutil
import pytest
import yaml
from checkouts import sh, working_tree
from safetensors.numpy import load_file
from training import ROOT, table_of, train, view_of, write_data

from unime import artifacts, backbones, launch
from unime.data.images import Decoding
from unime.data.items import Items
from unime.job import StageError
from unime.train.data import Batch, dealt, micro_batches

STEPS, RATE = 6, 0.002

SCRIPT = """
import json, sys
from pathlib import Path
import torch
torch.set_num_threads(1)
kind, folder, nano, out, scratch, changes, last = sys.argv[1:]
from training import train
from unime.train import checkpoint
whole = checkpoint.save
def save(path, parameters, state, step, log):
    whole(path, parameters, state, step, log)
    if str(step) == last:
        raise SystemExit("preempted")
checkpoint.save = save
train(kind, Path(folder), Path(nano), Path(out), Path(scratch), **json.loads(changes))
"""

WAYS = {
    "ddp": {},
    "fsdp": {"parallel": "fsdp"},
    "fsdp, lean layers, checkpointed": {"parallel": "fsdp", "gradient_checkpointing": True},
    "deepspeed": {"parallel": "deepspeed"},
    "in-batch negatives": {"in_batch_negatives": True},
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    place = tmp_path_factory.mktemp("training")
    write_data(place, 24)
    return place


def torchrun(count: int, script: Path, text: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    """So many processes of a script, over gloo."""
    script.write_text(text)
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests")])}
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={count}", str(script)]
    return subprocess.run([*command, *map(str, arguments)], capture_output=True, text=True, env=environment, cwd=ROOT, timeout=300)


def processes(count: int, kind: str, *places: Path, last: int = 0, **changes) -> None:
    """A real run of so many processes; it ends after the checkpoint of step `last`."""
    done = torchrun(count, places[2].with_suffix(".py"), SCRIPT, kind, *places, json.dumps(changes), last)
    assert done.returncode == bool(last), done.stderr[-9000:]
    assert not last or "preempted" in done.stderr


def losses(out: Path) -> np.ndarray:
    with (out / "log.csv").open() as file:
        return np.array([float(row["loss"]) for row in csv.DictReader(file)])


def weights(out: Path) -> np.ndarray:
    return np.concatenate([value.ravel() for _, value in sorted(load_file(out / "adapter_model.safetensors").items())])


def same(one: Path, two: Path) -> None:
    """The loss curve to 1e-4, and every weight to a hundredth of what the steps could have moved it."""
    curves = losses(one), losses(two)
    assert len(curves[0]) == STEPS and curves[0].std() > 1e-3, "the same loss all along compares nothing"
    assert np.abs(curves[0] - curves[1]).max() < 1e-4 * np.abs(curves[0]).max()
    assert np.abs(weights(one) - weights(two)).max() < 0.01 * STEPS * RATE


def vectors(adapter: Path, folder: Path, nano: Path) -> np.ndarray:
    """Embeddings of all items with an adapter."""
    models = view_of("unime_v2", folder, nano).models
    backbone, items = backbones.load(nano, adapter=adapter, models=models), Items.open(folder, Decoding(10**6))
    return np.stack([backbone.embed(backbone.collate([backbone.item_prompt(items[id])]))[0].detach().numpy() for id in items.ids])


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "way"), [(kind, "ddp") for kind in ("in_batch", "reranker")] + [("unime_v2", way) for way in WAYS])
def test_two_processes_are_one_dropout_included(folder, nano, tmp_path, kind, way):
    changes = WAYS[way] | {"micro": 4 if kind == "in_batch" else 2, "lora__dropout": 0.1}
    train(kind, folder, nano, tmp_path / "one", tmp_path / "a", **changes)
    processes(2, kind, folder, nano, tmp_path / "two", tmp_path / "b", **changes)
    same(tmp_path / "one", tmp_path / "two")
    if kind != "reranker":
        one, two = (vectors(tmp_path / name, folder, nano) for name in ("one", "two"))
        assert np.abs(one - two).max() < 1e-3 and one.std(axis=0).max() > 1e-2


@pytest.mark.slow
@pytest.mark.parametrize("way", ["ddp", "fsdp", "fsdp, lean layers, checkpointed", "deepspeed"])
def test_two_processes_are_one_where_the_vision_tower_is_trained(folder, family, tmp_path, way):
    changes = WAYS[way] | {"micro": 2, "lora__dropout": 0.1, "lora__targets": "public"}
    model = family("llava_onevision")
    train("unime_v2", folder, model, tmp_path / "one", tmp_path / "a", **changes)
    processes(2, "unime_v2", folder, model, tmp_path / "two", tmp_path / "b", **changes)
    same(tmp_path / "one", tmp_path / "two")
    names = load_file(tmp_path / "two" / "adapter_model.safetensors")
    assert any("vision_tower" in name for name in names), "no adapter in the tower: nothing is tested"


SHARDED = """
import sys
from pathlib import Path
import torch
from accelerate import Accelerator
torch.set_num_threads(1)
folder, nano = map(Path, sys.argv[1:])
from training import view_of
from unime import backbones
from unime.data.images import Decoding
from unime.data.items import Items
from unime.train import processes
backbone, items = backbones.load(nano, models=view_of("unime_v2", folder, nano).models), Items.open(folder, Decoding(10**6))
backbone.model.requires_grad_(False)
batch = backbone.collate([backbone.item_prompt(items[items.ids[0]])])
whole = sum(parameter.numel() for layer in backbone.layers() for parameter in layer.parameters())
before = backbone.embed(batch)
processes.shard(backbone, "fsdp", Accelerator(cpu=True))
for look in ("before", "after"):
    held = sum(parameter.to_local().numel() for layer in backbone.layers() for parameter in layer.parameters())
    assert held <= 0.51 * whole, (look, held, whole)
    assert torch.allclose(backbone.embed(batch), before, atol=1e-6)
"""


def test_fsdp_holds_a_slice_of_each_layer_before_a_pass_and_after_it(folder, nano, tmp_path):
    done = torchrun(2, tmp_path / "sharded.py", SHARDED, folder, nano)
    assert done.returncode == 0, done.stderr[-5000:]


@pytest.mark.slow
@pytest.mark.parametrize(("first", "then", "way"), [(2, 1, "ddp"), (2, 1, "deepspeed"), (1, 2, "deepspeed")])
def test_a_training_goes_on_with_another_number_of_processes(folder, nano, tmp_path, first, then, way):
    changes = WAYS[way] | {"micro": 2}
    train("unime_v2", folder, nano, tmp_path / "whole", tmp_path / "a", **changes)
    processes(first, "unime_v2", folder, nano, tmp_path / "resumed", tmp_path / "b", last=4, **changes)
    assert not (tmp_path / "resumed").exists() and (tmp_path / "b/checkpoint.safetensors").exists()
    processes(then, "unime_v2", folder, nano, tmp_path / "resumed", tmp_path / "b", **changes)
    same(tmp_path / "whole", tmp_path / "resumed")


def test_micro_batches_are_dealt_whole_and_draw_the_same_wherever_they_run():
    batch = Batch(7, 0, list(range(12)), 5)
    whole = micro_batches(batch, 3)
    assert [micro.rows for micro in whole] == [[0, 1, 2], [3, 4, 5], [6, 7, 8], [9, 10, 11]]
    assert [dealt(batch, 3, process, 2) for process in (0, 1)] == [whole[::2], whole[1::2]]
    assert len({micro.seed for micro in whole}) == 4 and micro_batches(batch._replace(step=8), 3)[0].seed != whole[0].seed
    assert dealt(batch, 5, 0, 1)[-1].rows == [10, 11]
    with pytest.raises(ValueError, match=r"micro-batches of 4 cannot be dealt to 2 processes; set train.\*.micro .* e.g. 6 queries"):
        dealt(batch, 4, 0, 2)


@pytest.mark.parametrize(
    ("hosts", "first"),
    [("node1", "node1"), ("gpu[07-09,12],big1", "gpu07"), ("a-[3,5]", "a-3"), ("c1,c2", "c1"), ("r[1-2]n.site", "r1n.site")],
)
def test_the_first_host_of_a_list(hosts, first):
    assert launch.first(hosts) == first


def test_several_nodes_without_slurm_are_refused(monkeypatch):
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    with pytest.raises(StageError, match="train.nodes is 2, but this is no SLURM job; run .*, or set train.nodes to 1"):
        launch._on_nodes(launch.Processes(2, 1, "ddp"))
    assert launch._on_nodes(launch.Processes(1, 4, "ddp")) == []


# The stage itself


@pytest.fixture
def checkout(tmp_path: Path, nano: Path) -> Path:
    """A checkout with mined negatives, whose training two processes share."""
    values = yaml.safe_load((ROOT / "config.yaml").read_text())
    values["data"]["train_sets"] = ["Tiny"]
    values["train"] |= {"gpus_per_node": 2}
    values["train"]["unime_v2"] |= {"steps": STEPS, "batch": 8, "micro": 4, "warmup": 1, "checkpoint": 2}
    folder = working_tree(tmp_path / "checkout", values)
    data, mined = folder / "results/data/train/Tiny", folder / "results/mine/judge/Tiny"
    write_data(data, 24)
    mined.mkdir(parents=True)
    artifacts.write_table(table_of(data, "in_batch"), data / "pairs.parquet", artifacts.PAIRS)
    artifacts.write_table(pl.DataFrame(schema=artifacts.LABELS), data / "labels.parquet", artifacts.LABELS)
    (data / "mined.parquet").rename(mined / "mined.parquet")
    (folder / "models").mkdir()
    (folder / "models/nano-mllm").symlink_to(nano)
    return folder


def start(folder: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "unime", "train_unime_v2"], cwd=folder, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )


def workers(folder: Path) -> list[psutil.Process]:
    """Processes of this checkout that are not the stage's owner."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if process.cwd() == str(folder) and launch.WORKER in process.environ():
                found.append(process)
    return found


@pytest.mark.slow
def test_a_stage_that_two_processes_share_writes_what_one_would(checkout):
    process = start(checkout)
    said, _ = process.communicate(timeout=200)
    assert process.returncode == 0 and "made results/train/unime_v2: 6 steps, 480 items" in said, said
    assert "2 processes on 1 nodes" in (checkout / "logs/train_unime_v2.log").read_text()
    assert (checkout / "logs/train_unime_v2.process-1.log").exists() and not list((checkout / "scratch").glob("train*"))
    (checkout / "results/train/unime_v2").rename(checkout / "two")
    text = (checkout / "config.yaml").read_text()
    (checkout / "config.yaml").write_text(text.replace("gpus_per_node: 2", "gpus_per_node: 1"))
    sh("python -m unime train_unime_v2", checkout)
    same(checkout / "results/train/unime_v2", checkout / "two")


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_no_worker_outlives_its_stage_and_the_next_run_goes_on(checkout, number):
    process = start(checkout)
    until(lambda: list((checkout / "scratch").glob("train_unime_v2/*/checkpoint.safetensors")), process)
    assert len(workers(checkout)) >= 3, "torchrun and two processes"
    process.send_signal(number)
    assert process.wait(30) != 0
    until(lambda: not workers(checkout))
    assert not (checkout / "results/train/unime_v2").exists()
    assert not list((checkout / "results/train").glob(".*")) or number == signal.SIGKILL
    assert "made results/train/unime_v2" in sh("python -m unime train_unime_v2", checkout)
    assert "resumed after step" in (checkout / "logs/train_unime_v2.process-0.log").read_text()
    assert not list((checkout / "results/train").glob(".*"))


def test_a_worker_that_fails_fails_the_stage_with_its_reason(checkout):
    text = (checkout / "config.yaml").read_text()
    (checkout / "config.yaml").write_text(text.replace("micro: 4", "micro: 8"))
    said = sh("python -m unime train_unime_v2", checkout, code=1)
    assert "a batch of 8 queries in micro-batches of 8 cannot be dealt to 2 processes" in said
    assert "error: train_unime_v2: a process of this training ended with exit code 1" in said
    assert not (checkout / "results/train/unime_v2").exists() and not workers(checkout)


def until(there: Callable[[], object], process: subprocess.Popen[str] | None = None) -> None:
    """Wait until something holds, at most two minutes, while a process runs."""
    limit = time.monotonic() + 120
    while not there():
        assert time.monotonic() < limit
        assert process is None or process.poll() is None, process.communicate()[0]
        time.sleep(0.02)
