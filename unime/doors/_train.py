"""What the doors that train an adapter share: training table, items, base model in; adapter, log and model card out."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from unime.config import View
from unime.door import Door
from unime.job import Job

Run = Callable[[View, Job, list[Path], list[Path]], str]


def embedder(kind: str) -> Run:
    """`run` of a door that trains an embedder; the table is the data stage's pairs for `in_batch`, the mined ones for the others."""

    def run(config: View, job: Job, inputs: list[Path], outputs: list[Path]) -> str:
        from unime import artifacts
        from unime.backbones import load
        from unime.data.items import Items
        from unime.train.embedder import train_embedder

        sets = config.data.train_sets
        if kind == "in_batch":
            table = artifacts.read_tables(inputs[0], sets, "pairs.parquet", artifacts.PAIRS)
        else:
            table = artifacts.read_tables(inputs[1], sets, "mined.parquet", artifacts.MINED)
        items = Items.of_sets(inputs[0], sets, config.data.max_pixels)
        backbone = load(config.models.base, models=config.models, train=True)
        return train_embedder(kind, table, items, backbone, config, job, outputs[0])

    return run


def mined(kind: str) -> Door:
    """The door of an embedder that is trained on mined negatives."""
    return Door(
        sections=("seed", "models", "data.train_sets", "data.max_pixels", "train.lora", f"train.{kind}"),
        inputs=("results/data/train", "results/mine", "{models.base}"),
        outputs=(f"results/train/{kind}",),
        sweep={"results/data/train": "data.train_sets", "results/mine": "data.train_sets"},
        run=embedder(kind),
        threads=1,
    )
