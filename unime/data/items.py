"""Items by content id: the text at once, the image when it is asked for."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import polars as pl
from PIL import Image

from unime import artifacts, prompts
from unime.data import images
from unime.data.images import Decoding, Outline


@dataclass(frozen=True)
class Content:
    """What an item shows a model; at least one of the two is there."""

    text: str
    image: Image.Image | Outline | None

    @property
    def parts(self) -> list:
        """The item as a chat's parts: the image where its mark stands, nothing for a mark without an image."""
        return prompts.parts(self.text, self.image)


class Items:
    """A table ITEMS by id: `items[id]` decodes, `text`, `has_image` and `peek` do not.  Safe in forked workers."""

    def __init__(self, table: pl.DataFrame, decoding: Decoding, source: str = "items"):
        artifacts.check(table, artifacts.ITEMS, source)
        self.ids: list[str] = table["id"].to_list()
        self.decoding = decoding
        self.white = False
        self._texts, self._archives, self._members = (table[name].to_list() for name in ("text", "archive", "member"))
        self._row = {id: row for row, id in enumerate(self.ids)}
        self._source = source
        if len(self._row) != len(self.ids):
            twice = table.filter(pl.col("id").is_duplicated())["id"][0]
            raise artifacts.ArtifactError(f"{source}: item id {twice} is there twice; delete the file and run the data stage again")

    @classmethod
    def open(cls, folder: str | Path, decoding: Decoding) -> Items:
        """The items of a data stage's folder.  Raises ArtifactError."""
        path = Path(folder) / "items.parquet"
        return cls(artifacts.read_table(path, artifacts.ITEMS), decoding, str(path))

    @classmethod
    def of_sets(cls, folder: str | Path, names: Sequence[str], decoding: Decoding) -> Items:
        """The items of some data sets, each in its own folder; one that several sets have is there once.  Raises ArtifactError."""
        table = artifacts.read_tables(folder, names, "items.parquet", artifacts.ITEMS)
        return cls(table.unique("id", keep="first", maintain_order=True).sort("id"), decoding, str(folder))

    def on_white(self) -> Items:
        """The same items, whose transparent images stand on white: what the reranker sees, in training and in evaluation.

        The public code does so for its reranker alone (Embedding/src/vlm_backbone/qwen2_5_vl_Rerank/LamRA_qwen2_5_vision_process.py).
        """
        items = copy.copy(self)
        items.white = True
        return items

    def __len__(self) -> int:
        return len(self.ids)

    def __contains__(self, id: str) -> bool:
        return id in self._row

    def __getitem__(self, id: str) -> Content:
        """Raises BadImage where the image is no longer what the data stage saw, KeyError for an unknown id."""
        row = self._at(id)
        if not self._members[row]:
            return Content(self._texts[row], None)
        image = images.open_image(self._archives[row], self._members[row], self.decoding, self.white)
        return Content(self._texts[row], image)

    def peek(self, id: str) -> Content:
        """As `items[id]`, with the outline of its image: enough to count tokens, much cheaper."""
        row = self._at(id)
        if not self._members[row]:
            return Content(self._texts[row], None)
        return Content(self._texts[row], images.peek(self._archives[row], self._members[row], self.decoding))

    def text(self, id: str) -> str:
        return self._texts[self._at(id)]

    def has_image(self, id: str) -> bool:
        return bool(self._members[self._at(id)])

    def image_place(self, id: str) -> tuple[str, str]:
        """(archive, member) of an item's image, a key for caches; ('', '') where it has none."""
        row = self._at(id)
        return self._archives[row], self._members[row]

    def _at(self, id: str) -> int:
        try:
            return self._row[id]
        except KeyError:
            raise KeyError(f"{self._source}: no item {id}; the tables are of different runs") from None
