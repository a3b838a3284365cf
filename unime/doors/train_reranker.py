"""Train the reranker, pairwise and listwise, on the mined negatives."""

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
    from unime.data.images import Decoding
    from unime.train.reranker import train_reranker

    sets = config.data.train_sets
    table = artifacts.read_tables(inputs[1], sets, "mined.parquet", artifacts.MINED)
    items = items_of(inputs[0], sets, Decoding.of(config.data), mined=inputs[1])
    settings = config.train.reranker
    backbone = load(
        config.models.reranker, models=config.models, image_size=settings.image_size, max_tokens=settings.max_tokens, train=True
    )
    return train_reranker(table, items, backbone, config, job, outputs[0])


DOOR = Door(
    sections=(
        "seed",
        "models.reranker",
        *MODEL,
        "data.train_sets",
        "data.max_pixels",
        "data.pixels",
        "mine.source",
        "train.passes",
        "train.reranker",
    ),
    inputs=("results/data/train", "results/mine/{mine.source}", "{models.reranker}"),
    outputs=("results/train/reranker",),
    sweep={"results/data/train": "data.train_sets", "results/mine/judge": "data.train_sets"},
    run=run,
    threads=2,  # it comes after the embedders, with no other beside it
    trains=True,
)
