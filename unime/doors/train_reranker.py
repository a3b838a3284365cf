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

    sets = config.data.train_sets
    table = artifacts.read_tables(inputs[1], sets, "mined.parquet", artifacts.MINED)
    items = Items.of_sets(inputs[0], sets, config.data.max_pixels)
    backbone = load(config.models.reranker, models=config.models, train=True)
    return train_reranker(table, items, backbone, config, job, outputs[0])


DOOR = Door(
    sections=("seed", "models", "data.train_sets", "data.max_pixels", "train.reranker"),
    inputs=("results/data/train", "results/mine", "{models.reranker}"),
    outputs=("results/train/reranker",),
    sweep={"results/data/train": "data.train_sets", "results/mine": "data.train_sets"},
    run=run,
    threads=1,
)
