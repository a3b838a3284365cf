"""Every distinct item to one unit vector, once.

Items are cut into shards by id; inside a shard they are sorted by length and batched under a token budget, texts and images apart
(a padded image batch would run its texts through image-sized padding).  Vectors come back in sorted id order.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch

from unime import artifacts, shards
from unime.backbones import Backbone
from unime.data.items import Items
from unime.job import Part


def embed(
    ids: Iterable[str],
    items: Items,
    backbone: Backbone | Callable[[], Backbone],
    *,
    batch_tokens: int,
    shard: int,
    scratch: Path,
    track: Any,
    dtype: str = "float32",
    part: Part | None = None,
) -> tuple[list[str], np.ndarray]:
    """The distinct ids, sorted (N), and their vectors (N, D) of `dtype` (float32 or float16), rows of length 1 (paper, section 3.1).

    Finished shards are kept in `scratch`; `track(iterable, total, label)` shows progress.  A `backbone` that is a function is called if
    a shard is missing.  Raises ValueError naming an item whose prompt is too long or whose vector is not finite, and PartMade after a
    `part`.
    """
    distinct, opened = sorted(set(ids)), (lambda: backbone) if isinstance(backbone, Backbone) else functools.cache(backbone)
    parts = shards.run(
        shards.cut(distinct, shard),
        scratch,
        "embed",
        make=lambda some: (list(some), _vectors(list(some), items, opened(), batch_tokens).astype(dtype)),
        write=_write,
        read=artifacts.read_vectors,
        track=track,
        part=part,
    )
    if not parts:
        raise ValueError("no items to embed; the data stage gave an empty table")
    found = [id for part, _ in parts for id in part]
    if found != distinct:
        raise artifacts.ArtifactError(f"{scratch}: its shards hold other items than asked for; delete the folder and run the stage again")
    return found, np.concatenate([vectors for _, vectors in parts])


def _vectors(ids: list[str], items: Items, backbone: Backbone, batch_tokens: int) -> np.ndarray:
    """(len(ids), D) float32 in the order of `ids`."""
    plan: list[list[str]] = []
    tokens = _tokens(ids, items, backbone)
    for wanted in (False, True):
        some = [id for id in ids if items.has_image(id) == wanted]
        lengths = [tokens[id][1] for id in some]
        plan += [[some[position] for position in batch] for batch in shards.batches(lengths, batch_tokens)]

    @torch.inference_mode()
    def work(batch: list[str]) -> np.ndarray:
        prepared = backbone.collate([_encoded(id, items, backbone, tokens[id][0]) for id in batch])
        with lanes.turn:
            return backbone.embed(prepared).cpu().numpy()

    rows: dict[str, np.ndarray] = {}
    with Lanes(backbone.device) as lanes:
        for batch, vectors in zip(plan, shards.spread(plan, work, lanes.count), strict=True):
            if not np.isfinite(vectors).all():
                bad = batch[int((~np.isfinite(vectors).all(axis=1)).argmax())]
                raise ValueError(f"the vector of item {bad} is not finite; check the model's weights, or set models.dtype to float32")
            rows.update(zip(batch, vectors, strict=True))
    return np.stack([rows[id] for id in ids])


PREPARING = 4
"""Threads that prepare batches for a GPU, at most."""


class Lanes:
    """How many batches run side by side: as many as torch has threads, each on one thread of its own.

    Small batches on a CPU lose more to threads waiting for each other inside an operation than they gain, and other processes on
    the same cores make it worse by a factor of ten; whole batches side by side need no waiting, and no result depends on the number
    of threads.  On a GPU the lanes read and prepare images and `turn` lets one batch at a time compute; more than a few of them would
    keep the one that computes from Python.
    """

    def __init__(self, device: torch.device):
        self._before = torch.get_num_threads()
        self.count = self._before if device.type == "cpu" else min(self._before, PREPARING)
        self.turn: AbstractContextManager[object] = nullcontext() if device.type == "cpu" else threading.Lock()

    def __enter__(self) -> Lanes:
        torch.set_num_threads(1)
        return self

    def __exit__(self, *_: object) -> None:
        torch.set_num_threads(self._before)


def _tokens(ids: list[str], items: Items, backbone: Backbone) -> dict[str, tuple[np.ndarray, int]]:
    """Per item its text's tokens, all made in one call, and its length with images; no pixel is computed."""
    prompts = []
    for id in ids:
        try:
            prompts.append(backbone.item_prompt(items.peek(id)))
        except ValueError as error:
            raise ValueError(f"item {id}: {error}") from error
    found = backbone.tokens([prompt.text for prompt in prompts])
    return {id: (own, backbone.length(prompt, own)) for id, prompt, own in zip(ids, prompts, found, strict=True)}


def _encoded(id: str, items: Items, backbone: Backbone, tokens: np.ndarray) -> Any:
    try:
        return backbone.encode(backbone.item_prompt(items[id]), tokens)
    except ValueError as error:
        raise ValueError(f"item {id}: {error}") from error


def _write(part: tuple[list[str], np.ndarray], place: Path) -> None:
    with artifacts.whole(place) as temporary:
        temporary.mkdir()
        artifacts.write_vectors(temporary, *part)
