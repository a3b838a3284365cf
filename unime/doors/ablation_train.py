"""Train an embedder that differs from the run's own in some settings, for an ablation."""

from __future__ import annotations

from pathlib import Path

from unime.config import View
from unime.door import Door
from unime.doors._models import MODEL
from unime.doors._train import train
from unime.job import Job


def run(config: View, job: Job, inputs: list[Path], outputs: list[Path]) -> str:
    from unime.config import settings_of

    data, mined, _ = inputs
    variant = config.ablations.embedders[job.item]
    settings = settings_of(variant, getattr(config.train, variant.loss))
    read = None if variant.loss == "in_batch" else mined
    return train(variant.loss, config, job, data, read, outputs[0], settings)


DOOR = Door(
    sections=(
        "seed",
        "models.base",
        *MODEL,
        "data.train_sets",
        "data.max_pixels",
        "data.pixels",
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
