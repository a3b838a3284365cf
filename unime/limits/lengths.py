"""How many tokens a model reads of items and of prompts, and which images its processor refuses; no weights, and no pixel is decoded.

A prompt's length is the sum of its parts: the frame (chat template and instruction, with the stand-in item "a" everywhere), and what each
item adds in the stand-in's place.  Adding is exact because tokenizers cut a text into words first and no word reaches over an item.
Items are measured in prompts only where a quick bound, from all texts tokenized in batches, does not show that every prompt fits.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from PIL import Image

from unime import prompts
from unime.backbones import Backbone, Picture, Prompt
from unime.data.items import Content, Items

STAND_IN = Content("a", None)

JOINT = 16
"""Tokens that an item may add to a prompt beyond those of its text and of its image alone: marks around the image, words cut otherwise."""

BATCH = 4096
"""Texts that are tokenized at a time."""

THIN, SMALL = 50, 32
"""Images of this aspect ratio and above, or with a side below so many pixels, are shown to the image processor to see whether it takes
them: of all others only the size is needed."""

Turn = Callable[[Sequence[object], Sequence[Sequence[object]]], list[object]]
"""A user's turn from a query's parts and those of its candidates."""


class ImageSizes:
    """Width and height of items' images in pixels, each image's header read once for all readers."""

    def __init__(self, items: Items) -> None:
        self._items = items
        self._known: dict[tuple[str, str], tuple[int, int]] = {}

    def of(self, id: str) -> tuple[int, int]:
        """(width, height) of the item's image.  Only for an item that has one."""
        place = self._items.image_place(id)
        if place not in self._known:
            image = self._items.peek(id).image
            assert image is not None
            self._known[place] = image.size
        return self._known[place]


class TextLengths:
    """Tokens of items' texts by one model's tokenizer, each text tokenized once for all readers that use this model."""

    def __init__(self, backbone: Backbone, items: Items) -> None:
        self._backbone, self._items = backbone, items
        self._known: dict[str, int] = {}

    def of(self, ids: Sequence[str]) -> list[int]:
        """Tokens of each item's text without image marks."""
        new = [id for id in dict.fromkeys(ids) if id not in self._known]
        for start in range(0, len(new), BATCH):
            some = new[start : start + BATCH]
            texts = [self._items.text(id).replace(prompts.IMAGE_MARK, "") for id in some]
            found = self._backbone.tokens([self._backbone.texts.literal(text) for text in texts])
            self._known.update(zip(some, map(len, found), strict=True))
        return [self._known[id] for id in ids]


@dataclass
class Reader:
    """A model and one way in which a stage has it read items.

    `name` says in words who reads, `image_size` is the setting that shrinks its images.  `turn` makes the prompt of a query with
    candidates; None: each item is read alone.  `remedy` is what else would help where a prompt is too long.
    """

    name: str
    backbone: Backbone
    items: Items
    texts: TextLengths
    sizes: ImageSizes
    image_size: str
    turn: Turn | None = None
    remedy: str = ""
    _pictures: dict[tuple[int, int], Picture | str] = field(default_factory=dict)
    _frames: dict[int, int] = field(default_factory=dict)

    @property
    def max_length(self) -> int:
        """models.max_length: the most tokens that a prompt may have."""
        return int(self.backbone.models.max_length)

    # Images

    def image_tokens(self, id: str) -> int:
        """Tokens of the item's image, 0 without one."""
        found = self.picture(id)
        return found.tokens if isinstance(found, Picture) else 0

    def picture(self, id: str) -> Picture | str | None:
        """The item's image as a number of tokens, or why the model's image processor refuses it; None where it has none."""
        if not self.items.has_image(id):
            return None
        side = self.backbone.image_size
        size = (side, side) if side else self.sizes.of(id)
        if size not in self._pictures:
            self._pictures[size] = self._measured(size)
        return self._pictures[size]

    def _measured(self, size: tuple[int, int]) -> Picture | str:
        width, height = size
        unusual = min(size) < SMALL or max(size) >= THIN * min(size)
        try:
            tokens = self.backbone.length(Prompt(self.backbone.IMAGE_TOKEN, (Image.new("L", size),)))
            if unusual:
                self.backbone.look(Image.new("RGB", size))
        except (ValueError, ArithmeticError, RuntimeError) as error:
            return f"its image of {width}x{height} pixels cannot be read by {self.name} ({error})"
        return Picture(tokens, torch.empty(1, 0), features=torch.empty(tokens, 0))

    # Lengths

    def content(self, id: str) -> Content:
        """The item with its image as a number of tokens.  Only for items without an `image_problem`."""
        picture = self.picture(id)
        assert not isinstance(picture, str)
        return Content(self.items.text(id), picture)  # type: ignore[arg-type]

    def alone(self, id: str) -> int:
        """Tokens of the embedder's input for one item.  Raises ValueError for a text that the model cannot be given."""
        return self.backbone.length(self.backbone.item_prompt(self.content(id)))

    @property
    def template(self) -> int:
        """Tokens of the embedder's input for the stand-in."""
        return self.backbone.length(self.backbone.item_prompt(STAND_IN))

    def frame(self, candidates: int) -> int:
        """Tokens of a prompt that shows so many stand-ins to a stand-in."""
        if candidates not in self._frames:
            self._frames[candidates] = self._prompt(STAND_IN, [STAND_IN] * candidates)
        return self._frames[candidates]

    def as_query(self, id: str) -> int:
        """Tokens that the item adds as a prompt's query."""
        return self._prompt(self.content(id), [STAND_IN]) - self.frame(1)

    def as_candidate(self, id: str, last: bool = True) -> int:
        """Tokens that the item adds as a prompt's last candidate, or as one that another follows."""
        content = self.content(id)
        shown = [content] if last else [content, STAND_IN]
        return self._prompt(STAND_IN, shown) - self.frame(len(shown))

    def _prompt(self, query: Content, candidates: Sequence[Content]) -> int:
        assert self.turn is not None
        turn = self.turn(query.parts, [one.parts for one in candidates])
        return self.backbone.length(self.backbone.chat_prompt(turn))  # type: ignore[arg-type]

    # A quick bound

    def upper_bounds(self, ids: Sequence[str]) -> np.ndarray:
        """(n,) int64: the most tokens that each item can add to a prompt."""
        found = [text + self.image_tokens(id) + JOINT for id, text in zip(ids, self.texts.of(ids), strict=True)]
        return np.array(found, dtype=np.int64)

    def advice(self, ids: Sequence[str]) -> str:
        """What can be done about a prompt of these items that is too long."""
        ways = ["raise models.max_length"]
        if self.remedy:
            ways.append(self.remedy)
        texts = sum(self.texts.of(ids))
        images = sum(self.image_tokens(id) for id in ids)
        if images:
            ways.append(f"set {self.image_size} ({self.backbone.image_size} now) to fewer pixels")
        if texts > images:
            ways.append("shorten the text")
        return f"{', '.join(ways[:-1])} or {ways[-1]}"


def image_problem(readers: Sequence[Reader], id: str) -> str | None:
    """Why an image processor of these readers refuses the item's image, with the remedy; None where all take it or there is none."""
    found = {reader.image_size: reader.picture(id) for reader in readers}
    refused = {setting: said for setting, said in found.items() if isinstance(said, str)}
    if not refused:
        return None
    return (
        f"{next(iter(refused.values()))}; cut or enlarge it, or set {', '.join(refused)}, which make every image a square of that many "
        "pixels a side"
    )
