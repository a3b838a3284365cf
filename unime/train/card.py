"""What a training run leaves: the adapter in peft's own files, the log, and a model card.  No date, no machine: runs can be compared."""

from __future__ import annotations

import csv
import json
import shutil
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import polars as pl

from unime import caution
from unime.backbones import Backbone
from unime.config.training import Optimizer
from unime.markdown import escaped

COLUMNS = ("step", "loss", "lr", "grad_norm", "items")
ABOUT = {
    "in_batch": "Embedder trained with in-batch negatives (InfoNCE, VLM2Vec's recipe).",
    "hard_negatives": "Embedder trained on mined hard negatives with a one-hot target.",
    "unime_v2": "UniME-V2 embedder: mined hard negatives, the judge's scores as soft target (equation 4 of the paper).",
    "reranker": "UniME-V2 reranker: pairwise and listwise answers of a chat model.",
}


def write(
    out: str | Path, backbone: Backbone, kind: str, log: list[dict[str, float]], view: Any, table: pl.DataFrame, notes: dict[str, str]
) -> None:
    """Fill the folder `out` (created): adapter_model.safetensors, adapter_config.json, log.csv, README.md.  `table`: PAIRS or MINED."""
    out = Path(out)
    out.mkdir(parents=True, exist_ok=True)
    backbone.model.save_pretrained(str(out), safe_serialization=True, save_embedding_layers=False)
    with (out / "log.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(log)
    about = text(kind, log, view, table["dataset"].to_list(), notes, str(backbone.folder), warnings(log, table))
    (out / "README.md").write_text(about, encoding="utf-8")
    for file in out.glob("*.safetensors"):  # written for their owner alone: others may read them as they may the card
        shutil.copymode(out / "README.md", file)


def notes(settings: Optimizer, rows: int) -> dict[str, str]:
    """What a card says of settings that depend on the number of training rows; nothing of settings that are plain numbers."""
    if not settings.follows_rows:
        return {}
    found = settings.resolved(rows)
    return {"queries in a step": f"{found.batch} (batch: {settings.batch}; steps: {settings.steps})"}


def warnings(log: list[dict[str, float]], table: pl.DataFrame) -> list[str]:
    """Signs that this training means nothing, by its log and its table (PAIRS or MINED)."""
    return [*caution.of_mined(table), *caution.of_losses([record["loss"] for record in log])]


def text(
    kind: str,
    log: list[dict[str, float]],
    view: Any,
    datasets: list[str],
    notes: dict[str, str],
    base: str,
    warned: Sequence[str] = (),
) -> str:
    """The model card's Markdown; `warned` are its warnings."""
    facts = {
        "base model": escaped(base) if set(base) & set("`|") else f"`{base}`",
        "training rows": str(len(datasets)),
        "steps": str(log[-1]["step"]),
        "items seen": str(log[-1]["items"]),
        "final loss": f"{final_loss(log):.6g} (mean of the last {min(10, len(log))} steps)",
        "seed": str(view.seed),
        **notes,
    }
    table = "\n".join(f"| {name} | {value} |" for name, value in facts.items())
    counts = "\n".join(f"| {name} | {count} |" for name, count in sorted(Counter(datasets).items()))
    settings = json.dumps(view.dump(), indent=2, ensure_ascii=False)
    return (
        f"---\nlibrary_name: peft\nbase_model: {json.dumps(base)}\n---\n\n# {kind}\n\n{ABOUT[kind]}\n\n"
        f"{caution.section(warned)}| what | value |\n|---|---|\n{table}\n\n## Data\n\n| data set | rows |\n|---|---|\n{counts}\n\n"
        f"## Configuration\n\n```json\n{settings}\n```\n\n`log.csv` holds every step's loss, learning rate and gradient norm.\n"
    )


def exported(
    name: str,
    adapter_card: str,
    metrics: Mapping[str, Mapping[str, float]],
    commit: str,
    usage: str | None = None,
    warned: Sequence[str] = (),
) -> str:
    """The card of merged weights: the adapter's card under another heading, with the run's scores, how to use it, and the code's commit.

    `metrics` is metrics.json (model key -> mean -> percent), `usage` Markdown without a heading, `warned` the warnings of
    the whole run; those that stand in the adapter's card already are not repeated.
    """
    body = adapter_card.split("---\n", 2)[2].lstrip()
    base = next((row for row in adapter_card.splitlines() if row.startswith("base_model:")), "")
    rows = [(model, means) for model, means in metrics.items() if model == name or name == "reranker" and model.endswith("_reranker")]
    scores = "\n".join(f"| {mean} | {value:.2f} |" for _, means in rows for mean, value in means.items())
    about = "Percent, means of this run's tables: Precision@1; short and long captions Recall@1; compositional accuracy."
    found = f"## Scores\n\n{about}\n\n| mean | value |\n|---|---:|\n{scores}\n" if scores else ""
    found += f"\n## Use\n\n{usage}\n" if usage else ""
    others = [one for one in warned if f"- {one}\n" not in adapter_card]
    of_run = caution.section(others).replace("## Warnings", "## Warnings of the run")
    found += f"\n{of_run.rstrip()}\n" if of_run else ""
    return (
        f"---\nlibrary_name: transformers\n{base}\n---\n\n{body.rstrip()}\n\n{found}\n## Weights\n\nThe adapter is merged into the base "
        f"model: `from_pretrained` of this folder needs no adapter.  Made by commit `{commit}` of the pipeline.\n"
    )


def kind_of(folder: str | Path) -> str | None:
    """What the card of an adapter or of merged weights says that they are, e.g. `unime_v2`; None where no card of this project is."""
    file = Path(folder) / "README.md"
    if not file.is_file():
        return None
    for row in file.read_text(encoding="utf-8", errors="replace").splitlines():
        if row.startswith("# "):
            name = row.removeprefix("# ").strip()
            return name if name in ABOUT else None
    return None


def line(log: list[dict[str, float]], table: pl.DataFrame) -> str:
    """One line about a finished run, and its warnings below it."""
    summary = f"{log[-1]['step']} steps, {log[-1]['items']} items, loss {log[0]['loss']:.4f} -> {final_loss(log):.4f}"
    return caution.said(summary, warnings(log, table))


def final_loss(log: list[dict[str, float]]) -> float:
    last = [record["loss"] for record in log[-10:]]
    return sum(last) / len(last)
