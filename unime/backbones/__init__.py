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

__all__ = ["FAMILIES", "Backbone", "Encoded", "ModelError", "Picture", "Prompt", "load"]


def load(
    folder: str | Path,
    *,
    models: Any,
    image_size: int = 0,
    adapter: str | Path | None = None,
    train: bool = False,
    weights: bool = True,
) -> Backbone:
    """Open a model folder, with an adapter's weights merged into it, or left apart and trainable where `train`.

    `models` is the config's section of that name (dtype, device, max_length).  Images are squashed to a square of `image_size` pixels a
    side before the processor; 0 leaves them as they are.  `adapter` is a peft adapter for this folder, or a folder of merged weights,
    which is then opened in place of `folder`.  Without `weights` there are prompts, tokens and lengths, and nothing is computed: for an
    engine that has the weights itself.  Raises ModelError where a folder lacks a file, a file is damaged, the adapter does not
    fit, or no family knows the model.
    """
    folder, adapter = Path(folder), Path(adapter) if adapter is not None else None
    if adapter is not None and is_merged(adapter):
        folder, adapter = adapter, None
    kind = read_config(folder).get("model_type")
    if kind not in FAMILIES:
        raise ModelError(f"{folder}: config.json has model_type {kind!r}; known: {', '.join(sorted(FAMILIES))}")
    return FAMILIES[kind].open(folder, adapter=adapter, models=models, image_size=image_size, train=train, weights=weights)
