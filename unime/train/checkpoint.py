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


def save(path: Path, parameters: dict[str, Tensor], optimizer: torch.optim.Optimizer, step: int, log: list[Record]) -> None:
    """Write the state after `step` steps in place of an earlier one."""
    tensors = {f"weight.{name}": parameter.detach().cpu().contiguous() for name, parameter in parameters.items()}
    for name, parameter in parameters.items():
        for part, value in optimizer.state[parameter].items():
            tensors[f"{part}.{name}"] = value.detach().cpu().contiguous()
    with artifacts.whole(path) as temporary:
        save_file(tensors, temporary, metadata={"step": str(step), "log": json.dumps(log)})


def load(path: Path, parameters: dict[str, Tensor], optimizer: torch.optim.Optimizer) -> tuple[int, list[Record]]:
    """Put a saved state back; returns the steps done and the log.

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
    for key, value in tensors.items():
        part, name = key.split(".", 1)
        parameter = parameters[name]
        if part == "weight":
            with torch.no_grad():  # not `.data`: what is made of a weight is made again where torch counts a change (`train.lean`)
                parameter.copy_(value)
        else:
            optimizer.state[parameter][part] = value if part == "step" else value.to(parameter)
    return int(about["step"]), json.loads(about["log"])
