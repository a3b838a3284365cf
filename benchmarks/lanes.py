"""Passes side by side against threads inside operations, on one pretraining step of the nano MLLM: python benchmarks/lanes.py [rounds]

Three ways take turns on the same batches, after the first round has shown that they give the same gradient: one thread; two threads
an operation; two lanes of one thread.  Prints the median over rounds of each way's speed relative to one thread.
"""

from __future__ import annotations

import functools
import statistics
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # a checkout without installation

import torch  # noqa: E402

from unime import config  # noqa: E402
from unime.lanes import GradientLanes  # noqa: E402
from unime.nano import model as nano_model  # noqa: E402
from unime.nano import pretrain  # noqa: E402

WAYS = {"one thread": (1, 1), "two threads an operation": (1, 2), "two lanes": (2, 1)}
"""Lanes, and threads of each."""


def main(rounds: int) -> None:
    settings = config.load(Path(__file__).resolve().parents[1] / "config.yaml").nano.pretrain
    model, tokenizer = nano_model.create(settings.seed)
    parameters = list(model.parameters())
    times: dict[str, list[float]] = {name: [] for name in WAYS}
    gradients: dict[str, torch.Tensor] = {}
    for step in range(rounds + 1):
        parts = pretrain.parts_of(settings.steps // 2 + step, settings, tokenizer)
        loss = functools.partial(pretrain.loss_of, model, total=sum(part["weights"].sum() for part in parts))
        for name, (lanes, threads) in WAYS.items():
            torch.set_num_threads(threads)
            model.zero_grad()
            start = time.perf_counter()
            GradientLanes(lanes).accumulate(loss, parts, parameters)
            times[name].append(time.perf_counter() - start)
            if not step:
                gradients[name] = torch.cat([parameter.grad.flatten() for parameter in parameters])
        if not step:
            first = gradients["one thread"]
            for name, other in gradients.items():
                if not torch.allclose(other, first, rtol=1e-3, atol=1e-5 * float(first.abs().max())):
                    raise SystemExit(f"{name}: another gradient than on one thread; nothing to compare")
            times = {name: [] for name in times}
    print(f"{rounds} rounds, torch {torch.__version__}: speed relative to one thread, median (min to max)")
    for name, found in times.items():
        ratios = [one / other for one, other in zip(times["one thread"], found, strict=True)]
        seconds = statistics.median(found)
        print(f"{name:26} {statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f}), {seconds:.3f} s a step")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 15)
