"""Embed every distinct item of one training set once with the base embedder."""

from __future__ import annotations

from pathlib import Path

from unime.config import View
from unime.door import Door
from unime.doors._models import MODEL
from unime.job import Job


def run(config: View, job: Job, inputs: list[Path], outputs: list[Path]) -> str:
    from unime import artifacts
    from unime.backbones import load
    from unime.data.images import Decoding
    from unime.data.items import Items
    from unime.embed import embed

    items = Items.open(inputs[0], Decoding.of(config.data))
    job.log.info("%d items to embed", len(items))
    ids, vectors = embed(
        items.ids,
        items,
        lambda: load(inputs[1], adapter=inputs[2], models=config.models, image_size=config.embed.image_size),
        batch_tokens=config.embed.batch_tokens,
        shard=config.embed.shard,
        scratch=job.scratch,
        track=job.track,
        dtype=config.embed.dtype,
        part=job.part,
    )
    outputs[0].mkdir()
    artifacts.write_vectors(outputs[0], ids, vectors)
    return f"{len(ids):,} items, {vectors.shape[1]} numbers each"


DOOR = Door(
    sections=(*MODEL, "embed", "data.max_pixels", "data.pixels"),
    inputs=("results/data/train/{item}", "{embed.model}", "{embed.adapter}"),
    outputs=("results/embed/train/{item}",),
    items="data.train_sets",
    parts=True,
    run=run,
)
