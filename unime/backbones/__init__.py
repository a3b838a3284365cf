"""Families of MLLMs, found by the `model_type` of a folder's config.json.  A new one: docs/backbones.md."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from unime.backbones.base import Backbone, Encoded, Picture, Prompt
from unime.backbones.files import ModelError, is_merged, read_config
from unime.backbones.internvl import InternVL
from unime.backbones.llava_onevision import LlavaOnevision
from unime.backbones.qwen2_5_vl import Qwen25VL
from unime.backbones.qwen2_vl import Qwen2VL

FAMILIES: dict[str, type[Backbone]] = {
    "qwen2_vl": Qwen2VL,
    "qwen2_5_vl": Qwen25VL,
    "llava_onevision": LlavaOnevision,
    "internvl": InternVL,
}

__all__ = ["FAMILIES", "Backbone", "Encoded", "ModelError", "Picture", "Prompt", "family_of", "limit_tokens", "load"]


def load(
    folder: str | Path,
    *,
    models: Any,
    image_size: int = 0,
    max_tokens: int | None = None,
    adapter: str | Path | None = None,
    train: bool = False,
    weights: bool = True,
) -> Backbone:
    """Open a model folder, with an adapter's weights merged into it, or left apart and trainable where `train`.

    `models` is the config's section of that name (dtype, device, max_length).  Images are squashed to a square of `image_size` pixels a
    side before the processor; 0 leaves them as they are.  `max_tokens` then bounds the tokens of each, its aspect kept.
    `adapter` is a peft adapter for this folder, or a folder of merged weights, which is then opened in place of `folder`.  Without
    `weights` there are prompts, tokens and lengths, and nothing is computed: for an engine that has the weights itself.  Raises
    ModelError where a folder lacks a file, a file is damaged, the adapter does not fit, no family knows the model, or its family cannot
    bound an image's tokens.
    """
    folder, adapter = Path(folder), Path(adapter) if adapter is not None else None
    if adapter is not None and is_merged(adapter):
        folder, adapter = adapter, None
    backbone = family_of(folder).open(folder, adapter=adapter, models=models, image_size=image_size, train=train, weights=weights)
    limit_tokens(backbone, max_tokens)
    return backbone


def family_of(folder: Path) -> type[Backbone]:
    """The class of the family that a folder's config.json names.  Raises ModelError."""
    kind = read_config(folder).get("model_type")
    if not isinstance(kind, str) or kind not in FAMILIES:
        raise ModelError(
            f"{folder}: config.json has model_type {kind!r}; known: {', '.join(sorted(FAMILIES))}; set models.* to a folder of these"
        )
    return FAMILIES[kind]


def limit_tokens(backbone: Backbone, most: int | None) -> None:
    """Bound the tokens of every image that the backbone is shown; None leaves its folder's own bounds.

    Raises ModelError for a family that cuts images into tiles, whose number of tokens cannot be chosen so.
    """
    if most is None:
        return
    if not isinstance(backbone, Qwen2VL):
        raise ModelError(
            f"{backbone.folder}: max_tokens ({most}) bounds the images of Qwen2-VL and Qwen2.5-VL; {type(backbone).__name__} cuts images "
            "into tiles: set max_tokens to null, and image_size to what keeps them small"
        )
    backbone.limit_tokens(most)
