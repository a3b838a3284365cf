"""The state of a training run in one safetensors file: whole or absent, nothing in it but numbers and JSON.

Adapter weights, AdamW's two moments and step counts lie in it by parameter name; the step and the log are its metadata.  Random
states are not: what a step draws is a function of (seed, step).
"""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from unime import artifacts

Record = dict[str, float]
State = dict[str, dict[str, Tensor]]
"""AdamW's `exp_avg`, `exp_avg_sq` and `step` by parameter's name."""


def save(path: Path, parameters: dict[str, Tensor], state: State, step: int, log: list[Record]) -> None:
    """Write weights and optimizer state after `step` steps in place of an earlier checkpoint."""
    tensors = {f"weight.{name}": parameter.detach().cpu().clone() for name, parameter in parameters.items()}  # DeepSpeed's share memory
    for name, parts in state.items():
        for part, value in parts.items():
            tensors[f"{part}.{name}"] = value.detach().cpu().clone()
    with artifacts.whole(path) as temporary:
        save_file(tensors, temporary, metadata={"step": str(step), "log": json.dumps(log)})


def load(path: Path, parameters: dict[str, Tensor]) -> tuple[int, list[Record], State]:
    """Put saved weights back; returns the steps done, the log and the optimizer's state.

    Raises ValueError where the file is damaged or of another training.
    """
    try:
        with safe_open(path, framework="pt") as file:
            about, tensors = file.metadata(), {key: file.get_tensor(key) for key in file.keys()}
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{path}: damaged checkpoint ({error}); delete it and the training starts again") from error
    held = {key.split(".", 1)[1]: tuple(value.shape) for key, value in tensors.items() if key.startswith("weight.")}
    if held != {name: tuple(parameter.shape) for name, parameter in parameters.items()}:
        raise ValueError(f"{path}: a checkpoint of another model or LoRA setting; delete it and the training starts again")
    state: State = {name: {} for name in parameters}
    for key, value in tensors.items():
        part, name = key.split(".", 1)
        if part == "weight":
            with torch.no_grad():  # not `.data`: what is made of a weight is made again where torch counts a change (`train.lean`)
                parameters[name].copy_(value)
        else:
            state[name][part] = value
    return int(about["step"]), json.loads(about["log"]), state
