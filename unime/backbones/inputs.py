"""What goes into a backbone: prompts as text and images, prompts as arrays, images as pixels or features."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from unime.data.images import Outline

Answer = str | Sequence[int]
"""The assistant's turn behind a prompt: its text, to which the end of the turn is added, or all of its tokens."""


class Picture(NamedTuple):
    """One image as the model takes it: how many `tokens` it becomes, `shape` (1, k) int64 (k numbers that the family needs about it), and
    `pixels` (P, ...) float32, patches or tiles, or, where the vision tower has seen it already, `features` (tokens, D)."""

    tokens: int
    shape: Tensor
    pixels: Tensor | None = None
    features: Tensor | None = None


class Prompt(NamedTuple):
    """`text` holds one image placeholder per image, and special tokens that users' texts spell are marked in it (`unime.backbones.texts`);
    an image is a PIL image, a `Picture`, or, where only tokens are counted, an `Outline`."""

    text: str
    images: tuple[Image.Image | Outline | Picture, ...] = ()


class Encoded(NamedTuple):
    """One prompt as arrays: `ids` (L,) int64 with image placeholders repeated per visual token, and its pictures in order."""

    ids: np.ndarray
    pictures: tuple[Picture, ...] = ()


def together(pictures: Sequence[Picture], tokens: int) -> list[list[Picture]]:
    """Consecutive pictures of at most so many tokens together; a larger one goes alone."""
    found: list[list[Picture]] = []
    for picture in pictures:
        if found and sum(one.tokens for one in found[-1]) + picture.tokens <= tokens:
            found[-1].append(picture)
        else:
            found.append([picture])
    return found


def part(piece: Any) -> dict[str, str]:
    """A piece of a turn as chat templates take it."""
    return {"type": "text", "text": piece} if isinstance(piece, str) else {"type": "image"}


def stripped(pieces: Sequence[Any]) -> list[Any]:
    """An item's parts as a user turn: texts without white space around them, empty ones left out.

    One text stays where all are empty, because the public code writes a turn's text even where there is none.
    """
    bare = [piece.strip() if isinstance(piece, str) else piece for piece in pieces]
    kept = [piece for piece in bare if piece != ""]
    has_text = any(isinstance(piece, str) for piece in kept)
    return kept if has_text else [*kept, ""]


def laid_out(
    encoded: Sequence[Encoded], tails: Sequence[Sequence[int]], pad: int, ignored: int, side: str
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(ids, mask, labels), each (B, L) int64: prompts and the answers behind them, padded on `side` (left or right) with `pad`.

    The mask is 1 where there is a token; labels are the answer's tokens, and `ignored` elsewhere.
    """
    width = max(len(prompt.ids) + len(tail) for prompt, tail in zip(encoded, tails, strict=True))
    ids = np.full((len(encoded), width), pad, dtype=np.int64)
    mask, labels = np.zeros_like(ids), np.full_like(ids, ignored)
    for row, (prompt, tail) in enumerate(zip(encoded, tails, strict=True)):
        size = len(prompt.ids) + len(tail)
        start = width - size if side == "left" else 0
        middle, stop = start + len(prompt.ids), start + size
        ids[row, start:middle] = prompt.ids
        ids[row, middle:stop] = tail
        labels[row, middle:stop] = tail
        mask[row, start:stop] = 1
    return ids, mask, labels


def shown(pictures: Sequence[Picture]) -> dict[str, Tensor]:
    """A batch's `image_features` (V, D) where all pictures have theirs, or its `pixel_values` (P, ...) where none has.

    Raises ValueError where some have.
    """
    seen = [picture.features for picture in pictures if picture.features is not None]
    if len(seen) == len(pictures):
        return {"image_features": torch.cat(seen)}
    if not seen:
        return {"pixel_values": torch.cat([picture.pixels for picture in pictures])}
    raise ValueError(f"some pictures of a batch ({len(seen)} of {len(pictures)}) have been seen; see all of them, or none")
