"""The nano MLLM's model card: how it was made and what it can do, with every figure that the probe measured."""

from __future__ import annotations

from typing import Any

from unime.config import Pretrain

_HEAD = """---
license: mit
library_name: transformers
pipeline_tag: image-text-to-text
---
# Nano MLLM of the embedded suite

Qwen2-VL's own classes at a small size ({parameters:,} parameters), trained from scratch on generated scenes of
coloured shapes. It exists to run the whole UniME-V2 pipeline on a CPU in minutes: as base of the embedders, as judge
and as base of the reranker. It knows nothing else.

## How it was made
{steps:,} AdamW steps of {groups} groups, peak learning rate {lr}, seed {seed}, {minutes} minutes on {threads} CPU thread(s),
float32. Lessons: what a crop shows, descriptions and questions, the judge's Yes / No prompt (wrong candidates mostly one
attribute away), the number of the best candidate in a list. Then {refining_steps:,} steps of a second part, peak learning rate
{refining_lr}, of which the minutes are part: judging in degrees (candidates that meet a query in part, with the share of Yes that hasty
raters would give), short lists, and items told from their last token alone. Training scenes only: six (colour, shape) pairs and a fifth
of the other scenes were never shown. Made by `nano.retrain: true` and `snakemake models/nano-mllm`.

## What it can do
On scenes of the held-back fifth. AUC of the judge's score: the true caption against the same caption with one attribute changed.

| attribute | 1 thing | 2 things | 3 things |
|---|---|---|---|
"""


def text(model: Any, settings: Pretrain, figures: dict[str, Any]) -> str:
    """The card in Markdown."""
    parameters = sum(p.numel() for p in model.parameters())
    values = settings.model_dump()
    head = _HEAD.format(parameters=parameters, minutes=figures["minutes"], threads=figures["threads"], **values)
    rows = [
        f"| {name} | " + " | ".join(f"{share[count]:.3f}" for count in ("1", "2", "3")) + " |" for name, share in figures["auc"].items()
    ]
    vqa = [f"| {name} | {share:.3f} |" for name, share in figures["vqa"].items()]
    mean = f"| mean | {figures['vqa_mean']:.3f} |"
    lengths = [key for key in next(iter(figures["kinds"].values())) if key != "auc"]
    kinds = [
        f"| Nano{name} | {one['auc']:.3f} | " + " | ".join(f"{one[key]:.2f}" for key in lengths) + " |"
        for name, one in figures["kinds"].items()
    ]
    lines = [*rows, "", "Questions answered by exactly the right words, greedily:", "", "| question | share |", "|---|---|", *vqa, mean, ""]
    about = "By kind of the suite: AUC of the positive against a near miss, and the share of lists of so many candidates read rightly:"
    lines += [about, ""]
    lines += [f"| kind | AUC | {' | '.join(lengths)} |", "|---|---|" + "---|" * len(lengths), *kinds, ""]
    return head + "\n".join(lines)
