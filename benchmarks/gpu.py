"""Embedding, judging and training with a model of Qwen2-VL-2B's size on a GPU: python benchmarks/gpu.py [rounds]

The weights are random (nothing can be fetched), in bfloat16; shapes, and so the work, are those of Qwen2-VL-2B.  The chip's own rate is
that of a product of two 8192 x 8192 matrices in the same run.  A share counts the products of the linear layers only (2 operations a
weight and token; 4 where a gradient passes through frozen weights), of tokens that are needed: no padding, no attention, nothing twice.
Reading and decoding images, tokenizing and copying are inside the times.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace

import judge as pairs
import material
import numpy as np
import polars as pl
import torch
from accelerate import Accelerator
from harness import Section, main
from torch import nn

from unime import artifacts, embed
from unime.backbones import Backbone, load
from unime.data.items import Items
from unime.judge import Question, score, shared_prefix
from unime.judge.transformers_backend import TransformersJudge
from unime.train.data import Batch, Shown
from unime.train.embedder import Mined
from unime.train.loop import prepared

TEXT = {
    "hidden_size": 1536,
    "intermediate_size": 8960,
    "num_hidden_layers": 28,
    "num_attention_heads": 12,
    "num_key_value_heads": 2,
    "vocab_size": 151936,
    "initializer_range": 0.02,
    "max_position_embeddings": 32768,
    "rms_norm_eps": 1e-6,
    "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [16, 24, 24]},
}
EYES = {"depth": 32, "embed_dim": 1280, "num_heads": 16, "mlp_ratio": 4, "hidden_size": 1536}
SIDE, TOKENS = 448, 1 << 15
"""Pixels of a picture's side (256 tokens, 1,024 patches), and tokens of a forward pass."""
LORA = SimpleNamespace(rank=16, alpha=64, dropout=0.1, dora=True, init="gaussian", targets="language")  # the public code's but for targets
QUERIES, NEGATIVES = 64, 8
WAYS = (("lean", False, 8), ("lean", True, 64), ("peft's", False, 4))
"""Layers, gradient checkpointing, and queries of a micro-batch."""


def quiet(iterable, total=None, label=""):
    return iterable


def seconds(work: Callable[[], object], rounds: int) -> float:
    """The median of `rounds`, after one that does not count."""
    times = []
    for _ in range(rounds + 1):
        torch.cuda.synchronize()
        start = time.perf_counter()
        work()
        torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
    return statistics.median(times[1:])


def rate(size: int = 8192, times: int = 20) -> float:
    """Operations a second of a bfloat16 matrix product."""
    one, two = (torch.randn(size, size, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    return 2 * size**3 / (seconds(lambda: [one @ two for _ in range(times)], 3) / times)


def weights(module: nn.Module) -> int:
    return sum(
        layer.weight.numel() for name, layer in module.named_modules() if isinstance(layer, nn.Linear | nn.Conv3d) and "lora" not in name
    )


class Costs:
    """Operations of the linear layers: of a token of the language model, and of a picture in the vision tower."""

    def __init__(self, backbone: Backbone) -> None:
        eyes, tokens = backbone.core.visual, (SIDE // 28) ** 2
        self.token = 2 * weights(backbone.core.language_model)
        self.picture = 2 * (4 * tokens * (weights(eyes) - weights(eyes.merger)) + tokens * weights(eyes.merger))


def embedding(backbone: Backbone, items: Items, ids: list[str], rounds: int) -> tuple[float, int]:
    """(seconds, tokens)."""

    def work() -> None:
        with tempfile.TemporaryDirectory() as scratch:
            embed.embed(ids, items, backbone, batch_tokens=TOKENS, shard=len(ids), scratch=Path(scratch) / "parts", track=quiet)

    return seconds(work, rounds), sum(backbone.length(backbone.item_prompt(items.peek(id))) for id in ids)


def judging(backbone: Backbone, items: Items, questions: Sequence[Question], rounds: int) -> tuple[float, float, int, float]:
    """(seconds, seconds of one pair a sequence in batches of 32, tokens after sharing, the largest difference of scores)."""
    kept: list[np.ndarray] = []

    def work() -> None:
        kept[:] = [np.concatenate(TransformersJudge(backbone, items, TOKENS).answers(questions))]

    judge, some = TransformersJudge(backbone, items, TOKENS), questions[:4]
    ours = seconds(work, rounds)
    count = sum(len(one.candidates) for one in some)
    theirs = seconds(lambda: pairs.plain(judge, some, 32), 1) / count * sum(len(one.candidates) for one in questions)
    tokens = 0
    for question in questions:
        sequences = judge.sequences(question)
        prefix = shared_prefix.common_prefix(sequences, backbone.image_token)
        tokens += prefix + sum(len(sequence.ids) - prefix for sequence in sequences)
    plain = pairs.plain(judge, some, 32)
    difference = np.abs(score(kept[0][:count, 0], kept[0][:count, 1], "exact") - score(plain[:, 0], plain[:, 1], "exact")).max()
    return ours, theirs, tokens, float(difference)


def mined(texts: list[str], pictures: list[str]) -> pl.DataFrame:
    """MINED of one batch: half of the queries are pictures, candidates are texts."""
    rows, scores, width = [], np.random.default_rng(1).uniform(0, 0.8, (QUERIES, NEGATIVES)).tolist(), 2 + NEGATIVES
    for number in range(QUERIES):
        query, positive, *negatives = texts[number * width : (number + 1) * width]
        query = pictures[number] if number % 2 else query
        ranks, reasons = list(range(NEGATIVES)), ["kept"] * NEGATIVES
        rows.append((f"pair{number}", "Set", query, positive, 0.9, negatives, scores[number], ranks, reasons))
    return pl.DataFrame(rows, schema=artifacts.MINED, orient="row")


def training(backbone: Backbone, items: Items, table: pl.DataFrame, micro: int, rounds: int) -> tuple[float, int]:
    """(seconds of a step without the optimizer's, tokens)."""
    settings = SimpleNamespace(tau=0.02, smoothing=0.0, negatives=NEGATIVES, batch=QUERIES, micro=micro)
    accelerator = Accelerator()
    backbone.model.train()

    def work() -> None:
        backbone.model.zero_grad()
        Mined(Shown(backbone, items), table, settings, accelerator, soft=True, budget=TOKENS)(Batch(0, 0, list(range(QUERIES))))

    ids = [id for q, p, n in table.select("query", "positive", "negatives").iter_rows() for id in (q, p, *n)]
    return seconds(work, rounds), sum(backbone.length(backbone.item_prompt(items.peek(id))) for id in ids)


def run(rounds: int) -> Section:
    if not torch.cuda.is_available():
        sys.exit("torch sees no GPU; this benchmark needs one")
    models = SimpleNamespace(dtype="bfloat16", device="cuda", attention="sdpa", max_length=8192)
    rng, top, rows = np.random.default_rng(0), rate(), []

    def row(what: str, taken: float, tokens: int, work: float, more: str) -> None:
        memory = torch.cuda.max_memory_allocated() / 2**30
        torch.cuda.reset_peak_memory_stats()
        rows.append([what, f"{tokens / taken:,.0f}", f"{work / taken / top:.1%}", more, f"{memory:.1f}"])
        print(rows[-1], file=sys.stderr, flush=True)  # what is done is shown at once

    with tempfile.TemporaryDirectory() as temporary:
        place = Path(temporary)
        folder = material.model(place / "model", TEXT, EYES, dtype=torch.bfloat16, device="cuda")
        items, texts, pictures = material.items(place / "items", material.words(rng, 4000, 10, 60), [SIDE] * 256)
        backbone = load(folder, models=models)
        costs = Costs(backbone)
        for said, ids in ((f"{len(texts):,} texts", texts), (f"{len(pictures)} pictures", pictures)):
            taken, tokens = embedding(backbone, items, ids, rounds)
            shown = len(ids) if ids is pictures else 0
            row(f"embed: {said}", taken, tokens, costs.token * tokens + costs.picture * shown, f"{len(ids) / taken:,.1f} items/s")
        questions = [Question(picture, tuple(texts[at] for at in rng.permutation(len(texts))[:50])) for picture in pictures[:64]]
        ours, theirs, tokens, difference = judging(backbone, items, questions, rounds)
        count = 50 * len(questions)
        more = f"{count / ours:,.0f} pairs/s; one pair a sequence: {count / theirs:,.0f}; scores differ by {difference:.3f} at most"
        row("judge: 64 pictures x 50 texts", ours, tokens, costs.token * tokens + costs.picture * len(questions), more)
        del backbone
        torch.cuda.empty_cache()
        table = mined(texts, pictures)
        for layers, twice, micro in WAYS:
            backbone = load(folder, models=models, train=True)
            backbone.add_lora(LORA, 0)
            if layers == "lean":
                prepared(backbone, SimpleNamespace(batch_tokens=TOKENS, gradient_checkpointing=twice), "ddp", Accelerator())
            taken, tokens = training(backbone, items, table, micro, rounds)
            work = 2 * costs.token * tokens + costs.picture * QUERIES // 2
            said = f"train: 64 x 10 items, {micro} queries a micro-batch, {layers} layers{', gradient checkpointing' if twice else ''}"
            row(said, taken, tokens, work, f"{QUERIES * (2 + NEGATIVES) / taken:,.1f} items/s")
            del backbone
            torch.cuda.empty_cache()
    text = (
        f"{torch.cuda.get_device_name()}, whose bfloat16 matrix product ran at {top / 1e12:.0f} TFLOP/s in the same run. Qwen2-VL-2B's "
        "shapes, random weights, bfloat16, sdpa; pictures of 256 tokens; LoRA with DoRA and dropout, as in the public code."
    )
    header = ["work", "tokens/s", "of the matrix rate", "", "GiB at most"]
    return Section("One GPU: Qwen2-VL-2B's size", text, header, rows, ["torch", "transformers", "peft"])


if __name__ == "__main__":
    main(run, 3)
