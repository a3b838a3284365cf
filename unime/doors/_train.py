"""What the doors that train an adapter share: training table, items, base model in; adapter, log and model card out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from unime.config import View
from unime.door import Door
from unime.doors._models import MODEL
from unime.job import Job

if TYPE_CHECKING:
    from unime.data.images import Decoding

Run = Callable[[View, Job, list[Path], list[Path]], str]


def embedder(kind: str) -> Run:
    """`run` of a door that trains an embedder; the table is the data stage's pairs for `in_batch`, the mined ones for the others."""

    def run(config: View, job: Job, inputs: list[Path], outputs: list[Path]) -> str:
        mined = None if kind == "in_batch" else inputs[1]
        return train(kind, config, job, inputs[0], mined, outputs[0])

    return run


def train(kind: str, config: View, job: Job, data: Path, mined: Path | None, out: Path, settings: Any = None) -> str:
    """Train an embedder with the loss `kind` on the training sets below `data` and write it to `out`; returns a line about the run.

    The losses with mined negatives read those below `mined`; in-batch training has None there and reads pairs.  `settings` take the
    place of the config section `train.<kind>`.
    """
    import polars as pl

    from unime import artifacts
    from unime.backbones import load
    from unime.data.images import Decoding
    from unime.train.embedder import train_embedder

    sets = config.data.train_sets
    pairs = artifacts.read_tables(data, sets, "pairs.parquet", artifacts.PAIRS)
    if mined is None:
        table = pairs
    else:
        table = artifacts.read_tables(mined, sets, "mined.parquet", artifacts.MINED)
    left_out = artifacts.read_tables(data, sets, "labels.parquet", artifacts.LABELS)  # of rows that data.cap left out
    labels = pl.concat([pairs.select(list(artifacts.LABELS)), left_out])
    items = items_of(data, sets, Decoding.of(config.data), mined=mined)
    backbone = load(config.models.base, models=config.models, image_size=config.train.image_size, train=True)
    return train_embedder(kind, table, items, backbone, config, job, out, settings=settings, labels=labels)


def items_of(data: Path, sets: Sequence[str], decoding: Decoding, mined: Path | None) -> Any:
    """The items of some training sets, and those that only published negatives show (they may lie outside the sampled rows)."""
    import polars as pl

    from unime import artifacts
    from unime.data.items import Items

    more = [artifacts.read_table(file, artifacts.ITEMS) for name in sets if mined and (file := mined / name / "items.parquet").exists()]
    if not more:
        return Items.of_sets(data, sets, decoding)
    table = pl.concat([artifacts.read_tables(data, sets, "items.parquet", artifacts.ITEMS), *more])
    return Items(table.unique("id", keep="first", maintain_order=True).sort("id"), decoding, str(data))


def mined(kind: str) -> Door:
    """The door of an embedder that is trained on mined negatives."""
    return Door(
        sections=(
            "seed",
            "models.base",
            *MODEL,
            "data.train_sets",
            "data.max_pixels",
            "data.pixels",
            "mine.source",
            "train.image_size",
            "train.passes",
            "train.lora",
            f"train.{kind}",
        ),
        inputs=("results/data/train", "results/mine/{mine.source}", "{models.base}"),
        outputs=(f"results/train/{kind}",),
        sweep={"results/data/train": "data.train_sets", "results/mine/judge": "data.train_sets"},
        run=embedder(kind),
        trains=True,
    )
