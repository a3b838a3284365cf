"""What the two doors that score all models on one task share."""

from __future__ import annotations

from pathlib import Path

from unime.doors._models import MODEL

SECTIONS = (
    "models.base",
    "models.reranker",
    *MODEL,
    "embed.batch_tokens",
    "embed.shard",
    "data.max_pixels",
    "data.pixels",
    "train.reranker.image_size",
    "train.reranker.max_tokens",
    "train.reranker.prompt",
    "evaluate.image_size",
    "evaluate.rerank",
    "evaluate.rerank_mode",
    "evaluate.rerank_image_size",
    "evaluate.tie_rule",
)
INPUTS = (
    "results/data/eval/{item}",
    "results/train/in_batch",
    "results/train/hard_negatives",
    "results/train/unime_v2",
    "results/train/reranker",
    "{models.base}",
    "{models.reranker}",
)


def adapters(inputs: list[Path]) -> dict[str, Path | None]:
    """Model key -> its adapter's folder, of a door with these INPUTS; None for the base model as it is."""
    from unime.evaluate.tasks import MODELS

    return dict(zip(MODELS, (None, *inputs[1:5]), strict=True))
