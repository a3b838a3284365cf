"""Train UniME-V2's embedder with one setting changed, for an ablation."""

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
    from unime.train.embedder import train_embedder

    sets, variant = config.data.train_sets, config.ablations.embedders[job.item]
    settings = config.train.unime_v2.model_copy(update={"negatives": variant.negatives, "tau": variant.tau})
    table = artifacts.read_tables(inputs[1], sets, "mined.parquet", artifacts.MINED)
    items = items_of(inputs[0], sets, config.data.max_pixels, mined=inputs[1])
    backbone = load(inputs[2], models=config.models, image_size=config.train.image_size, train=True)
    return train_embedder("unime_v2", table, items, backbone, config, job, outputs[0], settings=settings)


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
        "train.unime_v2",
        "ablations.embedders.{key}",
    ),
    inputs=("results/data/train", "results/mine/{item.source}", "{models.base}"),
    outputs=("results/ablations/train/{key}",),
    items="ablations.embedders",
    run=run,
    trains=True,
)
