"""Train the base embedder with in-batch negatives; it is also the table's VLM2Vec row."""

from __future__ import annotations

from unime.door import Door
from unime.doors._models import MODEL
from unime.doors._train import embedder

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
        "train.in_batch",
    ),
    inputs=("results/data/train", "{models.base}"),
    outputs=("results/train/in_batch",),
    sweep={"results/data/train": "data.train_sets"},
    run=embedder("in_batch"),
    threads=2,
    trains=True,
)
