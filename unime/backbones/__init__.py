"""Families of MLLMs, found by the `model_type` of a folder's config.json."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from unime.backbones.base import Backbone, Encoded, Picture, Prompt
from unime.backbones.files import ModelError, read_config
from unime.backbones.qwen2_vl import Qwen2VL

FAMILIES: dict[str, type[Backbone]] = {"qwen2_vl": Qwen2VL}

__all__ = ["FAMILIES", "Backbone", "Encoded", "ModelError", "Picture", "Prompt", "load"]


def load(folder: str | Path, *, adapter: str | Path | None = None, models: Any, train: bool = False) -> Backbone:
    """Open a model folder, with an adapter's weights merged into it, or left apart and trainable where `train`.

    `models` is the config's section of that name (dtype, device, image_size, max_length).  Raises ModelError where the folder lacks a
    file, a file is damaged, the adapter does not fit, or no family knows the model.
    """
    folder = Path(folder)
    kind = read_config(folder).get("model_type")
    if kind not in FAMILIES:
        raise ModelError(f"{folder}: config.json has model_type {kind!r}; known: {', '.join(sorted(FAMILIES))}")
    return FAMILIES[kind].open(folder, adapter=Path(adapter) if adapter is not None else None, models=models, train=train)
