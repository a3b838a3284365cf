"""A model of transformers' own class from a folder: with its weights, or without."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from unime import devices
from unime.backbones.files import REMEDY, ModelError, reading


def loaded(kind: type[nn.Module], folder: Path, models: Any) -> nn.Module:
    """A model with the folder's weights, on the config's device and in its type.  Raises ModelError."""
    device = _device(models.device)
    with reading(folder, "its weights", "do not fit config.json"):
        try:
            model, report = kind.from_pretrained(
                folder,
                dtype=getattr(torch, models.dtype),
                attn_implementation=models.attention,
                use_safetensors=True,
                local_files_only=True,
                output_loading_info=True,
            )
        except torch.OutOfMemoryError as error:
            raise MemoryError(str(error)) from error
        except ImportError as error:
            raise ModelError(f"models.attention is {models.attention!r}, which this environment lacks ({error}); use 'sdpa'") from error
    if absent := sorted(report["missing_keys"]):
        raise ModelError(f"{folder}: the weights lack {len(absent)} tensors, {absent[0]} first; {REMEDY}")
    if unknown := sorted(report["unexpected_keys"]):
        raise ModelError(
            f"{folder}: the weights have {len(unknown)} tensors without a place in the model of config.json, {unknown[0]} first; {REMEDY}"
        )
    model = model.to(device)
    check_finite(folder, model.named_parameters())
    return model


def check_finite(folder: Path, tensors: Iterable[tuple[str, torch.Tensor]]) -> None:
    """Raise ModelError naming the first tensor with a value that is not finite.

    A sum is not finite if one value is not, and takes one pass over the tensor and no memory.
    """
    for name, tensor in tensors:
        total = tensor.detach().sum(dtype=torch.float32)
        if not torch.isfinite(total) and not torch.isfinite(tensor).all():
            raise ModelError(f"{folder}: tensor {name} holds values that are not finite (NaN or infinite); {REMEDY}")


def hollow(kind: type[nn.Module], folder: Path) -> nn.Module:
    """The same without a byte of weights: its modules and configuration, for prompts, tokens and lengths.  Raises ModelError."""
    with reading(folder, "config.json", "describes no model of its model_type"), torch.device("meta"):
        return kind(kind.config_class.from_pretrained(folder, local_files_only=True))


def _device(asked: str) -> torch.device:
    """This process's GPU (of a training's processes by their number, else a free one), or the CPU.  Raises ModelError for an absent GPU."""
    if asked != "cpu" and "LOCAL_RANK" not in os.environ:
        devices.claim(1)  # before torch looks
    there = torch.cuda.is_available()
    if asked == "cuda" and not there:
        raise ModelError("models.device is 'cuda' but torch sees no GPU; use 'auto' or 'cpu'")
    return torch.device("cpu") if asked == "cpu" or not there else torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
