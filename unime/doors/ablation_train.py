"""Train an embedder that differs from the run's own in some settings, for an ablation."""

from __future__ import annotations

from pathlib import Path

from unime.config import View
from unime.door import Door
from unime.doors._models import MODEL
from unime.doors._train import items_of
from unime.job import Job


def run(config: View, job: Job, inputs: list[Path], outputs: list[Path]) -> str:
    from unime import artifacts
    from unime.backbones import load
    from unime.config import settings_of
    from unime.train.embedder import train_embedder

    data, mined, model = inputs
    sets, variant = config.data.train_sets, config.ablations.embedders[job.item]
    settings = settings_of(variant, getattr(config.train, variant.loss))
    pairs = artifacts.read_tables(data, sets, "pairs.parquet", artifacts.PAIRS)
    if variant.loss == "in_batch":  # it trains on pairs, whatever was mined from them
        table = pairs
        items = items_of(data, sets, config.data.max_pixels, mined=None)
    else:
        table = artifacts.read_tables(mined, sets, "mined.parquet", artifacts.MINED)
        items = items_of(data, sets, config.data.max_pixels, mined=mined)
    backbone = load(model, models=config.models, image_size=config.train.image_size, train=True)
    return train_embedder(variant.loss, table, items, backbone, config, job, outputs[0], settings=settings, pairs=pairs)


DOOR = Door(
    sections=(
        "seed",
        "models.base",
        *MODEL,
        "data.train_sets",
        "data.max_pixels",
        "train.image_size",
        "train.passes",
        "train.lora",
        "train.{item.loss}",
        "ablations.embedders.{key}",
    ),
    inputs=("results/data/train", "results/mine/{item.source}", "{models.base}"),
    outputs=("results/ablations/train/{key}",),
    items="ablations.embedders",
    run=run,
    trains=True,
)
