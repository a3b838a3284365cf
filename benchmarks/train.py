"""An embedder's step on the soft-label loss against GradCache: python benchmarks/train.py [rounds]

16 queries with ten items each (query, positive, eight negatives): half of the queries are pictures of 64 tokens; candidates are texts,
and half of their places hold one that stands somewhere else in the batch too.  The peer is GradCache as it is usually run for this loss:
all items in chunks of two, embedded without a graph, the loss's gradient for each embedding, every chunk embedded again and sent
backward; a picture goes through the vision tower in both passes.  Same weights, LoRA, threads, float32; the gradients are compared
first.  Ours holds the graphs of a micro-batch at a time: 16 queries share their equal candidates, one query needs the least memory.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import material
import numpy as np
import polars as pl
from harness import Section, child, main, peak, ratio, turns

from unime import artifacts

QUERIES, NEGATIVES, CHUNK = 16, 8, 2
LORA = SimpleNamespace(rank=16, alpha=64, dropout=0.0, dora=True, init="gaussian", targets="language")
WAYS = {"dense, 16": ("dense", QUERIES), "lean, 16": ("lean", QUERIES), "lean, 1": ("lean", 1)}
"""Ours: LoRA layers (`dense` is what a small float32 model gets on a CPU), and queries of a micro-batch."""


def batch(folder: Path) -> tuple:
    """Items, and MINED of one batch."""
    rng = np.random.default_rng(0)
    texts = material.words(rng, QUERIES // 2 + QUERIES * (1 + NEGATIVES) * 3 // 4, 3, 40)
    items, written, pictures = material.items(folder, texts, [224] * (QUERIES // 2))
    asked, pool = [*pictures, *written[: QUERIES // 2]], written[QUERIES // 2 :]
    # Three quarters as many texts as places: a third of them stands twice, which makes half of all places.
    places = rng.permutation([*pool, *pool[: QUERIES * (1 + NEGATIVES) - len(pool)]]).reshape(QUERIES, 1 + NEGATIVES).tolist()
    rows = []
    for number, (query, (positive, *negatives)) in enumerate(zip(asked, places, strict=True)):
        scores = rng.uniform(0, 0.8, NEGATIVES).tolist()
        rows.append((f"pair{number}", "Set", query, positive, 0.9, negatives, scores, list(range(NEGATIVES)), ["kept"] * NEGATIVES))
    return items, pl.DataFrame(rows, schema=artifacts.MINED, orient="row")


def step(which: str, folder: Path, place: Path) -> tuple[Callable[[], float], list]:
    """(a step that leaves its gradient, the parameters)."""
    import torch
    from accelerate import Accelerator

    from unime.backbones import load
    from unime.lanes import open_lanes
    from unime.train import dense, gradcache, lean, losses
    from unime.train.data import Batch, Shown, trained
    from unime.train.embedder import Mined

    layers, micro = WAYS.get(which, ("peft", QUERIES))
    settings = SimpleNamespace(tau=0.02, smoothing=0.0, negatives=NEGATIVES, batch=QUERIES, micro=micro)
    backbone = load(folder, models=material.MODELS, train=True)
    backbone.add_lora(LORA, 0)
    generator = torch.Generator().manual_seed(1)
    parameters = trained(backbone.model)
    with torch.no_grad():
        for parameter in parameters.values():  # away from LoRA's zero start, where half of all gradients are zero
            parameter += 0.02 * torch.randn(parameter.shape, generator=generator)
    items, table = batch(place)
    backbone.model.train()

    def ours() -> float:
        backbone.model.zero_grad()
        accumulate = Mined(Shown(backbone, items), table, settings, Accelerator(cpu=True), soft=True)  # nothing seen before
        with open_lanes(backbone.model, torch.get_num_threads()) as lanes:
            return accumulate(Batch(0, 0, list(range(QUERIES))), lanes)[0]

    def peer() -> float:
        backbone.model.zero_grad()
        rows = [[q, p, *n] for q, p, n in table.select("query", "positive", "negatives").iter_rows()]
        flat = [id for row in rows for id in row]
        scores = torch.tensor([[sigma, *some] for sigma, some in table.select("sigma", "scores").iter_rows()], dtype=torch.float64)

        def embed(chunk: list[str]) -> torch.Tensor:
            return backbone.embed(backbone.collate([backbone.item_prompt(items[id]) for id in chunk]))

        def loss(embeddings: torch.Tensor) -> torch.Tensor:
            chosen = embeddings.view(QUERIES, 2 + NEGATIVES, -1)
            cosines = torch.einsum("bd,bkd->bk", chosen[:, 0], chosen[:, 1:])
            return losses.soft_label_loss(cosines, scores, settings.tau).mean()

        return float(gradcache.backward(embed, [flat[at : at + CHUNK] for at in range(0, len(flat), CHUNK)], loss))

    if which in WAYS:
        {"dense": dense, "lean": lean}[layers].use(backbone.model)
    return ours if which in WAYS else peer, list(parameters.values())


def alone(which: str, folder: str) -> dict:
    """The peak of memory of a process that takes two steps in this way."""
    with tempfile.TemporaryDirectory() as temporary:
        work, _ = step(which, Path(folder), Path(temporary) / "items")
        before = peak()
        work(), work()
    return {"peak": peak(), "before": before}


def run(rounds: int) -> Section:
    import torch

    with tempfile.TemporaryDirectory() as temporary:
        place = Path(temporary)
        folder = material.model(place / "model")
        ways, gradients, values = {}, {}, {}
        for which in (*WAYS, "peer"):
            work, parameters = step(which, folder, place / which)
            values[which] = work()
            gradients[which] = torch.cat([parameter.grad.flatten() for parameter in parameters])
            ways[which] = work
        difference = max(float((gradients[which] - gradients["peer"]).norm() / gradients["peer"].norm()) for which in WAYS)
        if not difference < 1e-5 or max(values.values()) - min(values.values()) > 1e-5:
            sys.exit(f"gradients differ by {difference}, losses {values}; nothing to compare")
        times = turns(ways, rounds)
        memory = {which: child(__file__, "alone", f'"{which}"', f'"{folder}"') for which in ways}
    count, rows = QUERIES * (2 + NEGATIVES), []
    one_pass = "one pass an item, {} layers, micro-batches of {} queries, equal items of one once"
    said_of = {which: one_pass.format(*way) for which, way in WAYS.items()} | {"peer": f"GradCache, chunks of {CHUNK}, peft's layers"}
    for which, said in said_of.items():
        middle = sorted(times[which])[rounds // 2]
        rows.append([said, ratio(times["peer"], times[which]), f"{count / middle:.1f}", f"{memory[which]['peak']:.2f}"])
    text = (
        f"{QUERIES} queries x {2 + NEGATIVES} items, half of the candidates stand twice; gradients differ by {difference:.1e} (norm of the "
        "difference by the norm); float32 on the CPU."
    )
    return Section(
        "Embedder: a step on soft labels", text, ["way", "speed, median (min to max)", "items/s", "GiB at most"], rows, ["torch"]
    )


if __name__ == "__main__":
    main(run, 2, alone=alone)
