"""What several processes of a training do together: cut frozen weights over them, sum gradients, step.

`Replicated` (train.parallel: ddp, fsdp): every process holds all adapters, their gradients are summed, and each takes the same step.
`fsdp` cuts the frozen weights too: a decoder layer's are gathered when it runs and dropped after (`shard`).
`Zero2` (deepspeed): DeepSpeed's ZeRO stage 2 keeps the optimizer's state and the gradients' sums in slices, one a process.

The loop gives both the same gradient, that of its own micro-batches, and both leave the same weights, up to rounding.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Protocol

import torch
from accelerate import Accelerator
from torch import Tensor, nn

CLIP = 1.0
"""Largest norm of the gradient."""


class Update(Protocol):
    """One optimizer step out of the gradients that lie in the parameters of each process."""

    def step(self, lr: float) -> float:
        """Sum, clip, step, and clear the gradients; returns the norm of the sum before clipping."""

    def state(self) -> dict[str, dict[str, Tensor]]:
        """AdamW's moments and step counts by parameter's name.  All processes call it."""

    def restore(self, state: dict[str, dict[str, Tensor]]) -> None:
        """Put back what `state` gave, in a run of any number of processes; the weights were put back before this was made."""

    def close(self) -> None:
        """After the last step: leave parameters that can be saved."""


def update(parallel: str, parameters: dict[str, nn.Parameter], accelerator: Accelerator) -> Update:
    """Of config key train.parallel; one process alone has nothing to cut."""
    if parallel == "deepspeed" and accelerator.num_processes > 1:
        return Zero2(parameters, accelerator)
    return Replicated(parameters, accelerator)


def shard(backbone: Any, parallel: str, accelerator: Accelerator) -> None:
    """Cut the frozen weights of each decoder layer over the processes, where train.parallel is fsdp."""
    if parallel != "fsdp" or accelerator.num_processes == 1:
        return
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard, share_comm_ctx

    mesh = init_device_mesh(accelerator.device.type, (accelerator.num_processes,))
    kept = {parameter for parameter in backbone.model.parameters() if parameter.requires_grad}
    for layer in backbone.layers():
        fully_shard(layer, mesh=mesh, reshard_after_forward=True, ignored_params=kept)  # each is a root, which would stay whole
    share_comm_ctx(list(backbone.layers()))  # and would have streams, and memory for them, of its own


def level(count: int, parallel: str, accelerator: Accelerator) -> int:
    """How many passes each process has to run, of which `count` are its own: where weights are cut, all gather them as often."""
    if parallel != "fsdp" or accelerator.num_processes == 1:
        return count
    return int(accelerator.gather(torch.tensor([count], device=accelerator.device)).max())


def agreed(done: int, saved: Path, accelerator: Accelerator) -> None:
    """Raises RuntimeError where the processes would go on from different steps: a shared file system may show a checkpoint late."""
    if accelerator.num_processes == 1:
        return
    found = accelerator.gather(torch.tensor([done], device=accelerator.device)).tolist()
    if len(set(found)) > 1:
        raise RuntimeError(f"{saved}: the processes see checkpoints of different steps, {found}; run it again")


def total(share: float, accelerator: Accelerator) -> float:
    """The sum of a number over processes."""
    if accelerator.num_processes == 1:
        return share
    return float(accelerator.reduce(torch.tensor(share, device=accelerator.device, dtype=torch.float64), reduction="sum"))


class Replicated:
    """AdamW without weight decay, the same in every process."""

    def __init__(self, parameters: dict[str, nn.Parameter], accelerator: Accelerator) -> None:
        self.parameters, self.accelerator = parameters, accelerator
        self.optimizer = torch.optim.AdamW(parameters.values(), weight_decay=0.0)

    def step(self, lr: float) -> float:
        for parameter in self.parameters.values():
            parameter.grad = _gradient(parameter)
            if self.accelerator.num_processes > 1:
                parameter.grad = self.accelerator.reduce(parameter.grad, reduction="sum")
        norm = float(torch.nn.utils.clip_grad_norm_(self.parameters.values(), CLIP))
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        self.optimizer.step()
        self.optimizer.zero_grad()
        return norm

    def state(self) -> dict[str, dict[str, Tensor]]:
        return {name: dict(self.optimizer.state[parameter]) for name, parameter in self.parameters.items()}

    def restore(self, state: dict[str, dict[str, Tensor]]) -> None:
        for name, parameter in self.parameters.items():
            for part, value in state[name].items():
                self.optimizer.state[parameter][part] = value if part == "step" else value.to(parameter)

    def close(self) -> None:
        pass


class Zero2:
    """DeepSpeed's ZeRO stage 2 over the adapters.

    DeepSpeed reduces gradients as they appear in a backward pass.  Ours come out of many passes, some of them on threads of their own, so
    they are handed over once a step: the sum of weight times gradient has just that gradient, and its backward pass costs nothing.
    """

    def __init__(self, parameters: dict[str, nn.Parameter], accelerator: Accelerator) -> None:
        import deepspeed

        self.parameters, self.processes = parameters, accelerator.num_processes
        settings = {
            "train_micro_batch_size_per_gpu": 1,  # of what is handed over, not of the training
            "gradient_accumulation_steps": 1,
            "gradient_clipping": CLIP,
            "zero_optimization": {"stage": 2, "overlap_comm": False, "contiguous_gradients": False},
            "zero_allow_untested_optimizer": True,
        }
        optimizer = torch.optim.AdamW(parameters.values(), weight_decay=0.0)
        holder = nn.ParameterList(parameters.values())
        self.engine, *_ = deepspeed.initialize(model=holder, optimizer=optimizer, config=settings, dist_init_required=False)
        self.steps = 0

    def _count(self, steps: int) -> None:
        """Say how many steps were done, as AdamW's correction of its moments wants to know."""
        self.steps = steps
        for state in self.engine.optimizer.optimizer.state.values():
            state["step"] = torch.full_like(torch.as_tensor(state["step"], dtype=torch.float32), steps)

    def step(self, lr: float) -> float:
        gradients = {name: _gradient(parameter) for name, parameter in self.parameters.items()}
        for parameter in self.parameters.values():
            parameter.grad = None
        # DeepSpeed takes the mean over processes where a sum is meant
        handed = sum((parameter * gradients[name]).sum() for name, parameter in self.parameters.items()) * self.processes
        self.engine.backward(handed)
        for group in self.engine.optimizer.param_groups:
            group["lr"] = lr
        self.engine.step()
        self.steps += 1
        return float(self.engine.get_global_grad_norm())

    def state(self) -> dict[str, dict[str, Tensor]]:
        from deepspeed.utils import safe_get_full_optimizer_state

        steps = torch.tensor(float(self.steps))
        moments = {
            name: {part: safe_get_full_optimizer_state(parameter, part) for part in ("exp_avg", "exp_avg_sq")}
            for name, parameter in self.parameters.items()
        }
        return {name: {"step": steps, **both} for name, both in moments.items()}

    def restore(self, state: dict[str, dict[str, Tensor]]) -> None:
        from deepspeed.utils import safe_set_full_optimizer_state

        self.step(0.0)  # moves nothing; the first step makes the moments, and there is nothing to set before it
        for name, parameter in self.parameters.items():
            for part in ("exp_avg", "exp_avg_sq"):
                safe_set_full_optimizer_state(parameter, state[name][part].to(parameter), part)
        self._count(int(state[name]["step"]))

    def close(self) -> None:
        for parameter in self.parameters.values():
            parameter.data = parameter.data.clone()  # it is a slice of one tensor of all
        self.engine.destroy()


def _gradient(parameter: nn.Parameter) -> Tensor:
    return torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
