"""Search a data set with a trained embedder: `python -m unime search MODEL DATA --query TEXT [--image FILE]`."""

from __future__ import annotations

import argparse
import hashlib
from pathlib import Path
from typing import Any

import numpy as np

from unime import prompts


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "model", type=Path, help="a trained embedder: merged weights (results/export/unime_v2) or an adapter (results/train/in_batch)"
    )
    parser.add_argument("data", type=Path, help="folder of a data stage, e.g. results/data/train/<set>: its candidates are searched")
    parser.add_argument("--query", default="", help="text of the query, with its instruction if the model was trained with one")
    parser.add_argument("--image", type=Path, help="image of the query")
    parser.add_argument("--top", type=int, default=5, help="how many candidates are shown (default: 5)")


def run(given: argparse.Namespace, values: Any) -> str:
    """The best candidates as a text table.  `values` is the configuration: `models`, `embed`, `evaluate.image_size`, `data`.

    Vectors of the candidates stay in scratch/search and are used again for the same model and data.  Raises ValueError where there is
    neither text nor image, the folder has no candidates, or the model is no embedder.
    """
    from unime.backbones import load
    from unime.data import images, own
    from unime.data.images import Decoding
    from unime.data.items import Content, Items
    from unime.embed import embed
    from unime.evaluate.metrics import similarities

    if not given.query.strip() and given.image is None:
        raise ValueError("nothing to search for: give --query TEXT, --image FILE, or both")
    if given.top < 1:
        raise ValueError(f"--top {given.top}: 1 or more candidates can be shown")
    if given.image is not None and not given.image.is_file():
        raise ValueError(f"--image {given.image}: no such file")
    decoding = Decoding.of(values.data)
    items, wanted = Items.open(given.data, decoding), candidates(given.data)
    folder, adapter = opened(given.model)
    backbone = load(folder, adapter=adapter, models=values.models, image_size=values.evaluate.image_size)
    image = None if given.image is None else images.decode(given.image.read_bytes(), decoding, str(given.image.parent), given.image.name)
    text, _ = own.marked(given.query, given.image and given.image.name)
    asked = backbone.embed(backbone.collate([backbone.item_prompt(Content(text, image))])).detach().cpu().numpy()
    ids, vectors = embed(
        wanted,
        items,
        backbone,
        batch_tokens=values.embed.batch_tokens,
        shard=values.embed.shard,
        scratch=Path("scratch/search") / key([given.model, folder], wanted, values),
        track=_bar,
    )
    scores = similarities(asked, vectors, np.arange(len(ids))[None, :])[0]
    best = np.argsort(-scores, kind="stable")[: given.top]
    return table([(float(scores[at]), items.text(ids[at]), "/".join(filter(None, items.image_place(ids[at])))) for at in best])


def opened(model: Path) -> tuple[Path, Path | None]:
    """Folder of the MLLM and folder of the adapter (None for merged weights) that a trained embedder's folder stands for.

    Raises ValueError for a reranker, which has no vectors, and for an adapter whose MLLM is not there.
    """
    from unime.backbones.files import is_there, read_json
    from unime.train import card

    if card.kind_of(model) == "reranker":
        raise ValueError(f"{model}: a reranker reads a query with its candidates and gives no vectors; name an embedder, e.g. unime_v2")
    if not is_there(model, "adapter_config.json"):
        return model, None
    base = read_json(model, "adapter_config.json").get("base_model_name_or_path")
    if not isinstance(base, str) or not Path(base).is_dir():
        raise ValueError(
            f"{model}: an adapter for {base!r}, and there is no such folder here; run this where it is, or search with merged weights "
            "(results/export/<name>; `export` in config.yaml says which are made)"
        )
    return Path(base), model


def candidates(folder: Path) -> list[str]:
    """Ids of a data folder's distinct candidates: of a training set, of a task, or of a caption benchmark."""
    import polars as pl

    from unime import artifacts

    if (folder / "pairs.parquet").exists():
        found = artifacts.read_table(folder / "pairs.parquet", artifacts.PAIRS)["positive"]
    elif (folder / "pool.parquet").exists():
        found = artifacts.read_table(folder / "pool.parquet", artifacts.POOL)["id"]
    else:
        found = artifacts.read_table(folder / "queries.parquet", artifacts.TASKS)["candidates"].explode()
    if not len(found):
        raise ValueError(f"{folder}: no candidates; name a folder below results/data/train or results/data/eval")
    return found.unique().sort().cast(pl.String).to_list()


def key(folders: list[Path], wanted: list[str], values: Any) -> str:
    """Names the vectors of these candidates by the folders of a model (their files' sizes and times) at this image size."""
    files = []
    for folder in folders:
        there = [file for file in sorted(folder.iterdir()) if file.is_file()]
        files.append((str(folder.resolve()), [(file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in there]))
    settings = values.models.dtype, values.models.device, values.evaluate.image_size, values.embed.shard, values.embed.batch_tokens
    return hashlib.sha256(repr((files, settings, wanted)).encode()).hexdigest()[:16]


def table(rows: list[tuple[float, str, str]]) -> str:
    """Rank, cosine, text (one line) and image of each candidate."""
    lines = ["rank  cosine  candidate"]
    for rank, (score, text, image) in enumerate(rows, start=1):
        shown = " ".join(text.replace(prompts.IMAGE_MARK, "").split())
        lines.append(f"{rank:>4}  {score:6.4f}  " + "  ".join(filter(None, (shown if len(shown) <= 100 else shown[:97] + "...", image))))
    return "\n".join(lines)


def _bar(iterable: Any, total: int | None = None, label: str = "") -> Any:
    import sys

    if not sys.stderr.isatty():
        return iterable
    from rich.console import Console
    from rich.progress import track

    return track(iterable, label, total=total, console=Console(stderr=True), transient=True)
