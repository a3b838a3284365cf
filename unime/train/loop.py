"""The training loop: seeded, resumable, the same for every loss.

1. A step's rows are a function of (seed, step), a micro-batch's dropout of (seed, step, its number): nothing random has to be saved.
2. Micro-batches are dealt to the processes, and the loss's own `accumulate` leaves the gradient of its share in the parameters.  So the
   batch is what the configuration says whatever the number of processes, and so is every micro-batch: only sums are in another order.
3. Gradients are summed over processes, once a step (`train.processes`).  Only adapters are trained, so this is a few megabytes; a
   wrapper around the model (DDP) would reduce after every backward pass, and twice an item under GradCache.
4. Clip, AdamW, next step.  Every `checkpoint` steps the state goes to the job's scratch folder, whole or not at all.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import torch
from accelerate import Accelerator

from unime.backbones import Backbone
from unime.lanes import GradientLanes, open_lanes
from unime.train import checkpoint, dense, lean, processes
from unime.train.data import Batch, Micro, batch_at, dealt, trained


class Accumulate(Protocol):
    """What a loss does with a batch."""

    def __call__(self, batch: Batch, lanes: GradientLanes = ...) -> tuple[float, int]:
        """Add its share of the batch's gradient; its share of the batch's loss, and how many items the whole batch holds."""

    def ahead(self, batch: Batch) -> None:
        """Begin to read what this process will need for a coming batch."""


def factor(step: int, steps: int, warmup: int, decay: str) -> float:
    """Share of the peak learning rate at a step (from 0): linear from 0 up to 1 over `warmup` steps, then linear or cosine down towards 0.

    The first of `warmup` steps has rate 0 and the peak comes after them, as in transformers' schedulers, which the public code uses.
    """
    if step < warmup:
        return step / warmup
    done = (step - warmup) / (steps - warmup)
    return 1 - done if decay == "linear" else 0.5 * (1 + math.cos(math.pi * done))


def accelerator_for(backbone: Backbone) -> Accelerator:
    """Processes and their devices.  Raises ValueError for float16: adapters' gradients would underflow."""
    if backbone.models.dtype == "float16":
        raise ValueError("models.dtype is float16, which cannot be trained in; use bfloat16 or float32")
    return Accelerator(cpu=backbone.device.type == "cpu", mixed_precision="no")


def prepared(backbone: Backbone, passes: Any, parallel: str, accelerator: Accelerator) -> tuple[int, Callable[[int], int]]:
    """Set the backbone's layers up for training as the config's section `train.passes` and train.parallel say.

    Returns the tokens of a forward pass, and the function that makes passes as many in each process (`processes.level`).

    Small float32 models on a CPU get `dense`, all others `lean`.  Where a layer is run twice (gradient checkpointing), dropout must draw
    what torch can draw again, so `dense` is left out.
    """
    if passes.gradient_checkpointing:
        backbone.checkpoint_layers()
    small = backbone.device.type == "cpu" and backbone.models.dtype == "float32"
    (dense if small and not passes.gradient_checkpointing else lean).use(backbone.model)
    processes.shard(backbone, parallel, accelerator)
    return passes.batch_tokens, lambda count: processes.level(count, parallel, accelerator)


def share(batch: Batch, micro: int, accelerator: Accelerator) -> list[Micro]:
    """This process's micro-batches.  Raises ValueError where they cannot be dealt out evenly."""
    return dealt(batch, micro, accelerator.process_index, accelerator.num_processes)


def fit(backbone: Backbone, settings: Any, rows: int, seed: int, job: Any, accelerator: Accelerator, accumulate: Accumulate) -> list:
    """Train the backbone's trainable parameters; returns the log, one record a step.

    `settings` is a config section of class Optimizer, `rows` the length of the training table.  AdamW without weight decay.  Raises
    ValueError where a gradient is not finite or the batch does not fit the table.
    """
    batch_at(0, rows, settings.batch, seed)
    parameters = trained(backbone.model)
    saved = Path(job.scratch) / "checkpoint.safetensors"
    job.log.info("%d steps of %d rows, of a table of %d", settings.steps, settings.batch, rows)
    done, log, state = checkpoint.load(saved, parameters) if saved.exists() else (0, [], None)
    processes.agreed(done, saved, accelerator)
    optimizer = processes.update(job.parallel, parameters, accelerator)
    if state:
        optimizer.restore(state)
        job.log.info("resumed after step %d of %d", done, settings.steps)
    side_by_side = 1 if job.parallel == "fsdp" and accelerator.num_processes > 1 else job.threads  # layers are gathered for one pass
    with _reproducible(backbone), open_lanes(backbone.model, side_by_side) as lanes:
        if done < settings.steps:
            accumulate.ahead(batch_at(done, rows, settings.batch, seed))
        for step in job.track(range(done, settings.steps), settings.steps - done, "train"):
            if step + 1 < settings.steps:
                accumulate.ahead(batch_at(step + 1, rows, settings.batch, seed))
            loss, items = accumulate(batch_at(step, rows, settings.batch, seed), lanes)
            loss, lr = processes.total(loss, accelerator), settings.lr * factor(step, settings.steps, settings.warmup, settings.decay)
            norm = optimizer.step(lr)
            if not math.isfinite(norm) or not math.isfinite(loss):
                raise ValueError(f"step {step}: loss {loss}, gradient norm {norm}; lower lr ({settings.lr}) or use a wider models.dtype")
            seen = items + (log[-1]["items"] if log else 0)
            log.append({"step": step + 1, "loss": loss, "lr": lr, "grad_norm": norm, "items": seen})
            if (step + 1) % settings.checkpoint == 0:
                state = optimizer.state()
                if accelerator.is_main_process:
                    checkpoint.save(saved, parameters, state, step + 1, log)
    optimizer.close()
    accelerator.wait_for_everyone()
    return log


@contextmanager
def _reproducible(backbone: Backbone) -> Iterator[None]:
    """Training mode, deterministic kernels where there are any; all as before afterwards."""
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    fill = torch.utils.deterministic.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = False  # a guard against reading it; costs time
    backbone.model.train()
    try:
        with torch.random.fork_rng(devices=[backbone.device] if backbone.device.type == "cuda" else []):
            yield
    finally:
        backbone.model.eval()
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])
        torch.utils.deterministic.fill_uninitialized_memory = fill
