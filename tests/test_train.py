"""The training loop: killed and resumed = uninterrupted, whole files, seeded rows, bad input named."""

from __future__ import annotations

import csv
import importlib
import logging
import os
import signal
import subprocess
import sys
import time

import polars as pl
import pytest
import torch
from accelerate import Accelerator
from training import KINDS, ROOT, accumulator, files, table_of, train, view_of, write_data
from transformers import get_scheduler

from unime import artifacts, backbones, config, lanes
from unime.data.images import Decoding
from unime.data.items import Items
from unime.job import Job
from unime.train import checkpoint, embedder, processes, reranker
from unime.train.data import batch_at
from unime.train.loop import factor, fit


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    place = tmp_path_factory.mktemp("training")
    write_data(place, 24)
    return place


@pytest.fixture(scope="module")
def trained(folder, nano, tmp_path_factory):
    """Each kind trained once, uninterrupted."""
    place = tmp_path_factory.mktemp("trained")
    return {kind: (place / kind, train(kind, folder, nano, place / kind, place / f"scratch-{kind}")) for kind in KINDS}


@pytest.mark.parametrize("kind", KINDS)
def test_training_moves_the_weights_and_leaves_whole_files(kind, trained, folder, nano):
    out, line = trained[kind]
    assert sorted(files(out)) == ["README.md", "adapter_config.json", "adapter_model.safetensors", "log.csv"]
    rows = list(csv.DictReader((out / "log.csv").open()))
    assert [int(row["step"]) for row in rows] == [1, 2, 3, 4, 5, 6]
    items = {"in_batch": 16, "hard_negatives": 80, "unime_v2": 80, "reranker": 24}[kind]
    assert [int(row["items"]) for row in rows] == [items * step for step in range(1, 7)]
    assert all(float(row["grad_norm"]) > 1e-3 for row in rows) and [float(row["lr"]) for row in rows[:2]] == [0, 0.002]
    assert line.startswith(f"6 steps, {6 * items} items, loss ")
    card = (out / "README.md").read_text()
    assert "| Tiny | 24 |" in card and "| seed | 42 |" in card and "| final loss |" in card and f"`{nano}`" in card
    assert ("| flat targets | " in card) == (kind in ("hard_negatives", "unime_v2"))
    models = view_of(kind, folder, nano).models
    moved, base = (backbones.load(nano, adapter=adapter, models=models) for adapter in (out, None))
    with torch.no_grad():
        batch = base.collate([base.item_prompt(Items.open(folder, Decoding(10**6))[id]) for id in ("q00", "c01")])
        assert (moved.embed(batch) - base.embed(batch)).abs().max() > 1e-3


def test_the_three_embedders_differ(trained):
    assert len({(trained[kind][0] / "adapter_model.safetensors").read_bytes() for kind in KINDS[:3]}) == 3


def test_training_lowers_its_loss(folder, nano, tmp_path):
    train("unime_v2", folder, nano, tmp_path / "out", tmp_path / "scratch", steps=36, batch=12, micro=12, lr=0.002)
    found = [float(row["loss"]) for row in csv.DictReader((tmp_path / "out" / "log.csv").open())]
    assert sum(found[-3:]) < 0.7 * sum(found[:3])


@pytest.mark.parametrize("kind", ["in_batch", "unime_v2", "reranker"])
def test_a_run_stopped_between_checkpoints_ends_with_the_same_files(kind, trained, folder, nano, tmp_path, monkeypatch):
    """Stopped by an exception in step 6, after the checkpoint of step 4: steps 5 and 6 are done again, from a new process's state."""
    target = {"in_batch": embedder.InBatch, "unime_v2": embedder.Mined, "reranker": reranker.Answers}[kind]
    real, steps = target.__call__, []

    def interrupted(self, batch, lanes):
        steps.append(batch.step)
        if batch.step == 5 and steps.count(5) == 1:
            raise KeyboardInterrupt
        return real(self, batch, lanes)

    monkeypatch.setattr(target, "__call__", interrupted)
    with pytest.raises(KeyboardInterrupt):
        train(kind, folder, nano, tmp_path / "out", tmp_path / "scratch")
    assert not (tmp_path / "out").exists() and [p.name for p in (tmp_path / "scratch").iterdir()] == ["checkpoint.safetensors"]
    torch.manual_seed(99)
    train(kind, folder, nano, tmp_path / "out", tmp_path / "scratch")
    assert steps == [0, 1, 2, 3, 4, 5, 4, 5]
    assert files(tmp_path / "out") == files(trained[kind][0])


def test_a_killed_process_resumes_to_the_same_bytes(folder, nano, tmp_path):
    """kill -9 of a real process after its first checkpoint; the same command again; the bytes of an uninterrupted run."""
    (tmp_path / "run.py").write_text(
        "import sys; from pathlib import Path; sys.path[:0] = sys.argv[1:3]\n"
        "from training import train\n"
        "folder, nano, out, scratch = map(Path, sys.argv[3:])\n"
        "train('unime_v2', folder, nano, out, scratch, steps=10, batch=4)\n"
    )
    out, scratch = tmp_path / "out", tmp_path / "scratch"
    command = [sys.executable, *map(str, (tmp_path / "run.py", ROOT / "tests", ROOT, folder, nano, out, scratch))]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(command, env=environment)
    deadline = time.monotonic() + 120
    while not (scratch / "checkpoint.safetensors").exists():
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not out.exists(), "the run ended before it was killed: nothing is tested"
    subprocess.run(command, env=environment, check=True, timeout=240)
    train("unime_v2", folder, nano, tmp_path / "whole", tmp_path / "other", steps=10, batch=4)
    assert files(out) == files(tmp_path / "whole")


@pytest.mark.parametrize("kind", KINDS)
def test_two_lanes_leave_the_same_files_as_one(kind, trained, folder, nano, tmp_path):
    train(kind, folder, nano, tmp_path / "two", tmp_path / "scratch", threads=2)
    assert files(tmp_path / "two") == files(trained[kind][0])


def test_several_lanes_are_for_models_whose_dropout_can_be_seeded_by_the_pass():
    plain, dropped = torch.nn.Linear(2, 2), torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Dropout(0.1))
    before = torch.get_num_threads()
    with lanes.open_lanes(plain, 2) as two, lanes.open_lanes(dropped, 2) as one:
        assert two.count == 2 and one is lanes.ONE
    assert torch.get_num_threads() == before


def test_micro_batches_and_checkpoints_do_not_change_which_rows_are_seen():
    """Rows are a function of (seed, step): each epoch a new permutation, its tail left out."""
    seen = [batch_at(step, 10, 3, 5) for step in range(9)]
    assert [b.epoch for b in seen] == [0, 0, 0, 1, 1, 1, 2, 2, 2] and all(len(b.rows) == 3 for b in seen)
    epochs = [sum((b.rows for b in seen[i : i + 3]), []) for i in (0, 3, 6)]
    assert all(len(set(rows)) == 9 for rows in epochs) and epochs[0] != epochs[1]
    assert batch_at(4, 10, 3, 5) == seen[4] and batch_at(4, 10, 3, 6) != seen[4]
    with pytest.raises(ValueError, match="a batch of 11 is more than the 10 training rows; lower"):
        batch_at(0, 10, 11, 5)


def test_learning_rate_rises_and_falls():
    linear = [factor(step, 10, 4, "linear") for step in range(10)]
    assert linear[:5] == [0.0, 0.25, 0.5, 0.75, 1.0] and linear[9] == pytest.approx(1 / 6)
    cosine = [factor(step, 10, 0, "cosine") for step in range(10)]
    assert cosine[0] == 1 and cosine[5] == pytest.approx(0.5) and sorted(cosine, reverse=True) == cosine and cosine[9] > 0


@pytest.mark.parametrize("decay", ["linear", "cosine"])
@pytest.mark.parametrize("warmup", [0, 1, 200])
def test_learning_rates_are_those_of_transformers_schedulers(decay, warmup):
    """The public code's training is transformers' Trainer."""
    weight = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([weight], lr=1.0)
    scheduler = get_scheduler(decay, optimizer, num_warmup_steps=warmup, num_training_steps=2000)
    theirs = []
    for _ in range(2000):
        theirs.append(scheduler.get_last_lr()[0])
        optimizer.step()
        scheduler.step()
    assert [factor(step, 2000, warmup, decay) for step in range(2000)] == pytest.approx(theirs, abs=1e-12)
    assert min(theirs[:300]) < max(theirs)


def test_checkpoints_hold_everything_and_refuse_another_model(tmp_path):
    def made(width: int):
        torch.manual_seed(0)
        model = torch.nn.Linear(3, width)
        return model, torch.optim.AdamW(model.parameters(), lr=0.1)

    def go(model, optimizer, steps):
        for step in range(*steps):
            model(torch.full((2, 3), float(step + 1))).square().sum().backward()
            optimizer.step()
            optimizer.zero_grad()

    model, optimizer = made(2)
    go(model, optimizer, (0, 3))
    path, log = tmp_path / "checkpoint.safetensors", [{"step": 3, "loss": 0.1 + 0.2}]
    accelerator = Accelerator(cpu=True)
    held = processes.Replicated(dict(model.named_parameters()), accelerator)
    held.optimizer = optimizer
    checkpoint.save(path, dict(model.named_parameters()), held.state(), 3, log)
    go(model, optimizer, (3, 6))
    again, restored = made(2)
    *told, state = checkpoint.load(path, dict(again.named_parameters()))
    assert told == [3, log]
    other = processes.Replicated(dict(again.named_parameters()), accelerator)
    other.optimizer = restored
    other.restore(state)
    go(again, restored, (3, 6))
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters(), strict=True))
    with pytest.raises(ValueError, match="of another model"):
        checkpoint.load(path, dict(made(4)[0].named_parameters()))
    path.write_bytes(path.read_bytes()[:-7])
    with pytest.raises(ValueError, match="damaged checkpoint"):
        checkpoint.load(path, dict(again.named_parameters()))


def test_a_gradient_that_is_not_finite_stops_the_run(folder, nano, tmp_path):
    model, accumulate = accumulator("unime_v2", folder, nano)
    view = view_of("unime_v2", folder, nano)
    job = Job(None, 1, tmp_path, logging.getLogger("test"))

    def poisoned(batch, lanes):
        loss, items = accumulate(batch, lanes)
        next(p for p in model.parameters() if p.grad is not None).grad.fill_(float("nan"))
        return loss, items

    poisoned.ahead = accumulate.ahead
    with pytest.raises(ValueError, match="step 0: loss .* gradient norm nan; lower lr"):
        fit(accumulate.backbone, view.train.unime_v2, 24, 1, job, accumulate.accelerator, poisoned)


def test_negatives_that_no_judge_scored_train_the_one_hot_loss_alone(folder, nano, tmp_path):
    """Rules without a judge leave sigma and scores null: the one-hot loss reads none, and gives the weights that it gives with scores."""
    table = table_of(folder, "hard_negatives")
    nobody = table.with_columns(
        sigma=pl.lit(None, dtype=pl.Float64),
        scores=pl.col("scores").list.eval(pl.when(pl.element() > 2).then(pl.element())),  # no score is above 2: all become null
    )
    assert nobody.schema == table.schema and nobody["scores"].list.drop_nulls().list.len().sum() == 0
    adapters = []
    for name, one in (("judged", table), ("unjudged", nobody)):
        view = view_of("hard_negatives", folder, nano, steps=2, checkpoint=1)
        (tmp_path / f"scratch-{name}").mkdir()
        job = Job(None, 1, tmp_path / f"scratch-{name}", log=logging.getLogger("test"))
        backbone = backbones.load(nano, models=view.models, train=True)
        embedder.train_embedder("hard_negatives", one, Items.open(folder, Decoding(10**6)), backbone, view, job, tmp_path / name)
        adapters.append((tmp_path / name / "adapter_model.safetensors").read_bytes())
        assert ("flat targets" in (tmp_path / name / "README.md").read_text()) == (name == "judged")
    assert adapters[0] == adapters[1]

    for kind, reader in (("unime_v2", "the soft-label loss"), ("reranker", "the reranker's rule `hardest`")):
        view = view_of(kind, folder, nano)
        job = Job(None, 1, tmp_path / kind, log=logging.getLogger("test"))
        backbone, items = backbones.load(nano, models=view.models, train=True), Items.open(folder, Decoding(10**6))
        message = rf"pair {nobody['pair'][0]}: its negatives have no scores \(24 of 24 pairs\).*{reader} needs scores"
        with pytest.raises(ValueError, match=message):
            if kind == "reranker":
                reranker.train_reranker(nobody, items, backbone, view, job, tmp_path / "out")
            else:
                embedder.train_embedder(kind, nobody, items, backbone, view, job, tmp_path / "out")


@pytest.mark.parametrize("door", ["train_in_batch", "train_unime_v2", "train_hard_negatives", "ablation_train"])
def test_the_doors_hand_over_the_labels_of_all_pairs(door, folder, tmp_path, monkeypatch):
    """Of those without mined negatives too, and of rows that data.cap left out."""
    whole = config.load(ROOT / "config.yaml")
    mined, pairs = table_of(folder, "unime_v2").head(20), table_of(folder, "in_batch")
    left_out = pl.DataFrame({"query": [pairs["query"][0]], "positive": [pairs["positive"][1]]})
    for name in whole.data.train_sets:
        artifacts.write_table(pairs, tmp_path / "data" / name / "pairs.parquet", artifacts.PAIRS)
        artifacts.write_table(left_out, tmp_path / "data" / name / "labels.parquet", artifacts.LABELS)
        items = artifacts.read_table(folder / "items.parquet", artifacts.ITEMS)
        artifacts.write_table(items, tmp_path / "data" / name / "items.parquet", artifacts.ITEMS)
        artifacts.write_table(mined, tmp_path / "mined" / name / "mined.parquet", artifacts.MINED)
    handed = {}
    monkeypatch.setattr(backbones, "load", lambda *_, **__: None)
    monkeypatch.setattr(embedder, "train_embedder", lambda kind, table, *_, **more: handed.update(more, table=table))
    one = importlib.import_module(f"unime.doors.{door}").DOOR
    job = Job("k-4", 1, tmp_path, log=logging.getLogger("test"))
    trained = pairs if door == "train_in_batch" else mined
    folders = ("data", "model") if door == "train_in_batch" else ("data", "mined", "model")
    one.run(one.view(whole, "k-4"), job, [tmp_path / folder for folder in folders], [tmp_path / "out"])
    count = len(whole.data.train_sets)
    assert len(handed["table"]) == len(trained) * count
    labels = [pairs.select("query", "positive")] * count + [left_out] * count
    assert handed["labels"].equals(pl.concat(labels))


def test_float16_cannot_be_trained_in(folder, nano, tmp_path):
    view = view_of("unime_v2", folder, nano)
    half = view.models.model_copy(update={"dtype": "float16"})
    backbone = backbones.load(nano, models=half, train=True)
    with pytest.raises(ValueError, match="models.dtype is float16"):
        embedder.train_embedder("unime_v2", table_of(folder, "unime_v2"), None, backbone, view, None, tmp_path)


@pytest.mark.parametrize("kind", ["unime_v2", "hard_negatives"])
def test_a_bad_teacher_is_named_before_training(kind, folder, nano, tmp_path):
    table = table_of(folder, kind)
    pair = table["pair"][3]
    bad = table.with_columns(sigma=pl.when(pl.col("pair") == pair).then(float("nan")).otherwise("sigma"))
    view = view_of(kind, folder, nano)
    job = Job(None, 1, tmp_path, logging.getLogger("test"))
    items = Items.open(folder, Decoding(10**6))
    with pytest.raises(ValueError, match=f"pair {pair}: sigma is nan"):
        embedder.train_embedder(kind, bad, items, backbones.load(nano, models=view.models, train=True), view, job, tmp_path / "out")
    few = view_of(kind, folder, nano, negatives=8)
    short = table.with_columns(negatives=pl.col("negatives").list.head(7), scores=pl.col("scores").list.head(7))
    with pytest.raises(ValueError, match="fewer than 8 mined negatives"):
        embedder.train_embedder(kind, short, items, backbones.load(nano, models=view.models, train=True), few, job, tmp_path / "out")
    with pytest.raises(ValueError, match="'unime' is no way to train an embedder"):
        embedder.train_embedder("unime", table, items, None, view, job, tmp_path / "out")
    assert not (tmp_path / "out").exists()
