"""Train the reranker, pairwise and listwise, on the mined negatives."""

from __future__ import annotations

from pathlib import Path

from unime.config import View
from unime.door import Door
from unime.job import Job


def run(config: View, job: Job, inputs: list[Path], outputs: list[Path]) -> str:
    from unime import artifacts
    from unime.backbones import load
    from unime.data.items import Items
    from unime.train.reranker import train_reranker

    table = artifacts.read_table(inputs[1] / "mined.parquet", artifacts.MINED)
    items = Items.open(inputs[0], config.data.max_pixels)
    backbone = load(config.models.reranker, models=config.models, train=True)
    return train_reranker(table, items, backbone, config, job, outputs[0])


DOOR = Door(
    sections=("seed", "models", "data.max_pixels", "train.reranker"),
    inputs=("results/data/train", "results/mine", "{models.reranker}"),
    outputs=("results/train/reranker",),
    run=run,
    threads=1,
)
