"""Training: accumulated = full batch, dense = peft, two processes = one, killed and resumed = uninterrupted, bad input named."""

from __future__ import annotations

import csv
import json
import logging
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch
from accelerate import Accelerator
from PIL import Image

from unime import artifacts, backbones, prompts
from unime import config as config_module
from unime.data.items import Items
from unime.job import Job
from unime.train import checkpoint, dense, embedder, reranker
from unime.train.data import Shown, batch_at, groups
from unime.train.loop import factor, fit

ROOT = Path(__file__).resolve().parents[1]
WORDS = ["red", "green", "blue", "small", "big", "ring", "cross", "star", "at the top", "at the left"]


def write_data(folder: Path, pairs: int) -> None:
    """Items with and without image, pairs and a mined table: every candidate is some other pair's positive, so items repeat."""
    rng = np.random.default_rng(0)
    (folder / "images").mkdir(parents=True)
    rows = []
    for number in range(pairs):
        side = 28 * (1 + number % 2)
        Image.fromarray(rng.integers(0, 255, (side, side, 3), dtype=np.uint8)).save(folder / "images" / f"{number}.png")
        text = "<|image_1|>\nWhat is it?" + " Please." * (number % 3)
        rows.append((f"q{number:02}", text, str(folder / "images"), f"{number}.png"))
        rows.append((f"c{number:02}", " ".join(rng.choice(WORDS, 1 + number % 4)) + f" {number}", "", ""))
    artifacts.write_table(pl.DataFrame(rows, schema=artifacts.ITEMS, orient="row"), folder / "items.parquet", artifacts.ITEMS)
    mined = []
    for number in range(pairs):
        others = [f"c{i:02}" for i in rng.permutation(pairs)[:10] if i != number][:9]
        negatives, reasons = others + others[:1], ["kept"] * 9 + ["repeated"]
        scores = [*rng.uniform(0, 0.7, 9).tolist(), 0.0]
        pair = artifacts.pair_id("Tiny", f"q{number:02}", f"c{number:02}")
        ranks = list(range(10))
        mined.append((pair, "Tiny", f"q{number:02}", f"c{number:02}", 0.9, negatives, scores, ranks, reasons))
    artifacts.write_table(pl.DataFrame(mined, schema=artifacts.MINED, orient="row"), folder / "mined.parquet", artifacts.MINED)


def table_of(folder: Path, kind: str) -> pl.DataFrame:
    mined = artifacts.read_table(folder / "mined.parquet", artifacts.MINED)
    if kind != "in_batch":
        return mined
    return mined.select("pair", "dataset", row=pl.int_range(pl.len(), dtype=pl.Int64), query="query", positive="positive")


def view_of(kind: str, folder: Path, nano: Path, **changes) -> config_module.View:
    """The repository's configuration with small steps; `changes` are of the kind's own section, or `lora__x` of its LoRA."""
    raw = config_module.load(ROOT / "config.yaml").model_dump()
    raw["models"] |= {"device": "cpu", "base": str(nano), "reranker": str(nano)}
    small = {"steps": 6, "batch": 8, "micro": 3, "warmup": 1, "checkpoint": 2, "lr": 0.002}
    lora = {name.removeprefix("lora__"): changes.pop(name) for name in list(changes) if name.startswith("lora__")}
    raw["train"][kind] |= small | changes
    (raw["train"]["reranker"] if kind == "reranker" else raw["train"])["lora"] |= {"rank": 4} | lora
    section = "train.reranker" if kind == "reranker" else f"train.{kind}"
    sections = ("seed", "models", section) if kind == "reranker" else ("seed", "models", "train.lora", section)
    return config_module.View(config_module.parse(raw), sections)


def train(kind: str, folder: Path, nano: Path, out: Path, scratch: Path, **changes) -> str:
    view = view_of(kind, folder, nano, **changes)
    scratch.mkdir(parents=True, exist_ok=True)
    job = Job(None, 1, scratch, logging.getLogger("test"))
    backbone = backbones.load(nano, models=view.models, train=True)
    items, table = Items.open(folder, 10**6), table_of(folder, kind)
    if kind == "reranker":
        return reranker.train_reranker(table, items, backbone, view, job, out)
    return embedder.train_embedder(kind, table, items, backbone, view, job, out)


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    place = tmp_path_factory.mktemp("training")
    write_data(place, 24)
    return place


KINDS = ["in_batch", "hard_negatives", "unime_v2", "reranker"]


@pytest.fixture(scope="module")
def trained(folder, nano, tmp_path_factory):
    """Each kind trained once, uninterrupted."""
    place = tmp_path_factory.mktemp("trained")
    return {kind: (place / kind, train(kind, folder, nano, place / kind, place / f"scratch-{kind}")) for kind in KINDS}


def accumulator(kind: str, folder: Path, nano: Path, perturb: bool = True, **changes):
    """(model, accumulate) with weights away from LoRA's zero start, so that dropout and every gradient matter."""
    view = view_of(kind, folder, nano, **changes)
    backbone = backbones.load(nano, models=view.models, train=True)
    settings = getattr(view.train, kind)
    backbone.add_lora(settings.lora if kind == "reranker" else view.train.lora, 0)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in [p for p in backbone.model.parameters() if p.requires_grad]:
            parameter += 0.02 * torch.randn(parameter.shape, generator=generator)
    backbone.model.train()
    shown, table = Shown(backbone, Items.open(folder, 10**6)), table_of(folder, kind)
    if kind == "reranker":
        return backbone.model, reranker.Answers(shown, table, settings, view.seed, Accelerator(cpu=True))
    if kind == "in_batch":
        return backbone.model, embedder.InBatch(shown, table, settings, Accelerator(cpu=True))
    return backbone.model, embedder.Mined(shown, table, settings, Accelerator(cpu=True), soft=kind == "unime_v2")


def gradient_of(model, accumulate, batch) -> tuple[float, torch.Tensor]:
    model.zero_grad()
    torch.manual_seed(0)
    loss, _ = accumulate(batch)
    return loss, torch.cat([p.grad.flatten() for p in model.parameters() if p.requires_grad])


# Gradients


@pytest.mark.parametrize("kind", KINDS)
def test_micro_batches_give_the_full_batchs_gradient(kind, folder, nano):
    found = {}
    for micro in (8 if kind != "in_batch" else 1000, 5, 1):
        model, accumulate = accumulator(kind, folder, nano, micro=micro, lora__dropout=0.0)
        found[micro] = gradient_of(model, accumulate, batch_at(0, 24, 8, 1))
    (loss, full), *rest = found.values()
    assert full.abs().max() > 1e-3, "no gradient: nothing is compared"
    for other_loss, other in rest:
        assert other_loss == pytest.approx(loss, abs=1e-5 * max(1, loss))
        assert (other - full).abs().max() < 1e-5 * max(1, full.abs().max())


def test_the_soft_loss_over_a_batch_is_the_formula_item_by_item(folder, nano):
    """No dedupe, no grouping, no cache: each query's items one at a time, in float64 after the embedding."""
    model, accumulate = accumulator("unime_v2", folder, nano, micro=8, lora__dropout=0.0)
    batch = batch_at(0, 24, 8, 1)
    loss, full = gradient_of(model, accumulate, batch)
    model.zero_grad()
    backbone, items, table = accumulate.backbone, accumulate.shown.items, table_of(folder, "unime_v2")
    total = 0
    for row in batch.rows:
        mined = table.row(row, named=True)
        ids = [mined["query"], mined["positive"], *mined["negatives"][:8]]
        query, *candidates = (backbone.embed(backbone.collate([backbone.item_prompt(items[id])]))[0].double() for id in ids)
        p = torch.softmax(torch.stack([query @ c for c in candidates]) / 0.02, 0)
        q = torch.softmax(torch.tensor([mined["sigma"], *mined["scores"][:8]], dtype=torch.float64) / 0.02, 0)
        total = total + 0.5 * ((p * (p / q).log()).sum() + (q * (q / p).log()).sum()) / 8
    total.backward()
    plain = torch.cat([p.grad.flatten() for p in model.parameters() if p.requires_grad])
    assert loss == pytest.approx(total.item(), rel=1e-5)
    assert (plain - full).abs().max() < 1e-5 * full.abs().max() and full.abs().max() > 1e-3


def test_dropout_changes_the_gradient(folder, nano):
    """Else the tests with dropout on compare nothing."""
    model, accumulate = accumulator("unime_v2", folder, nano, lora__dropout=0.1)
    batch = batch_at(0, 24, 8, 1)
    first = gradient_of(model, accumulate, batch)[1]
    assert torch.equal(first, gradient_of(model, accumulate, batch)[1])
    model.zero_grad()
    torch.manual_seed(1)
    accumulate(batch)
    other = torch.cat([p.grad.flatten() for p in model.parameters() if p.requires_grad])
    assert (first - other).abs().max() > 1e-3 * first.abs().max()


@pytest.mark.parametrize(("dora", "dropout"), [(True, 0.1), (True, 0.0), (False, 0.0)])
def test_dense_layers_are_pefts(folder, nano, dora, dropout):
    """In float64, where only a wrong formula can differ; the same draws, because peft's layers are given the fast dropout too."""
    model, accumulate = accumulator("unime_v2", folder, nano, lora__dora=dora, lora__dropout=dropout)
    model.double()
    layers = [module for module in model.modules() if isinstance(module, dense.Linear)]
    for layer in layers if dropout else []:
        layer.lora_dropout["default"] = dense.Dropout(dropout).train()
    batch = batch_at(0, 24, 8, 1)
    loss, plain = gradient_of(model, accumulate, batch)
    for layer in layers if dropout else []:
        layer.lora_dropout["default"] = torch.nn.Dropout(dropout).train()
    assert dense.use(model) == len(layers) == 42
    found_loss, found = gradient_of(model, accumulate, batch)
    assert found_loss == pytest.approx(loss, rel=1e-6)
    assert (found - plain).abs().max() < 1e-6 * plain.abs().max() and plain.abs().max() > 1e-3


def test_dense_leaves_lora_with_dropout_alone(folder, nano):
    model, _ = accumulator("unime_v2", folder, nano, lora__dora=False, lora__dropout=0.1)
    assert dense.use(model) == 0


def test_fast_dropout_drops_the_share_it_is_asked_to():
    layer, x = dense.Dropout(0.1), torch.ones(1000, 1001)
    torch.manual_seed(0)
    y = layer(x)
    dropped = (y == 0).float()
    assert dropped.mean().item() == pytest.approx(0.1, abs=0.001) and y.max().item() == pytest.approx(1 / 0.9)
    assert y.mean().item() == pytest.approx(1, abs=0.002)
    for place in range(4):  # the four draws of a word, and neighbours, are independent
        assert dropped.flatten()[place::4].mean().item() == pytest.approx(0.1, abs=0.002)
    assert (dropped.flatten()[1:] * dropped.flatten()[:-1]).mean().item() == pytest.approx(0.01, abs=0.0005)
    assert layer.eval()(x) is x


def test_two_processes_give_one_processs_gradient(folder, nano, tmp_path):
    """A real gloo run of two processes; each takes half the queries of the batch."""
    (tmp_path / "two.py").write_text(
        "import sys, torch; from pathlib import Path; sys.path[:0] = sys.argv[1:3]\n"
        "from accelerate import PartialState\nfrom test_train import accumulator, gradient_of\nfrom unime.train.data import batch_at\n"
        "from unime.train.loop import _reduce\n"
        "torch.set_num_threads(1); PartialState(cpu=True)\n"
        "found = {}\n"
        "for kind in ('in_batch', 'unime_v2', 'reranker'):\n"
        "    model, accumulate = accumulator(kind, Path(sys.argv[3]), Path(sys.argv[4]), lora__dropout=0.0)\n"
        "    loss, _ = gradient_of(model, accumulate, batch_at(0, 24, 8, 1))\n"
        "    trained = {n: p for n, p in model.named_parameters() if p.requires_grad}\n"
        "    norm, loss = _reduce(trained, loss, accumulate.accelerator)\n"
        "    found[kind] = (loss, norm, accumulate.accelerator.num_processes)\n"
        "import json\nif PartialState().is_main_process: Path(sys.argv[5]).write_text(json.dumps(found))\n"
    )
    arguments = [str(ROOT / "tests"), str(ROOT), str(folder), str(nano), str(tmp_path / "found.json")]
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", str(tmp_path / "two.py"), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"}, timeout=240)
    assert done.returncode == 0, done.stderr[-3000:]
    for kind, (loss, norm, processes) in json.loads((tmp_path / "found.json").read_text()).items():
        model, accumulate = accumulator(kind, folder, nano, lora__dropout=0.0)
        wanted, gradient = gradient_of(model, accumulate, batch_at(0, 24, 8, 1))
        assert processes == 2 and wanted > 0.1
        assert loss == pytest.approx(wanted, rel=1e-5) and norm == pytest.approx(gradient.norm().item(), rel=1e-4), kind


# The loop


@pytest.mark.parametrize("kind", KINDS)
def test_training_moves_the_weights_and_leaves_whole_files(kind, trained, folder, nano):
    out, line = trained[kind]
    assert sorted(files(out)) == ["README.md", "adapter_config.json", "adapter_model.safetensors", "log.csv"]
    rows = list(csv.DictReader((out / "log.csv").open()))
    assert [int(row["step"]) for row in rows] == [1, 2, 3, 4, 5, 6]
    items = {"in_batch": 16, "hard_negatives": 80, "unime_v2": 80, "reranker": 24}[kind]
    assert [int(row["items"]) for row in rows] == [items * step for step in range(1, 7)]
    assert all(float(row["grad_norm"]) > 1e-3 for row in rows) and float(rows[0]["lr"]) == 0.002
    assert line.startswith(f"6 steps, {6 * items} items, loss ")
    card = (out / "README.md").read_text()
    assert "| Tiny | 24 |" in card and "| seed | 42 |" in card and "| final loss |" in card and f"`{nano}`" in card
    assert ("| flat targets | " in card) == (kind in ("hard_negatives", "unime_v2"))
    models = view_of(kind, folder, nano).models
    moved, base = (backbones.load(nano, adapter=adapter, models=models) for adapter in (out, None))
    with torch.no_grad():
        batch = base.collate([base.item_prompt(Items.open(folder, 10**6)[id]) for id in ("q00", "c01")])
        assert (moved.embed(batch) - base.embed(batch)).abs().max() > 1e-3


def test_the_three_embedders_differ(trained):
    assert len({(trained[kind][0] / "adapter_model.safetensors").read_bytes() for kind in KINDS[:3]}) == 3


def test_training_lowers_its_loss(folder, nano, tmp_path):
    train("unime_v2", folder, nano, tmp_path / "out", tmp_path / "scratch", steps=12, batch=12, micro=12, lr=0.01)
    found = [float(row["loss"]) for row in csv.DictReader((tmp_path / "out" / "log.csv").open())]
    assert sum(found[-3:]) < 0.7 * sum(found[:3])


@pytest.mark.parametrize("kind", ["in_batch", "unime_v2", "reranker"])
def test_a_run_stopped_between_checkpoints_ends_with_the_same_files(kind, trained, folder, nano, tmp_path, monkeypatch):
    """Stopped by an exception in step 6, after the checkpoint of step 4: steps 5 and 6 are done again, from a new process's state."""
    target = {"in_batch": embedder.InBatch, "unime_v2": embedder.Mined, "reranker": reranker.Answers}[kind]
    real, steps = target.__call__, []

    def interrupted(self, batch):
        steps.append(batch.step)
        if batch.step == 5 and steps.count(5) == 1:
            raise KeyboardInterrupt
        return real(self, batch)

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
        "from test_train import train\n"
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
    assert linear[:5] == [0.25, 0.5, 0.75, 1.0, 1.0] and linear[9] == pytest.approx(1 / 6)
    cosine = [factor(step, 10, 0, "cosine") for step in range(10)]
    assert cosine[0] == 1 and cosine[5] == pytest.approx(0.5) and sorted(cosine, reverse=True) == cosine and cosine[9] > 0


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
    checkpoint.save(path, dict(model.named_parameters()), optimizer, 3, log)
    go(model, optimizer, (3, 6))
    again, restored = made(2)
    assert checkpoint.load(path, dict(again.named_parameters()), restored) == (3, log)
    go(again, restored, (3, 6))
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters(), strict=True))
    with pytest.raises(ValueError, match="of another model"):
        checkpoint.load(path, dict(made(4)[0].named_parameters()), made(4)[1])
    path.write_bytes(path.read_bytes()[:-7])
    with pytest.raises(ValueError, match="damaged checkpoint"):
        checkpoint.load(path, dict(again.named_parameters()), restored)


def test_a_gradient_that_is_not_finite_stops_the_run(folder, nano, tmp_path):
    model, accumulate = accumulator("unime_v2", folder, nano)
    view = view_of("unime_v2", folder, nano)
    job = Job(None, 1, tmp_path, logging.getLogger("test"))

    def poisoned(batch):
        loss, items = accumulate(batch)
        next(p for p in model.parameters() if p.grad is not None).grad.fill_(float("nan"))
        return loss, items

    with pytest.raises(ValueError, match="step 0: loss .* gradient norm nan; lower lr"):
        fit(accumulate.backbone, view.train.unime_v2, 24, 1, job, accumulate.accelerator, poisoned)


def test_float16_cannot_be_trained_in(folder, nano, tmp_path):
    view = view_of("unime_v2", folder, nano)
    half = view.models.model_copy(update={"dtype": "float16"})
    backbone = backbones.load(nano, models=half, train=True)
    with pytest.raises(ValueError, match="models.dtype is float16"):
        embedder.train_embedder("unime_v2", table_of(folder, "unime_v2"), None, backbone, view, None, tmp_path)


# Data


def test_groups_hold_every_sequence_once_and_save_tokens():
    rng = np.random.default_rng(0)
    for lengths, most in (
        ([5], None),
        ([], None),
        ([3, 3, 3], 2),
        (rng.integers(1, 60, 200).tolist(), None),
        (rng.integers(1, 60, 90).tolist(), 16),
    ):
        found = groups(lengths, 64, most)
        assert sorted(i for group in found for i in group) == list(range(len(lengths)))
        assert most is None or all(len(group) <= most for group in found)
    padded = lambda found: sum(max(lengths[i] for i in g) * len(g) + 64 for g in found)  # noqa: E731
    lengths = rng.integers(1, 60, 200).tolist()
    assert padded(groups(lengths, 64)) < 0.7 * padded([list(range(200))])
    assert groups(lengths, 64) == groups(lengths, 64) and len(groups(lengths, 10**6)) == 1


def test_shown_items_are_kept_up_to_their_limit(folder, nano):
    view = view_of("unime_v2", folder, nano)
    backbone = backbones.load(nano, models=view.models)
    calls, see = [], backbone.see
    backbone.see = lambda image: calls.append(1) or see(image)
    shown = Shown(backbone, Items.open(folder, 10**6), limit=6000)
    first = shown.content("q01").image.features
    assert shown.content("q01").image.features is first and len(calls) == 1
    for number in range(10):
        shown.content(f"q{number:02}")
    assert shown.used <= 6000 and len(calls) >= 10
    assert torch.equal(shown.content("q01").image.features, first)
    assert shown.content("c01").image is None


def test_too_long_items_are_named(folder, nano):
    view = view_of("unime_v2", folder, nano)
    backbone = backbones.load(nano, models=view.models.model_copy(update={"max_length": 2}))
    with pytest.raises(ValueError, match="item q00: a prompt of"):
        Shown(backbone, Items.open(folder, 10**6)).item("q00")


@pytest.mark.parametrize("kind", ["unime_v2", "hard_negatives"])
def test_a_bad_teacher_is_named_before_training(kind, folder, nano, tmp_path):
    table = table_of(folder, kind)
    pair = table["pair"][3]
    bad = table.with_columns(sigma=pl.when(pl.col("pair") == pair).then(float("nan")).otherwise("sigma"))
    view = view_of(kind, folder, nano)
    job = Job(None, 1, tmp_path, logging.getLogger("test"))
    items = Items.open(folder, 10**6)
    with pytest.raises(ValueError, match=f"pair {pair}: sigma is nan"):
        embedder.train_embedder(kind, bad, items, backbones.load(nano, models=view.models, train=True), view, job, tmp_path / "out")
    few = view_of(kind, folder, nano, negatives=8)
    short = table.with_columns(negatives=pl.col("negatives").list.head(7), scores=pl.col("scores").list.head(7))
    with pytest.raises(ValueError, match="fewer than 8 mined negatives"):
        embedder.train_embedder(kind, short, items, backbones.load(nano, models=view.models, train=True), few, job, tmp_path / "out")
    with pytest.raises(ValueError, match="'unime' is no way to train an embedder"):
        embedder.train_embedder("unime", table, items, None, view, job, tmp_path / "out")
    assert not (tmp_path / "out").exists()


# The reranker's sequences


def test_hardest_negatives_are_distinct_kept_first_by_score():
    reasons = ["kept", "kept", "kept", "repeated", "fallback"]
    assert reranker.hardest(["a", "b", "c", "b", "d"], [0.2, 0.5, 0.5, 0.5, 1.0], reasons) == ["b", "c", "a", "d"]


def test_every_query_gives_a_yes_a_no_and_a_list():
    negatives = ["n1", "n2", "n3", "n4", "n5"]
    places, counts = [], []
    for number in range(3000):
        yes, no, ranked = reranker.sequences("q", "p", negatives, np.random.default_rng(number), 4, fixed=False)
        assert (yes.candidates, yes.answer, no.candidates, no.answer) == (("p",), "Yes", ("n1",), "No")
        place = ranked.candidates.index("p")
        assert ranked.answer == prompts.list_answer(place + 1) and ranked.listwise and not yes.listwise
        assert [c for c in ranked.candidates if c != "p"] == negatives[: len(ranked.candidates) - 1]
        places.append((len(ranked.candidates) - 1, place))
        counts.append(len(ranked.candidates) - 1)
        assert yes.weight + no.weight == ranked.weight == 1.0
    for count in (1, 2, 3, 4):  # x is uniform on 1..4 and the place on all its x + 1 places
        assert counts.count(count) / 3000 == pytest.approx(0.25, abs=0.04)
        for place in range(count + 1):
            assert places.count((count, place)) / counts.count(count) == pytest.approx(1 / (count + 1), abs=0.07)
    fixed = {len(reranker.sequences("q", "p", negatives, np.random.default_rng(n), 3, fixed=True)[2].candidates) for n in range(20)}
    assert fixed == {4}
    assert len(reranker.sequences("q", "p", ["n1"], np.random.default_rng(0), 4, fixed=True)[2].candidates) == 2


def test_lists_are_drawn_from_seed_epoch_and_pair(folder, nano):
    _, answers = accumulator("reranker", folder, nano)
    drawn = {epoch: [answers.turns(row, epoch)[2] for row in range(24)] for epoch in (0, 1)}
    assert drawn[0] != drawn[1] and drawn[0] == [answers.turns(row, 0)[2] for row in range(24)]
    answers.rows.reverse()  # the table's order plays no part
    assert [answers.turns(row, 0)[2] for row in range(24)] == drawn[0][::-1]


def test_reranker_prompts_are_the_judges_and_the_lists(folder, nano):
    _, answers = accumulator("reranker", folder, nano)
    yes, no, ranked = answers.turns(0, 0)
    assert prompts.JUDGE in answers.prompt(yes).text and prompts.LISTWISE in answers.prompt(ranked).text
    for number, id in enumerate(ranked.candidates, start=1):
        assert f"({number}) {answers.shown.items.text(id)}" in answers.prompt(ranked).text
    assert len(answers.prompt(no).images) == 1


def test_a_pair_without_negatives_is_named(folder, nano):
    table = table_of(folder, "reranker").with_columns(negatives=pl.lit([], dtype=pl.List(pl.String)))
    with pytest.raises(ValueError, match=f"pair {table['pair'][0]}: no mined negative"):
        reranker.Answers(Shown(None, None), table, None, 0, None)
