"""The nano MLLM from scratch: AdamW on packed lessons, resumable to the byte, then a probe of what it can do.

Step i draws its groups from the random state (seed, i), so a step depends on no earlier one but through the weights, and a run that
was killed goes on from its last checkpoint to the very same weights.

A step's groups are dealt into PARTS, which `lanes` runs side by side while the next step's groups are drawn.
"""

from __future__ import annotations

import functools
import json
import math
import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file

from unime import prompts
from unime.artifacts import whole
from unime.config import Pretrain
from unime.lanes import open_lanes
from unime.nano import card, packing, plan, probe, refining
from unime.nano import model as nano_model

CONSTANT = {"first": 4 / 5, "second": 1 / 3}
"""Share of each part of training that keeps the peak learning rate; the rest goes down to zero."""


def learning_rate(step: int, settings: Pretrain) -> float:
    """Of each of the two parts: linear warm-up, constant, then a cosine down to zero."""
    if step < settings.steps:
        return _rate(step, settings.steps, settings.lr, settings.warmup, CONSTANT["first"])
    return _rate(step - settings.steps, settings.refining_steps, settings.refining_lr, settings.warmup, CONSTANT["second"])


def _rate(step: int, steps: int, peak: float, warmup: int, constant: float) -> float:
    if step < warmup:
        return peak * (step + 1) / warmup
    late = max(0.0, (step / steps - constant) / (1 - constant))
    return peak * 0.5 * (1 + math.cos(math.pi * late))


Batch = dict[str, torch.Tensor]

PARTS = 2
"""Parts of a step; as many cores can work on it."""


def loss_of(model: Any, batch: Batch, total: torch.Tensor, no: int) -> torch.Tensor:
    """Cross entropy of the tokens that a lesson asks for, times their weights, over the step's `total` weight; a float32 scalar."""
    hidden = packing.hidden(model, batch)
    asked = batch["weights"] + batch["against"] > 0
    logits = model.lm_head(hidden[asked])
    losses = torch.nn.functional.cross_entropy(logits, batch["targets"][asked], reduction="none")
    against = torch.nn.functional.cross_entropy(logits, torch.full_like(batch["targets"][asked], no), reduction="none")
    return (losses * batch["weights"][asked] + against * batch["against"][asked]).sum() / total


def parts_of(step: int, settings: Pretrain, tokenizer: Any, parts: int = PARTS) -> list[Batch]:
    """The groups of one step as up to `parts` packed batches of about as many tokens each."""
    rng = np.random.default_rng((settings.seed, step))
    if step < settings.steps:
        groups = [plan.lesson(rng, step / settings.steps) for _ in range(settings.groups)]
    else:
        groups = [refining.lesson(rng) for _ in range(settings.groups)]
    dealt: list[list[packing.Encoded]] = [[] for _ in range(parts)]
    for group in sorted(packing.encode(groups, tokenizer), key=lambda g: -len(g.tokens)):
        min(dealt, key=lambda part: sum(len(g.tokens) for g in part)).append(group)
    pad, image = (tokenizer.convert_tokens_to_ids(token) for token in (nano_model.PAD, nano_model.IMAGE))
    return [packing.pack(part, pad, image) for part in dealt if part]


def run(out: Path, settings: Pretrain, job: Any) -> dict[str, Any]:
    """Train, probe and write the whole model folder with its model card to `out`.  Returns the probe's figures and the minutes taken."""
    start = time.monotonic()
    model, tokenizer = train(settings, job.scratch, job.track, job.log)
    minutes = (time.monotonic() - start) / 60
    figures = {**probe.probe(model, tokenizer), "minutes": round(minutes, 1), "threads": torch.get_num_threads()}
    nano_model.write(out, model, tokenizer)
    (out / "README.md").write_text(card.text(model, settings, figures), encoding="utf-8")
    return figures


def train(settings: Pretrain, scratch: Path, track: Any = None, log: Any = None) -> tuple[Any, Any]:
    """Train from random weights, or go on from the checkpoint in `scratch`.  Returns model (float32, eval mode) and tokenizer."""
    model, tokenizer = nano_model.create(settings.seed)
    names = [name for name, _ in model.named_parameters()]
    optimizer = torch.optim.AdamW(model.parameters(), lr=settings.lr, betas=(0.9, 0.98), weight_decay=0.01)
    start = _resume(scratch, names, model, optimizer)
    model.train()
    last, no = settings.steps + settings.refining_steps, tokenizer.convert_tokens_to_ids(prompts.NO)
    steps: Iterable[int] = range(start, last)
    parameters = list(model.parameters())
    with open_lanes(model, min(torch.get_num_threads(), PARTS)) as lanes, ThreadPoolExecutor(1) as ahead:
        coming = ahead.submit(parts_of, start, settings, tokenizer)
        for step in track(steps, last - start, "nano MLLM") if track else steps:
            if step == settings.steps:
                optimizer.state.clear()  # the second part has a peak rate and lessons of its own
            parts = coming.result()
            coming = ahead.submit(parts_of, step + 1, settings, tokenizer)
            total = sum(part["weights"].sum() + part["against"].sum() for part in parts)
            loss = lanes.accumulate(functools.partial(loss_of, model, total=total, no=no), parts, parameters)
            torch.nn.utils.clip_grad_norm_(parameters, 1.0)
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(step, settings)
            optimizer.step()
            optimizer.zero_grad()
            if log and step % 50 == 0:
                log.info("step %d of %d: loss %.4f", step, last, loss)
            if (step + 1) % settings.checkpoint == 0 and step + 1 < last:
                _save(scratch, step + 1, names, model, optimizer)
    return model.eval(), tokenizer


def _save(scratch: Path, step: int, names: list[str], model: Any, optimizer: torch.optim.AdamW) -> None:
    """Weights and both moments in one safetensors file; the step is in its metadata, so the file is the whole checkpoint."""
    tensors = {}
    for name, parameter in zip(names, optimizer.param_groups[0]["params"], strict=True):
        state = optimizer.state[parameter]
        tensors[f"weight.{name}"] = parameter.detach()
        tensors[f"first.{name}"], tensors[f"second.{name}"] = state["exp_avg"], state["exp_avg_sq"]
    scratch.mkdir(parents=True, exist_ok=True)
    with whole(scratch / "checkpoint.safetensors") as temporary:
        save_file(tensors, temporary, metadata={"step": str(step)})


def _resume(scratch: Path, names: list[str], model: Any, optimizer: torch.optim.AdamW) -> int:
    path = scratch / "checkpoint.safetensors"
    if not path.exists():
        return 0
    tensors = load_file(path)
    with path.open("rb") as file:
        header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
    step = int(header["__metadata__"]["step"])
    for name, parameter in zip(names, optimizer.param_groups[0]["params"], strict=True):
        parameter.data.copy_(tensors[f"weight.{name}"])
        optimizer.state[parameter] = {
            "step": torch.tensor(float(step)),
            "exp_avg": tensors[f"first.{name}"].clone(),
            "exp_avg_sq": tensors[f"second.{name}"].clone(),
        }
    return step
