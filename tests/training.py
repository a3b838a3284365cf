"""What the training tests share: a little data, small settings, and the pieces of a run."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import polars as pl
import torch
from accelerate import Accelerator
from PIL import Image

from unime import artifacts, backbones
from unime import config as config_module
from unime.data.images import Decoding
from unime.data.items import Items
from unime.job import Job
from unime.train import embedder, reranker
from unime.train.data import Shown

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
        rows.append((f"q{number:02}", text, str(folder / "images"), f"{number}.png", str(number)))
        rows.append((f"c{number:02}", " ".join(rng.choice(WORDS, 1 + number % 4)) + f" {number}", "", "", ""))
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
    raw["embed"]["model"], raw["export"] = str(nano), {}
    small = {"steps": 6, "batch": 8, "micro": 3, "warmup": 1, "checkpoint": 2, "lr": 0.002}
    lora = {name.removeprefix("lora__"): changes.pop(name) for name in list(changes) if name.startswith("lora__")}
    raw["train"]["passes"] |= {name: changes.pop(name) for name in list(raw["train"]["passes"]) if name in changes}
    raw["train"][kind] |= small | changes
    (raw["train"]["reranker"] if kind == "reranker" else raw["train"])["lora"] |= {"rank": 4} | lora
    section = "train.reranker" if kind == "reranker" else f"train.{kind}"
    sections = ("seed", "models", "train.passes", section, *(() if kind == "reranker" else ("train.lora",)))
    return config_module.View(config_module.parse(raw), sections)


def train(kind: str, folder: Path, nano: Path, out: Path, scratch: Path, threads: int = 1, parallel: str = "ddp", **changes) -> str:
    view = view_of(kind, folder, nano, **changes)
    scratch.mkdir(parents=True, exist_ok=True)
    job = Job(None, threads, scratch, parallel=parallel, log=logging.getLogger("test"))
    backbone = backbones.load(nano, models=view.models, train=True)
    items, table = Items.open(folder, Decoding(10**6)), table_of(folder, kind)
    if kind == "reranker":
        return reranker.train_reranker(table, items, backbone, view, job, out)
    return embedder.train_embedder(kind, table, items, backbone, view, job, out)


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


KINDS = ["in_batch", "hard_negatives", "unime_v2", "reranker"]


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
    shown, table = Shown(backbone, Items.open(folder, Decoding(10**6))), table_of(folder, kind)
    if kind == "reranker":
        return backbone.model, reranker.Answers(shown, table, settings, view.seed, Accelerator(cpu=True))
    return backbone.model, embedder.accumulator(kind, shown, table, settings, Accelerator(cpu=True))


def gradient_of(model, accumulate, batch) -> tuple[float, torch.Tensor]:
    model.zero_grad()
    torch.manual_seed(0)
    loss, _ = accumulate(batch)
    return loss, torch.cat([p.grad.flatten() for p in model.parameters() if p.requires_grad])
