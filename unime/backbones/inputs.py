"""What goes into a backbone: prompts as text and images, prompts as arrays, images as pixels or features."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from PIL import Image
from torch import Tensor

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
    """`text` holds one image placeholder per image; an image is a PIL image or a `Picture`."""

    text: str
    images: tuple[Image.Image | Picture, ...] = ()


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
